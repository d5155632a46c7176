package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	localConnections   = 128              // at once; more wait in the socket's backlog
	localHeaderTimeout = 5 * time.Second  // for a request's header
	localBodyTimeout   = 10 * time.Second // and for all of it
	localStopTimeout   = 3 * time.Second  // for answers under way when the daemon ends

	// unixPathMaxBytes is what every system takes in sun_path (macOS: 104 with
	// the terminating zero).
	unixPathMaxBytes = 103
)

// LocalServerConfig says what a LocalServer answers. Handler is required.
type LocalServerConfig struct {
	Handler LocalHandler
	UID     int          // who may connect; normally os.Geteuid()
	Log     *slog.Logger // nil: none
}

// LocalServer is the daemon's own API: HTTP and JSON over a Unix socket, for
// the commands of the same person.
type LocalServer struct {
	handler LocalHandler
	uid     int
	log     *slog.Logger
}

// NewLocalServer checks cfg and starts nothing.
func NewLocalServer(cfg LocalServerConfig) (*LocalServer, error) {
	if cfg.Handler == nil {
		return nil, errors.New("the local API needs a handler")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &LocalServer{handler: cfg.Handler, uid: cfg.UID, log: cfg.Log}, nil
}

// ListenLocal opens the Unix socket at path with mode 0600 in a directory of
// mode 0700, which it makes. A socket that a dead daemon left is replaced: call
// it with the state directory's lock held.
func ListenLocal(path string) (net.Listener, error) {
	if len(path) > unixPathMaxBytes {
		return nil, NewLocalError(KindFailure, "set XDG_RUNTIME_DIR, or use a shorter state directory",
			"the path of the daemon's socket is %d bytes long and may be %d: %s", len(path), unixPathMaxBytes, path)
	}
	if err := makePrivateDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("directory of the daemon's socket: %w", err)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket && info.Mode().Type() != os.ModeIrregular { // Windows says irregular
			return nil, fmt.Errorf("%s is in the way: it is not a socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on the daemon's socket: %w", err)
	}
	// Between the two calls the directory's 0700 keeps others out.
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// Run serves ln, which it closes, until ctx is done. Answers under way then
// have 3 s to end; a login is cut at once.
func (s *LocalServer) Run(ctx context.Context, ln net.Listener) error {
	serveCtx, cut := context.WithCancel(context.WithoutCancel(ctx)) // outlives ctx by localStopTimeout
	defer cut()
	srv := &http.Server{
		Handler:           s.routes(ctx),
		ReadHeaderTimeout: localHeaderTimeout,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return serveCtx },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	guarded := &ownListener{Listener: ln, uid: s.uid, log: s.log, slots: make(chan struct{}, localConnections), closed: make(chan struct{})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(guarded) }()
	var err error
	select {
	case err = <-served:
		guarded.Close()
		err = fmt.Errorf("local API: %w", err)
	case <-ctx.Done():
		stopCtx, cancel := context.WithTimeout(serveCtx, localStopTimeout)
		if srv.Shutdown(stopCtx) != nil {
			cut()
			srv.Close()
		}
		cancel()
		<-served
	}
	guarded.wait()
	return err
}

// ownListener accepts only connections of one user, a bounded number at once.
type ownListener struct {
	net.Listener
	uid    int
	log    *slog.Logger
	slots  chan struct{}
	open   sync.WaitGroup
	once   sync.Once
	closed chan struct{}
}

func (l *ownListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

func (l *ownListener) wait() { l.open.Wait() }

func (l *ownListener) Accept() (net.Conn, error) {
	for {
		select {
		case l.slots <- struct{}{}:
		case <-l.closed:
			return nil, net.ErrClosed
		}
		c, err := l.Listener.Accept()
		if err != nil {
			<-l.slots
			return nil, err
		}
		if err := checkPeer(c, l.uid); err != nil {
			l.log.Warn("connection to the daemon's socket refused", "err", err)
			c.Close()
			<-l.slots
			continue
		}
		l.open.Add(1)
		return &ownConn{Conn: c, release: sync.OnceFunc(func() { <-l.slots; l.open.Done() })}, nil
	}
}

type ownConn struct {
	net.Conn
	release func()
}

func (c *ownConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// checkPeer refuses a Unix socket whose other end is another user's process.
// It looks at who connected (or who listens), which the kernel noted then.
func checkPeer(c net.Conn, uid int) error {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("a %T is not a Unix socket", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	peer, perr := -1, error(nil)
	if err := raw.Control(func(fd uintptr) { peer, perr = peerUID(fd) }); err != nil {
		return err
	}
	if perr != nil {
		return fmt.Errorf("who is at the other end of the daemon's socket: %w", perr)
	}
	if peer != uid {
		return fmt.Errorf("the process at the other end of the daemon's socket is user %d's, not user %d's", peer, uid)
	}
	return nil
}

// routes answers requests; stop is done when the daemon ends.
func (s *LocalServer) routes(stop context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", answer(func(ctx context.Context, _ struct{}) (any, error) { return s.handler.Status(ctx) }))
	mux.HandleFunc("GET /v1/clusters", answer(func(ctx context.Context, _ struct{}) (any, error) {
		c, err := s.handler.Clusters(ctx)
		if c == nil {
			c = []ClusterStatus{}
		}
		return c, err
	}))
	mux.HandleFunc("GET /v1/whoami", answer(func(ctx context.Context, _ struct{}) (any, error) {
		w, err := s.handler.Whoami(ctx)
		if w == nil {
			w = []Whoami{}
		}
		return w, err
	}))
	mux.HandleFunc("POST /v1/logout", answer(func(ctx context.Context, req LogoutRequest) (any, error) {
		return struct{}{}, s.handler.Logout(ctx, req)
	}))
	mux.HandleFunc("POST /v1/credential", answer(func(ctx context.Context, req CredentialRequest) (any, error) {
		c, err := s.handler.Credential(ctx, req)
		return credentialReply{IDToken: c.IDToken.Reveal(), Expiry: c.Expiry}, err
	}))
	mux.HandleFunc("POST /v1/access", answer(func(ctx context.Context, req AccessRequest) (any, error) {
		return s.handler.RequestAccess(ctx, req)
	}))
	mux.HandleFunc("POST /v1/down", answer(func(ctx context.Context, _ struct{}) (any, error) {
		return struct{}{}, s.handler.Down(ctx)
	}))
	mux.HandleFunc("POST /v1/login", func(w http.ResponseWriter, r *http.Request) { s.login(stop, w, r) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeLocalError(w, http.StatusNotFound, NewLocalError(KindUsage,
			"use the zt-daemon command of the same version as the daemon", "the daemon's API has no %s %s", r.Method, r.URL.Path))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if err := refuseForeign(r); err != nil {
			s.log.Warn("request to the daemon's API refused", "err", err)
			writeLocalError(w, http.StatusForbidden, err)
			return
		}
		// Bounds the body; event streams lift only the write side, which has none.
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(localBodyTimeout))
		mux.ServeHTTP(w, r)
	})
}

// refuseForeign refuses what a browser or a proxy would send. None can reach
// the socket by itself; this is for the day when somebody bridges it to TCP.
func refuseForeign(r *http.Request) *LocalError {
	if r.Host != localHost {
		return NewLocalError(KindDenied, "", "the daemon's API does not answer for host %q", r.Host)
	}
	for _, name := range []string{"Origin", "Referer", "Sec-Fetch-Site", "Forwarded", "X-Forwarded-For", "Via"} {
		if r.Header.Get(name) != "" {
			return NewLocalError(KindDenied, "", "the daemon's API does not answer requests with a %s header", name)
		}
	}
	return nil
}

// readLocal reads a request's JSON body.
func readLocal(w http.ResponseWriter, r *http.Request, into any) error {
	if r.Method == http.MethodGet {
		return nil
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return NewLocalError(KindUsage, "", "request: Content-Type is not application/json")
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, localBodyMaxBytes))
	if err != nil {
		return NewLocalError(KindUsage, "", "request: %v", err)
	}
	// The body has arrived; from now on the server reads only to learn that the
	// other side went away.
	http.NewResponseController(w).SetReadDeadline(time.Time{})
	return decodeLocal(b, into)
}

func answer[Req any](do func(context.Context, Req) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Req
		if err := readLocal(w, r, &req); err != nil {
			writeLocalError(w, http.StatusBadRequest, AsLocalError(err))
			return
		}
		http.NewResponseController(w).SetReadDeadline(time.Time{})
		reply, err := do(r.Context(), req)
		if err != nil {
			writeLocalError(w, http.StatusUnprocessableEntity, AsLocalError(err))
			return
		}
		b, err := json.Marshal(reply)
		if err != nil {
			writeLocalError(w, http.StatusInternalServerError, AsLocalError(err))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(append(b, '\n'))
	}
}

func writeLocalError(w http.ResponseWriter, status int, e *LocalError) {
	b, err := json.Marshal(struct {
		Error *LocalError `json:"error"`
	}{e})
	if err != nil {
		b = []byte(`{"error":{"kind":"failure","message":"error without text","exitCode":1}}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n'))
}

// login streams events as JSON lines. Its context ends when the command goes
// away (Ctrl-C) or the daemon ends, whichever is first.
func (s *LocalServer) login(stop context.Context, w http.ResponseWriter, r *http.Request) {
	var req LoginRequest
	if err := readLocal(w, r, &req); err != nil {
		writeLocalError(w, http.StatusBadRequest, AsLocalError(err))
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(stop, cancel)()
	w.Header().Set("Content-Type", "application/jsonl")
	flush := http.NewResponseController(w)
	var mu sync.Mutex // guards w: handlers may send from several goroutines
	send := func(e LoginEvent) {
		b, err := json.Marshal(e)
		if err != nil {
			s.log.Error("login event cannot be written", "err", err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		w.Write(append(b, '\n')) // a reader that went away ends ctx
		flush.Flush()
	}
	result, err := s.handler.Login(ctx, req, send)
	switch {
	case err != nil && stop.Err() != nil:
		send(LoginEvent{Type: LoginFailed, Error: NewLocalError(KindCancelled, "run `zt-daemon login` again", "the daemon ended during the login")})
	case err != nil:
		send(LoginEvent{Type: LoginFailed, Error: AsLocalError(err)})
	default:
		send(LoginEvent{Type: LoginDone, Result: &result})
	}
}
