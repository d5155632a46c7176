package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Capture holds every packet that a device of a namespace sent or received.
type Capture struct {
	fd      *os.File
	done    chan struct{}
	mu      sync.Mutex // guards packets, err
	packets []Packet
	err     error
}

// Packet is one captured IPv4 packet of UDP or TCP, or another frame.
type Packet struct {
	Time     time.Time
	Protocol Protocol
	From, To netip.AddrPort // zero for OtherProtocol
	Seq      uint32         // TCP
	SYN      bool           // TCP
	// Payload is what UDP or TCP carry; the whole frame of another protocol.
	// The kernel may hand over several UDP datagrams as one: Segment then is
	// the size of all but the last, and 0 otherwise.
	Payload []byte
	Segment int
	// Frame is the whole of it, Ethernet header included.
	Frame []byte
}

// Protocol is what a Packet carries.
type Protocol uint8

// Protocols that a Capture takes apart, by their IP numbers.
const (
	OtherProtocol Protocol = 0
	TCP           Protocol = unix.IPPROTO_TCP
	UDP           Protocol = unix.IPPROTO_UDP
)

const (
	vnetHeaderBytes = 10 // struct virtio_net_hdr, native byte order
	etherBytes      = 14
	captureBuffer   = 64 << 20
)

// NewCapture begins to capture on a namespace's device, both directions. Stop
// must be called.
func NewCapture(ns *Namespace, device string) (*Capture, error) {
	var fd int
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // 0: nothing until bound
		if err != nil {
			return err
		}
		index, err := interfaceIndex(fd, device)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer)
		}
		if err == nil {
			// Says where the datagrams of one sendmsg with UDP_SEGMENT end.
			err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
		}
		if err != nil {
			unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %s of %s: %w", device, ns.Name, err)
	}
	c := &Capture{fd: os.NewFile(uintptr(fd), "capture"), done: make(chan struct{})}
	go c.read()
	return c, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func interfaceIndex(fd int, device string) (int, error) {
	req, err := unix.NewIfreq(device)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0, err
	}
	return int(req.Uint32()), nil
}

func (c *Capture) read() {
	defer close(c.done)
	buf := make([]byte, 256<<10) // more than any super-packet
	for {
		n, err := c.fd.Read(buf)
		if err == nil && n < vnetHeaderBytes+etherBytes {
			err = fmt.Errorf("short frame of %d bytes", n)
		}
		c.mu.Lock()
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				c.err = err
			}
			c.mu.Unlock()
			return
		}
		c.packets = append(c.packets, parseFrame(buf[:vnetHeaderBytes], append([]byte(nil), buf[vnetHeaderBytes:n]...)))
		c.mu.Unlock()
	}
}

// parseFrame takes a frame apart, as far as it is IPv4 with UDP or TCP and not
// a fragment.
func parseFrame(vnet, frame []byte) Packet {
	p := Packet{Time: time.Now(), Payload: frame, Frame: frame}
	if binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP || len(frame) < etherBytes+20 {
		return p
	}
	ip := frame[etherBytes:]
	header := int(ip[0]&15) * 4
	// Offloading leaves the total length 0 in packets above 64 KiB.
	if total := int(binary.BigEndian.Uint16(ip[2:])); total >= header && total <= len(ip) {
		ip = ip[:total] // without Ethernet's padding
	}
	if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 || len(ip) < header+8 {
		return p
	}
	from, to := netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	body := ip[header:]
	start := 8
	switch ip[9] {
	case unix.IPPROTO_TCP:
		if len(body) < 20 {
			return p
		}
		start = int(body[12]>>4) * 4
		if start < 20 || start > len(body) {
			return p
		}
		p.Protocol, p.Seq, p.SYN = TCP, binary.BigEndian.Uint32(body[4:]), body[13]&2 != 0
	case unix.IPPROTO_UDP:
		p.Protocol = UDP
		const gsoUDP = 5 // VIRTIO_NET_HDR_GSO_UDP_L4
		if vnet[1]&0x7f == gsoUDP {
			p.Segment = int(binary.NativeEndian.Uint16(vnet[4:]))
		}
	default:
		return p
	}
	p.From, p.To = netip.AddrPortFrom(from, binary.BigEndian.Uint16(body)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(body[2:]))
	p.Payload = body[start:]
	return p
}

// Stop ends the capture and returns all of it. Lost packets are an error: then
// the capture proves nothing.
func (c *Capture) Stop() ([]Packet, error) {
	time.Sleep(100 * time.Millisecond) // what is under way
	var lost uint32
	if raw, err := c.fd.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if s, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
				lost = s.Drops
			}
		})
	}
	c.fd.Close()
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.packets, fmt.Errorf("capture: %w", c.err)
	}
	if lost > 0 {
		return c.packets, fmt.Errorf("capture: the kernel dropped %d packets", lost)
	}
	return c.packets, nil
}

// Datagrams are the payload's single UDP datagrams.
func (p Packet) Datagrams() [][]byte {
	if p.Segment == 0 || len(p.Payload) <= p.Segment {
		return [][]byte{p.Payload}
	}
	var all [][]byte
	for b := p.Payload; len(b) > 0; {
		n := min(p.Segment, len(b))
		all, b = append(all, b[:n]), b[n:]
	}
	return all
}

// Stream is one direction of one TCP connection.
type Stream struct {
	From, To netip.AddrPort
	// Begun says that the capture saw the connection's beginning.
	Begun bool
	// Bytes are those from the beginning up to the first gap.
	Bytes []byte
}

// Streams puts the TCP packets together. A retransmission counts once; a
// connection's ports may be used again.
func Streams(packets []Packet) []*Stream {
	type key struct{ from, to netip.AddrPort }
	type half struct {
		stream  *Stream
		next    uint32 // sequence number of the byte wanted next
		waiting map[uint32][]byte
	}
	live := map[key]*half{}
	var all []*Stream
	for _, p := range packets {
		if p.Protocol != TCP {
			continue
		}
		k := key{p.From, p.To}
		h := live[k]
		if seq := p.Seq; h == nil || p.SYN && h.next != seq+1 && len(h.stream.Bytes) > 0 {
			h = &half{stream: &Stream{From: p.From, To: p.To, Begun: p.SYN}, next: seq, waiting: map[uint32][]byte{}}
			if p.SYN {
				h.next++
			}
			live[k] = h
			all = append(all, h.stream)
		}
		if len(p.Payload) == 0 {
			continue
		}
		seq := p.Seq
		if p.SYN {
			seq++ // RFC 7413: data in the SYN
		}
		if old := h.waiting[seq]; len(old) < len(p.Payload) {
			h.waiting[seq] = p.Payload
		}
		for again := true; again; {
			again = false
			for seq, b := range h.waiting {
				switch skip := int32(h.next - seq); {
				case skip < 0: // not yet
				case int(skip) >= len(b):
					delete(h.waiting, seq)
				default:
					delete(h.waiting, seq)
					h.stream.Bytes = append(h.stream.Bytes, b[skip:]...)
					h.next += uint32(len(b)) - uint32(skip)
					again = true
				}
			}
		}
	}
	return all
}
