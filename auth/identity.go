package auth

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

// Identity is who stands behind a grant, as a Verifier found it: every field
// comes from bytes whose signatures were checked. Only a Verifier makes one
// that Recheck accepts. It is not changed after it was made; Groups and Claims
// are shared between copies and must not be written to.
type Identity struct {
	Issuer  string // iss
	Subject string // sub; (Issuer, Subject) is the identity, for keys and preshared keys
	UID     string // the entry's subject claim: for policy, revocation and audit
	Name    string // for display only; may be empty
	Email   string // only if the issuer verified it; else empty
	Groups  []string

	AuthTime time.Time // of the login at the issuer; zero = not told
	SID, JTI string    // may be empty

	// Claims is the whole verified payload, as encoding/json decodes it but for
	// numbers, which are json.Number.
	Claims map[string]any

	LoginKey      key.LoginPublic
	WireGuardKey  key.WireGuardPublic
	Encapsulation [EncapsulationSize]byte

	IssuedAt        time.Time // iat of the ID token
	GrantEnds       time.Time
	StatementIssued time.Time
	StatementEnds   time.Time

	Addr     netip.Addr // overlay address, from the login key
	Workload bool       // proved by the workload table

	token      *tokenClaims
	commitment Commitment
	statement  Statement
}

// Ends is when the identity must be cut if nothing renews it: the earlier of
// the grant's end and the statement's.
func (id *Identity) Ends() time.Time {
	if id.StatementEnds.Before(id.GrantEnds) {
		return id.StatementEnds
	}
	return id.GrantEnds
}

// String names the person for logs and people: the verified e-mail address, else
// the name, else the subject, escaped.
func (id *Identity) String() string {
	for _, s := range []string{id.Email, id.Name, id.Subject} {
		if s != "" {
			return printable(s)
		}
	}
	return "unknown"
}

// LogValue logs what String gives: the claims stay out of logs.
func (id *Identity) LogValue() slog.Value { return slog.StringValue(id.String()) }

// Claim returns a claim that is a single value as text: a text itself, a number
// or a bool in canonical JSON. ok is false when it is absent or anything else.
func (id *Identity) Claim(name string) (text string, ok bool) {
	return claimText(id.Claims[name])
}

// Supersedes reports whether id, from a grant just verified, may take the place
// of prev, an identity of the same login key: nil if it may (the same statement
// again included), ReasonStatementOlder or ReasonStatementConflict if not.
func (id *Identity) Supersedes(prev *Identity) error {
	if refused := id.statement.supersedes(prev.statement); refused != nil {
		return refused
	}
	return nil
}

func (s Statement) supersedes(prev Statement) *RefusedError {
	switch {
	case s.Issued.Before(prev.Issued):
		return refuse(ReasonStatementOlder, "signed %s before it", prev.Issued.Sub(s.Issued))
	case s.Issued.Equal(prev.Issued) && !s.End && !bytes.Equal(s.Append(nil), prev.Append(nil)):
		return refuse(ReasonStatementConflict, "%s", s.Issued.Format(time.RFC3339Nano))
	}
	return nil
}

// withStatement is id renewed by s, which was verified.
func (id Identity) withStatement(s Statement) *Identity {
	id.WireGuardKey, id.Encapsulation = s.Key, s.Encapsulation
	id.StatementIssued, id.StatementEnds = s.Issued, s.Expires
	id.statement = s
	return &id
}

// identify reads who the claims are about. It refuses group overage: "no
// groups" would be a lie that a policy then acts on.
func (t *tokenClaims) identify(entry Issuer) (*Identity, *RefusedError) {
	id := &Identity{Issuer: entry.URL, Claims: t.claims, IssuedAt: t.iat, token: t}
	id.Subject, _ = t.claims["sub"].(string)
	if refused := checkSubject("sub", id.Subject); refused != nil {
		return nil, refused
	}
	id.UID, _ = claimText(t.claims[entry.SubjectClaim])
	if refused := checkSubject(entry.SubjectClaim, id.UID); refused != nil {
		return nil, refused
	}
	if refused := t.checkOverage(entry.GroupsClaim); refused != nil {
		return nil, refused
	}
	if v, ok := t.claims[entry.GroupsClaim]; ok {
		if id.Groups, ok = claimList(v); !ok {
			return nil, refuse(ReasonClaims, "%s is neither a text nor a list of texts", entry.GroupsClaim)
		}
	}
	if claimTrue(t.claims["email_verified"]) {
		id.Email, _ = t.claims["email"].(string)
	}
	if id.Name, _ = t.claims["name"].(string); id.Name == "" {
		id.Name, _ = t.claims["preferred_username"].(string)
	}
	id.SID, _ = t.claims["sid"].(string)
	id.JTI, _ = t.claims["jti"].(string)
	return id, nil
}

// checkSubject holds what identities are compared by. A lone surrogate decodes
// to U+FFFD, so two different subjects could become one: refused.
func checkSubject(claim, s string) *RefusedError {
	switch {
	case s == "":
		return refuse(ReasonClaims, "%s is missing, empty, or not a text", claim)
	case len(s) > maxSubjectBytes:
		return refuse(ReasonClaims, "%s is longer than %d bytes", claim, maxSubjectBytes)
	case strings.Contains(s, replacementRune):
		return refuse(ReasonClaims, "%s holds a broken character", claim)
	}
	return nil
}

// checkOverage finds the ways in which an issuer says that it left groups out:
// a distributed claim (OIDC Core §5.6.2), and Entra ID's hasgroups.
func (t *tokenClaims) checkOverage(groupsClaim string) *RefusedError {
	if v, ok := t.claims["_claim_names"]; ok {
		names, ok := v.(map[string]any)
		if !ok {
			return refuse(ReasonClaims, "_claim_names is not an object")
		}
		if _, left := names[groupsClaim]; left {
			return refuse(ReasonGroupOverage, "claim %q is elsewhere (_claim_names)", groupsClaim)
		}
	}
	if v, ok := t.claims["hasgroups"]; ok && groupsClaim == "groups" && claimTrue(v) {
		return refuse(ReasonGroupOverage, "hasgroups")
	}
	return nil
}
