package peer

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// fileCredentials are the operator's own. The files are read again when they are asked for after a second; a set that does
// not fit together (somebody is just writing it) changes nothing until it does.
type fileCredentials struct {
	ca, cert, key string
	now           func() time.Time
	log           *slog.Logger

	mu     sync.Mutex
	last   time.Time // guarded by mu, as all that follows
	loaded [3][]byte
	leaf   *tls.Certificate
	roots  *x509.CertPool
	said   string // the error that was logged last
}

const filesEvery = time.Second

// FromFiles returns the credentials in three PEM files: the authority of all nodes, this node's certificate and its key.
// The authority must sign for the nodes of this cluster and nobody else. log may be nil.
func FromFiles(ca, cert, key string, log *slog.Logger) (Credentials, error) {
	return fromFiles(ca, cert, key, log, time.Now)
}

func fromFiles(ca, cert, key string, log *slog.Logger, now func() time.Time) (*fileCredentials, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &fileCredentials{ca: ca, cert: cert, key: key, now: now, log: log}
	if err := c.load(); err != nil {
		return nil, err
	}
	c.last = now()
	return c, nil
}

func (c *fileCredentials) Name() string { return filesLabel }

func (c *fileCredentials) Certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	return c.leaf, nil
}

func (c *fileCredentials) Roots() *x509.CertPool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	return c.roots
}

func (c *fileCredentials) refresh() {
	now := c.now()
	if d := now.Sub(c.last); d >= 0 && d < filesEvery {
		return
	}
	c.last = now
	err := c.load()
	switch {
	case err == nil:
		c.said = ""
	case err.Error() != c.said:
		c.said = err.Error()
		c.log.Warn("certificate files cannot be used, the ones read before stay in use", "err", err)
	}
}

// load takes over what the files hold, if that has changed and makes sense.
func (c *fileCredentials) load() error {
	var read [3][]byte
	for i, name := range []string{c.ca, c.cert, c.key} {
		b, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read certificates: %w", err)
		}
		read[i] = b
	}
	if slices.EqualFunc(read[:], c.loaded[:], bytes.Equal) {
		return nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(read[0]) {
		return fmt.Errorf("%s: no certificate in it: it must hold the authority's in PEM", c.ca)
	}
	leaf, err := tls.X509KeyPair(read[1], read[2])
	if err != nil {
		return fmt.Errorf("%s and %s do not make a certificate with its key: %w", c.cert, c.key, err)
	}
	if err := c.fits(&leaf, roots); err != nil {
		return err
	}
	if c.leaf != nil {
		c.log.Info("certificate files were read again", "until", leaf.Leaf.NotAfter)
	}
	c.loaded, c.leaf, c.roots = read, &leaf, roots
	return nil
}

// fits tells what other nodes would have against leaf, except its dates: those may be wrong because of our clock.
func (c *fileCredentials) fits(leaf *tls.Certificate, roots *x509.CertPool) error {
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		opts := x509.VerifyOptions{Roots: roots, Intermediates: intermediates(leaf.Certificate), KeyUsages: []x509.ExtKeyUsage{use}, CurrentTime: leaf.Leaf.NotBefore.Add(time.Second)}
		if _, err := leaf.Leaf.Verify(opts); err != nil {
			return fmt.Errorf("%s: the authority in %s does not stand for it as certificate of both a server and a client, and a node is both: %w", c.cert, c.ca, err)
		}
	}
	return nil
}

func intermediates(chain [][]byte) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, der := range chain[1:] {
		if cert, err := x509.ParseCertificate(der); err == nil {
			pool.AddCert(cert)
		}
	}
	return pool
}
