package main

import (
	"os"
	"slices"
	"testing"
)

func TestProgramMappings(t *testing.T) {
	const smaps = `00400000-00bbc000 r-xp 00000000 fe:00 1 /usr/bin/zt-daemon
Rss:                7600 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me 
00bbc000-014e2000 r--p 007bc000 fe:00 1 /usr/bin/zt-daemon
Anonymous:             0 kB
014e2000-0154c000 rw-p 010e2000 fe:00 1 /usr/bin/zt-daemon
Anonymous:           424 kB
00c00000-00d00000 r-xp 00000000 fe:00 1 /usr/bin/zt-daemon
Anonymous:             4 kB
7f0000000000-7f0000001000 rw-p 00000000 00:00 0 
Anonymous:             4 kB
7f0000002000-7f0000003000 r-xp 00000000 fe:00 2 /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000004000-7f0000005000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
`
	want := []mapping{{0x400000, 0xbbc000}, {0xbbc000, 0x14e2000}}
	if got := programMappings([]byte(smaps), "/usr/bin/zt-daemon"); !slices.Equal(got, want) {
		t.Errorf("mappings %x, want %x", got, want)
	}
}

// TestReleaseProgram shows that a program lives on without its code and constants in memory.
func TestReleaseProgram(t *testing.T) {
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if len(programMappings(smaps, exe)) == 0 {
		t.Fatalf("no code of %s is mapped:\n%s", exe, smaps)
	}
	for range 3 {
		releaseProgram()
	}
}
