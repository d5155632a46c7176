package auth

import (
	"context"
	"crypto/mlkem"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/zt-daemon/zt/auth/key"
	"golang.org/x/sync/errgroup"
)

// VerifierConfig configures a Verifier.
type VerifierConfig struct {
	Network NetworkID
	Issuers []Issuer // whose persons are accepted
	// Workloads are issuers whose workloads VerifyWorkload accepts; ClientID may
	// be empty, the audience commits to the login key. An issuer of persons is
	// not one of workloads unless it is listed in both.
	Workloads []Issuer
	// Keys returns the key set of an issuer of either list, which the caller
	// then runs. nil = the Verifier makes key sets and its Run runs them.
	Keys func(issuerURL string) *KeySet
	HTTP *http.Client // for key sets made here; nil = the default transport's settings
	Log  *slog.Logger // nil = none
	Now  func() time.Time
}

// Verifier decides whether a grant is what it claims. Its entries are fixed: a
// changed policy or head makes a new Verifier, and Recheck by the new one cuts
// what the old one admitted.
type Verifier struct {
	network   NetworkID
	persons   map[string]verifierEntry
	workloads map[string]verifierEntry
	own       []*KeySet
	now       func() time.Time
}

type verifierEntry struct {
	issuer Issuer
	keys   *KeySet
}

// NewVerifier checks cfg and starts nothing.
func NewVerifier(cfg VerifierConfig) (*Verifier, error) {
	if cfg.Network.IsZero() {
		return nil, errors.New("verifier without a network id")
	}
	if err := validateIssuers(cfg.Issuers); err != nil {
		return nil, err
	}
	workloads := make([]Issuer, len(cfg.Workloads))
	for n, w := range cfg.Workloads {
		if w.ClientID == "" {
			w.ClientID = "zt" // unused: nothing is checked against it, but an entry has one
		}
		workloads[n] = w
	}
	if err := validateIssuers(workloads); err != nil {
		return nil, err
	}
	v := &Verifier{network: cfg.Network, now: cfg.Now}
	if v.now == nil {
		v.now = time.Now
	}
	keys := cfg.Keys
	if keys == nil {
		made := map[string]*KeySet{}
		for _, i := range append(append([]Issuer{}, cfg.Issuers...), workloads...) {
			if made[i.URL] != nil {
				continue
			}
			// One set serves both tables' entries of one URL.
			s, err := NewKeySet(KeySetConfig{Issuer: i, HTTP: cfg.HTTP, Log: cfg.Log, Now: v.now})
			if err != nil {
				return nil, err
			}
			made[i.URL] = s
			v.own = append(v.own, s)
		}
		keys = func(url string) *KeySet { return made[url] }
	}
	var err error
	if v.persons, err = verifierEntries(cfg.Issuers, keys); err != nil {
		return nil, err
	}
	if v.workloads, err = verifierEntries(workloads, keys); err != nil {
		return nil, err
	}
	return v, nil
}

func verifierEntries(issuers []Issuer, keys func(string) *KeySet) (map[string]verifierEntry, error) {
	entries := make(map[string]verifierEntry, len(issuers))
	for _, i := range issuers {
		s := keys(i.URL)
		if s == nil {
			return nil, fmt.Errorf("no key set for issuer %q", i.URL)
		}
		if s.issuer.URL != i.URL {
			return nil, fmt.Errorf("key set of issuer %q was given for %q", s.issuer.URL, i.URL)
		}
		entries[i.URL] = verifierEntry{issuer: i.WithDefaults(), keys: s}
	}
	return entries, nil
}

// Run keeps the key sets that the Verifier made fresh, until ctx is done.
func (v *Verifier) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range v.own {
		g.Go(func() error { return s.Run(ctx) })
	}
	g.Go(func() error { <-ctx.Done(); return nil })
	return g.Wait()
}

// KeySets returns the state of each key set in use.
func (v *Verifier) KeySets() []KeySetState {
	var states []KeySetState
	seen := map[*KeySet]bool{}
	for _, table := range []map[string]verifierEntry{v.persons, v.workloads} {
		for _, e := range table {
			if !seen[e.keys] {
				seen[e.keys] = true
				states = append(states, e.keys.State())
			}
		}
	}
	return states
}

// Verify decides whether grant, encoded, proves a person's login for the
// WireGuard key channel: the static key that the session proved, or, on a node,
// the peer key that it would install. It is the only maker of a person's
// Identity. Every error is a *RefusedError; of ClassUnavailable, the same grant
// may succeed later.
//
// It does not know policy, revocations, or what was admitted before: see
// Identity.Supersedes.
func (v *Verifier) Verify(ctx context.Context, grant []byte, channel key.WireGuardPublic) (*Identity, error) {
	id, refused := v.verify(ctx, grant, channel, false)
	if refused != nil {
		return nil, refused
	}
	return id, nil
}

// VerifyWorkload is Verify for a workload: its ID token has the commitment as
// its only audience, carries no nonce, and its exp ends the grant.
func (v *Verifier) VerifyWorkload(ctx context.Context, grant []byte, channel key.WireGuardPublic) (*Identity, error) {
	id, refused := v.verify(ctx, grant, channel, true)
	if refused != nil {
		return nil, refused
	}
	return id, nil
}

func (v *Verifier) verify(ctx context.Context, grant []byte, channel key.WireGuardPublic, workload bool) (*Identity, *RefusedError) {
	g, err := ParseGrant(grant)
	if err != nil {
		return nil, asRefused(err)
	}
	commitment, err := ParseCommitment(g.Commitment)
	if err != nil {
		return nil, refuse(ReasonMalformed, "%v", err)
	}
	table, other := v.persons, v.workloads
	if workload {
		table, other = other, table
	}
	entry, ok := table[g.Issuer]
	if !ok {
		if _, ok := other[g.Issuer]; ok {
			return nil, refuse(ReasonKind, "issuer %q", g.Issuer)
		}
		return nil, refuse(ReasonUnknownIssuer, "%q", g.Issuer)
	}
	token, refused := entry.claims(ctx, g.IDToken)
	if refused != nil {
		return nil, refused
	}
	now := v.now()
	id, refused := v.admit(entry.issuer, token, commitment, workload, now)
	if refused != nil {
		return nil, refused
	}
	if !g.Statement.verify(token.hash, commitment.Key) {
		return nil, refuse(ReasonStatementSignature, "")
	}
	if g.Statement.End {
		return nil, refuse(ReasonEnded, "")
	}
	if refused := g.Statement.checkLive(now); refused != nil {
		return nil, refused
	}
	if refused := checkStatementKeys(g.Statement.Statement, channel); refused != nil {
		return nil, refused
	}
	return id.withStatement(g.Statement.Statement), nil
}

func asRefused(err error) *RefusedError {
	var refused *RefusedError
	if errors.As(err, &refused) {
		return refused
	}
	return refuse(ReasonInternal, "%v", err)
}

// claims verifies an ID token's signature with keys of this entry's issuer.
func (e verifierEntry) claims(ctx context.Context, idToken string) (*tokenClaims, *RefusedError) {
	compact, thumb, refused := e.keys.verify(ctx, idToken, e.issuer.Algorithms)
	if refused != nil {
		return nil, refused
	}
	claims, refused := parseClaims(compact.payload)
	if refused != nil {
		return nil, refused
	}
	t := &tokenClaims{claims: claims, hash: sha256.Sum256([]byte(idToken)), key: thumb}
	if refused := t.readIssuedAt(); refused != nil {
		return nil, refused
	}
	return t, nil
}

// admit holds verified claims against the entry, the commitment and the clock,
// in the order in which a person would want to hear of a fault.
func (v *Verifier) admit(entry Issuer, t *tokenClaims, c Commitment, workload bool, now time.Time) (*Identity, *RefusedError) {
	if refused := t.checkIssuer(entry); refused != nil {
		return nil, refused
	}
	check := t.checkPerson
	if workload {
		check = t.checkWorkload
	}
	if refused := check(entry, c); refused != nil {
		return nil, refused
	}
	if c.Network != v.network {
		return nil, refuse(ReasonNetwork, "%s, want %s", c.Network, v.network)
	}
	ends, refused := t.checkTimes(entry, now)
	if refused != nil {
		return nil, refused
	}
	var authTime time.Time
	if workload {
		ends, refused = t.checkExpiry(ends, now)
	} else {
		authTime, refused = t.checkLogin(entry)
	}
	if refused != nil {
		return nil, refused
	}
	id, refused := t.identify(entry)
	if refused != nil {
		return nil, refused
	}
	id.AuthTime, id.GrantEnds, id.Workload = authTime, ends, workload
	id.LoginKey, id.Addr = c.Key, v.network.PersonAddr(c.Key)
	id.commitment = c
	return id, nil
}

// checkPerson is the person's table: the overlay client as audience, a nonce
// that is the commitment's hash.
func (t *tokenClaims) checkPerson(entry Issuer, c Commitment) *RefusedError {
	if refused := t.checkPersonAudience(entry); refused != nil {
		return refused
	}
	if refused := t.checkRequired(entry); refused != nil {
		return refused
	}
	v, ok := t.claims["nonce"]
	if !ok {
		return refuse(ReasonNoNonce, "")
	}
	nonce, ok := v.(string)
	if !ok {
		return refuse(ReasonClaims, "nonce is not a text")
	}
	if subtle.ConstantTimeCompare([]byte(nonce), []byte(c.Nonce())) != 1 {
		return refuse(ReasonNonce, "")
	}
	return nil
}

// checkWorkload is the workload's table: one audience, which is the
// commitment's, and no nonce.
func (t *tokenClaims) checkWorkload(entry Issuer, c Commitment) *RefusedError {
	if _, ok := t.claims["nonce"]; ok {
		return refuse(ReasonKind, "a workload's ID token has no nonce")
	}
	v, ok := t.claims["aud"]
	if !ok {
		return refuse(ReasonAudience, "no aud")
	}
	audiences, ok := claimList(v)
	if !ok {
		return refuse(ReasonClaims, "aud is neither a text nor a list of texts")
	}
	if len(audiences) != 1 || subtle.ConstantTimeCompare([]byte(audiences[0]), []byte(c.WorkloadAudience())) != 1 {
		return refuse(ReasonAudience, "%q does not commit to this login key", audiences)
	}
	return t.checkRequired(entry)
}

// checkExpiry: exp ends a workload's grant, if grantAge does not before.
func (t *tokenClaims) checkExpiry(grantEnds, now time.Time) (ends time.Time, refused *RefusedError) {
	exp, present, refused := claimTime(t.claims, "exp")
	switch {
	case refused != nil:
		return ends, refused
	case !present:
		return ends, refuse(ReasonClaims, "no exp")
	case !exp.After(now):
		return ends, refuse(ReasonExpired, "ID token expired %s ago", aboutDuration(now.Sub(exp)))
	case exp.Before(grantEnds):
		return exp, nil
	}
	return grantEnds, nil
}

// checkStatementKeys holds the keys that the statement names.
func checkStatementKeys(s Statement, channel key.WireGuardPublic) *RefusedError {
	if channel.IsZero() || !s.Key.Equal(channel) {
		return refuse(ReasonChannelKey, "%s, want %s", s.Key, channel)
	}
	if _, err := mlkem.NewEncapsulationKey768(s.Encapsulation[:]); err != nil {
		return refuse(ReasonEncapsulation, "")
	}
	return nil
}

// VerifyStatement renews prev, which was verified from grant g, by a statement
// that its login key signed. The newer issued wins, the same statement again is
// no fault, another of the same time is refused. One that ends the login gives
// ReasonEnded, whatever its expiry: remove the peer then. On every other
// refusal keep prev until its own end.
func (v *Verifier) VerifyStatement(g Grant, prev *Identity, s SignedStatement) (*Identity, error) {
	if refused := v.checkStatement(g, prev, s); refused != nil {
		return nil, refused
	}
	return prev.withStatement(s.Statement), nil
}

func (v *Verifier) checkStatement(g Grant, prev *Identity, s SignedStatement) *RefusedError {
	if prev == nil || prev.token == nil || sha256.Sum256([]byte(g.IDToken)) != prev.token.hash {
		return refuse(ReasonInternal, "statement for another grant than the identity's")
	}
	if !s.verify(prev.token.hash, prev.LoginKey) {
		return refuse(ReasonStatementSignature, "")
	}
	if refused := s.supersedes(prev.statement); refused != nil {
		return refused
	}
	if s.End {
		return refuse(ReasonEnded, "")
	}
	now := v.now()
	if refused := s.checkLive(now); refused != nil {
		return refused
	}
	if now.After(prev.GrantEnds) {
		return refuse(ReasonExpired, "%s ago", aboutDuration(now.Sub(prev.GrantEnds)))
	}
	return checkStatementKeys(s.Statement, prev.WireGuardKey)
}

// Recheck holds an admitted identity against the present: its ends, the
// issuer's keys of today, and this Verifier's entries, which may be newer than
// those that admitted it. nil = it may stay. Relays and nodes call it on a
// timer, and after the head or the policy changed.
func (v *Verifier) Recheck(id *Identity) *RefusedError {
	if id == nil || id.token == nil {
		return refuse(ReasonInternal, "not an identity that a verifier made")
	}
	table := v.persons
	if id.Workload {
		table = v.workloads
	}
	entry, ok := table[id.Issuer]
	if !ok {
		return refuse(ReasonUnknownIssuer, "%q", id.Issuer)
	}
	if !entry.keys.publishes(id.token.key) {
		return refuse(ReasonWithdrawnKey, "%s", id.Issuer)
	}
	now := v.now()
	again, refused := v.admit(entry.issuer, id.token, id.commitment, id.Workload, now)
	if refused != nil {
		return refused
	}
	if again.UID != id.UID || !slices.Equal(again.Groups, id.Groups) {
		return refuse(ReasonEntryChanged, "uid or groups are read from another claim now")
	}
	if now.After(id.GrantEnds) {
		return refuse(ReasonExpired, "%s ago", aboutDuration(now.Sub(id.GrantEnds)))
	}
	return id.statement.checkLive(now)
}
