package auth

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/zt-daemon/zt/auth/key"
)

const (
	accessRequestDomain  = "zt-request-v1"
	accessRequestVersion = 1

	// AccessRequestMin and AccessRequestMax bound what may be asked for.
	AccessRequestMin = time.Minute
	AccessRequestMax = 24 * time.Hour
	// AccessRequestMaxReason is how many characters its reason may have.
	AccessRequestMaxReason = 200

	// accessRequestAge is how long after it was signed a request is taken.
	accessRequestAge = 10 * time.Minute

	accessRequestFixed    = 1 + 8 + 4 + 2 + key.SignatureSize
	accessRequestMaxBytes = accessRequestFixed + utf8.UTFMax*AccessRequestMaxReason
)

// AccessRequest is a person's wish to be let into a cluster that refuses them,
// signed by their login key: a node can tell it from what a relay made up. It
// grants nothing; people read it. Times have milliseconds and are UTC.
type AccessRequest struct {
	Issued    time.Time
	For       time.Duration // whole seconds, from AccessRequestMin to AccessRequestMax
	Reason    string        // 1 to AccessRequestMaxReason printable characters
	Signature [key.SignatureSize]byte
}

// Check says what is wrong with For or Reason.
func (r AccessRequest) Check() error {
	switch {
	case r.For < AccessRequestMin || r.For > AccessRequestMax:
		return fmt.Errorf("access for %s, want %s to %s", Duration(r.For), Duration(AccessRequestMin), Duration(AccessRequestMax))
	case r.For%time.Second != 0:
		return fmt.Errorf("access for %s, want whole seconds", Duration(r.For))
	case !utf8.ValidString(r.Reason):
		return fmt.Errorf("the reason is not UTF-8")
	case utf8.RuneCountInString(r.Reason) > AccessRequestMaxReason:
		return fmt.Errorf("the reason has %d characters, want at most %d", utf8.RuneCountInString(r.Reason), AccessRequestMaxReason)
	case strings.TrimSpace(r.Reason) == "":
		return fmt.Errorf("the reason is empty")
	}
	for _, c := range r.Reason {
		if !unicode.IsPrint(c) {
			return fmt.Errorf("the reason holds a character that does not print: %U", c)
		}
	}
	return nil
}

// SignAccessRequest signs r, whose Issued is cut to milliseconds, for one cluster
// of network id.
func SignAccessRequest(id NetworkID, cluster string, r AccessRequest, k key.LoginPrivate) (AccessRequest, error) {
	r.Issued = time.UnixMilli(r.Issued.UnixMilli()).UTC()
	if err := r.Check(); err != nil {
		return AccessRequest{}, err
	}
	r.Signature = k.Sign(r.message(id, cluster))
	return r, nil
}

// message is what is signed: "zt-request-v1" ‖ lp(network id) ‖ lp(cluster) ‖ the
// encoded request without its signature.
func (r AccessRequest) message(id NetworkID, cluster string) []byte {
	b := appendLP([]byte(accessRequestDomain), id[:])
	return r.appendFields(appendLP(b, []byte(cluster)))
}

func (r AccessRequest) appendFields(dst []byte) []byte {
	dst = appendMilli(append(dst, accessRequestVersion), r.Issued)
	dst = binary.BigEndian.AppendUint32(dst, uint32(r.For/time.Second))
	return appendLP(dst, []byte(r.Reason))
}

// Append appends u8 1 ‖ u64 issued ‖ u32 seconds ‖ lp(reason) ‖ signature 64.
func (r AccessRequest) Append(dst []byte) []byte {
	return append(r.appendFields(dst), r.Signature[:]...)
}

// ParseAccessRequest reads what Append wrote, exactly. It checks the form, and
// that For and Reason are within their bounds.
func ParseAccessRequest(b []byte) (AccessRequest, error) {
	if len(b) > accessRequestMaxBytes {
		return AccessRequest{}, refuse(ReasonTooLarge, "access request of %d bytes, want at most %d", len(b), accessRequestMaxBytes)
	}
	var r AccessRequest
	in := byteReader{b: b}
	version := in.u8()
	r.Issued = in.milli()
	r.For = time.Duration(binary.BigEndian.Uint32(in.take(4))) * time.Second
	r.Reason = string(in.lp())
	copy(r.Signature[:], in.take(key.SignatureSize))
	if !in.done() || version != accessRequestVersion {
		return AccessRequest{}, refuse(ReasonMalformed, "access request is not of the documented form")
	}
	if err := r.Check(); err != nil {
		return AccessRequest{}, refuse(ReasonMalformed, "access request: %v", err)
	}
	return r, nil
}

// Verify accepts r if id's login key signed it for this cluster not long before
// now. Every error is a *RefusedError.
func (r AccessRequest) Verify(network NetworkID, cluster string, id *Identity, now time.Time) error {
	if !id.LoginKey.Verify(r.message(network, cluster), r.Signature[:]) {
		return refuse(ReasonSignature, "access request: the login key did not sign it for cluster %s", cluster)
	}
	if ahead := r.Issued.Sub(now); ahead > clockSkew {
		return refuse(ReasonClock, "access request signed %s in the future", aboutDuration(ahead))
	}
	if age := now.Sub(r.Issued); age > accessRequestAge {
		return refuse(ReasonExpired, "access request signed %s ago, want at most %s", aboutDuration(age), Duration(accessRequestAge))
	}
	return nil
}
