package wire

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/flynn/noise"

	"github.com/zt-daemon/zt/auth/key"
)

// prologue begins the Noise prologue; the network id's 20 bytes follow. A claim,
// made before there is a network, has 20 zero bytes.
const prologue = "zt-relay-v1"

var suite = noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s)

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
type Initiator struct{ state *noise.HandshakeState }

// NewInitiator begins a handshake: static is the key to prove, relay the key to
// expect. It returns the first message to send.
func NewInitiator(static key.WireGuardPrivate, relay key.RelayPublic, network [20]byte) (*Initiator, []byte, error) {
	secret, public, peer := static.Bytes(), static.Public().Bytes(), relay.Bytes()
	state, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: suite, Random: rand.Reader, Pattern: noise.HandshakeIK, Initiator: true,
		Prologue:      append([]byte(prologue), network[:]...),
		StaticKeypair: noise.DHKey{Private: secret[:], Public: public[:]},
		PeerStatic:    peer[:],
	})
	if err != nil {
		return nil, nil, fmt.Errorf("begin Noise handshake: %v", err)
	}
	first, _, _, err := state.WriteMessage(nil, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("begin Noise handshake: %v", err)
	}
	return &Initiator{state}, first, nil
}

// Finish reads the relay's message. The error is ErrHandshake.
func (i *Initiator) Finish(second []byte) (*Cipher, error) {
	payload, send, recv, err := i.state.ReadMessage(nil, second)
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
	secret, public := static.Bytes(), static.Public().Bytes()
	state, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: suite, Random: rand.Reader, Pattern: noise.HandshakeIK,
		Prologue:      append([]byte(prologue), network[:]...),
		StaticKeypair: noise.DHKey{Private: secret[:], Public: public[:]},
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
