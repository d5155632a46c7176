package wire

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"

	"github.com/flynn/noise"

	"github.com/zt-daemon/zt/auth/key"
)

// prologue begins the Noise prologue; the network id's 20 bytes follow. A claim,
// made before there is a network, has 20 zero bytes.
const prologue = "zt-relay-v1"

// dh is X25519 for one handshake. It keeps the private keys that it was given:
// crypto/ecdh derives the public key of each new one, which costs as much as the
// exchange, and a handshake uses both of its keys more than once.
type dh struct{ keys []*ecdh.PrivateKey }

func newSuite(d *dh) noise.CipherSuite {
	return noise.NewCipherSuite(d, noise.CipherChaChaPoly, noise.HashBLAKE2s)
}

func (d *dh) GenerateKeypair(random io.Reader) (noise.DHKey, error) {
	k, err := ecdh.X25519().GenerateKey(random)
	if err != nil {
		return noise.DHKey{}, err
	}
	d.keys = append(d.keys, k)
	return noise.DHKey{Private: k.Bytes(), Public: k.PublicKey().Bytes()}, nil
}

// DH refuses a point of small order: its product would be zero.
func (d *dh) DH(private, public []byte) ([]byte, error) {
	p, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	for _, k := range d.keys {
		if subtle.ConstantTimeCompare(k.Bytes(), private) == 1 {
			return k.ECDH(p)
		}
	}
	k, err := ecdh.X25519().NewPrivateKey(private)
	if err != nil {
		return nil, err
	}
	d.keys = append(d.keys, k)
	return k.ECDH(p)
}

func (*dh) DHLen() int     { return key.DHSize }
func (*dh) DHName() string { return "25519" }

// pair is the key pair of a private key.
func (d *dh) pair(secret [key.SecretSize]byte) (noise.DHKey, error) {
	k, err := ecdh.X25519().NewPrivateKey(secret[:])
	if err != nil {
		return noise.DHKey{}, err
	}
	d.keys = append(d.keys, k)
	return noise.DHKey{Private: k.Bytes(), Public: k.PublicKey().Bytes()}, nil
}

// forget drops the keys: what ciphers keep of a handshake leads to d.
func (d *dh) forget() { d.keys = nil }

// ErrHandshake says that the other end did not prove what was expected of it:
// for a participant, the relay key and the network; for a relay, a static key.
var ErrHandshake = errors.New("handshake failed")

// A Cipher seals and opens the messages of one session, each side's in order.
// Seal and Open may be called concurrently with each other, not with themselves.
type Cipher struct {
	send, recv *noise.CipherState
	hash       [32]byte
}

// HandshakeHash is unique to the session and known to both ends. It is public:
// no key may be derived from it.
func (c *Cipher) HandshakeHash() [32]byte { return c.hash }

// Seal appends the sealed form of plaintext, 16 bytes longer.
func (c *Cipher) Seal(dst, plaintext []byte) ([]byte, error) {
	if len(plaintext) > MaxPlaintext {
		return nil, fmt.Errorf("control message of %d bytes, at most %d fit", len(plaintext), MaxPlaintext)
	}
	return c.send.Encrypt(dst, nil, plaintext)
}

// Open appends the plaintext of a message. An error ends the session.
func (c *Cipher) Open(dst, sealed []byte) ([]byte, error) {
	b, err := c.recv.Decrypt(dst, nil, sealed)
	if err != nil {
		return nil, errors.New("control message does not authenticate")
	}
	return b, nil
}

// An Initiator is a participant's half of a handshake (Noise_IK_25519_ChaChaPoly_BLAKE2s).
type Initiator struct {
	state *noise.HandshakeState
	dh    *dh
}

// NewInitiator begins a handshake: static is the key to prove, relay the key to
// expect. It returns the first message to send.
func NewInitiator(static key.WireGuardPrivate, relay key.RelayPublic, network [20]byte) (*Initiator, []byte, error) {
	d, peer := &dh{}, relay.Bytes()
	pair, err := d.pair(static.Bytes())
	if err != nil {
		return nil, nil, fmt.Errorf("begin Noise handshake: %v", err)
	}
	state, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: newSuite(d), Random: rand.Reader, Pattern: noise.HandshakeIK, Initiator: true,
		Prologue:      append([]byte(prologue), network[:]...),
		StaticKeypair: pair,
		PeerStatic:    peer[:],
	})
	if err != nil {
		return nil, nil, fmt.Errorf("begin Noise handshake: %v", err)
	}
	first, _, _, err := state.WriteMessage(nil, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("begin Noise handshake: %v", err)
	}
	return &Initiator{state, d}, first, nil
}

// Finish reads the relay's message. The error is ErrHandshake.
func (i *Initiator) Finish(second []byte) (*Cipher, error) {
	payload, send, recv, err := i.state.ReadMessage(nil, second)
	i.dh.forget()
	if err != nil || send == nil || len(payload) != 0 {
		return nil, ErrHandshake
	}
	return newCipher(i.state, send, recv), nil
}

// Respond is a relay's half: it reads a participant's first message and returns
// the answer to send, the static key that the participant proves by using the
// cipher, and the cipher. The error is ErrHandshake.
//
// The first message can be replayed, so the key is proved only once a message
// of the other end has been opened.
func Respond(static key.RelayPrivate, network [20]byte, first []byte) (second []byte, peer key.WireGuardPublic, c *Cipher, err error) {
	d := &dh{}
	defer d.forget()
	pair, err := d.pair(static.Bytes())
	if err != nil {
		return nil, peer, nil, fmt.Errorf("begin Noise handshake: %v", err)
	}
	state, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: newSuite(d), Random: rand.Reader, Pattern: noise.HandshakeIK,
		Prologue:      append([]byte(prologue), network[:]...),
		StaticKeypair: pair,
	})
	if err != nil {
		return nil, peer, nil, fmt.Errorf("begin Noise handshake: %v", err)
	}
	payload, _, _, err := state.ReadMessage(nil, first)
	if err != nil || len(payload) != 0 {
		return nil, peer, nil, ErrHandshake
	}
	if peer, err = key.ParseWireGuard(state.PeerStatic()); err != nil {
		return nil, peer, nil, ErrHandshake
	}
	second, recv, send, err := state.WriteMessage(nil, nil)
	if err != nil || send == nil {
		return nil, peer, nil, ErrHandshake
	}
	return second, peer, newCipher(state, send, recv), nil
}

func newCipher(state *noise.HandshakeState, send, recv *noise.CipherState) *Cipher {
	c := &Cipher{send: send, recv: recv}
	copy(c.hash[:], state.ChannelBinding())
	return c
}
