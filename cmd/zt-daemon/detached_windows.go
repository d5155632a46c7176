package main

import (
	"syscall"

	"golang.org/x/sys/windows"
)

// detached starts a child without our console: Ctrl-C does not reach it.
func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.DETACHED_PROCESS | windows.CREATE_NEW_PROCESS_GROUP}
}
