package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

// Record is what a network says about one cluster: which CAs its API server's
// certificate comes from, which keys its nodes prove themselves with, how
// people log in to it. A record got from ParseRecord or SignRecord must not be
// changed.
type Record struct {
	Network NetworkID `json:"network"`
	// Name is the cluster's, a DNS label.
	Name string `json:"name"`
	// Signer is who signed, by the head's name for them; empty = the network key.
	Signer string `json:"signer,omitempty"`
	// Version grows with every signing, from 1.
	Version uint64 `json:"version"`
	// NotAfter is when the record grows stale, as a head does.
	NotAfter time.Time `json:"notAfter"`
	// Removed says that the cluster is no more; all that follows is then empty.
	Removed bool `json:"removed,omitempty"`
	// CAs are PEM: the roots for the API server's certificate, and no others.
	CAs []Dated[string] `json:"cas,omitempty"`
	// Keys are the cluster keys.
	Keys []Dated[key.ClusterPublic] `json:"keys,omitempty"`
	// TLSName is the name or IP address to expect in the API server's certificate.
	TLSName string `json:"tlsName,omitempty"`
	// Issuer says how the API server's own ID token is got.
	Issuer *Issuer `json:"issuer,omitempty"`
	// KeepUser leaves the person's own kubeconfig user in place; Issuer is then nil.
	KeepUser bool `json:"keepUser,omitempty"`
	// Extra is any JSON, which a reader may ignore.
	Extra json.RawMessage `json:"extra,omitempty"`

	raw []byte
}

// SignRecord fills Signer, Network if s holds the network key, and NotAfter if
// it is zero (a year from now), checks everything and signs. r is not changed.
// The caller has called CheckAudiences with the head's issuers.
func SignRecord(r Record, s DocumentSigner) (*Record, error) {
	if s.k == nil {
		return nil, documentRecord.fault(FaultKey, "no key to sign with")
	}
	r.Signer = s.name
	if !s.id.IsZero() {
		if r.Network.IsZero() {
			r.Network = s.id
		}
		if r.Network != s.id {
			return nil, documentRecord.field("network", &NetworkError{Got: r.Network, Want: s.id})
		}
	}
	if r.NotAfter.IsZero() {
		r.NotAfter = time.Now().Add(DocumentLife)
	}
	r.NotAfter = documentTime(r.NotAfter)
	r.CAs, r.Keys = slices.Clone(r.CAs), slices.Clone(r.Keys)
	for n := range r.CAs {
		r.CAs[n].NotAfter = documentTime(r.CAs[n].NotAfter)
	}
	for n := range r.Keys {
		r.Keys[n].NotAfter = documentTime(r.Keys[n].NotAfter)
	}
	var err error
	if r.Extra, err = documentExtra(r.Extra); err != nil {
		return nil, documentRecord.field("extra", err)
	}
	if err := r.validate(); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("sign record: %v", err)
	}
	raw, err := s.sign(documentRecord, payload)
	if err != nil {
		return nil, err
	}
	// What we publish is what readers accept.
	d, err := parseDocument(documentRecord, raw)
	if err != nil {
		return nil, err
	}
	if err := d.verify(&s.k.PublicKey); err != nil {
		return nil, err
	}
	return decodeRecord(d, raw)
}

// ParseRecord reads a signed record. It must be of h's network, signed by the
// network key or by a signer of h who is live at now, and not older than h
// admits. now is when the record is taken: who reads back what it stored passes
// the time it took it. Staleness is the caller's to judge (Expired). raw is
// kept: the caller must not change it.
func ParseRecord(raw []byte, h *Head, now time.Time) (*Record, error) {
	d, err := parseDocument(documentRecord, raw)
	if err != nil {
		return nil, err
	}
	k, signer, ok := h.Key.ECDSA(), Signer{}, d.kid == h.Key.Thumbprint()
	if !ok {
		n := slices.IndexFunc(h.Signers, func(s Signer) bool { return s.Key.Thumbprint() == d.kid })
		if n < 0 {
			return nil, recordUnknownSigner(d)
		}
		signer = h.Signers[n]
		k = signer.Key.ECDSA()
	}
	if err := d.verify(k); err != nil {
		return nil, err
	}
	r, err := decodeRecord(d, raw)
	if err != nil {
		return nil, err
	}
	if r.Network != h.Network {
		cause := &NetworkError{Got: r.Network, Want: h.Network}
		return nil, &DocumentError{Document: documentRecord.noun, Fault: FaultNetwork, Detail: cause.Error(), cause: cause}
	}
	if r.Signer != signer.Name {
		return nil, documentRecord.fault(FaultKey, "%s names signer %q, but the head calls that key %q", r.Name, r.Signer, signer.Name)
	}
	if !ok && !now.Before(signer.NotAfter) {
		return nil, &SignerError{Cluster: r.Name, Signer: signer.Name, Known: true, NotAfter: signer.NotAfter}
	}
	if floor := h.MinRecord[r.Name]; r.Version < floor {
		return nil, documentRecord.fault(FaultWithdrawn, "%s version %d was withdrawn: the head admits version %d and later", r.Name, r.Version, floor)
	}
	return r, nil
}

// PeekRecord reads name and version of a record whose signer is unknown, without
// verifying anything: only so that a replacement can be given a higher version.
func PeekRecord(raw []byte) (name string, version uint64, err error) {
	d, err := parseDocument(documentRecord, raw)
	if err != nil {
		return "", 0, err
	}
	r, err := decodeRecord(d, nil)
	if err != nil {
		return "", 0, err
	}
	return r.Name, r.Version, nil
}

// recordUnknownSigner names the cluster only if the unverified payload has a
// valid name: it is for a message to a person, nothing else.
func recordUnknownSigner(d *document) error {
	e := &SignerError{Cluster: "of an unknown cluster", Signer: fmt.Sprintf("%.64q", d.kid)}
	if r, err := decodeRecord(d, nil); err == nil {
		e.Cluster = r.Name
	}
	return e
}

func decodeRecord(d *document, raw []byte) (*Record, error) {
	r := &Record{raw: raw}
	if err := strictJSON(d.payload, r); err != nil {
		return nil, documentRecord.fault(FaultPayload, "%v", err)
	}
	if err := r.validate(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Record) validate() error {
	if err := ValidName(r.Name); err != nil {
		return documentRecord.field("name", err)
	}
	bad := func(field, text string) error { return documentRecord.field(r.Name+": "+field, errors.New(text)) }
	switch {
	case r.Network.IsZero():
		return bad("network", "is missing")
	case r.Version == 0:
		return bad("version", "is 0, versions begin at 1")
	case r.NotAfter.IsZero():
		return bad("notAfter", "is missing")
	}
	if r.Signer != "" {
		if err := ValidName(r.Signer); err != nil {
			return documentRecord.field(r.Name+": signer", err)
		}
	}
	if r.Removed {
		if len(r.CAs) > 0 || len(r.Keys) > 0 || r.TLSName != "" || r.Issuer != nil || r.KeepUser {
			return bad("removed", "a removed cluster has no CA, key, name or issuer")
		}
		return nil
	}
	if len(r.CAs) == 0 {
		return bad("cas", "names no CA")
	}
	for n, ca := range r.CAs {
		if _, err := parseCertificates(ca.Value); err != nil {
			return documentRecord.field(fmt.Sprintf("%s: CA %d", r.Name, n+1), err)
		}
	}
	if len(r.Keys) == 0 {
		return bad("keys", "names no cluster key")
	}
	for n, k := range r.Keys {
		if k.Value.IsZero() {
			return bad("keys", "one is empty")
		}
		if slices.ContainsFunc(r.Keys[:n], func(o Dated[key.ClusterPublic]) bool { return o.Value == k.Value }) {
			return bad("keys", "one is listed twice")
		}
	}
	if err := validTLSName(r.TLSName); err != nil {
		return documentRecord.field(r.Name+": tlsName", err)
	}
	switch {
	case r.Issuer != nil && r.KeepUser:
		return bad("issuer", "stands beside keepUser, which says that there is none")
	case r.Issuer == nil && !r.KeepUser:
		return bad("issuer", "is missing, and keepUser is not set")
	case r.Issuer != nil:
		if err := r.Issuer.Validate(); err != nil {
			return documentRecord.field(r.Name, err)
		}
	}
	return nil
}

// ValidName accepts a DNS label (RFC 1123 §2.1): 1 to 63 of a–z, 0–9 and '-',
// with a letter or digit at both ends. Clusters and signers have such names.
func ValidName(s string) error {
	if len(s) == 0 || len(s) > 63 {
		return fmt.Errorf("name is %d characters, want 1 to 63", len(s))
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9':
		case c == '-' && i > 0 && i < len(s)-1:
		default:
			return fmt.Errorf("name %q is not a DNS label (a–z, 0–9 and '-' between them)", s)
		}
	}
	return nil
}

// validTLSName accepts an IP address or a host name of labels.
func validTLSName(s string) error {
	if s == "" {
		return errors.New("is missing")
	}
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return fmt.Errorf("%q has a zone", s)
		}
		return nil
	}
	if len(s) > 253 {
		return errors.New("is longer than 253 characters")
	}
	for label := range strings.SplitSeq(s, ".") {
		if ValidName(label) != nil {
			return fmt.Errorf("%q is not a lower-case host name or an IP address", s)
		}
	}
	return nil
}

// Raw is the compact JWS, to be stored and served byte for byte. The caller
// must not change it.
func (r *Record) Raw() []byte { return r.raw }

// Hash is hexadecimal SHA-256 of what was signed, as Head.Hash.
func (r *Record) Hash() string { return documentHash(r.raw) }

// Expired reports whether the record is stale, as Head.Expired.
func (r *Record) Expired(now time.Time) bool { return !now.Before(r.NotAfter) }

// Supersedes reports whether r may take old's place: nil, ErrSame, or one of
// *NetworkError, *RollbackError, *ConflictError. Any record follows none (nil).
func (r *Record) Supersedes(old *Record) error {
	if old == nil {
		return nil
	}
	if r.Network != old.Network {
		return &NetworkError{Got: r.Network, Want: old.Network}
	}
	if r.Name != old.Name {
		return documentRecord.fault(FaultField, "is of cluster %s, want %s", r.Name, old.Name)
	}
	return documentSupersedes("record "+r.Name, r.Version, old.Version, r.Hash(), old.Hash())
}

// LiveKeys are the cluster keys that a node may prove itself with at now.
func (r *Record) LiveKeys(now time.Time) []key.ClusterPublic { return liveValues(r.Keys, now) }

// LiveCAs are the PEM roots to verify the API server with at now.
func (r *Record) LiveCAs(now time.Time) []string { return liveValues(r.CAs, now) }

func liveValues[T any](dated []Dated[T], now time.Time) []T {
	var live []T
	for _, d := range dated {
		if d.Live(now) {
			live = append(live, d.Value)
		}
	}
	return live
}
