package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/zt-daemon/zt/auth/key"
)

const (
	// MaxHeadBytes caps a head on the wire: one compact JWS.
	MaxHeadBytes = 1 << 20
	// MaxRecordBytes caps a record on the wire.
	MaxRecordBytes = 256 << 10
)

// documentKind is what tells a head from a record: its `typ`, its name in
// messages and its size cap.
type documentKind struct {
	typ  string
	noun string
	max  int // bytes of the compact JWS
}

var (
	documentHead   = documentKind{typ: "zt-head", noun: "head", max: MaxHeadBytes}
	documentRecord = documentKind{typ: "zt-record", noun: "record", max: MaxRecordBytes}
)

// Fault names why a signed document is refused. The names are few and fixed:
// they serve as labels of metrics.
type Fault string

// The faults of signed documents.
const (
	FaultSize      Fault = "size"      // larger than MaxHeadBytes or MaxRecordBytes
	FaultForm      Fault = "form"      // not a canonical compact JWS
	FaultHeader    Fault = "header"    // not exactly {alg: ES256, typ, kid}
	FaultPayload   Fault = "payload"   // not strict JSON: unknown, duplicate or wrong-case field, wrong type
	FaultField     Fault = "field"     // a field's value makes no sense
	FaultKey       Fault = "key"       // signed by a key that may not sign it
	FaultSignature Fault = "signature" // the signature is not the key's
	FaultNetwork   Fault = "network"   // of another network
	FaultWithdrawn Fault = "withdrawn" // older than the head still admits (MinRecord)
)

// DocumentError is a head or record that is refused for what it is. Refusals
// that compare it with something else have types of their own: NetworkError,
// SignerError, RollbackError, ConflictError.
type DocumentError struct {
	Document string // "head" or "record"
	Fault    Fault
	Detail   string
	cause    error
	advice   string
}

func (e *DocumentError) Error() string { return e.Document + ": " + e.Detail }

// Unwrap returns the error of the field behind Detail, if there is one.
func (e *DocumentError) Unwrap() error { return e.cause }

// Hint says what to do about it.
func (e *DocumentError) Hint() string {
	if e.advice != "" {
		return e.advice
	}
	var h interface{ Hint() string }
	if errors.As(e.cause, &h) && h.Hint() != "" {
		return h.Hint()
	}
	switch e.Fault {
	case FaultField:
		return "have the document signed again with that value mended"
	case FaultWithdrawn:
		return "ask whoever runs the cluster to sign its record again with `zt-daemon cluster add`"
	case FaultPayload:
		return "it was made by another version of zt or altered by a relay: update zt, then fetch it again"
	}
	return "it was damaged or altered on its way: fetch it again, from another relay if there is one"
}

func (k documentKind) fault(f Fault, format string, args ...any) error {
	return &DocumentError{Document: k.noun, Fault: f, Detail: fmt.Sprintf(format, args...)}
}

// field wraps the error of one of the document's values.
func (k documentKind) field(name string, err error) error {
	return &DocumentError{Document: k.noun, Fault: FaultField, Detail: name + ": " + err.Error(), cause: err}
}

// ErrSame is returned by Supersedes for the document that is already held.
var ErrSame = errors.New("the same document is held already")

// NetworkError is a document of another network than the one trusted.
type NetworkError struct {
	Got, Want NetworkID
}

func (e *NetworkError) Error() string {
	return fmt.Sprintf("network id is %s, want %s", e.Got, e.Want)
}

// Hint says whom to ask.
func (*NetworkError) Hint() string {
	return "compare the network id in the login line with the one your platform engineer published; a relay cannot change it, so a different one is a different network"
}

// RollbackError is a document older than the one already seen.
type RollbackError struct {
	Document string // "head", or "record c1"
	Got, Had uint64 // versions
}

func (e *RollbackError) Error() string {
	return fmt.Sprintf("%s version %d is older than version %d, which was seen before", e.Document, e.Got, e.Had)
}

// Hint says what to do about it.
func (e *RollbackError) Hint() string {
	return fmt.Sprintf("the relay serves an old document: fetch from another relay, or have the %s put again from the machine that signed version %d", e.Document, e.Had)
}

// ConflictError is two documents that claim one version.
type ConflictError struct {
	Document string // "head", or "record c1"
	Version  uint64
	Got, Had string // SHA-256, hexadecimal: see Head.Hash
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s version %d was signed twice with different contents: got SHA-256 %s, had %s", e.Document, e.Version, e.Got, e.Had)
}

// Hint says what to do about it.
func (e *ConflictError) Hint() string {
	return fmt.Sprintf("find out who else signed version %d; then sign again, which makes version %d", e.Version, e.Version+1)
}

// SignerError is a record signed by a key that the head does not admit now.
type SignerError struct {
	Cluster  string
	Signer   string    // its name in the head, or the kid of an unknown key
	Known    bool      // the head names the key
	NotAfter time.Time // of a known signer: when it ended
}

func (e *SignerError) Error() string {
	if !e.Known {
		return fmt.Sprintf("record %s is signed by key %s, which the head does not admit", e.Cluster, e.Signer)
	}
	return fmt.Sprintf("record %s is signed by %q, who could sign until %s", e.Cluster, e.Signer, e.NotAfter.UTC().Format(time.RFC3339))
}

// Hint says what the platform engineer types.
func (e *SignerError) Hint() string {
	return "the platform engineer admits a signer with `zt-daemon network sign --signer NAME=KEY`, then the record is signed again with `zt-daemon cluster add`"
}

// documentHeader is the whole protected header.
type documentHeader struct {
	Alg string `json:"alg"`
	Typ string `json:"typ"`
	Kid string `json:"kid"`
}

// document is a compact JWS whose header was checked and whose signature was
// not: payload is hostile until verify has returned nil.
type document struct {
	kind    documentKind
	kid     string
	payload []byte
	jws     *jose.JSONWebSignature
}

// parseDocument checks size, form and header.
func parseDocument(kind documentKind, raw []byte) (*document, error) {
	if len(raw) > kind.max {
		return nil, kind.fault(FaultSize, "%d bytes, want at most %d", len(raw), kind.max)
	}
	segments := bytes.Split(raw, []byte("."))
	if len(segments) != 3 {
		return nil, kind.fault(FaultForm, "not a compact JWS: %d segments, want 3", len(segments))
	}
	var header []byte
	for n, s := range segments {
		// One text for each document: the decoder alone would take line ends
		// and any spare bits.
		b, err := base64.RawURLEncoding.Strict().DecodeString(string(s))
		if err != nil || base64.RawURLEncoding.EncodedLen(len(b)) != len(s) {
			return nil, kind.fault(FaultForm, "segment %d is not canonical base64url", n+1)
		}
		if n == 0 {
			header = b
		}
	}
	var h documentHeader
	if err := strictJSON(header, &h); err != nil {
		return nil, kind.fault(FaultHeader, "header is not exactly {alg, typ, kid}: %v", err)
	}
	if h.Alg != string(jose.ES256) {
		return nil, kind.fault(FaultHeader, "algorithm is %q, want ES256", h.Alg)
	}
	if h.Typ != kind.typ {
		return nil, kind.fault(FaultHeader, "type is %q, want %q", h.Typ, kind.typ)
	}
	if h.Kid == "" {
		return nil, kind.fault(FaultHeader, "no kid")
	}
	jws, err := jose.ParseSignedCompact(string(raw), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, kind.fault(FaultForm, "not a compact JWS: %v", err)
	}
	return &document{kind: kind, kid: h.Kid, payload: jws.UnsafePayloadWithoutVerification(), jws: jws}, nil
}

// verify checks the signature with the key that the caller has chosen by kid.
func (d *document) verify(k *ecdsa.PublicKey) error {
	if k == nil {
		return d.kind.fault(FaultKey, "no key to verify with")
	}
	if _, err := d.jws.Verify(k); err != nil {
		return d.kind.fault(FaultSignature, "signature is not of key %s", d.kid)
	}
	return nil
}

// DocumentSigner signs heads and records. Make one with NetworkSigner or
// RecordSigner; the zero value signs nothing.
type DocumentSigner struct {
	name string // of a head's signer; empty for the network key
	kid  string
	k    *ecdsa.PrivateKey
	id   NetworkID // of a network key; zero for a signer, who may serve several
}

// NetworkSigner signs with the network key.
func NetworkSigner(k key.NetworkPrivate) DocumentSigner {
	if k.IsZero() {
		return DocumentSigner{}
	}
	return DocumentSigner{kid: k.Public().Thumbprint(), k: k.ECDSA(), id: IDOf(k.Public())}
}

// RecordSigner signs records as the signer whom the head calls name.
func RecordSigner(name string, k key.SignerPrivate) DocumentSigner {
	if k.IsZero() {
		return DocumentSigner{}
	}
	return DocumentSigner{name: name, kid: k.Public().Thumbprint(), k: k.ECDSA()}
}

// Format keeps the key out of every print.
func (s DocumentSigner) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[signer %q]", s.kid) }

func (s DocumentSigner) sign(kind documentKind, payload []byte) ([]byte, error) {
	if s.k == nil {
		return nil, kind.fault(FaultKey, "no key to sign with")
	}
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: s.k, KeyID: s.kid}},
		(&jose.SignerOptions{}).WithType(jose.ContentType(kind.typ)))
	if err != nil {
		return nil, fmt.Errorf("sign %s: %v", kind.noun, err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %v", kind.noun, err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		return nil, fmt.Errorf("sign %s: %v", kind.noun, err)
	}
	if len(text) > kind.max {
		return nil, kind.fault(FaultSize, "%d bytes, want at most %d", len(text), kind.max)
	}
	return []byte(text), nil
}

// documentHash is hexadecimal SHA-256 over what was signed: header and payload,
// without the signature. Two ECDSA signatures of one content, or one signature
// and its mirror (r, n−s), which anybody can make, are therefore no conflict.
func documentHash(raw []byte) string {
	signed := raw
	if n := bytes.LastIndexByte(raw, '.'); n >= 0 {
		signed = raw[:n]
	}
	h := sha256.Sum256(signed)
	return hex.EncodeToString(h[:])
}

// documentSupersedes compares versions and contents. had may be empty.
func documentSupersedes(name string, got, had uint64, gotHash, hadHash string) error {
	switch {
	case got < had:
		return &RollbackError{Document: name, Got: got, Had: had}
	case got > had:
		return nil
	case gotHash == hadHash:
		return ErrSame
	}
	return &ConflictError{Document: name, Version: got, Got: gotHash, Had: hadHash}
}

// documentTime brings a time to what JSON keeps of it: whole seconds of UTC.
func documentTime(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Second)
}

// documentExtra checks and compacts what a reader may ignore.
func documentExtra(extra json.RawMessage) (json.RawMessage, error) {
	if len(extra) == 0 {
		return nil, nil
	}
	var b bytes.Buffer
	if err := json.Compact(&b, extra); err != nil {
		return nil, fmt.Errorf("not JSON: %v", err)
	}
	return b.Bytes(), nil
}

// documentText refuses names and URLs which could deceive in a terminal.
func documentText(s string) error {
	if len(s) > 2048 {
		return errors.New("longer than 2048 bytes")
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
		return fmt.Errorf("%q holds a character that is not printable ASCII", s)
	}
	return nil
}
