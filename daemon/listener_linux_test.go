package daemon

import (
	"io"
	"os"
	"testing"
)

// The real guard, on the real listener.
func TestListenerRefusesAnotherUser(t *testing.T) {
	u := newUpstream(t)
	l, addr, _ := runListener(t, ListenerConfig{Guard: NewGuard(os.Geteuid()).Check, Dial: u.dial})
	c := dialLoopback(t, addr)
	far := receive(t, u.conns, "our own connection")
	far.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("our own connection: %v", err)
	}
	far.Close()
	if out, err := asNobody(t, "tcp4", addr).CombinedOutput(); err != nil {
		t.Errorf("child: %v\n%s", err, out)
	}
	eventually(t, "the refusal is counted", func() bool { return l.Stats().Refused[string(GuardOtherUser)] == 1 })
}
