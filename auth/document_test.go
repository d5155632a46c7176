package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

// Signatures are random: -update-documents signs testdata/*.jws anew, which only
// a change of their format makes necessary.
var documentUpdate = flag.Bool("update-documents", false, "sign the documents of testdata anew")

// documentNow is when the documents of testdata are read.
var documentNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// documentPEM is a P-256 key which is the same in every run.
func documentPEM(t testing.TB, scalar byte) []byte {
	t.Helper()
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), append(make([]byte, 31), scalar))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func documentKey[K any](t testing.TB, scalar byte, parse func([]byte) (K, error)) K {
	t.Helper()
	k, err := parse(documentPEM(t, scalar))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

const (
	scalarNetwork byte = 11 + iota
	scalarSigner
	scalarExpired
	scalarStranger
	scalarCluster
)

func documentNetworkKey(t testing.TB) key.NetworkPrivate {
	return documentKey(t, scalarNetwork, key.ParseNetworkPEM)
}

func documentRelayKey(t testing.TB, b byte) key.RelayPublic {
	t.Helper()
	k, err := key.ParseRelay(bytes.Repeat([]byte{b}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// documentCA is a certificate that a test makes for itself.
func documentCA(t testing.TB) string {
	t.Helper()
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), append(make([]byte, 31), 77))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: documentNow.Add(-time.Hour), NotAfter: documentNow.Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func documentIssuer() Issuer {
	return Issuer{URL: "https://login.example.com", ClientID: "zt", GroupsClaim: "roles", LoginAge: Duration(8 * time.Hour)}
}

func documentTestHead(t testing.TB) Head {
	return Head{
		Version:  7,
		NotAfter: documentNow.Add(DocumentLife),
		Relays: []Relay{{URL: "https://relay.example.com", Key: documentRelayKey(t, 1), NextKey: documentRelayKey(t, 2),
			UDP: "relay.example.com:443", Pins: []string{base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{9}, 32))}}},
		Issuers: []Issuer{documentIssuer()},
		Signers: []Signer{
			{Name: "bea", Key: documentKey(t, scalarSigner, key.ParseSignerPEM).Public(), NotAfter: documentNow.Add(time.Hour)},
			{Name: "carl", Key: documentKey(t, scalarExpired, key.ParseSignerPEM).Public(), NotAfter: documentNow.Add(-time.Hour)},
		},
		MinRecord: map[string]uint64{"c1": 3},
		Extra:     json.RawMessage(`{"note":[1,null,{"a":1,"a":2}]}`),
	}
}

func documentTestRecord(t testing.TB) Record {
	return Record{
		Network:  IDOf(documentNetworkKey(t).Public()),
		Name:     "c1",
		Version:  4,
		NotAfter: documentNow.Add(DocumentLife),
		CAs:      []Dated[string]{{Value: documentCA(t)}},
		Keys:     []Dated[key.ClusterPublic]{{Value: documentKey(t, scalarCluster, key.ParseClusterPEM).Public(), NotAfter: documentNow.Add(time.Hour)}},
		TLSName:  "kubernetes.default.svc",
		Issuer:   &Issuer{URL: "https://login.example.com", ClientID: "kubernetes"},
	}
}

func documentSign(t testing.TB, h Head) *Head {
	t.Helper()
	signed, err := SignHead(h, documentNetworkKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// documentForge signs any header and payload with a key's Sign.
func documentForge(header, payload string, sign func([]byte) [key.SignatureSize]byte) []byte {
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	sig := sign([]byte(input))
	return []byte(input + "." + base64.RawURLEncoding.EncodeToString(sig[:]))
}

func documentParts(t testing.TB, raw []byte) (header, payload string) {
	t.Helper()
	parts := strings.Split(string(raw), ".")
	if len(parts) != 3 {
		t.Fatalf("%d segments, want 3", len(parts))
	}
	var decoded [2]string
	for n := range decoded {
		b, err := base64.RawURLEncoding.DecodeString(parts[n])
		if err != nil {
			t.Fatal(err)
		}
		decoded[n] = string(b)
	}
	return decoded[0], decoded[1]
}

func TestDocumentVectors(t *testing.T) {
	if *documentUpdate {
		head := documentSign(t, documentTestHead(t))
		record, err := SignRecord(documentTestRecord(t), RecordSigner("bea", documentKey(t, scalarSigner, key.ParseSignerPEM)))
		if err != nil {
			t.Fatal(err)
		}
		for name, raw := range map[string][]byte{"head.jws": head.Raw(), "record.jws": record.Raw()} {
			if err := os.WriteFile("testdata/"+name, raw, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	raw, err := os.ReadFile("testdata/head.jws")
	if err != nil {
		t.Fatal(err)
	}
	head, err := ParseHead(raw)
	if err != nil {
		t.Fatal(err)
	}
	want := documentTestHead(t)
	if head.Version != want.Version || !head.NotAfter.Equal(want.NotAfter) || head.Network != IDOf(documentNetworkKey(t).Public()) ||
		len(head.Relays) != 1 || head.Relays[0].Key != want.Relays[0].Key || head.Relays[0].NextKey != want.Relays[0].NextKey ||
		head.Relays[0].UDP != want.Relays[0].UDP || len(head.Signers) != 2 || head.Signers[0].Key != want.Signers[0].Key ||
		head.MinRecord["c1"] != 3 || string(head.Extra) != string(want.Extra) {
		t.Errorf("head reads as %+v", head)
	}
	if i, ok := head.Issuer("https://login.example.com"); !ok || i.GroupsClaim != "roles" || i.LoginAge != Duration(8*time.Hour) || i.GrantAge != Duration(DefaultGrantAge) {
		t.Errorf("issuer reads as %+v, %v", i, ok)
	}
	if _, ok := head.Relay("https://relay.example.com"); !ok {
		t.Error("the head's relay is not found by its URL")
	}
	if head.Expired(documentNow) || !head.Expired(head.NotAfter) {
		t.Error("Expired is wrong at a year's ends")
	}

	raw, err = os.ReadFile("testdata/record.jws")
	if err != nil {
		t.Fatal(err)
	}
	record, err := ParseRecord(raw, head, documentNow)
	if err != nil {
		t.Fatal(err)
	}
	wantRecord := documentTestRecord(t)
	if record.Name != "c1" || record.Signer != "bea" || record.Version != 4 || record.TLSName != wantRecord.TLSName ||
		record.Issuer == nil || record.Issuer.ClientID != "kubernetes" {
		t.Errorf("record reads as %+v", record)
	}
	if keys := record.LiveKeys(documentNow); len(keys) != 1 || keys[0] != wantRecord.Keys[0].Value {
		t.Errorf("live keys are %v", keys)
	}
	if keys := record.LiveKeys(documentNow.Add(time.Hour)); len(keys) != 0 {
		t.Errorf("live keys past their end are %v", keys)
	}
	if cas := record.LiveCAs(documentNow); len(cas) != 1 {
		t.Errorf("%d live CAs, want 1", len(cas))
	}
	if got, want := [2]string{head.Hash(), record.Hash()}, [2]string{documentHeadHash, documentRecordHash}; got != want && !*documentUpdate {
		t.Errorf("hashes are %q, want %q", got, want)
	}
}

func TestParseHeadRefuses(t *testing.T) {
	k := documentNetworkKey(t)
	good := documentSign(t, documentTestHead(t))
	header, payload := documentParts(t, good.Raw())
	kid := k.Public().Thumbprint()
	stranger := documentKey(t, scalarStranger, key.ParseNetworkPEM)
	otherID := IDOf(stranger.Public()).String()
	edit := func(s, from, to string) string {
		t.Helper()
		if !strings.Contains(s, from) {
			t.Fatalf("no %q in %s", from, s)
		}
		return strings.Replace(s, from, to, 1)
	}
	forge := func(h, p string) []byte { return documentForge(h, p, k.Sign) }
	withPayload := func(from, to string) []byte { return forge(header, edit(payload, from, to)) }
	if _, err := ParseHead(forge(header, payload)); err != nil {
		t.Fatalf("a forged copy of a good head does not parse, so this table shows nothing: %v", err)
	}
	raw := string(good.Raw())
	segments := strings.Split(raw, ".")

	for name, c := range map[string]struct {
		raw   []byte
		fault Fault
		text  string
	}{
		"empty":              {nil, FaultForm, "segments"},
		"too large":          {bytes.Repeat([]byte("a"), MaxHeadBytes+1), FaultSize, "at most"},
		"two segments":       {[]byte(segments[0] + "." + segments[1]), FaultForm, "segments"},
		"line end":           {[]byte(raw + "\n"), FaultForm, "canonical"},
		"space before":       {[]byte(" " + raw), FaultForm, "canonical"},
		"inner line end":     {[]byte(raw[:5] + "\n" + raw[5:]), FaultForm, "canonical"},
		"spare bits":         {[]byte(raw[:len(raw)-1] + documentNextDigit(raw[len(raw)-1])), FaultForm, "canonical"},
		"JSON serialization": {[]byte(`{"payload":"` + segments[1] + `","protected":"` + segments[0] + `","signature":"` + segments[2] + `"}`), FaultForm, "segments"},
		"tampered payload":   {[]byte(segments[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(edit(payload, `"version":7`, `"version":8`))) + "." + segments[2]), FaultSignature, "signature"},
		"wrong typ":          {forge(edit(header, "zt-head", "zt-record"), payload), FaultHeader, "type"},
		"typ in other case":  {forge(edit(header, "zt-head", "ZT-Head"), payload), FaultHeader, "type"},
		"no typ":             {forge(`{"alg":"ES256","kid":"`+kid+`"}`, payload), FaultHeader, "type"},
		"alg none":           {forge(edit(header, "ES256", "none"), payload), FaultHeader, "none"},
		"alg none unsigned":  {[]byte(base64.RawURLEncoding.EncodeToString([]byte(edit(header, "ES256", "none"))) + "." + segments[1] + "."), FaultHeader, "none"},
		"alg HS256":          {forge(edit(header, "ES256", "HS256"), payload), FaultHeader, "HS256"},
		"alg ES384":          {forge(edit(header, "ES256", "ES384"), payload), FaultHeader, "ES384"},
		"extra header":       {forge(edit(header, `{`, `{"jku":"https://x.example",`), payload), FaultHeader, "jku"},
		"crit":               {forge(edit(header, `{`, `{"crit":["b64"],"b64":false,`), payload), FaultHeader, "crit"},
		"embedded key":       {forge(edit(header, `{`, `{"jwk":{},`), payload), FaultHeader, "jwk"},
		"duplicate header":   {forge(edit(header, `{`, `{"alg":"none",`), payload), FaultHeader, "duplicate"},
		"header in case":     {forge(edit(header, `"alg"`, `"Alg"`), payload), FaultHeader, "case"},
		"no kid":             {forge(`{"alg":"ES256","typ":"zt-head"}`, payload), FaultHeader, "kid"},
		"kid of another key": {forge(edit(header, kid, stranger.Public().Thumbprint()), payload), FaultKey, "key"},
		"signed by another":  {documentForge(header, payload, stranger.Sign), FaultSignature, "signature"},
		"unknown field":      {withPayload(`{`, `{"color":1,`), FaultPayload, `unknown field "color"`},
		"unknown deep field": {withPayload(`"clientID"`, `"color":1,"clientID"`), FaultPayload, `unknown field "issuers[0].color"`},
		"duplicate field":    {withPayload(`{`, `{"version":6,`), FaultPayload, `duplicate field "version"`},
		"escaped duplicate":  {withPayload(`{`, `{"v\u0065rsion":6,`), FaultPayload, `duplicate field "version"`},
		"duplicate map key":  {withPayload(`"c1":3`, `"c1":3,"c1":0`), FaultPayload, `duplicate field "minRecord.c1"`},
		"duplicate deep":     {withPayload(`"clientID":"zt"`, `"clientID":"kubernetes","clientID":"zt"`), FaultPayload, `duplicate field "issuers[0].clientID"`},
		"wrong case":         {withPayload(`"version"`, `"Version"`), FaultPayload, `wrong case, want "version"`},
		"folding case":       {withPayload(`"signers"`, `"ſigners"`), FaultPayload, `"ſigners"`},
		"null":               {withPayload(`"version":7`, `"version":null`), FaultPayload, "null"},
		"wrong type":         {withPayload(`"version":7`, `"version":"7"`), FaultPayload, "version"},
		"object for a key":   {withPayload(`"key":"`+k.Public().String()+`"`, `"key":{"a":1}`), FaultPayload, "key"},
		"negative version":   {withPayload(`"version":7`, `"version":-7`), FaultPayload, "version"},
		"fraction":           {withPayload(`"version":7`, `"version":7.5`), FaultPayload, "version"},
		"bytes behind":       {forge(header, payload+`{}`), FaultPayload, "JSON"},
		"not JSON":           {forge(header, payload[1:]), FaultPayload, "JSON"},
		"a list":             {forge(header, `[]`), FaultPayload, "list"},
		"a number":           {forge(header, `7`), FaultPayload, ""},
		"not UTF-8":          {withPayload(`relay.example.com`, "relay\xff.example.com"), FaultPayload, "UTF-8"},
		"trailing comma":     {withPayload(`"c1":3}`, `"c1":3,}`), FaultPayload, "JSON"},
		"foreign network":    {withPayload(good.Network.String(), otherID), FaultNetwork, otherID},
		"no key":             {withPayload(`"key":"`+k.Public().String()+`",`, ``), FaultField, "network key"},
		"version 0":          {withPayload(`"version":7`, `"version":0`), FaultField, "version"},
		"no notAfter":        {withPayload(`"notAfter":"2027-03-01T12:00:00Z","relays"`, `"relays"`), FaultField, "notAfter"},
		"relay on http":      {withPayload(`https://relay.example.com`, `http://relay.example.com`), FaultField, "https"},
		"bad cluster name":   {withPayload(`"c1":3`, `"C1":3`), FaultField, "DNS label"},
		"signer named twice": {withPayload(`"name":"carl"`, `"name":"bea"`), FaultField, "twice"},
		"issuer on http":     {withPayload(`https://login.example.com`, `http://login.example.com`), FaultField, "loopback"},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := ParseHead(c.raw)
			documentWantFault(t, h != nil, err, c.fault, c.text)
		})
	}
}

// documentNextDigit changes the unused low bits of the last base64url digit of
// a 64-byte signature.
func documentNextDigit(c byte) string {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(digits[strings.IndexByte(digits, c)+1])
}

func documentWantFault(t *testing.T, parsed bool, err error, want Fault, text string) {
	t.Helper()
	e, ok := errors.AsType[*DocumentError](err)
	switch {
	case parsed || err == nil:
		t.Fatal("it was accepted")
	case !ok:
		t.Fatalf("got %T (%v), want a *DocumentError", err, err)
	case e.Fault != want:
		t.Errorf("fault is %q (%v), want %q", e.Fault, e, want)
	case !strings.Contains(e.Error(), text):
		t.Errorf("%q does not hold %q", e, text)
	case e.Hint() == "":
		t.Error("no hint")
	}
}

func TestParseRecordRefuses(t *testing.T) {
	network := documentNetworkKey(t)
	bea := documentKey(t, scalarSigner, key.ParseSignerPEM)
	head := documentSign(t, documentTestHead(t))
	good, err := SignRecord(documentTestRecord(t), RecordSigner("bea", bea))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseRecord(good.Raw(), head, documentNow); err != nil {
		t.Fatal(err)
	}
	header, payload := documentParts(t, good.Raw())
	replace := func(from, to string) []byte {
		t.Helper()
		if !strings.Contains(payload, from) {
			t.Fatalf("no %q in %s", from, payload)
		}
		return documentForge(header, strings.Replace(payload, from, to, 1), bea.Sign)
	}
	headHeader, _ := documentParts(t, head.Raw())
	foreign := documentKey(t, scalarStranger, key.ParseNetworkPEM)

	for name, c := range map[string]struct {
		raw   []byte
		fault Fault
		text  string
	}{
		"too large":                  {bytes.Repeat([]byte("a"), MaxRecordBytes+1), FaultSize, "at most"},
		"a head":                     {head.Raw(), FaultHeader, "zt-head"},
		"record with head typ":       {documentForge(headHeader, payload, network.Sign), FaultHeader, "zt-head"},
		"unknown field":              {replace(`{`, `{"admin":true,`), FaultPayload, `unknown field "admin"`},
		"duplicate deep field":       {replace(`"value"`, `"value":"","value"`), FaultPayload, "duplicate"},
		"wrong case":                 {replace(`"tlsName"`, `"TLSName"`), FaultPayload, "tlsName"},
		"foreign network":            {replace(head.Network.String(), IDOf(foreign.Public()).String()), FaultNetwork, head.Network.String()},
		"other signer's name":        {replace(`"signer":"bea"`, `"signer":"carl"`), FaultKey, "carl"},
		"network key's role":         {replace(`"signer":"bea",`, ``), FaultKey, "bea"},
		"forged for the network key": {documentForge(strings.Replace(header, bea.Public().Thumbprint(), network.Public().Thumbprint(), 1), payload, bea.Sign), FaultSignature, "signature"},
		"below MinRecord":            {replace(`"version":4`, `"version":2`), FaultWithdrawn, "version 3"},
		"version 0":                  {replace(`"version":4`, `"version":0`), FaultField, "version"},
		"name":                       {replace(`"name":"c1"`, `"name":"c_1"`), FaultField, "DNS label"},
		"name with a path":           {replace(`"name":"c1"`, `"name":"../c1"`), FaultField, "DNS label"},
		"keepUser and issuer":        {replace(`"issuer"`, `"keepUser":true,"issuer"`), FaultField, "keepUser"},
		"removed with keys":          {replace(`"version"`, `"removed":true,"version"`), FaultField, "removed"},
		"TLS name":                   {replace(`kubernetes.default.svc`, `kubernetes default`), FaultField, "host name"},
		"CA":                         {replace(`BEGIN CERTIFICATE`, `BEGIN CERTIFICATF`), FaultField, "CA 1"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := ParseRecord(c.raw, head, documentNow)
			documentWantFault(t, r != nil, err, c.fault, c.text)
		})
	}

	for name, c := range map[string]struct {
		sign  DocumentSigner
		known bool
		text  string
	}{
		"expired signer": {RecordSigner("carl", documentKey(t, scalarExpired, key.ParseSignerPEM)), true, "carl"},
		"unknown signer": {RecordSigner("bea", documentKey(t, scalarStranger, key.ParseSignerPEM)), false, "does not admit"},
	} {
		t.Run(name, func(t *testing.T) {
			signed, err := SignRecord(documentTestRecord(t), c.sign)
			if err != nil {
				t.Fatal(err)
			}
			_, err = ParseRecord(signed.Raw(), head, documentNow)
			e, ok := errors.AsType[*SignerError](err)
			if !ok || e.Known != c.known || e.Cluster != "c1" || !strings.Contains(e.Error(), c.text) || e.Hint() == "" {
				t.Errorf("got %T %v, want a *SignerError", err, err)
			}
		})
	}
	t.Run("signer expires", func(t *testing.T) {
		if _, err := ParseRecord(good.Raw(), head, documentNow.Add(time.Hour-time.Second)); err != nil {
			t.Errorf("a second before the end: %v", err)
		}
		if _, err := ParseRecord(good.Raw(), head, documentNow.Add(time.Hour)); err == nil {
			t.Error("accepted at the signer's end")
		}
	})
	t.Run("network key has no end", func(t *testing.T) {
		r, err := SignRecord(documentTestRecord(t), NetworkSigner(network))
		if err != nil {
			t.Fatal(err)
		}
		late := documentNow.Add(2 * DocumentLife)
		got, err := ParseRecord(r.Raw(), head, late)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Expired(late) || got.Signer != "" {
			t.Errorf("expired %v, signer %q; want true and none", got.Expired(late), got.Signer)
		}
	})
}

func TestSupersedes(t *testing.T) {
	network := documentNetworkKey(t)
	head := func(version uint64, edit func(*Head)) *Head {
		h := documentTestHead(t)
		h.Version = version
		if edit != nil {
			edit(&h)
		}
		return documentSign(t, h)
	}
	record := func(version uint64, edit func(*Record)) *Record {
		r := documentTestRecord(t)
		r.CAs[0].Value = documentCAOnce(t)
		r.Version = version
		if edit != nil {
			edit(&r)
		}
		signed, err := SignRecord(r, NetworkSigner(network))
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	h7 := head(7, nil)
	if err := head(8, nil).Supersedes(h7); err != nil {
		t.Errorf("a newer head: %v", err)
	}
	if err := h7.Supersedes(nil); err != nil {
		t.Errorf("the first head: %v", err)
	}
	again := head(7, nil) // the same content, another signature
	if err := again.Supersedes(h7); !errors.Is(err, ErrSame) || bytes.Equal(again.Raw(), h7.Raw()) {
		t.Errorf("the same content signed again: %v, want ErrSame", err)
	}
	back, ok := errors.AsType[*RollbackError](head(6, nil).Supersedes(h7))
	if !ok || back.Got != 6 || back.Had != 7 || !strings.Contains(back.Error(), "head version 6") || back.Hint() == "" {
		t.Errorf("got %v, want a rollback from 7 to 6", back)
	}
	other := head(7, func(h *Head) { h.MinRecord = nil })
	conflict, ok := errors.AsType[*ConflictError](other.Supersedes(h7))
	if !ok || conflict.Version != 7 || !strings.Contains(conflict.Error(), h7.Hash()) || !strings.Contains(conflict.Error(), other.Hash()) || conflict.Hint() == "" {
		t.Errorf("got %v, want a conflict that names both hashes", conflict)
	}
	h := documentTestHead(t)
	foreign, err := SignHead(h, documentKey(t, scalarStranger, key.ParseNetworkPEM))
	if err != nil {
		t.Fatal(err)
	}
	alien, ok := errors.AsType[*NetworkError](foreign.Supersedes(h7))
	if !ok || !strings.Contains(alien.Error(), foreign.Network.String()) || !strings.Contains(alien.Error(), h7.Network.String()) || alien.Hint() == "" {
		t.Errorf("got %v, want an error that names both networks", alien)
	}

	r4 := record(4, nil)
	if err := record(5, func(r *Record) {
		*r = Record{Network: r.Network, Name: r.Name, Version: 5, Removed: true}
	}).Supersedes(r4); err != nil {
		t.Errorf("a removal: %v", err)
	}
	if _, ok := errors.AsType[*RollbackError](record(3, nil).Supersedes(r4)); !ok {
		t.Error("an older record was accepted")
	}
	if _, ok := errors.AsType[*ConflictError](record(4, func(r *Record) { r.TLSName = "other" }).Supersedes(r4)); !ok {
		t.Error("a different record of one version was accepted")
	}
	if err := record(5, func(r *Record) { r.Name = "c2" }).Supersedes(r4); err == nil {
		t.Error("another cluster's record was accepted")
	}
}

var documentCAText string

// documentCAOnce is one certificate for a whole run: CreateCertificate's
// signature is random, and Supersedes compares bytes.
func documentCAOnce(t testing.TB) string {
	if documentCAText == "" {
		documentCAText = documentCA(t)
	}
	return documentCAText
}

func TestSignRefuses(t *testing.T) {
	network := documentNetworkKey(t)
	for name, edit := range map[string]func(*Head){
		"no relay":            func(h *Head) { h.Relays = nil },
		"relay twice":         func(h *Head) { h.Relays = append(h.Relays, h.Relays[0]) },
		"relay without key":   func(h *Head) { h.Relays[0].Key = key.RelayPublic{} },
		"relay's next is now": func(h *Head) { h.Relays[0].NextKey = h.Relays[0].Key },
		"relay with path":     func(h *Head) { h.Relays[0].URL += "/x" },
		"udp without port":    func(h *Head) { h.Relays[0].UDP = "relay.example.com" },
		"udp port 0":          func(h *Head) { h.Relays[0].UDP = "relay.example.com:0" },
		"pin of wrong length": func(h *Head) { h.Relays[0].Pins = []string{"AAAA"} },
		"no issuer":           func(h *Head) { h.Issuers = nil },
		"issuer twice":        func(h *Head) { h.Issuers = append(h.Issuers, Issuer{URL: "https://LOGIN.example.com/", ClientID: "x"}) },
		"signer without key":  func(h *Head) { h.Signers[0].Key = key.SignerPublic{} },
		"signer without end":  func(h *Head) { h.Signers[0].NotAfter = time.Time{} },
		"signer's name":       func(h *Head) { h.Signers[0].Name = "Bea Smith" },
		"network key signs":   func(h *Head) { h.Signers[0].Key = documentKey(t, scalarNetwork, key.ParseSignerPEM).Public() },
		"extra is not JSON":   func(h *Head) { h.Extra = json.RawMessage(`{`) },
		"version 0":           func(h *Head) { h.Version = 0 },
		"too large":           func(h *Head) { h.Extra = json.RawMessage(`"` + strings.Repeat("a", MaxHeadBytes) + `"`) },
	} {
		t.Run("head "+name, func(t *testing.T) {
			h := documentTestHead(t)
			edit(&h)
			signed, err := SignHead(h, network)
			if signed != nil || err == nil {
				t.Error("it was signed")
			}
		})
	}
	if _, err := SignHead(documentTestHead(t), key.NetworkPrivate{}); err == nil {
		t.Error("a head was signed without a key")
	}
	if _, err := SignRecord(documentTestRecord(t), DocumentSigner{}); err == nil {
		t.Error("a record was signed without a key")
	}
	if _, err := SignRecord(documentTestRecord(t), NetworkSigner(documentKey(t, scalarStranger, key.ParseNetworkPEM))); err == nil {
		t.Error("a record was signed with another network's key")
	}
	raw, err := network.ECDSA().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%v %+v %#v", NetworkSigner(network), NetworkSigner(network), NetworkSigner(network)); strings.Contains(got, new(big.Int).SetBytes(raw).String()) {
		t.Errorf("a signer printed its key: %s", got)
	}
}

// TestSignLeavesInput: who signs keeps what it passed in.
func TestSignLeavesInput(t *testing.T) {
	h := documentTestHead(t)
	end := time.Date(2026, 5, 1, 0, 0, 0, 999, time.FixedZone("x", 3600))
	h.Signers[0].NotAfter = end
	signed := documentSign(t, h)
	if h.Signers[0].NotAfter != end || !h.Key.IsZero() {
		t.Error("SignHead changed its input")
	}
	if got := signed.Signers[0].NotAfter; !got.Equal(end.Truncate(time.Second)) {
		t.Errorf("signer's end is %s, want %s to the second", got, end)
	}
	h.NotAfter = time.Time{}
	if got := time.Until(documentSign(t, h).NotAfter); got < DocumentLife-time.Minute || got > DocumentLife {
		t.Errorf("a head lives %s, want %s", got, DocumentLife)
	}
}

// FuzzParseHead: the attacker is a relay, or whoever answers in its place.
func FuzzParseHead(f *testing.F) {
	good := documentSign(f, documentTestHead(f))
	header, payload := documentParts(f, good.Raw())
	f.Add(header, payload)
	f.Add(header, `{"extra":{"a":1,"a":2}}`)
	f.Add(strings.ToUpper(header), payload)
	k := documentNetworkKey(f)
	f.Fuzz(func(t *testing.T, header, payload string) {
		raw := documentForge(header, payload, k.Sign) // past the signature, where mutation alone never comes
		h, err := ParseHead(raw)
		if err != nil {
			return
		}
		if !bytes.Equal(h.Raw(), raw) || h.Network != IDOf(k.Public()) || h.Version == 0 {
			t.Errorf("%s reads as %+v", payload, h)
		}
		if again, err := SignHead(*h, k); err != nil || again.Version != h.Version {
			t.Errorf("what parsed does not sign again: %v", err)
		}
	})
}

// FuzzParseRecord: the attacker is a relay, or a signer who writes a record by
// hand.
func FuzzParseRecord(f *testing.F) {
	head := documentSign(f, documentTestHead(f))
	k := documentNetworkKey(f)
	good, err := SignRecord(documentTestRecord(f), NetworkSigner(k))
	if err != nil {
		f.Fatal(err)
	}
	header, payload := documentParts(f, good.Raw())
	f.Add(header, payload)
	f.Add(header, `{"name":"c1","removed":true}`)
	f.Fuzz(func(t *testing.T, header, payload string) {
		raw := documentForge(header, payload, k.Sign)
		r, err := ParseRecord(raw, head, documentNow)
		if err != nil {
			return
		}
		if ValidName(r.Name) != nil || r.Version == 0 || r.Network != head.Network || !bytes.Equal(r.Raw(), raw) {
			t.Errorf("%s reads as %+v", payload, r)
		}
		if again, err := SignRecord(*r, NetworkSigner(k)); err != nil || again.Name != r.Name {
			t.Errorf("what parsed does not sign again: %v", err)
		}
	})
}

func TestValidName(t *testing.T) {
	for name, ok := range map[string]bool{
		"c1": true, "a": true, "a-b": true, strings.Repeat("a", 63): true, "0": true,
		"": false, "-a": false, "a-": false, "A": false, "a.b": false, "a_b": false, "ä": false, "a/b": false, "a\n": false, strings.Repeat("a", 64): false,
	} {
		if err := ValidName(name); (err == nil) != ok {
			t.Errorf("ValidName(%q) = %v, want ok %v", name, err, ok)
		}
	}
}

const (
	documentHeadHash   = "714d7c15a5e68756eaea46753c5184d9f3497b714916ab78b03491d33cc2f05d"
	documentRecordHash = "4f3a96f8d012ec3d1351d1ce4073684a83180fbc6cd7092d1a45864b8ad7aa6f"
)
