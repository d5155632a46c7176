package daemon

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
)

const (
	claimRandomSize = 16 // bytes that nobody can guess
	claimKeySize    = 16 // bytes of SHA-256 of the relay key
)

var claimEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// ClaimCode is what an unclaimed relay prints, once: who has it may give the
// relay its network. It also names the relay's key, so that it is told to no
// other relay. It never prints.
type ClaimCode struct {
	text string
	key  [claimKeySize]byte
}

// ParseClaimCode reads a code as it was pasted: in any case, with white space
// around it.
func ParseClaimCode(s string) (ClaimCode, error) {
	text := strings.ToUpper(strings.TrimSpace(s))
	if len(text) != claimEncoding.EncodedLen(claimRandomSize+claimKeySize) {
		return ClaimCode{}, fmt.Errorf("claim code is %d characters, want %d", len(text), claimEncoding.EncodedLen(claimRandomSize+claimKeySize))
	}
	b, err := claimEncoding.DecodeString(text)
	if err != nil || len(b) != claimRandomSize+claimKeySize || claimEncoding.EncodeToString(b) != text {
		return ClaimCode{}, errors.New("claim code is not base32 (A–Z, 2–7)")
	}
	c := ClaimCode{text: text}
	copy(c.key[:], b[claimRandomSize:])
	return c, nil
}

// Names reports whether the code was printed by the holder of k.
func (c ClaimCode) Names(k key.RelayPublic) bool {
	h := sha256.Sum256(k.Append(nil))
	return c.text != "" && subtle.ConstantTimeCompare(h[:claimKeySize], c.key[:]) == 1
}

// Format prints a fixed text for every verb.
func (ClaimCode) Format(f fmt.State, _ rune) { f.Write([]byte("[claim code]")) }

// ClaimKeyError says that what answers at a relay's URL is not the relay that
// printed the claim code.
type ClaimKeyError struct {
	Relay string // its URL
	Got   key.RelayPublic
}

func (e *ClaimKeyError) Error() string {
	return fmt.Sprintf("relay %s has the key %s, which the claim code does not name", e.Relay, e.Got)
}

// Hint says what to compare.
func (*ClaimKeyError) Hint() string {
	return "copy URL and code from the first lines that this very relay printed; if both are right, something else answers at its address"
}

// ClaimableRelay is a relay as a head is to list it, and what that rests on.
type ClaimableRelay struct {
	Relay auth.Relay
	// Vouched says that WebPKI or a pin that was given vouches for the relay's TLS.
	// Otherwise Relay's only pin is that of the certificate which was shown, and its
	// key, which the claim code proves, is all else that is known.
	Vouched bool
}

// FetchClaimable asks a relay what a head should say of it, with GET /v1/relay, and
// checks that code names its key. What the code does not prove is taken only if
// the relay's certificate is valid for its name or has the given pin (base64 of
// SHA-256 over its SPKI; empty: none given). A certificate that is neither, if the
// relay itself names it, becomes a pin: it hides the sessions' metadata from
// others, and Noise proves the relay's key all the same. It takes at most ten
// seconds.
func FetchClaimable(ctx context.Context, relay string, code ClaimCode, pin string, cfg HTTPConfig) (ClaimableRelay, error) {
	var found ClaimableRelay
	u, err := relayURL(relay)
	if err != nil {
		return found, err
	}
	if err := auth.ValidRelayURL(u.String()); err != nil {
		return found, err
	}
	if b, err := base64.StdEncoding.Strict().DecodeString(pin); pin != "" && (err != nil || len(b) != sha256.Size) {
		return found, fmt.Errorf("pin %q is not base64 of %d bytes", pin, sha256.Size)
	}
	var shown string
	var chain error
	raw, err := get(ctx, relay, u.String()+"/v1/relay", cfg.transport(func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("relay sent no certificate")
		}
		shown, chain = SPKIPin(cs.PeerCertificates[0]), cfg.verifyChain(relay, cs)
		if pin != "" && shown != pin {
			return &UntrustedError{Relay: relay, Pin: shown, Pins: 1, Err: fmt.Errorf("it does not have the pin %s", pin)}
		}
		return nil
	}))
	if err != nil {
		return found, err
	}
	var entry auth.Relay
	if err := json.Unmarshal(raw, &entry); err != nil { // fields of a newer relay are ignored
		return found, fmt.Errorf("relay %s: what it says of itself cannot be read: %v", relay, err)
	}
	if !code.Names(entry.Key) {
		return found, &ClaimKeyError{Relay: relay, Got: entry.Key}
	}
	found.Relay = auth.Relay{URL: u.String(), Key: entry.Key}
	found.Vouched = chain == nil || pin != ""
	if found.Vouched {
		found.Relay.NextKey, found.Relay.UDP = entry.NextKey, entry.UDP
	}
	if chain == nil && pin == "" {
		return found, nil
	}
	if pin == "" && (len(entry.Pins) != 1 || entry.Pins[0] != shown) {
		return found, &UntrustedError{Relay: relay, Pin: shown, Pins: 0, Err: chain}
	}
	found.Relay.Pins = []string{shown}
	return found, nil
}

// ClaimLostError says that a claim was sent and not answered: the relay may have
// taken it.
type ClaimLostError struct {
	Relay   string // its URL
	Network auth.NetworkID
	Err     error
}

func (e *ClaimLostError) Error() string {
	return fmt.Sprintf("whether relay %s took the claim is not known: %v", e.Relay, e.Err)
}

// Unwrap returns what went wrong.
func (e *ClaimLostError) Unwrap() error { return e.Err }

// Hint says how to find out. The network's key and head are kept meanwhile.
func (e *ClaimLostError) Hint() string {
	return fmt.Sprintf("run `zt-daemon network show --network %s`: without a warning, the relay took it", e.Network)
}

// ClaimRelay gives an unclaimed relay its first head, in a session of its own. A
// claim whose answer was lost is looked for once; if that does not tell, it is a
// *ClaimLostError. After any other error the relay did not take it.
func ClaimRelay(ctx context.Context, relay auth.Relay, code ClaimCode, head *auth.Head, cfg HTTPConfig) error {
	if !code.Names(relay.Key) {
		return &ClaimKeyError{Relay: relay.URL, Got: relay.Key}
	}
	a, err := DialAdmin(ctx, relay, auth.NetworkID{}, cfg)
	if err != nil {
		return err
	}
	defer a.Close()
	if err = a.Claim(ctx, code.text, head.Raw()); err == nil || isRefused(err) {
		return err
	}
	if ctx.Err() == nil {
		if served, ferr := FetchHead(ctx, relay.URL, head.Network, cfg); ferr == nil && served.Hash() == head.Hash() {
			return nil
		}
	}
	return &ClaimLostError{Relay: relay.URL, Network: head.Network, Err: err}
}
