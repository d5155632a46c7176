package relay

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

const (
	certCheck     = 10 * time.Second // how old a look at certificate files may be
	ticketRotate  = 24 * time.Hour   // a new ticket key; the standard library's own interval
	ticketKeep    = 7                // keys: a ticket is good for a week (RFC 8446 §4.6.1)
	selfSignedFor = 10 * 365 * 24 * time.Hour
)

// TLS says where a relay's certificate comes from. Exactly one of its forms is
// to be set.
type TLS struct {
	// CertFile and KeyFile are PEM; they are read again when they change.
	CertFile, KeyFile string
	// Domain gets a certificate from Let's Encrypt, by TLS-ALPN-01 (RFC 8737) on
	// the relay's own listener: port 443 of Domain must lead to it.
	Domain string
	// SelfSigned are the host names and addresses of a certificate that the relay
	// makes and keeps in its state. Participants trust it by its pin.
	SelfSigned []string
}

// certificates is a TLS configuration and what keeps it fresh.
type certificates struct {
	config  *tls.Config
	pin     string // base64 SHA-256 of the SPKI, if self-signed
	store   *store
	log     *slog.Logger
	now     func() time.Time
	tickets []ticketKey
}

// ticketKey is kept in state, so that sessions resume after a restart.
type ticketKey struct {
	Key  []byte    `json:"key"` // 32 bytes
	Made time.Time `json:"made"`
}

func newCertificates(t TLS, st *store, log *slog.Logger, now func() time.Time) (*certificates, error) {
	forms := 0
	for _, set := range []bool{t.CertFile != "" || t.KeyFile != "", t.Domain != "", len(t.SelfSigned) > 0} {
		if set {
			forms++
		}
	}
	if forms != 1 {
		return nil, errors.New("TLS needs one of: certificate files, a domain, self-signed hosts")
	}
	c := &certificates{store: st, log: log, now: now, config: &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"}, // WebSocket upgrades are HTTP/1.1's
	}}
	switch {
	case t.Domain != "":
		m := &autocert.Manager{
			Prompt:     autocert.AcceptTOS,
			Cache:      autocert.DirCache(st.path(dirACME)),
			HostPolicy: autocert.HostWhitelist(t.Domain),
		}
		c.config.GetCertificate = m.GetCertificate
		c.config.NextProtos = append(c.config.NextProtos, acme.ALPNProto)
	case len(t.SelfSigned) > 0:
		cert, err := selfSigned(st, t.SelfSigned, now())
		if err != nil {
			return nil, err
		}
		c.config.Certificates = []tls.Certificate{cert}
		sum := sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo)
		c.pin = base64.StdEncoding.EncodeToString(sum[:])
	default:
		files := &certFiles{cert: t.CertFile, key: t.KeyFile, log: log, now: now}
		if _, err := files.load(); err != nil {
			return nil, fmt.Errorf("TLS certificate: %w", err)
		}
		c.config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return files.load() }
	}
	return c, c.loadTickets()
}

func (c *certificates) loadTickets() error {
	found, err := c.store.readJSON(fileTickets, &c.tickets)
	for _, t := range c.tickets {
		if len(t.Key) != 32 && err == nil {
			err = errors.New("a ticket key is not 32 bytes")
		}
	}
	if err != nil { // losing them costs participants one full handshake
		aside, aerr := c.store.setAside(fileTickets, c.now())
		c.log.Error("TLS ticket keys are corrupt, new ones were made", "err", err, "aside", aside, "aside_err", aerr)
		c.tickets, found = nil, false
	}
	if !found || c.ticketDue() <= 0 {
		return c.rotateTickets()
	}
	c.useTickets()
	return nil
}

func (c *certificates) ticketDue() time.Duration {
	if len(c.tickets) == 0 {
		return 0
	}
	return min(ticketRotate, c.tickets[0].Made.Add(ticketRotate).Sub(c.now()))
}

// rotateTickets puts a new ticket key in front.
func (c *certificates) rotateTickets() error {
	k := ticketKey{Key: make([]byte, 32), Made: c.now().UTC()}
	rand.Read(k.Key)
	c.tickets = slices.Insert(c.tickets, 0, k)
	c.tickets = c.tickets[:min(len(c.tickets), ticketKeep)]
	c.useTickets()
	return c.store.writeJSON(fileTickets, c.tickets)
}

func (c *certificates) useTickets() {
	var keys [][32]byte
	for _, t := range c.tickets {
		keys = append(keys, [32]byte(t.Key))
	}
	c.config.SetSessionTicketKeys(keys)
}

// run rotates ticket keys until ctx is done.
func (c *certificates) run(ctx context.Context) {
	for {
		timer := time.NewTimer(max(c.ticketDue(), time.Minute))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if c.ticketDue() > 0 {
			continue
		}
		if err := c.rotateTickets(); err != nil {
			c.log.Warn("new TLS ticket key was not stored", "err", err)
		}
	}
}

// certFiles reads a certificate again when one of its files changes.
type certFiles struct {
	cert, key string
	log       *slog.Logger
	now       func() time.Time

	mu      sync.Mutex // guards what follows
	checked time.Time
	seen    [2]fileStamp
	loaded  *tls.Certificate
}

type fileStamp struct {
	modified time.Time
	size     int64
}

// load returns the newest certificate whose files fit together.
func (f *certFiles) load() (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if f.loaded != nil && now.Sub(f.checked).Abs() < certCheck {
		return f.loaded, nil
	}
	f.checked = now
	var stamps [2]fileStamp
	for i, name := range []string{f.cert, f.key} {
		if info, err := os.Stat(name); err == nil {
			stamps[i] = fileStamp{info.ModTime(), info.Size()}
		}
	}
	if f.loaded != nil && stamps == f.seen {
		return f.loaded, nil
	}
	cert, err := tls.LoadX509KeyPair(f.cert, f.key)
	switch {
	case err == nil:
		if f.loaded != nil {
			f.log.Info("TLS certificate was read again", "not_after", cert.Leaf.NotAfter)
		}
		f.loaded, f.seen = &cert, stamps
	case f.loaded != nil: // perhaps only one of the two is replaced yet
		f.log.Warn("new TLS certificate cannot be used, the old one stays", "err", err)
	default:
		return nil, err
	}
	return f.loaded, nil
}

// selfSigned reads or makes the certificate in st. The key, and so the pin,
// stays when the hosts change.
func selfSigned(st *store, hosts []string, now time.Time) (tls.Certificate, error) {
	keyPEM, err := st.read(fileTLSKey)
	if errors.Is(err, fs.ErrNotExist) {
		k, gerr := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if gerr != nil {
			return tls.Certificate{}, fmt.Errorf("make TLS key: %w", gerr)
		}
		der, gerr := x509.MarshalPKCS8PrivateKey(k)
		if gerr != nil {
			return tls.Certificate{}, fmt.Errorf("encode TLS key: %w", gerr)
		}
		keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		err = st.write(fileTLSKey, keyPEM)
	}
	if err != nil {
		return tls.Certificate{}, err
	}
	if certPEM, err := st.read(fileTLSCert); err == nil {
		cert, err := tls.X509KeyPair(certPEM, keyPEM)
		if err == nil && now.Before(cert.Leaf.NotAfter.Add(-selfSignedFor/10)) &&
			!slices.ContainsFunc(hosts, func(h string) bool { return cert.Leaf.VerifyHostname(h) != nil }) {
			return cert, nil
		}
	}
	block, _ := pem.Decode(keyPEM)
	var k any
	if block != nil {
		k, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	signer, ok := k.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return tls.Certificate{}, &StateError{st.path(fileTLSKey), errors.New("is corrupt: not a P-256 key in PEM"), adviceCorrupt}
	}
	serial := make([]byte, 16)
	rand.Read(serial)
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		Subject:      pkix.Name{CommonName: "zt-relay"},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(selfSignedFor),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make TLS certificate: %w", err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := st.write(fileTLSCert, certPEM); err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(certPEM, keyPEM)
}
