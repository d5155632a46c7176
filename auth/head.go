package auth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

// DocumentLife is how long a head or record is fresh after it was signed.
const DocumentLife = 365 * 24 * time.Hour

// Dated is a value that ends before the document around it does, so that an old
// and a new one can overlap.
type Dated[T any] struct {
	Value T `json:"value"`
	// NotAfter is when Value must no longer be used; zero = it has no end of its
	// own.
	NotAfter time.Time `json:"notAfter,omitzero"`
}

// Live reports whether the value may be used at now.
func (d Dated[T]) Live(now time.Time) bool { return d.NotAfter.IsZero() || now.Before(d.NotAfter) }

// Relay is how a head names a relay.
type Relay struct {
	// URL is https://host or https://host:port, with no path.
	URL string `json:"url"`
	// Key is the relay's Noise key.
	Key key.RelayPublic `json:"key"`
	// NextKey is the one it will change to; zero = none announced.
	NextKey key.RelayPublic `json:"nextKey,omitzero"`
	// UDP is host:port where the relay takes packets; empty = URL's host and port.
	UDP string `json:"udp,omitempty"`
	// Pins are base64 SHA-256 hashes of the TLS certificate's public key (SPKI,
	// RFC 7469 §2.4), that are accepted besides one that WebPKI vouches for.
	Pins []string `json:"pins,omitempty"`
}

// Equal reports whether r and o say the same.
func (r Relay) Equal(o Relay) bool {
	return r.URL == o.URL && r.Key == o.Key && r.NextKey == o.NextKey && r.UDP == o.UDP && slices.Equal(r.Pins, o.Pins)
}

// Signer is someone besides the network key who may sign records.
type Signer struct {
	Name string           `json:"name"` // a DNS label
	Key  key.SignerPublic `json:"key"`
	// NotAfter is when the signer's records stop counting.
	NotAfter time.Time `json:"notAfter"`
}

// Head is the root of trust of a network below its id: which relays, issuers
// and signers it has. Only the network key signs it. A head got from ParseHead
// or SignHead must not be changed.
type Head struct {
	Network NetworkID         `json:"network"`
	Key     key.NetworkPublic `json:"key"`
	// Version grows with every signing, from 1.
	Version uint64 `json:"version"`
	// NotAfter is when the head grows stale: what it gave is kept, nothing new
	// is taken from it.
	NotAfter time.Time `json:"notAfter"`
	Relays   []Relay   `json:"relays"`
	Issuers  []Issuer  `json:"issuers"`
	Signers  []Signer  `json:"signers,omitempty"`
	// MinRecord is the lowest acceptable version of a cluster's record: written
	// when a cluster key was stolen.
	MinRecord map[string]uint64 `json:"minRecord,omitempty"`
	// Extra is any JSON, which a reader may ignore.
	Extra json.RawMessage `json:"extra,omitempty"`

	raw []byte
}

// SignHead fills Network and Key from k, NotAfter if it is zero (a year from
// now), checks everything and signs. h is not changed; the result shares no
// slice with it.
func SignHead(h Head, k key.NetworkPrivate) (*Head, error) {
	if k.IsZero() {
		return nil, documentHead.fault(FaultKey, "no network key to sign with")
	}
	h.Key = k.Public()
	h.Network = IDOf(h.Key)
	if h.NotAfter.IsZero() {
		h.NotAfter = time.Now().Add(DocumentLife)
	}
	h.NotAfter = documentTime(h.NotAfter)
	h.Signers = slices.Clone(h.Signers)
	for n := range h.Signers {
		h.Signers[n].NotAfter = documentTime(h.Signers[n].NotAfter)
	}
	var err error
	if h.Extra, err = documentExtra(h.Extra); err != nil {
		return nil, documentHead.field("extra", err)
	}
	if err := h.validate(); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("sign head: %v", err)
	}
	raw, err := NetworkSigner(k).sign(documentHead, payload)
	if err != nil {
		return nil, err
	}
	return ParseHead(raw) // what we publish is what readers accept
}

// ParseHead reads a signed head. A head proves itself: Key signed it and
// Network is Key's hash. The caller still compares Network with the id it
// trusts (Supersedes does), and decides what to do when it is Expired. raw is
// kept: the caller must not change it.
func ParseHead(raw []byte) (*Head, error) {
	d, err := parseDocument(documentHead, raw)
	if err != nil {
		return nil, err
	}
	h := &Head{raw: raw}
	if err := strictJSON(d.payload, h); err != nil {
		return nil, documentHead.fault(FaultPayload, "%v", err)
	}
	if h.Key.IsZero() {
		return nil, documentHead.fault(FaultField, "no network key")
	}
	if d.kid != h.Key.Thumbprint() {
		return nil, documentHead.fault(FaultKey, "signed by key %q, want the network key it names, %q", d.kid, h.Key.Thumbprint())
	}
	if err := d.verify(h.Key.ECDSA()); err != nil {
		return nil, err
	}
	if id := IDOf(h.Key); id != h.Network {
		cause := &NetworkError{Got: h.Network, Want: id}
		return nil, &DocumentError{Document: documentHead.noun, Fault: FaultNetwork, cause: cause,
			Detail: fmt.Sprintf("claims network %s, but its key is network %s", h.Network, id)}
	}
	if err := h.validate(); err != nil {
		return nil, err
	}
	return h, nil
}

func (h *Head) validate() error {
	if h.Version == 0 {
		return documentHead.field("version", errors.New("is 0, versions begin at 1"))
	}
	if h.NotAfter.IsZero() {
		return documentHead.field("notAfter", errors.New("is missing"))
	}
	if len(h.Relays) == 0 {
		return documentHead.field("relays", errors.New("names no relay"))
	}
	for n, r := range h.Relays {
		if err := r.validate(); err != nil {
			return documentHead.field(fmt.Sprintf("relay %q", r.URL), err)
		}
		for _, other := range h.Relays[:n] {
			if issuerSame(r.URL, other.URL) || r.Key == other.Key {
				return documentHead.field(fmt.Sprintf("relay %q", r.URL), errors.New("its URL or key is listed twice"))
			}
		}
	}
	if len(h.Issuers) == 0 {
		return documentHead.field("issuers", errors.New("names no issuer"))
	}
	if err := validateIssuers(h.Issuers); err != nil {
		return &DocumentError{Document: documentHead.noun, Fault: FaultField, Detail: err.Error(), cause: err}
	}
	for n, s := range h.Signers {
		if err := s.validate(h, n); err != nil {
			return documentHead.field(fmt.Sprintf("signer %q", s.Name), err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(h.MinRecord)) {
		if err := ValidName(name); err != nil {
			return documentHead.field("minRecord", err)
		}
	}
	return nil
}

func (s Signer) validate(h *Head, n int) error {
	if err := ValidName(s.Name); err != nil {
		return err
	}
	switch {
	case s.Key.IsZero():
		return errors.New("has no key")
	case s.NotAfter.IsZero():
		return errors.New("has no notAfter")
	case s.Key.Thumbprint() == h.Key.Thumbprint():
		return errors.New("is the network key itself")
	}
	for _, other := range h.Signers[:n] {
		if other.Name == s.Name || other.Key == s.Key {
			return errors.New("its name or key is listed twice")
		}
	}
	return nil
}

func (r Relay) validate() error {
	if err := ValidRelayURL(r.URL); err != nil {
		return err
	}
	if r.Key.IsZero() {
		return errors.New("has no key")
	}
	if r.NextKey == r.Key {
		return errors.New("nextKey is the current key")
	}
	if r.UDP != "" {
		if err := documentText(r.UDP); err != nil {
			return err
		}
		host, port, err := net.SplitHostPort(r.UDP)
		if err != nil || host == "" {
			return fmt.Errorf("udp %q is not host:port", r.UDP)
		}
		if p, err := strconv.ParseUint(port, 10, 16); err != nil || p == 0 {
			return fmt.Errorf("udp %q: port %q is not from 1 to 65535", r.UDP, port)
		}
	}
	for n, pin := range r.Pins {
		b, err := base64.StdEncoding.Strict().DecodeString(pin)
		if err != nil || len(b) != 32 || len(pin) != 44 {
			return fmt.Errorf("pin %q is not base64 of 32 bytes", pin)
		}
		if slices.Contains(r.Pins[:n], pin) {
			return fmt.Errorf("pin %q is listed twice", pin)
		}
	}
	return nil
}

// ValidRelayURL accepts https://host[:port] and nothing after it.
func ValidRelayURL(raw string) error {
	if err := documentText(raw); err != nil {
		return err
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return fmt.Errorf("relay URL %q does not parse", raw)
	case u.Scheme != "https":
		return fmt.Errorf("relay URL %q begins with %q, want https://", raw, u.Scheme+":")
	case u.Hostname() == "":
		return fmt.Errorf("relay URL %q names no host", raw)
	case u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.User != nil || strings.Contains(raw, "#"):
		return fmt.Errorf("relay URL %q has more than a host and a port", raw)
	}
	if p := u.Port(); p != "" {
		if v, err := strconv.ParseUint(p, 10, 16); err != nil || v == 0 {
			return fmt.Errorf("relay URL %q: port is not from 1 to 65535", raw)
		}
	}
	return nil
}

// Raw is the compact JWS, to be stored and served byte for byte. The caller
// must not change it.
func (h *Head) Raw() []byte { return h.raw }

// Hash is hexadecimal SHA-256 of what was signed (header and payload, not the
// signature), which names a version's content to people.
func (h *Head) Hash() string { return documentHash(h.raw) }

// Expired reports whether the head is stale. Keep what it gave, warn, and take
// nothing new from it.
func (h *Head) Expired(now time.Time) bool { return !now.Before(h.NotAfter) }

// Supersedes reports whether h may take old's place: nil, ErrSame, or one of
// *NetworkError, *RollbackError, *ConflictError. Any head follows none (nil).
func (h *Head) Supersedes(old *Head) error {
	if old == nil {
		return nil
	}
	if h.Network != old.Network {
		return &NetworkError{Got: h.Network, Want: old.Network}
	}
	return documentSupersedes("head", h.Version, old.Version, h.Hash(), old.Hash())
}

// Relay finds a relay by its URL, exactly.
func (h *Head) Relay(url string) (Relay, bool) {
	for _, r := range h.Relays {
		if r.URL == url {
			return r, true
		}
	}
	return Relay{}, false
}

// Issuer finds an issuer entry by its URL, exactly; defaults are filled.
func (h *Head) Issuer(url string) (Issuer, bool) {
	for _, i := range h.Issuers {
		if i.URL == url {
			return i.WithDefaults(), true
		}
	}
	return Issuer{}, false
}
