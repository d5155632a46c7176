package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// Admin changes one network's signed documents, for one command.
type Admin struct {
	State *AdminNetwork
	HTTP  HTTPConfig
	// Network is the network key; zero where it is not on this machine.
	Network key.NetworkPrivate
	// Signer is this machine's signer; zero where there is none.
	Signer key.SignerPrivate
}

// OpenAdmin reads the keys that this machine has for a network. It may have none.
func OpenAdmin(s *AdminState, id auth.NetworkID, cfg HTTPConfig) (*Admin, error) {
	a := &Admin{State: s.Network(id), HTTP: cfg}
	var err error
	if a.Network, err = a.State.Key(); err != nil && !errors.Is(err, ErrNoState) {
		return nil, err
	}
	if a.Signer, err = s.Signer(); err != nil && !errors.Is(err, ErrNoState) {
		return nil, err
	}
	return a, nil
}

// RelayError is what went wrong with one of several relays.
type RelayError struct {
	Relay string // URL
	Err   error
}

func (e *RelayError) Error() string { return e.Relay + ": " + e.Err.Error() }
func (e *RelayError) Unwrap() error { return e.Err }

// Refresh returns the newest head: that kept, or a newer one of a relay, which is
// then kept. relays are asked beside those of the kept head; they need not be
// trusted. faults are the relays that did not answer or served something old;
// only if there is no head at all, or two contradict each other, it is an error.
// All relays are asked at once, which takes at most ten seconds.
func (a *Admin) Refresh(ctx context.Context, relays ...string) (head *auth.Head, faults []*RelayError, err error) {
	head, err = a.State.Head()
	if err != nil && !errors.Is(err, ErrNoState) {
		return nil, nil, err
	}
	var urls []string
	if head != nil {
		for _, r := range head.Relays {
			urls = append(urls, r.URL)
		}
	}
	for _, url := range relays {
		if url = strings.TrimRight(url, "/"); !slices.Contains(urls, url) {
			urls = append(urls, url)
		}
	}
	if len(urls) == 0 {
		return nil, nil, ErrNoState
	}
	fetched := make([]*auth.Head, len(urls))
	errs := eachRelay(urls, func(n int) (err error) {
		fetched[n], err = FetchHead(ctx, urls[n], a.State.ID(), a.HTTP)
		return err
	})
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	for n, url := range urls {
		err := errs[n]
		if err == nil {
			var newest *auth.Head
			if newest, err = a.State.TakeHead(fetched[n]); newest != nil {
				head = newest
			}
			if _, old := errors.AsType[*auth.RollbackError](err); err != nil && !old {
				return nil, faults, fmt.Errorf("%s: %w", url, err)
			}
		}
		if err != nil {
			faults = append(faults, &RelayError{url, err})
		}
	}
	if head == nil {
		return nil, faults, faults[0].Err
	}
	return head, faults, nil
}

// eachRelay calls do for each relay at once: one that does not answer must not
// hold up the others. The errors are in the relays' order.
func eachRelay[R any](relays []R, do func(n int) error) []error {
	errs := make([]error, len(relays))
	var all sync.WaitGroup
	for n := range relays {
		all.Go(func() { errs[n] = do(n) })
	}
	all.Wait()
	return errs
}

// NoKeyError says that this machine has no key that may do something.
type NoKeyError struct {
	Network auth.NetworkID
	// Signer is this machine's signer, which the head does not admit now; zero
	// where there is none.
	Signer key.SignerPublic
	What   string // that needs a key
}

func (e *NoKeyError) Error() string {
	if e.Signer.IsZero() {
		return fmt.Sprintf("%s needs a key, and this machine has neither the key of network %s nor a signer", e.What, e.Network)
	}
	return fmt.Sprintf("%s needs a key: this machine has not that of network %s, and the head does not admit its signer now", e.What, e.Network)
}

// Hint is the line for the platform engineer.
func (e *NoKeyError) Hint() string {
	if e.Signer.IsZero() {
		return "run `zt-daemon signer create`, then ask the platform engineer to type the line that it prints"
	}
	return fmt.Sprintf("ask the platform engineer to type: zt-daemon network sign --network %s --signer NAME=%s", e.Network, e.Signer)
}

// DocumentSigner is who signs records here: the network key if it is on this
// machine, else this machine's signer if h admits it at now, else *NoKeyError.
func (a *Admin) DocumentSigner(h *auth.Head, what string) (auth.DocumentSigner, error) {
	if !a.Network.IsZero() {
		return auth.NetworkSigner(a.Network), nil
	}
	if name, ok := a.signerName(h); ok {
		return auth.RecordSigner(name, a.Signer), nil
	}
	return auth.DocumentSigner{}, a.noKey(what)
}

func (a *Admin) noKey(what string) error {
	return &NoKeyError{Network: a.State.ID(), Signer: a.Signer.Public(), What: what}
}

// signerName is what the head calls this machine's signer. Whether it is live is
// the relays' to say: their clock counts.
func (a *Admin) signerName(h *auth.Head) (string, bool) {
	if a.Signer.IsZero() {
		return "", false
	}
	for _, s := range h.Signers {
		if s.Key == a.Signer.Public() {
			return s.Name, true
		}
	}
	return "", false
}

// session opens a proved session with one relay.
func (a *Admin) session(ctx context.Context, h *auth.Head, relay auth.Relay, what string) (*AdminSession, error) {
	_, isSigner := a.signerName(h)
	if a.Network.IsZero() && !isSigner {
		return nil, a.noKey(what)
	}
	s, err := DialAdmin(ctx, relay, h.Network, a.HTTP)
	if err != nil {
		return nil, err
	}
	if a.Network.IsZero() {
		err = s.ProveSigner(ctx, a.Signer)
	} else {
		err = s.ProveNetwork(ctx, a.Network)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// FetchedRecord is a record as a relay serves it. One of Record and Err is nil.
type FetchedRecord struct {
	Name    string // of one that does not verify: what it claims; may be empty
	Version uint64 // likewise
	Record  *auth.Record
	Raw     []byte
	Err     error // why it does not verify under the head
}

// Records fetches all records, sorted by name, the newest of each that any relay
// serves. They are judged as if every signer of the head were live, so that those
// of a signer who has ended are there too. It is an error only if no relay
// answers.
func (a *Admin) Records(ctx context.Context, h *auth.Head) ([]FetchedRecord, error) {
	fetched := make([][][]byte, len(h.Relays))
	errs := eachRelay(h.Relays, func(n int) (err error) {
		fetched[n], err = a.recordsOf(ctx, h, h.Relays[n])
		return err
	})
	if !slices.Contains(errs, nil) {
		return nil, errs[0]
	}
	var all []FetchedRecord
	for _, raws := range fetched {
		all = append(all, a.parseRecords(h, raws)...)
	}
	slices.SortStableFunc(all, func(r, s FetchedRecord) int {
		if r.Name != s.Name {
			return strings.Compare(r.Name, s.Name)
		}
		if (r.Err == nil) != (s.Err == nil) { // those that verify first
			return map[bool]int{true: -1, false: 1}[r.Err == nil]
		}
		return cmp.Compare(s.Version, r.Version)
	})
	return slices.CompactFunc(all, func(r, s FetchedRecord) bool { return r.Name != "" && r.Name == s.Name }), nil
}

// KeptRecords are the records that this machine signed, as Records gives those
// of relays.
func (a *Admin) KeptRecords(h *auth.Head) ([]FetchedRecord, error) {
	kept, err := a.State.documents.Records()
	if err != nil {
		return nil, err
	}
	var raws [][]byte
	for _, name := range slices.Sorted(maps.Keys(kept)) {
		raws = append(raws, kept[name])
	}
	return a.parseRecords(h, raws), nil
}

func (a *Admin) recordsOf(ctx context.Context, h *auth.Head, relay auth.Relay) ([][]byte, error) {
	s, err := a.session(ctx, h, relay, "fetching records")
	if err != nil {
		return nil, err
	}
	defer s.Close()
	_, raws, err := s.Documents(ctx)
	return raws, err
}

func (a *Admin) parseRecords(h *auth.Head, raws [][]byte) []FetchedRecord {
	all := make([]FetchedRecord, 0, len(raws))
	for _, raw := range raws {
		f := FetchedRecord{Raw: raw}
		f.Record, f.Err = recordWhenSigned(raw, h)
		if f.Err == nil {
			f.Name, f.Version = f.Record.Name, f.Record.Version
		} else if name, version, err := auth.PeekRecord(raw); err == nil {
			f.Name, f.Version = name, version
		}
		all = append(all, f)
	}
	return all
}

// recordWhenSigned verifies a record as if every signer of the head were live.
func recordWhenSigned(raw []byte, h *auth.Head) (*auth.Record, error) {
	begin := h.NotAfter
	for _, s := range h.Signers {
		if s.NotAfter.Before(begin) {
			begin = s.NotAfter
		}
	}
	return auth.ParseRecord(raw, h, begin.Add(-1))
}

// maxPeekedVersion bounds what an unverified record may do to the version of the
// next one: a relay must not use the numbers up.
const maxPeekedVersion = 1 << 32

// NextRecord returns the newest record of a cluster, nil if there is none that
// verifies, and the version for the next one: above all that relays serve, this
// machine has seen and the head demands.
func (a *Admin) NextRecord(ctx context.Context, h *auth.Head, name string) (old *auth.Record, version uint64, err error) {
	fetched, err := a.Records(ctx, h)
	if err != nil {
		return nil, 0, err
	}
	kept, err := a.KeptRecords(h)
	if err != nil {
		return nil, 0, err
	}
	fetched = append(fetched, kept...)
	if floor := h.MinRecord[name]; floor > 0 {
		version = floor - 1
	}
	for _, f := range fetched {
		if f.Name != name {
			continue
		}
		if f.Err != nil {
			if f.Version <= maxPeekedVersion {
				version = max(version, f.Version)
			}
			continue
		}
		if old == nil || old.Version < f.Version {
			old = f.Record
		}
		version = max(version, f.Version)
	}
	if version == math.MaxUint64 {
		return nil, 0, fmt.Errorf("record %s has the last version there can be", name)
	}
	return old, version + 1, nil
}

// PublishRecord keeps a record and puts it on every relay of the head. The error
// is the first relay's if none took it; else faults are those that did not.
func (a *Admin) PublishRecord(ctx context.Context, h *auth.Head, r *auth.Record) (faults []*RelayError, err error) {
	if err := a.State.KeepRecord(r); err != nil {
		return nil, err
	}
	return a.publish(ctx, h, h.Relays, "putting a record", func(s *AdminSession) error {
		return s.Put(ctx, wire.DocumentRecord, r.Raw())
	})
}

// PublishHead keeps a head and puts it on every relay that it or old names. The
// error is the first relay's if none took it; else faults are those that did not.
func (a *Admin) PublishHead(ctx context.Context, h, old *auth.Head) (faults []*RelayError, err error) {
	if _, err := a.State.TakeHead(h); err != nil {
		return nil, err
	}
	relays := append([]auth.Relay(nil), h.Relays...)
	if old != nil {
		for _, r := range old.Relays {
			if _, stays := h.Relay(r.URL); !stays {
				relays = append(relays, r) // so that it learns that it is no more
			}
		}
	}
	return a.publish(ctx, h, relays, "putting a head", func(s *AdminSession) error {
		return s.Put(ctx, wire.DocumentHead, h.Raw())
	})
}

// PutRecords puts records on one relay: one that was added.
func (a *Admin) PutRecords(ctx context.Context, h *auth.Head, relay auth.Relay, records []FetchedRecord) error {
	s, err := a.session(ctx, h, relay, "putting records")
	if err != nil {
		return err
	}
	defer s.Close()
	for _, r := range records {
		if r.Err != nil {
			continue // no relay takes it
		}
		if err := s.Put(ctx, wire.DocumentRecord, r.Raw); err != nil {
			return fmt.Errorf("record %s: %w", r.Name, err)
		}
	}
	return nil
}

func (a *Admin) publish(ctx context.Context, h *auth.Head, relays []auth.Relay, what string, put func(*AdminSession) error) (faults []*RelayError, err error) {
	errs := eachRelay(relays, func(n int) error {
		s, err := a.session(ctx, h, relays[n], what)
		if err != nil {
			return err
		}
		defer s.Close()
		return put(s)
	})
	for n, err := range errs {
		if err != nil {
			faults = append(faults, &RelayError{relays[n].URL, err})
		}
	}
	if len(faults) > 0 && (len(faults) == len(relays) || ctx.Err() != nil) {
		return nil, faults[0].Err
	}
	return faults, nil
}
