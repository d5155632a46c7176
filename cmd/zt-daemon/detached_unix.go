//go:build unix

package main

import "syscall"

// detached puts a child into a session of its own, without our terminal: Ctrl-C
// and the end of the terminal do not reach it.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
