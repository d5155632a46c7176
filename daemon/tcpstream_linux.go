package daemon

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A tcpStream is one direction of a kernel's connection, made of raw system calls
// (see offloadSocket): a call that the Go scheduler is told of wakes the thread that
// watches over the others, most often for one small message, and that thread then
// competes with the next process on the message's way. One goroutine uses it.
type tcpStream struct {
	raw   syscall.RawConn
	b     []byte
	n     int
	errno unix.Errno
	once  func(fd uintptr) bool
}

// tcpReader reads c, whatever is the best way to; tcpWriter writes it.
func tcpReader(c net.Conn) io.Reader {
	if s := newTCPStream(c, unix.SYS_RECVFROM, unix.MSG_DONTWAIT); s != nil {
		return readStream{s}
	}
	return c
}

func tcpWriter(c net.Conn) io.Writer {
	if s := newTCPStream(c, unix.SYS_SENDTO, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); s != nil {
		return writeStream{s}
	}
	return c
}

// newTCPStream returns nil if c is no kernel's connection.
func newTCPStream(c net.Conn, trap, flags uintptr) *tcpStream {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	s := &tcpStream{raw: raw}
	s.once = func(fd uintptr) bool {
		for {
			n, _, errno := unix.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(s.b))), uintptr(len(s.b)), flags, 0, 0)
			if errno == unix.EINTR {
				continue
			}
			s.n, s.errno = int(n), errno
			return errno != unix.EAGAIN
		}
	}
	return s
}

type readStream struct{ *tcpStream }

// Read implements io.Reader.
func (s readStream) Read(b []byte) (int, error) {
	s.b = b
	err := s.raw.Read(s.once)
	s.b = nil
	switch {
	case err != nil:
		return 0, err
	case s.errno != 0:
		return 0, os.NewSyscallError("recvfrom", s.errno)
	case s.n == 0 && len(b) > 0:
		return 0, io.EOF
	}
	return s.n, nil
}

type writeStream struct{ *tcpStream }

// Write implements io.Writer.
func (s writeStream) Write(b []byte) (n int, err error) {
	for n < len(b) {
		s.b = b[n:]
		err = s.raw.Write(s.once)
		s.b = nil
		if err == nil && s.errno != 0 {
			err = os.NewSyscallError("sendto", s.errno)
		}
		if err != nil {
			return n, err
		}
		n += s.n
	}
	return n, nil
}
