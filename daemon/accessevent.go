package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon/kube"
)

const (
	accessEventReason = "AccessRequested"
	// accessEventPrefix begins the names of the annotations.
	accessEventPrefix = "access.zt-daemon.io/"

	// Bounds of an AccessGrant's fields, as its schema has them.
	maxGrantSubject = 255
	maxGrantIssuer  = 2048
)

// AccessEvent is somebody's request for access as a node wrote it into an Event.
// The node verified who asks: Issuer and Subject. Name and Reason may be that
// person's own words.
type AccessEvent struct {
	Time    time.Time     `json:"time"`
	Name    string        `json:"name"` // for people
	Issuer  string        `json:"issuer"`
	Subject string        `json:"subject"` // the uid: an AccessGrant's subject
	For     auth.Duration `json:"for"`
	Reason  string        `json:"reason"`
}

// event is what a node records. A person has one, whichever node they met.
func (e AccessEvent) event() kube.Event {
	return kube.Event{
		Reason:  accessEventReason,
		Message: fmt.Sprintf("%s (subject %s of %s) asks for access for %s: %s", e.Name, e.Subject, e.Issuer, e.For, e.Reason),
		Annotations: map[string]string{
			accessEventPrefix + "issuer": e.Issuer, accessEventPrefix + "subject": e.Subject, accessEventPrefix + "name": e.Name,
			accessEventPrefix + "for": e.For.String(), accessEventPrefix + "reason": e.Reason,
		},
		Shared: e.Issuer + "\x00" + e.Subject, Update: true,
	}
}

// AccessEvents reads the requests for access in a namespace, newest first. faulty
// counts those which are not as a node writes them.
func (k KubeContext) AccessEvents(ctx context.Context, namespace string) (requests []AccessEvent, faulty int, err error) {
	out, err := k.kubectl(ctx, nil, "get", "events", "--namespace", namespace, "--field-selector", "reason="+accessEventReason, "-o", "json")
	if err != nil {
		return nil, 0, err
	}
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, 0, fmt.Errorf("kubectl's answer: %v", err)
	}
	for _, item := range list.Items {
		e, err := parseAccessEvent(item)
		if err != nil {
			faulty++
			continue
		}
		requests = append(requests, e)
	}
	slices.SortStableFunc(requests, func(a, b AccessEvent) int {
		return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(a.Name, b.Name))
	})
	return requests, faulty, nil
}

// parseAccessEvent reads an Event. Who may write Events can write what a node
// would not: attacker.
func parseAccessEvent(item []byte) (AccessEvent, error) {
	var o struct {
		Metadata struct {
			Created     time.Time         `json:"creationTimestamp"`
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
		Last time.Time `json:"lastTimestamp"`
	}
	if err := json.Unmarshal(item, &o); err != nil {
		return AccessEvent{}, err
	}
	note := func(name string) string { return o.Metadata.Annotations[accessEventPrefix+name] }
	e := AccessEvent{Time: o.Last, Name: note("name"), Issuer: note("issuer"), Subject: note("subject"), Reason: note("reason")}
	if e.Time.IsZero() {
		e.Time = o.Metadata.Created
	}
	if err := e.For.UnmarshalText([]byte(note("for"))); err != nil {
		return AccessEvent{}, err
	}
	if err := (auth.AccessRequest{For: e.For.Std(), Reason: e.Reason}).Check(); err != nil {
		return AccessEvent{}, err
	}
	if strings.ContainsRune(e.Issuer+e.Subject+e.Reason, utf8.RuneError) {
		return AccessEvent{}, errors.New("holds a broken character")
	}
	if e.Name == "" || e.Issuer == "" || len(e.Issuer) > maxGrantIssuer || e.Subject == "" || utf8.RuneCountInString(e.Subject) > maxGrantSubject {
		return AccessEvent{}, errors.New("says not who asks")
	}
	return e, nil
}

// GrantName is the name of the AccessGrant that answers e: the same each time, and
// nothing that the person chose.
func (e AccessEvent) GrantName() string {
	who, _, _ := strings.Cut(strings.ToLower(e.Subject), "@")
	who = strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
			return r
		}
		return '-'
	}, who)
	who = strings.Trim(who[:min(len(who), 40)], "-")
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %d", e.Issuer, e.Subject, e.Time.Unix()))
	return strings.TrimPrefix(who+"-"+hex.EncodeToString(sum[:4]), "-")
}

// AccessGrant is the YAML of the AccessGrant that gives what e asks for, from
// now on. Each text is one quoted line, whatever it holds.
func (e AccessEvent) AccessGrant(now time.Time) string {
	now = now.UTC().Truncate(time.Second)
	b := new(strings.Builder)
	fmt.Fprintf(b, "apiVersion: %s\nkind: %s\nmetadata:\n  name: %q\nspec:\n", auth.AccessGrantAPI, auth.AccessGrantKind, e.GrantName())
	for _, f := range []struct{ name, text string }{
		{"issuer", e.Issuer}, {"subject", e.Subject}, {"reason", e.Reason},
		{"notBefore", now.Format(time.RFC3339)}, {"notAfter", now.Add(e.For.Std()).Format(time.RFC3339)},
	} {
		// Go's escapes are YAML's (YAML 1.2 §5.7).
		fmt.Fprintf(b, "  %s: %s\n", f.name, strconv.Quote(f.text))
	}
	return b.String()
}
