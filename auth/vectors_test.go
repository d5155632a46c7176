package auth

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"os"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
	"golang.org/x/crypto/curve25519"
)

var updateVectors = flag.Bool("update-grant-vectors", false, "write testdata/grant-v1*.json")

const (
	vectorsFile = "testdata/grant-v1.json"
	refusedFile = "testdata/grant-v1-refused.json"
)

// hexBytes is hexadecimal in JSON.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }
func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// grantVectors is testdata/grant-v1.json: every input and every intermediate
// of one login, one statement, one edge, one node grant and one access request. All ECDSA
// signatures in it are RFC 6979's (P-256, SHA-256), so that a program which has
// nothing of ours can compute each byte again; a verifier must not expect that.
type grantVectors struct {
	Comment string `json:"comment"`

	NetworkKey    hexBytes `json:"networkKey"` // SEC1
	NetworkID     string   `json:"networkID"`
	NetworkIDRaw  hexBytes `json:"networkIDRaw"`
	Issuer        string   `json:"issuer"`
	ClientID      string   `json:"clientID"`
	IssuerPrivate hexBytes `json:"issuerPrivate"` // P-256 scalar
	JWKS          any      `json:"jwks"`
	NowMS         int64    `json:"nowMS"`

	LoginPrivate hexBytes `json:"loginPrivate"` // P-256 scalar
	LoginPublic  hexBytes `json:"loginPublic"`  // SEC1
	Rand         hexBytes `json:"rand"`
	Commitment   hexBytes `json:"commitment"`
	Hash         hexBytes `json:"commitmentHash"`
	Nonce        string   `json:"nonce"`
	Audience     string   `json:"workloadAudience"`
	IDToken      string   `json:"idToken"`
	IDTokenHash  hexBytes `json:"idTokenHash"`

	LaptopPrivate      hexBytes `json:"laptopPrivate"` // X25519
	LaptopPublic       hexBytes `json:"laptopPublic"`
	DecapsulationSeed  hexBytes `json:"decapsulationSeed"` // ML-KEM-768, d ‖ z
	EncapsulationKey   hexBytes `json:"encapsulationKey"`
	StatementIssuedMS  int64    `json:"statementIssuedMS"`
	StatementExpiresMS int64    `json:"statementExpiresMS"`
	Statement          hexBytes `json:"statement"`
	StatementMessage   hexBytes `json:"statementMessage"`
	StatementSignature hexBytes `json:"statementSignature"`
	Grant              hexBytes `json:"grant"`
	OverlayAddr        string   `json:"overlayAddr"`

	Cluster             string   `json:"cluster"`
	ClusterPrivate      hexBytes `json:"clusterPrivate"` // P-256 scalar
	ClusterPublic       hexBytes `json:"clusterPublic"`  // SEC1
	NodePrivate         hexBytes `json:"nodePrivate"`    // X25519
	NodePublic          hexBytes `json:"nodePublic"`
	EdgeNonce           hexBytes `json:"edgeNonce"`
	EncapsulationRandom hexBytes `json:"encapsulationRandom"` // m of ML-KEM.Encaps_internal
	Ciphertext          hexBytes `json:"ciphertext"`
	SharedSecret        hexBytes `json:"sharedSecret"`
	AnswerIssuedMS      int64    `json:"answerIssuedMS"`
	AnswerUntilMS       int64    `json:"answerUntilMS"`
	AnswerMessage       hexBytes `json:"answerMessage"`
	AnswerSignature     hexBytes `json:"answerSignature"`
	Answer              hexBytes `json:"answer"`
	PresharedContext    hexBytes `json:"presharedContext"`
	PresharedSalt       hexBytes `json:"presharedSalt"`
	PresharedKey        hexBytes `json:"presharedKey"`

	NodeGrantMessage   hexBytes `json:"nodeGrantMessage"`
	NodeGrantSignature hexBytes `json:"nodeGrantSignature"`
	NodeGrant          hexBytes `json:"nodeGrant"`

	AccessRequestSeconds   uint32   `json:"accessRequestSeconds"`
	AccessRequestReason    string   `json:"accessRequestReason"`
	AccessRequestMessage   hexBytes `json:"accessRequestMessage"`
	AccessRequestSignature hexBytes `json:"accessRequestSignature"`
	AccessRequest          hexBytes `json:"accessRequest"` // issued at nowMS
}

// refusedVector is a row of testdata/grant-v1-refused.json: with the keys of
// grant-v1.json, this grant must be refused for this reason.
type refusedVector struct {
	Name    string   `json:"name"`
	Reason  Reason   `json:"reason"`
	NowMS   int64    `json:"nowMS"`
	Channel hexBytes `json:"channel"`
	Grant   hexBytes `json:"grant"`
}

// fixed is n bytes that depend on name only.
func fixed(name string, n int) []byte {
	var b []byte
	for i := byte(0); len(b) < n; i++ {
		h := sha256.Sum256(append([]byte("zt test vector "+name), i))
		b = append(b, h[:]...)
	}
	return b[:n]
}

func fixedP256(name string) *ecdsa.PrivateKey {
	return mustKey(ecdsa.ParseRawPrivateKey(elliptic.P256(), fixed(name, 32)))
}

// signFixed signs SHA-256(message) as RFC 6979 says, r ‖ s.
func signFixed(k *ecdsa.PrivateKey, message []byte) [key.SignatureSize]byte {
	digest := sha256.Sum256(message)
	der := mustKey(k.Sign(nil, digest[:], crypto.SHA256))
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		panic(err)
	}
	var sig [key.SignatureSize]byte
	rs.R.FillBytes(sig[:32])
	rs.S.FillBytes(sig[32:])
	return sig
}

func fixedToken(k *ecdsa.PrivateKey, header, payload string) string {
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	sig := signFixed(k, []byte(input))
	return input + "." + base64.RawURLEncoding.EncodeToString(sig[:])
}

func pemOf(k *ecdsa.PrivateKey) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: mustKey(x509.MarshalPKCS8PrivateKey(k))})
}

func scalarOf(k *ecdsa.PrivateKey) hexBytes { return mustKey(k.Bytes()) }

// vectorScene is the login of the vectors, and what a refused row changes.
type vectorScene struct {
	issuerKey, loginKey, clusterKey *ecdsa.PrivateKey
	login                           key.LoginPrivate
	cluster                         key.ClusterPrivate
	laptop, node                    key.WireGuardPublic
	commitment                      Commitment
	statement                       Statement
	header, payload                 string
	now                             time.Time
	channel                         key.WireGuardPublic
	signer                          *ecdsa.PrivateKey // of the statement
}

const vectorIssuer = "https://login.example.com"

func newVectorScene() *vectorScene {
	s := &vectorScene{
		issuerKey: fixedP256("issuer"), loginKey: fixedP256("login"), clusterKey: fixedP256("cluster"),
		now: time.UnixMilli(1800000000123).UTC(),
	}
	s.login = mustKey(key.ParseLoginPEM(pemOf(s.loginKey)))
	s.cluster = mustKey(key.ParseClusterPEM(pemOf(s.clusterKey)))
	network := mustKey(key.ParseNetworkPEM(pemOf(fixedP256("network"))))
	s.laptop = mustKey(key.ParseWireGuard(mustKey(curve25519.X25519(fixed("laptop", 32), curve25519.Basepoint))))
	s.node = mustKey(key.ParseWireGuard(mustKey(curve25519.X25519(fixed("node", 32), curve25519.Basepoint))))
	s.commitment = Commitment{Network: IDOf(network.Public()), Key: s.login.Public(), Rand: [32]byte(fixed("rand", 32))}
	s.statement = Statement{Key: s.laptop, Issued: s.now.Add(-time.Second), Expires: s.now.Add(time.Hour - time.Second)}
	dk := mustKey(mlkem.NewDecapsulationKey768(fixed("decapsulation", mlkem.SeedSize)))
	copy(s.statement.Encapsulation[:], dk.EncapsulationKey().Bytes())
	s.header = `{"alg":"ES256","kid":"vector","typ":"JWT"}`
	s.payload = fmt.Sprintf(`{"iss":%q,"aud":"zt","sub":"alice","email":"alice@example.com","email_verified":true,`+
		`"groups":["developers"],"iat":1799999990,"exp":1800000290,"auth_time":1799999980,"nonce":%q}`, vectorIssuer, s.commitment.Nonce())
	s.channel, s.signer = s.laptop, s.loginKey
	return s
}

func (s *vectorScene) grant() (g Grant, message []byte) {
	token := fixedToken(s.issuerKey, s.header, s.payload)
	message = s.statement.message(sha256.Sum256([]byte(token)))
	return Grant{
		Issuer: vectorIssuer, IDToken: token, Commitment: s.commitment.Append(nil),
		Statement: SignedStatement{Statement: s.statement, Signature: signFixed(s.signer, message)},
	}, message
}

func makeVectors() grantVectors {
	s := newVectorScene()
	g, message := s.grant()
	hash, tokenHash := s.commitment.Hash(), sha256.Sum256([]byte(g.IDToken))
	var jwks any
	if err := json.Unmarshal([]byte(jwksOf(jwkOf(s.issuerKey, "vector", "ES256", "sig"))), &jwks); err != nil {
		panic(err)
	}
	v := grantVectors{
		Comment:    "integers big-endian, bytes hexadecimal, times in milliseconds since 1970; lp(x) = u16 length, x; signatures are RFC 6979 (P-256, SHA-256), r then s",
		NetworkKey: mustKey(key.ParseNetworkPEM(pemOf(fixedP256("network")))).Public().Bytes(),
		NetworkID:  s.commitment.Network.String(), NetworkIDRaw: s.commitment.Network[:],
		Issuer: vectorIssuer, ClientID: "zt", IssuerPrivate: scalarOf(s.issuerKey), JWKS: jwks, NowMS: s.now.UnixMilli(),
		LoginPrivate: scalarOf(s.loginKey), LoginPublic: s.login.Public().Bytes(), Rand: s.commitment.Rand[:],
		Commitment: g.Commitment, Hash: hash[:], Nonce: s.commitment.Nonce(), Audience: s.commitment.WorkloadAudience(),
		IDToken: g.IDToken, IDTokenHash: tokenHash[:],
		LaptopPrivate: fixed("laptop", 32), LaptopPublic: s.laptop.Append(nil),
		DecapsulationSeed: fixed("decapsulation", mlkem.SeedSize), EncapsulationKey: s.statement.Encapsulation[:],
		StatementIssuedMS: s.statement.Issued.UnixMilli(), StatementExpiresMS: s.statement.Expires.UnixMilli(),
		Statement: s.statement.Append(nil), StatementMessage: message, StatementSignature: g.Statement.Signature[:],
		Grant: g.Append(nil), OverlayAddr: s.commitment.Network.PersonAddr(s.login.Public()).String(),
		Cluster: "c1", ClusterPrivate: scalarOf(s.clusterKey), ClusterPublic: s.cluster.Public().Bytes(),
		NodePrivate: fixed("node", 32), NodePublic: s.node.Append(nil),
		EdgeNonce: fixed("edge", 16), EncapsulationRandom: fixed("encapsulation", 32),
	}
	e := Edge{
		Network: s.commitment.Network, Issuer: vectorIssuer, Subject: "alice", LoginKey: s.login.Public(), LaptopKey: s.laptop,
		Encapsulation: s.statement.Encapsulation, Cluster: v.Cluster, ClusterKey: s.cluster.Public(), NodeKey: s.node,
	}
	ek := mustKey(mlkem.NewEncapsulationKey768(e.Encapsulation[:]))
	shared, ct, err := mlkemtest.Encapsulate768(ek, v.EncapsulationRandom)
	if err != nil {
		panic(err)
	}
	a := Answer{Nonce: [16]byte(v.EdgeNonce), Ciphertext: [CiphertextSize]byte(ct), Key: s.node, Issued: s.now, Until: s.now.Add(12 * time.Hour)}
	a.Signature = signFixed(s.clusterKey, a.message(e))
	salt, psk := sha256.Sum256(e.context(a.Ciphertext)), e.Preshared(shared, a.Ciphertext).Bytes()
	v.Ciphertext, v.SharedSecret = ct, shared
	v.AnswerIssuedMS, v.AnswerUntilMS = a.Issued.UnixMilli(), a.Until.UnixMilli()
	v.AnswerMessage, v.AnswerSignature, v.Answer = a.message(e), a.Signature[:], a.Append(nil)
	v.PresharedContext, v.PresharedSalt, v.PresharedKey = e.context(a.Ciphertext), salt[:], psk[:]

	n := NodeGrant{Cluster: v.Cluster, Key: s.node, Issued: s.statement.Issued, Expires: s.statement.Expires}
	n.Signature = signFixed(s.clusterKey, n.message(e.Network))
	v.NodeGrantMessage, v.NodeGrantSignature, v.NodeGrant = n.message(e.Network), n.Signature[:], n.Append(nil)

	r := AccessRequest{Issued: s.now, For: 90 * time.Minute, Reason: "the disk of c1 is full — “incident 7”"}
	r.Signature = signFixed(s.loginKey, r.message(e.Network, v.Cluster))
	v.AccessRequestSeconds, v.AccessRequestReason = uint32(r.For/time.Second), r.Reason
	v.AccessRequestMessage, v.AccessRequestSignature, v.AccessRequest = r.message(e.Network, v.Cluster), r.Signature[:], r.Append(nil)
	return v
}

func makeRefused() []refusedVector {
	replace := func(s *vectorScene, old, new string) {
		changed := bytes.Replace([]byte(s.payload), []byte(old), []byte(new), 1)
		if string(changed) == s.payload {
			panic("nothing replaced: " + old)
		}
		s.payload = string(changed)
	}
	thief := fixedP256("thief")
	var rows []refusedVector
	for _, c := range []struct {
		name   string
		reason Reason
		change func(*vectorScene)
	}{
		{"another audience", ReasonAudience, func(s *vectorScene) { replace(s, `"aud":"zt"`, `"aud":"kubernetes"`) }},
		{"a second audience", ReasonAudience, func(s *vectorScene) { replace(s, `"aud":"zt"`, `"aud":["zt","kubernetes"]`) }},
		{"another iss", ReasonIssuer, func(s *vectorScene) { replace(s, vectorIssuer, vectorIssuer+"/") }},
		{"sub twice", ReasonClaims, func(s *vectorScene) { replace(s, `"sub":"alice"`, `"sub":"alice","sub":"root"`) }},
		{"no nonce", ReasonNoNonce, func(s *vectorScene) { replace(s, `"nonce"`, `"nounce"`) }},
		{"commitment to another key", ReasonNonce, func(s *vectorScene) {
			s.signer = thief
			s.commitment.Key = mustKey(key.ParseLoginPEM(pemOf(thief))).Public()
		}},
		{"another network", ReasonNetwork, func(s *vectorScene) {
			old := s.commitment.Nonce()
			s.commitment.Network = NetworkID(fixed("other network", networkIDSize))
			replace(s, old, s.commitment.Nonce())
		}},
		{"alg none", ReasonAlgorithm, func(s *vectorScene) { s.header = `{"alg":"none","kid":"vector"}` }},
		{"own key in the header", ReasonHeader, func(s *vectorScene) {
			s.header = fmt.Sprintf(`{"alg":"ES256","kid":"vector","jwk":%s}`, mustKey(json.Marshal(jwkOf(thief, "vector", "", ""))))
			s.issuerKey = thief
		}},
		{"another issuer key", ReasonSignature, func(s *vectorScene) { s.issuerKey = thief }},
		{"statement by another key", ReasonStatementSignature, func(s *vectorScene) { s.signer = thief }},
		{"another channel key", ReasonChannelKey, func(s *vectorScene) { s.channel = s.node }},
		{"statement over", ReasonStatementExpired, func(s *vectorScene) { s.now = s.statement.Expires }},
		{"statement longer than an hour", ReasonStatementLifetime, func(s *vectorScene) { s.statement.Expires = s.statement.Expires.Add(time.Millisecond) }},
		{"logged out", ReasonEnded, func(s *vectorScene) { s.statement.End = true }},
		{"grant over", ReasonExpired, func(s *vectorScene) { s.now = time.Unix(1799999990, 0).Add(12*time.Hour + time.Millisecond) }},
		{"issued in the future", ReasonClock, func(s *vectorScene) { s.now = time.Unix(1799999990, 0).Add(-61 * time.Second) }},
		{"groups left out", ReasonGroupOverage, func(s *vectorScene) { replace(s, `"groups":["developers"]`, `"_claim_names":{"groups":"src1"}`) }},
		{"encapsulation key out of range", ReasonEncapsulation, func(s *vectorScene) {
			s.statement.Encapsulation = [EncapsulationSize]byte(bytes.Repeat([]byte{0xff}, EncapsulationSize))
		}},
	} {
		s := newVectorScene()
		c.change(s)
		g, _ := s.grant()
		rows = append(rows, refusedVector{Name: c.name, Reason: c.reason, NowMS: s.now.UnixMilli(), Channel: s.channel.Append(nil), Grant: g.Append(nil)})
	}
	return rows
}

func vectorVerifier(t *testing.T, v grantVectors, nowMS int64) *Verifier {
	i := Issuer{URL: v.Issuer, ClientID: v.ClientID}
	set, err := NewKeySet(KeySetConfig{Issuer: i, JWKS: mustKey(json.Marshal(v.JWKS))})
	if err != nil {
		t.Fatal(err)
	}
	ver, err := NewVerifier(VerifierConfig{
		Network: mustKey(ParseNetworkID(v.NetworkID)), Issuers: []Issuer{i},
		Keys: func(string) *KeySet { return set },
		Now:  func() time.Time { return time.UnixMilli(nowMS) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return ver
}

// goldenVectors compares v with the file, or writes it; it returns what the file says.
func goldenVectors[V any](t *testing.T, name string, v V) V {
	t.Helper()
	b := append(mustKey(json.MarshalIndent(v, "", "  ")), '\n')
	if *updateVectors {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(file, b) {
		t.Errorf("%s is not what this code makes: the format changed. Were that meant, -update-grant-vectors would write it anew", name)
	}
	var read V
	if err := json.Unmarshal(file, &read); err != nil {
		t.Fatal(err)
	}
	return read
}

func TestGrantVectors(t *testing.T) {
	v := goldenVectors(t, vectorsFile, makeVectors())

	// As another program would: by the formulas, not by our encoders.
	lp := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	ms := func(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	same := func(name string, got, want []byte) {
		t.Helper()
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, want %x", name, got, want)
		}
	}
	sum := func(b []byte) []byte { h := sha256.Sum256(b); return h[:] }
	same("network id", sum(join([]byte("zt-net-v1"), v.NetworkKey))[:20], v.NetworkIDRaw)
	same("commitment", join([]byte("zt-grant-v1"), lp(v.NetworkIDRaw), []byte{1}, lp(v.LoginPublic), v.Rand), v.Commitment)
	same("commitment hash", sum(v.Commitment), v.Hash)
	if want := base64.RawURLEncoding.EncodeToString(v.Hash); v.Nonce != want || v.Audience != "zt:"+want || len(want) != 43 {
		t.Errorf("nonce %s, audience %s, want %s", v.Nonce, v.Audience, want)
	}
	statement := join([]byte{1, 0, 0, 0, 0}, v.LaptopPublic, v.EncapsulationKey, ms(v.StatementIssuedMS), ms(v.StatementExpiresMS))
	same("statement", statement, v.Statement)
	same("ID token hash", sum([]byte(v.IDToken)), v.IDTokenHash)
	same("statement message", join([]byte("zt-stmt-v1"), v.IDTokenHash, statement), v.StatementMessage)
	same("grant", join([]byte{1}, lp([]byte(v.Issuer)), lp([]byte(v.IDToken)), lp(v.Commitment), statement, v.StatementSignature), v.Grant)
	fields := join([]byte{1, 0, 0, 0, 0}, v.EdgeNonce, v.Ciphertext, v.NodePublic, ms(v.AnswerIssuedMS), ms(v.AnswerUntilMS))
	same("answer message", join([]byte("zt-answer-v1"), v.NetworkIDRaw, []byte(v.Cluster), sum(join(v.LaptopPublic, v.EncapsulationKey)), fields), v.AnswerMessage)
	same("answer", join(fields, v.AnswerSignature), v.Answer)
	context := join(lp(v.NetworkIDRaw), lp([]byte(v.Issuer)), lp([]byte("alice")), lp(v.LoginPublic), lp(v.LaptopPublic), lp(v.EncapsulationKey),
		lp([]byte(v.Cluster)), lp(v.ClusterPublic), lp(v.NodePublic), lp(v.Ciphertext))
	same("preshared context", context, v.PresharedContext)
	same("preshared salt", sum(context), v.PresharedSalt)
	same("node grant message", join([]byte("zt-node-v1"), lp(v.NetworkIDRaw), lp([]byte(v.Cluster)), v.NodePublic, ms(v.StatementIssuedMS), ms(v.StatementExpiresMS)), v.NodeGrantMessage)
	same("node grant", join([]byte{1}, lp([]byte(v.Cluster)), v.NodePublic, ms(v.StatementIssuedMS), ms(v.StatementExpiresMS), v.NodeGrantSignature), v.NodeGrant)
	request := join([]byte{1}, ms(v.NowMS), binary.BigEndian.AppendUint32(nil, v.AccessRequestSeconds), lp([]byte(v.AccessRequestReason)))
	same("access request message", join([]byte("zt-request-v1"), lp(v.NetworkIDRaw), lp([]byte(v.Cluster)), request), v.AccessRequestMessage)
	same("access request", join(request, v.AccessRequestSignature), v.AccessRequest)

	// And through the front door.
	laptop := mustKey(key.ParseWireGuard(v.LaptopPublic))
	id, err := vectorVerifier(t, v, v.NowMS).Verify(t.Context(), v.Grant, laptop)
	if err != nil {
		t.Fatal(err)
	}
	if id.Subject != "alice" || id.Email != "alice@example.com" || id.Addr.String() != v.OverlayAddr {
		t.Errorf("got %+v", id)
	}
	var parseCluster func([]byte) (key.ClusterPublic, error) = key.ParsePublic
	cluster, now := mustKey(parseCluster(v.ClusterPublic)), time.UnixMilli(v.NowMS)
	answer := mustKey(ParseAnswer(v.Answer))
	e := EdgeOf(mustKey(ParseNetworkID(v.NetworkID)), id, v.Cluster, cluster, answer.Key)
	if _, err := answer.Verify(e, []key.ClusterPublic{cluster}, [16]byte(v.EdgeNonce), now); err != nil {
		t.Error(err)
	}
	dk := mustKey(mlkem.NewDecapsulationKey768(v.DecapsulationSeed))
	shared := mustKey(dk.Decapsulate(answer.Ciphertext[:]))
	same("shared secret", shared, v.SharedSecret)
	psk := e.Preshared(shared, answer.Ciphertext).Bytes()
	same("preshared key", psk[:], v.PresharedKey)
	if err := mustKey(ParseNodeGrant(v.NodeGrant)).Verify(e.Network, []key.ClusterPublic{cluster}, now); err != nil {
		t.Error(err)
	}
	if err := mustKey(ParseAccessRequest(v.AccessRequest)).Verify(e.Network, v.Cluster, id, now); err != nil {
		t.Error(err)
	}
}

func TestRefusedVectors(t *testing.T) {
	v := makeVectors()
	for _, row := range goldenVectors(t, refusedFile, makeRefused()) {
		t.Run(row.Name, func(t *testing.T) {
			_, err := vectorVerifier(t, v, row.NowMS).Verify(t.Context(), row.Grant, mustKey(key.ParseWireGuard(row.Channel)))
			wantReason(t, err, row.Reason)
		})
	}
}
