package relay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// documents are the signed documents that this relay serves. It can alter none.
type documents struct {
	store *store

	mu        sync.RWMutex // guards what follows
	claimHash *[32]byte    // of the claim code; nil once used
	head      *auth.Head   // nil: unclaimed
	records   map[string]record
}

// record remembers when a record was taken: its signer had to be live then.
type record struct {
	*auth.Record
	taken time.Time
}

func (d *documents) newest() *auth.Head {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.head
}

// network is zero while the relay is unclaimed.
func (d *documents) network() auth.NetworkID {
	if h := d.newest(); h != nil {
		return h.Network
	}
	return auth.NetworkID{}
}

// cluster returns a live record.
func (d *documents) cluster(name string) (*auth.Record, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	r, ok := d.records[name]
	return r.Record, ok && !r.Removed
}

func (d *documents) clusterKeys(name string, now time.Time) []key.ClusterPublic {
	if r, ok := d.cluster(name); ok {
		return r.LiveKeys(now)
	}
	return nil
}

// load reads what is stored. The head must be right; a record that is not is
// put aside, and the others are served.
func (s *Server) loadDocuments() error {
	d := s.documents
	d.records = map[string]record{}
	raw, err := d.store.read(fileHead)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hash, made, err := d.store.loadClaim(s.keys.current.Public())
		if err != nil {
			return err
		}
		d.claimHash, s.claimCode = &hash, made
		return nil
	case err != nil:
		return err
	}
	if d.head, err = auth.ParseHead(raw); err != nil {
		return &StateError{d.store.path(fileHead), fmt.Errorf("is corrupt: %w", err), adviceCorrupt}
	}
	if err := d.store.remove(fileClaim); err != nil { // a crash may have left it
		return err
	}
	names, err := os.ReadDir(d.store.path(dirRecords))
	if err != nil {
		return &StateError{d.store.path(dirRecords), err, ""}
	}
	for _, entry := range names {
		name, ok := strings.CutSuffix(entry.Name(), ".jws")
		if !ok {
			continue
		}
		file := recordFile(name)
		r, err := d.loadRecord(file)
		_, withdrawn := errors.AsType[*auth.SignerError](err)
		if fault, ok := errors.AsType[*auth.DocumentError](err); ok && fault.Fault == auth.FaultWithdrawn {
			withdrawn = true
		}
		switch {
		case err == nil && r.Name == name:
			d.records[name] = r
		case withdrawn:
			s.log.Warn("record is no longer admitted by the head, it is not served", "cluster", name, "err", err)
		default:
			aside, aerr := d.store.setAside(file, s.now())
			s.log.Error("record is corrupt, it is not served; have it put again", "cluster", name, "err", err, "aside", aside, "aside_err", aerr)
		}
	}
	return nil
}

func recordFile(name string) string { return filepath.Join(dirRecords, name+".jws") }

func (d *documents) loadRecord(file string) (record, error) {
	info, err := os.Stat(d.store.path(file))
	if err != nil {
		return record{}, err
	}
	raw, err := d.store.read(file)
	if err != nil {
		return record{}, err
	}
	r, err := auth.ParseRecord(raw, d.head, info.ModTime())
	return record{r, info.ModTime()}, err
}

// claim gives an unclaimed relay its first head. The code is used up only when
// the head is stored.
func (s *Server) claim(m *wire.Claim) *auth.RefusedError {
	d := s.documents
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.claimHash == nil || d.head != nil {
		return refused(wire.ReasonWrongCode, "this relay was claimed before", "start a relay with an empty state directory to claim it for another network")
	}
	if !claimMatches(m.Code, *d.claimHash) {
		return refused(wire.ReasonWrongCode, "not this relay's claim code", "copy the code from the first lines that `zt-relay serve` printed")
	}
	h, err := auth.ParseHead(slices.Clone(m.Head))
	if err != nil {
		return badDocument(err)
	}
	if !s.named(h) {
		return refused(wire.ReasonBadDocument, "the head names no relay with this relay's key", "make the head with the key that the claim code belongs to")
	}
	if err := d.store.write(fileHead, h.Raw()); err != nil {
		return s.notStored(err)
	}
	if err := s.buildVerifier(h); err != nil {
		d.store.remove(fileHead)
		return badDocument(err)
	}
	d.head, d.claimHash = h, nil
	if err := d.store.remove(fileClaim); err != nil {
		s.log.Warn("claim hash was not removed; the head counts", "err", err)
	}
	s.audit.write(Event{Time: s.now(), Event: EventClaim, Detail: "network " + h.Network.String()})
	s.log.Info("relay was claimed", "network", h.Network)
	return nil
}

// named reports whether h lists this relay, by either of its keys.
func (s *Server) named(h *auth.Head) bool {
	return slices.ContainsFunc(h.Relays, func(r auth.Relay) bool {
		return r.Key == s.keys.current.Public() || r.Key == s.keys.next.Public()
	})
}

func badDocument(err error) *auth.RefusedError {
	r := refused(wire.ReasonBadDocument, err.Error(), "")
	_, rollback := errors.AsType[*auth.RollbackError](err)
	_, conflict := errors.AsType[*auth.ConflictError](err)
	if rollback || conflict {
		r.Reason = wire.ReasonStale
	}
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		r.HintText = h.Hint()
	}
	return r
}

func (s *Server) notStored(err error) *auth.RefusedError {
	s.metrics.storeFailures.Inc()
	s.log.Error("a change was refused because it could not be stored", "err", err)
	return refused(wire.ReasonStorage, "the relay could not store it, and serves on with what it had", "make room on the relay's disk, then try again")
}

// putDocument stores a newer head or record and tells who may see it.
func (s *Server) putDocument(m *wire.PutDocument) *auth.RefusedError {
	raw := slices.Clone(m.Raw)
	switch m.Kind {
	case wire.DocumentHead:
		return s.putHead(raw)
	case wire.DocumentRecord:
		return s.putRecord(raw)
	}
	return refused(wire.ReasonMalformed, fmt.Sprintf("document kind %d", m.Kind), "")
}

func (s *Server) putHead(raw []byte) *auth.RefusedError {
	d := s.documents
	d.mu.Lock()
	defer d.mu.Unlock()
	h, err := auth.ParseHead(raw)
	if err != nil {
		return badDocument(err)
	}
	if err := h.Supersedes(d.head); errors.Is(err, auth.ErrSame) {
		return nil
	} else if err != nil {
		return badDocument(err)
	}
	if !s.named(h) {
		s.log.Warn("the new head does not name this relay", "version", h.Version)
	}
	verifier, err := s.newVerifier(h)
	if err != nil {
		return badDocument(err)
	}
	if err := d.store.write(fileHead, h.Raw()); err != nil {
		return s.notStored(err)
	}
	s.useVerifier(verifier)
	d.head = h
	for name, old := range d.records {
		if _, err := auth.ParseRecord(old.Raw(), h, old.taken); err != nil {
			s.log.Warn("record is no longer admitted by the head, it is not served", "cluster", name, "err", err)
			delete(d.records, name)
		}
	}
	s.changed("head", h.Version, "")
	return nil
}

func (s *Server) putRecord(raw []byte) *auth.RefusedError {
	d := s.documents
	d.mu.Lock()
	defer d.mu.Unlock()
	now := s.now()
	r, err := auth.ParseRecord(raw, d.head, now)
	if err != nil {
		return badDocument(err)
	}
	if err := auth.CheckAudiences(d.head.Issuers, r.Issuer); err != nil {
		return badDocument(err)
	}
	if err := r.Supersedes(d.records[r.Name].Record); errors.Is(err, auth.ErrSame) {
		return nil
	} else if err != nil {
		return badDocument(err)
	}
	if err := d.store.write(recordFile(r.Name), r.Raw()); err != nil {
		return s.notStored(err)
	}
	d.records[r.Name] = record{r, now}
	s.changed("record "+r.Name, r.Version, r.Name)
	return nil
}

// changed tells sessions of a new document: of a record, people and the
// cluster's own nodes. Leases are held against it soon.
func (s *Server) changed(what string, version uint64, cluster string) {
	s.audit.write(Event{Time: s.now(), Event: EventDocument, Cluster: cluster, Detail: fmt.Sprintf("%s version %d", what, version)})
	s.log.Info("document was stored", "document", what, "version", version)
	s.hub.mu.Lock()
	for _, p := range s.hub.sessions {
		if cluster == "" || p.kind != kindNode || p.cluster == cluster {
			p.send(&wire.DocumentsChanged{})
		}
	}
	s.hub.mu.Unlock()
	select {
	case s.recheckNow <- struct{}{}:
	default: // asked for already
	}
}

// sendDocuments answers a DocumentsRequest: a node gets the head and its own
// record, everybody else all there is.
func (s *Server) sendDocuments(ctx context.Context, p *session, re uint32, cluster string) {
	d := s.documents
	d.mu.RLock()
	head := d.head
	var names []string
	if cluster == "" {
		names = slices.Sorted(maps.Keys(d.records))
	} else if _, ok := d.records[cluster]; ok {
		names = []string{cluster}
	}
	raws := make([][]byte, len(names))
	for i, name := range names {
		raws[i] = d.records[name].Raw()
	}
	d.mu.RUnlock()
	p.sendBulk(ctx, &wire.Document{Re: re, Kind: wire.DocumentHead, Raw: head.Raw()})
	for _, raw := range raws {
		p.sendBulk(ctx, &wire.Document{Re: re, Kind: wire.DocumentRecord, Raw: raw})
	}
	p.sendBulk(ctx, &wire.DocumentsEnd{Re: re})
}
