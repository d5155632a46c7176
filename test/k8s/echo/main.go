// Command echo runs in a pod: on port 9000 it says again what it hears, to the
// end; on port 9001 it counts to 20000 and closes.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
)

func main() {
	go serve(":9001", func(c *net.TCPConn) {
		for i := range 20000 {
			if _, err := fmt.Fprintln(c, i+1); err != nil {
				return
			}
		}
	})
	serve(":9000", func(c *net.TCPConn) {
		if _, err := io.Copy(c, c); err == nil {
			_ = c.CloseWrite() // whoever closed first may be gone
		}
	})
}

func serve(address string, answer func(*net.TCPConn)) {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer c.Close()
			answer(c.(*net.TCPConn))
		}()
	}
}
