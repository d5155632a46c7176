package main

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// releaseProgram takes the pages of the program's own file, its code and constants,
// out of its memory: most were mapped while it started, with the 64 KiB around
// each, and are not needed again. They stay in the page cache; those in use come
// back at a minor fault. Only what may not be written is touched, and only if no
// page of it was (as a debugger or a loader does): a page dropped is read from the
// file again.
func releaseProgram() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	for _, m := range programMappings(smaps, exe) {
		// Raw: the system call of x/sys takes a []byte, which none of these are.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

type mapping struct{ start, end uintptr }

// programMappings finds, in the text of /proc/PID/smaps, what is mapped of the file
// exe to be executed or read, and was not written to.
func programMappings(smaps []byte, exe string) []mapping {
	var found []mapping
	candidate := false
	for line := range bytes.Lines(smaps) {
		f := bytes.Fields(line)
		switch {
		case len(f) == 6 && (string(f[1]) == "r-xp" || string(f[1]) == "r--p") && string(f[5]) == exe:
			from, to, _ := bytes.Cut(f[0], []byte("-"))
			start, err1 := strconv.ParseUint(string(from), 16, 64)
			end, err2 := strconv.ParseUint(string(to), 16, 64)
			candidate = err1 == nil && err2 == nil && start < end
			if candidate {
				found = append(found, mapping{uintptr(start), uintptr(end)})
			}
		case len(f) > 0 && !bytes.HasSuffix(f[0], []byte(":")): // another mapping
			candidate = false
		case candidate && len(f) > 1 && string(f[0]) == "Anonymous:" && string(f[1]) != "0":
			found = found[:len(found)-1]
			candidate = false
		}
	}
	return found
}
