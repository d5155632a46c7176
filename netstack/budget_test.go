package netstack

import (
	"io"
	"testing"
	"testing/synctest"
	"time"
)

func TestBudgetShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget()
		flows := make([]*Conn, 200)
		for i := range flows {
			flows[i] = &Conn{}
		}
		want := func(what string, share int64) {
			t.Helper()
			if got := b.share.Load(); got != share {
				t.Errorf("%s: a share of %d bytes, want %d", what, got, share)
			}
		}
		want("no flow", shareMax)
		b.moved(flows[0])
		want("one flow", shareMax)
		for _, c := range flows[:8] {
			b.moved(c)
		}
		want("eight flows", budgetBytes/8)
		for _, c := range flows {
			b.moved(c)
		}
		want("200 flows", shareMin)
		for _, c := range flows[16:] {
			b.gone(c)
		}
		want("16 flows", budgetBytes/16)
		time.Sleep(busyLife + time.Second)
		b.moved(flows[0])
		want("one flow and 15 that are quiet", shareMax)
		flows[1].closed.Store(true)
		b.moved(flows[1]) // its last read came after it was closed
		b.moved(flows[2])
		want("two flows and one that has ended", budgetBytes/2)
	})
}

// TestBudgetHolds lowers the share of a flow whose buffers have grown.
func TestBudgetHolds(t *testing.T) {
	a, b := pair(t)
	c := dialTo(t, a, listen(t, b, 443, echo))
	defer c.Close()
	o := c.ep.SocketOptions()
	o.SetSendBufferSize(shareMax, false)
	o.SetReceiveBufferSize(shareMax, false)
	a.eng.budget.share.Store(shareMin)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if send, receive := o.GetSendBufferSize(), o.GetReceiveBufferSize(); send != shareMin || receive != shareMin {
		t.Errorf("buffers of %d and %d bytes, want a share of %d each", send, receive, shareMin)
	}
}
