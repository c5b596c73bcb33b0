package peer

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Credentials are what a node shows, and whom it believes. They are asked at each handshake, from many goroutines, so that
// they can change while the node runs.
type Credentials interface {
	// Certificate returns what this node shows now: a leaf for both ends of a connection.
	Certificate() (*tls.Certificate, error)
	// Roots returns who signs for the other nodes. They must sign for nobody else: no names are compared.
	Roots() *x509.CertPool
	// Name says in public which credentials these are, as one DNS label. Two nodes of a cluster have the same.
	Name() string
}

// A leaf is accepted from a clock that is up to leafPast behind, and for leafLife-leafFresh at least by one that is ahead.
const (
	leafPast  = 6 * time.Hour  // it was valid already so long when it was made
	leafLife  = 24 * time.Hour // and is for so long after
	leafFresh = 8 * time.Hour  // after which another is made
)

const (
	tokenLabel    = "token-" // Credentials.Name
	filesLabel    = "files"
	authorityName = "modmirror cluster token "
)

// authority is the certificate authority that a token stands for. All who have the token make the same.
type authority struct {
	key         ed25519.PrivateKey
	cert        *x509.Certificate
	fingerprint string
}

func newAuthority(t Token) *authority {
	seed, err := hkdf.Key(sha256.New, t.secret[:], nil, "modmirror cluster authority 1", ed25519.SeedSize)
	if err != nil {
		panic(err) // the lengths are constants
	}
	a := &authority{key: ed25519.NewKeyFromSeed(seed)}
	sum := sha256.Sum256(a.key.Public().(ed25519.PublicKey))
	a.fingerprint = hex.EncodeToString(sum[:4])
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: authorityName + a.fingerprint},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), // a clock that is far off must not look like another token
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(nil, template, template, a.key.Public(), a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		panic(err) // all of it comes from constants and the key
	}
	return a
}

// leaf makes a certificate for a node, which is valid for some hours around now.
func (a *authority) leaf(node string, now time.Time) (*tls.Certificate, error) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(nil, &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: node},
		URIs:         []*url.URL{{Scheme: "modmirror", Host: "node", Path: "/" + node}},
		NotBefore:    now.Add(-leafPast),
		NotAfter:     now.Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, pub, a.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: parsed}, err
}

// tokenCredentials mints its own leaves.
type tokenCredentials struct {
	*authority
	node  string
	roots *x509.CertPool
	now   func() time.Time

	mu   sync.Mutex
	have *tls.Certificate // guarded by mu
	made time.Time        // guarded by mu
}

// FromToken returns the credentials of a node in the cluster that t is the token of.
func FromToken(t Token, node string) Credentials { return fromToken(t, node, time.Now) }

func fromToken(t Token, node string, now func() time.Time) *tokenCredentials {
	c := &tokenCredentials{authority: newAuthority(t), node: node, roots: x509.NewCertPool(), now: now}
	c.roots.AddCert(c.cert)
	return c
}

func (c *tokenCredentials) Roots() *x509.CertPool { return c.roots }
func (c *tokenCredentials) Name() string          { return tokenLabel + c.fingerprint }

// Certificate returns the leaf of the last hours, and makes the next one when that is no longer fresh, or comes from a time
// that this clock has not reached.
func (c *tokenCredentials) Certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if age := now.Sub(c.made); c.have != nil && age >= -time.Hour && age < leafFresh {
		return c.have, nil
	}
	leaf, err := c.leaf(c.node, now)
	if err != nil {
		return nil, fmt.Errorf("make a certificate for node %s: %w", c.node, err)
	}
	c.have, c.made = leaf, now
	return leaf, nil
}

// nameOf returns the Credentials.Name of who signed cert, as far as cert says.
func nameOf(cert *x509.Certificate) string {
	if f, ok := strings.CutPrefix(cert.Issuer.CommonName, authorityName); ok && len(f) == 8 {
		return tokenLabel + f
	}
	return filesLabel
}
