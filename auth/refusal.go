package auth

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Reason names why something was refused. Its text is stable and safe as a
// metric label, in an audit line and on the wire; the set is closed (Reasons).
type Reason string

const (
	// The bytes.

	// ReasonMalformed: what was sent is not of the documented form.
	ReasonMalformed Reason = "malformed"
	// ReasonTooLarge: more bytes than the form allows.
	ReasonTooLarge Reason = "too_large"
	// ReasonHeader: the ID token's header names an own key, a critical
	// extension, or is otherwise more than algorithm, key id and type.
	ReasonHeader Reason = "bad_header"
	// ReasonAlgorithm: an algorithm that the issuer entry does not list.
	ReasonAlgorithm Reason = "wrong_algorithm"
	// ReasonSignature: no key of the issuer made the ID token's signature.
	ReasonSignature Reason = "bad_signature"
	// ReasonClaims: a claim is missing, twice there, or of another type.
	ReasonClaims Reason = "bad_claims"

	// Who the ID token is for, and from whom.

	// ReasonUnknownIssuer: no entry for this issuer.
	ReasonUnknownIssuer Reason = "unknown_issuer"
	// ReasonIssuer: the token's iss is not the entry's URL.
	ReasonIssuer Reason = "wrong_issuer"
	// ReasonAudience: an audience that is not accepted, or the client missing.
	ReasonAudience Reason = "wrong_audience"
	// ReasonRequire: a required claim is missing or has another value.
	ReasonRequire Reason = "require_not_met"
	// ReasonNoNonce: the ID token commits to no login key.
	ReasonNoNonce Reason = "nonce_missing"
	// ReasonNonce: the ID token commits to something else.
	ReasonNonce Reason = "nonce_mismatch"
	// ReasonNetwork: the grant is for another network.
	ReasonNetwork Reason = "wrong_network"
	// ReasonKind: a person's proof where a workload's was due, or the reverse.
	ReasonKind Reason = "wrong_kind"
	// ReasonGroupOverage: the issuer left the groups out because there are too many.
	ReasonGroupOverage Reason = "group_overage"

	// Time.

	// ReasonExpired: the grant has reached its end.
	ReasonExpired Reason = "expired"
	// ReasonLoginTooOld: the person's last login at the issuer is too long ago.
	ReasonLoginTooOld Reason = "login_too_old"
	// ReasonNoAuthTime: the time of that login is required and not told.
	ReasonNoAuthTime Reason = "auth_time_missing"
	// ReasonClock: a time that lies in the future: two clocks disagree.
	ReasonClock Reason = "clock"

	// The statement.

	// ReasonStatementSignature: the login key did not sign the statement.
	ReasonStatementSignature Reason = "bad_statement_signature"
	// ReasonStatementExpired: the statement is not live.
	ReasonStatementExpired Reason = "statement_expired"
	// ReasonStatementLifetime: the statement claims more than an hour, or none.
	ReasonStatementLifetime Reason = "statement_lifetime"
	// ReasonStatementOlder: a newer statement is already known.
	ReasonStatementOlder Reason = "statement_older"
	// ReasonStatementConflict: two different statements of one time.
	ReasonStatementConflict Reason = "statement_conflict"
	// ReasonEncapsulation: the encapsulation key is no ML-KEM-768 key.
	ReasonEncapsulation Reason = "bad_encapsulation_key"
	// ReasonChannelKey: the statement names another key than the session proved.
	ReasonChannelKey Reason = "wrong_channel_key"
	// ReasonEnded: the person logged out.
	ReasonEnded Reason = "ended"
	// ReasonKeyHeld: this WireGuard key belongs to another login key.
	ReasonKeyHeld Reason = "key_held"

	// The issuer's keys.

	// ReasonWithdrawnKey: the issuer no longer publishes the key that signed.
	ReasonWithdrawnKey Reason = "withdrawn_key"
	// ReasonUnknownKey: the issuer publishes no key of the token's id and algorithm.
	ReasonUnknownKey Reason = "unknown_key"
	// ReasonEntryChanged: the issuer entry was changed after this was admitted.
	ReasonEntryChanged Reason = "entry_changed"
	// ReasonIssuerUnreachable: the issuer's keys could not be fetched yet.
	ReasonIssuerUnreachable Reason = "issuer_unreachable"

	// A node's proof.

	// ReasonClusterKey: no live key of the cluster made the signature.
	ReasonClusterKey Reason = "wrong_cluster_key"
	// ReasonUnknownCluster: no record of a cluster of this name.
	ReasonUnknownCluster Reason = "unknown_cluster"
	// ReasonEdgeNonce: an answer to another request.
	ReasonEdgeNonce Reason = "wrong_edge_nonce"

	// What is decided locally.

	// ReasonPolicy: no rule of the cluster's policy admits this identity.
	ReasonPolicy Reason = "denied_by_policy"
	// ReasonDenied: the cluster's policy denies this identity by name.
	ReasonDenied Reason = "denied_by_name"
	// ReasonWindow: a rule admits this identity, at another time.
	ReasonWindow Reason = "outside_window"
	// ReasonClosed: the cluster is closed until an AccessGrant opens it.
	ReasonClosed Reason = "cluster_closed"
	// ReasonRequested: refused as well, and the person's request for access was
	// written down for the cluster's openers.
	ReasonRequested Reason = "access_requested"
	// ReasonNoPolicy: the node has no readable policy and refuses everybody.
	ReasonNoPolicy Reason = "no_policy"
	// ReasonRevoked: an administrator revoked this login.
	ReasonRevoked Reason = "revoked"
	// ReasonNotAdmitted: asked before a grant was admitted.
	ReasonNotAdmitted Reason = "not_admitted"
	// ReasonNodeAbsent: no node of the cluster has a session with this relay.
	ReasonNodeAbsent Reason = "node_absent"
	// ReasonBusy: a budget or a table is full.
	ReasonBusy Reason = "busy"
	// ReasonReplaced: a newer session or key of the same login took over.
	ReasonReplaced Reason = "replaced"
	// ReasonNodeStops: the node of the cluster is being stopped.
	ReasonNodeStops Reason = "node_stops"
	// ReasonIdle: nothing used it for a while.
	ReasonIdle Reason = "idle"
	// ReasonRollback: an older version than one already seen.
	ReasonRollback Reason = "rollback"
	// ReasonInternal: a fault of the refusing side.
	ReasonInternal Reason = "internal"
	// ReasonOther: what a newer version sent and this one does not know.
	ReasonOther Reason = "other"
)

// Class says what a person or a program can do about a refusal. It is all that
// a stranger is told.
type Class string

const (
	// ClassInvalid: what was presented is wrong and stays wrong.
	ClassInvalid Class = "invalid"
	// ClassLogin: a new login is needed.
	ClassLogin Class = "login"
	// ClassDenied: understood, and not allowed.
	ClassDenied Class = "denied"
	// ClassUnavailable: the same again may succeed later.
	ClassUnavailable Class = "unavailable"
)

type reasonText struct {
	class Class
	what  string // what happened, as a claim
	hint  string // what to do; empty: nothing that helps is known
}

const (
	hintLogin   = "run `zt-daemon login`, then try again"
	hintClock   = "set the clock of this machine (NTP), then run `zt-daemon login`"
	hintIdP     = "ask the platform engineer to compare the issuer entry with the identity provider's client"
	hintUpgrade = "use versions of zt-daemon and zt-relay that belong together"
	hintAdmin   = "ask an administrator of the cluster"
	hintLater   = "try again in a minute"
)

var reasonTexts = map[Reason]reasonText{
	ReasonMalformed: {ClassInvalid, "the proof of login is malformed", hintUpgrade},
	ReasonTooLarge:  {ClassInvalid, "the proof of login is too large", "ask the administrator of the identity provider to put fewer claims into the ID token"},
	ReasonHeader:    {ClassInvalid, "the ID token's header is not acceptable", hintIdP},
	ReasonAlgorithm: {ClassInvalid, "the ID token is signed with an algorithm that is not listed for its issuer", "ask the platform engineer to compare `algorithms` of the issuer entry with the identity provider"},
	ReasonSignature: {ClassInvalid, "the ID token's signature is wrong", hintLogin},
	ReasonClaims:    {ClassInvalid, "the ID token's claims are not acceptable", hintIdP},

	ReasonUnknownIssuer: {ClassInvalid, "the issuer is not one of those accepted here", "ask the platform engineer (relay) or cluster administrator (node) to accept this issuer"},
	ReasonIssuer:        {ClassInvalid, "the ID token is of another issuer", hintLogin},
	ReasonAudience:      {ClassInvalid, "the ID token is for another audience", hintIdP},
	ReasonRequire:       {ClassInvalid, "the ID token lacks a claim that its issuer entry requires", "log in with an account of the right organisation or tenant"},
	ReasonNoNonce:       {ClassInvalid, "the ID token commits to no login key", "log in with `zt-daemon login`; tokens of other programs and of the device flow are not accepted"},
	ReasonNonce:         {ClassInvalid, "the ID token commits to another login key", hintLogin},
	ReasonNetwork:       {ClassInvalid, "the grant is for another network", "compare the network id of the login line with the one of this relay"},
	ReasonKind:          {ClassInvalid, "this kind of proof is not accepted here", ""},
	ReasonGroupOverage:  {ClassInvalid, "the issuer left the groups out of the ID token because there are too many", "have the identity provider send only the groups assigned to this application (Entra ID: Token configuration, “Groups assigned to the application”), or use roles"},

	ReasonExpired:     {ClassLogin, "the login has expired", hintLogin},
	ReasonLoginTooOld: {ClassLogin, "the login at the identity provider is too long ago", hintLogin},
	ReasonNoAuthTime:  {ClassInvalid, "the ID token does not say when the person logged in, which its issuer entry requires", "have the identity provider send auth_time, or remove authTimeRequired from the issuer entry"},
	ReasonClock:       {ClassInvalid, "a time lies in the future: the clocks disagree", hintClock},

	ReasonStatementSignature: {ClassInvalid, "the statement is not signed by the login key", hintLogin},
	ReasonStatementExpired:   {ClassLogin, "the statement has expired", "see that `zt-daemon up` is running and that this machine's clock is right"},
	ReasonStatementLifetime:  {ClassInvalid, "the statement's lifetime is not acceptable", hintUpgrade},
	ReasonStatementOlder:     {ClassInvalid, "a newer statement is already known", ""},
	ReasonStatementConflict:  {ClassInvalid, "two different statements were signed for the same time", "see that only one copy of the login key is in use, then run `zt-daemon login`"},
	ReasonEncapsulation:      {ClassInvalid, "the statement's encapsulation key is not an ML-KEM-768 key", hintUpgrade},
	ReasonChannelKey:         {ClassInvalid, "the statement names another WireGuard key than the session's", ""},
	ReasonEnded:              {ClassLogin, "the login was ended", hintLogin},
	ReasonKeyHeld:            {ClassInvalid, "this WireGuard key is held for another login key", "restart `zt-daemon`: it makes a new WireGuard key"},

	ReasonWithdrawnKey:      {ClassLogin, "the issuer withdrew the key that signed the ID token", hintLogin},
	ReasonUnknownKey:        {ClassUnavailable, "the issuer publishes no key that fits the ID token", "try again in a minute; then run `zt-daemon login`"},
	ReasonEntryChanged:      {ClassUnavailable, "the issuer entry was changed", hintLater},
	ReasonIssuerUnreachable: {ClassUnavailable, "the issuer's keys could not be fetched", "see that the relay or node can reach the issuer over HTTPS"},

	ReasonClusterKey:     {ClassInvalid, "no live key of the cluster made this signature", "run `zt-daemon cluster add` again if the cluster key was replaced"},
	ReasonUnknownCluster: {ClassInvalid, "there is no cluster of this name", "run `zt-daemon clusters` for the list"},
	ReasonEdgeNonce:      {ClassInvalid, "the answer is to another request", ""},

	ReasonPolicy:      {ClassDenied, "no rule of the cluster's policy admits this login", hintAdmin},
	ReasonDenied:      {ClassDenied, "the cluster's policy denies this login", hintAdmin},
	ReasonWindow:      {ClassDenied, "the cluster's policy admits this login at other times only", hintAdmin},
	ReasonClosed:      {ClassDenied, "the cluster is closed until an AccessGrant opens it", "ask for one: `zt-daemon request NAME --for 1h --reason \"…\"`, with the cluster's name"},
	ReasonRequested:   {ClassDenied, "the request for access was written down in the cluster", "an opener sees it with `zt-daemon requests NAME`"},
	ReasonNoPolicy:    {ClassUnavailable, "the node has no readable policy and refuses everybody", hintAdmin},
	ReasonRevoked:     {ClassDenied, "the login was revoked", hintAdmin},
	ReasonNotAdmitted: {ClassInvalid, "the session has presented no grant", hintLogin},
	ReasonNodeAbsent:  {ClassUnavailable, "no node of the cluster is connected to this relay", "see that the cluster's zt-daemon pods are running"},
	ReasonBusy:        {ClassUnavailable, "a limit is reached", hintLater},
	ReasonReplaced:    {ClassInvalid, "a newer session of the same login took over", ""},
	ReasonNodeStops:   {ClassUnavailable, "the cluster's node is being stopped", "try again: another node serves, or this one in a moment"},
	ReasonIdle:        {ClassUnavailable, "it was idle", ""},
	ReasonRollback:    {ClassInvalid, "an older version than one already seen", ""},
	ReasonInternal:    {ClassUnavailable, "the other side had a fault of its own", "see its log"},
	ReasonOther:       {ClassInvalid, "refused for a reason that this version does not know", hintUpgrade},
}

// Reasons returns every reason, sorted: the label values of a refusal counter.
func Reasons() []Reason {
	all := make([]Reason, 0, len(reasonTexts))
	for r := range reasonTexts {
		all = append(all, r)
	}
	slices.Sort(all)
	return all
}

// ParseReason reads a reason from the wire. A text that is no reason gives
// ReasonOther, so that a stranger cannot add label values.
func ParseReason(s string) Reason {
	if _, ok := reasonTexts[Reason(s)]; ok {
		return Reason(s)
	}
	return ReasonOther
}

// Class says what can be done about r.
func (r Reason) Class() Class { return reasonTexts[ParseReason(string(r))].class }

// Text says what happened, in words, without the particulars.
func (r Reason) Text() string { return reasonTexts[ParseReason(string(r))].what }

// Hint says what to do; it may be empty.
func (r Reason) Hint() string { return reasonTexts[ParseReason(string(r))].hint }

// RefusedError is a refusal with its particulars. Detail and HintText may come
// from another machine: Error and Hint escape and shorten them.
type RefusedError struct {
	Reason   Reason
	Detail   string // the particulars; never a token or a key's secret half
	HintText string // replaces the reason's own hint
}

// refuse builds a RefusedError whose detail is formatted.
func refuse(r Reason, format string, args ...any) *RefusedError {
	return &RefusedError{Reason: r, Detail: fmt.Sprintf(format, args...)}
}

// Error says what happened and, after a colon, the particulars.
func (e *RefusedError) Error() string {
	if e.Detail == "" {
		return e.Reason.Text()
	}
	return e.Reason.Text() + ": " + printable(e.Detail)
}

// Hint says what to do; it may be empty.
func (e *RefusedError) Hint() string {
	if e.HintText != "" {
		return printable(e.HintText)
	}
	return e.Reason.Hint()
}

// Is makes errors.Is(err, &RefusedError{Reason: r}) true for every refusal
// with that reason.
func (e *RefusedError) Is(target error) bool {
	t, ok := target.(*RefusedError)
	return ok && t.Reason == e.Reason && t.Detail == "" && t.HintText == ""
}

const maxPrintable = 500 // bytes of one foreign text in a message

// printable is s for a terminal or a log: what is not a printable rune is
// escaped as in a Go string, and the rest is cut at maxPrintable bytes.
func printable(s string) string {
	var b strings.Builder
	for i, r := range s {
		if b.Len() >= maxPrintable {
			b.WriteString("…")
			break
		}
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			b.WriteString(`\x`)
			const hex = "0123456789abcdef"
			b.WriteByte(hex[s[i]>>4])
			b.WriteByte(hex[s[i]&15])
		case r == ' ' || unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}
