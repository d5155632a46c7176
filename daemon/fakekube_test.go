package daemon_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeKube is an API server as far as a node uses it: it keeps objects, tells
// watchers of changes, and refuses what it is told to refuse.
type fakeKube struct {
	t       *testing.T
	server  *httptest.Server
	account string // a service account's directory

	mu       sync.Mutex // guards the rest
	version  int
	objects  map[string]map[string]any // by path, such as /api/v1/namespaces/zt/configmaps/zt-policy
	watchers map[chan string]string    // what each is told, and of which collection
	refused  map[string]int            // by resource: the status that requests for it get
	patches  int                       // of statuses
	patched  []time.Time               // when each was asked for, also in vain
}

func newFakeKube(t *testing.T) *fakeKube {
	t.Helper()
	k := &fakeKube{t: t, account: t.TempDir(), objects: map[string]map[string]any{}, watchers: map[chan string]string{}, refused: map[string]int{}}
	k.server = httptest.NewTLSServer(http.HandlerFunc(k.serve))
	t.Cleanup(func() {
		k.server.CloseClientConnections()
		k.server.Close()
	})
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.server.Certificate().Raw})
	for name, text := range map[string]string{"token": "opaque", "namespace": "zt", "ca.crt": string(ca)} {
		if err := os.WriteFile(filepath.Join(k.account, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

const (
	policyObject = "/api/v1/namespaces/zt/configmaps/zt-policy"
	eventObjects = "/api/v1/namespaces/zt/events"
	grantObjects = "/apis/access.zt-daemon.io/v1alpha1/accessgrants"
)

func (k *fakeKube) serve(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer opaque" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/status") {
		k.patched = append(k.patched, time.Now())
	}
	for resource, code := range k.refused {
		if strings.Contains(r.URL.Path, "/"+resource) {
			w.WriteHeader(code)
			return
		}
	}
	switch {
	case r.Method == http.MethodGet && r.URL.Query().Get("watch") == "true":
		k.watch(w, r)
	case r.Method == http.MethodGet:
		items := []map[string]any{}
		for path, o := range k.objects {
			if filepath.Dir(path) == r.URL.Path && selected(r, path) {
				items = append(items, o)
			}
		}
		json.NewEncoder(w).Encode(map[string]any{"metadata": map[string]string{"resourceVersion": strconv.Itoa(k.version)}, "items": items})
	case r.Method == http.MethodPost:
		var o map[string]any
		if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		path := r.URL.Path + "/" + o["metadata"].(map[string]any)["name"].(string)
		if k.objects[path] != nil {
			w.WriteHeader(http.StatusConflict)
			return
		}
		k.setLocked(path, o)
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodPatch:
		path := strings.TrimSuffix(r.URL.Path, "/status")
		old := k.objects[path]
		var change map[string]any
		if old == nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if err := json.NewDecoder(r.Body).Decode(&change); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		next := map[string]any{}
		for field, v := range old {
			next[field] = v
		}
		for field, v := range change {
			if field != "metadata" {
				next[field] = v
			}
		}
		if path != r.URL.Path {
			k.patches++
			if r.URL.Query().Get("fieldManager") == "" || r.URL.Query().Get("force") != "true" || r.Header.Get("Content-Type") != "application/apply-patch+yaml" {
				k.t.Errorf("a status is not applied by server-side apply: %v", r.URL)
			}
		}
		k.setLocked(path, next)
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

func selected(r *http.Request, path string) bool {
	f := r.URL.Query().Get("fieldSelector")
	return f == "" || f == "metadata.name="+filepath.Base(path)
}

// watch tells of changes until the request ends; mu is held and given up meanwhile.
func (k *fakeKube) watch(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("resourceVersion") != strconv.Itoa(k.version) { // it keeps no history
		w.WriteHeader(http.StatusGone)
		return
	}
	told := make(chan string, 1000)
	k.watchers[told] = r.URL.Path
	k.mu.Unlock()
	w.(http.Flusher).Flush()
	for open := true; open; {
		select {
		case <-r.Context().Done():
			open = false
		case line := <-told:
			if name, event, _ := strings.Cut(line, " "); selected(r, name) {
				fmt.Fprintln(w, event)
				w.(http.Flusher).Flush()
			}
		}
	}
	k.mu.Lock()
	delete(k.watchers, told)
}

func (k *fakeKube) tellLocked(path, kind string, o map[string]any) {
	event, err := json.Marshal(map[string]any{"type": kind, "object": o})
	if err != nil {
		k.t.Error(err)
	}
	for told, of := range k.watchers {
		if of == filepath.Dir(path) {
			told <- path + " " + string(event)
		}
	}
}

func (k *fakeKube) setLocked(path string, o map[string]any) {
	k.version++
	metadata := map[string]any{"name": filepath.Base(path), "namespace": "zt", "uid": "uid-" + filepath.Base(path)}
	if m, ok := o["metadata"].(map[string]any); ok {
		for field, v := range m {
			metadata[field] = v
		}
	}
	metadata["resourceVersion"] = strconv.Itoa(k.version)
	o["metadata"] = metadata
	if old := k.objects[path]; old == nil || !reflect.DeepEqual(old["spec"], o["spec"]) {
		metadata["generation"] = k.version
	} else {
		metadata["generation"] = old["metadata"].(map[string]any)["generation"]
	}
	kind := "ADDED"
	if k.objects[path] != nil {
		kind = "MODIFIED"
	}
	k.objects[path] = o
	k.tellLocked(path, kind, o)
}

func (k *fakeKube) set(path string, o map[string]any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.setLocked(path, o)
}

func (k *fakeKube) remove(path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.version++
	k.tellLocked(path, "DELETED", k.objects[path])
	delete(k.objects, path)
}

// refuse has requests for a resource fail with a status; 0 lets them through. Who
// watches it is cut off.
func (k *fakeKube) refuse(resource string, code int) {
	k.mu.Lock()
	k.refused[resource] = code
	if code == 0 {
		delete(k.refused, resource)
	}
	k.mu.Unlock()
	k.server.CloseClientConnections()
}

// policy puts text into the ConfigMap.
func (k *fakeKube) policy(text string) {
	k.set(policyObject, map[string]any{"data": map[string]string{"policy.yaml": text}})
}

// events are the recorded events, as "Reason: message", sorted.
func (k *fakeKube) events() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []string
	for path, o := range k.objects {
		if filepath.Dir(path) == eventObjects {
			all = append(all, fmt.Sprintf("%v: %v", o["reason"], o["message"]))
		}
	}
	slices.Sort(all)
	return all
}

// event waits for an event of a reason that says all of says.
func (k *fakeKube) event(reason string, says ...string) {
	k.t.Helper()
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		for _, e := range k.events() {
			found := strings.HasPrefix(e, reason+": ")
			for _, s := range says {
				found = found && strings.Contains(e, s)
			}
			if found {
				return
			}
		}
		if time.Now().After(end) {
			k.t.Fatalf("no event %s that says %q; there are\n%s", reason, says, strings.Join(k.events(), "\n"))
		}
	}
}
