package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir string) *authority {
	t.Helper()
	a := &authority{t: t, dir: dir}
	a.cert, a.key = a.issue("ca", time.Now().Add(time.Hour))
	return a
}

// issue writes name.pem and name.key.
func (a *authority) issue(name string, until time.Time) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	parent, signer := a.cert, a.key
	if parent == nil {
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage, tmpl.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	priv, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(name+".key", &pem.Block{Type: "PRIVATE KEY", Bytes: priv})
	a.write(name+".pem", &pem.Block{Type: "CERTIFICATE", Bytes: der})
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) write(name string, b *pem.Block) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// flags are a node's, for its certificate.
func (a *authority) flags(name string) []string {
	at := func(file string) string { return filepath.Join(a.dir, file) }
	return []string{"--tls-ca", at("ca.pem"), "--tls-cert", at(name + ".pem"), "--tls-key", at(name + ".key")}
}

// ownArgs is the command line of a node that shows certificates of its operator, or anything else in trust.
func (s *clusterSite) ownArgs(n *clusterNode, trust []string, join string) []string {
	args := []string{"--data-dir", n.dir, "--node-id", n.name, "--peer-listen", n.peer, "--drain-delay", "0s", "--upstream", s.up.URL(), "--sumdb", s.db.Key()}
	if join != "" {
		args = append(args, "--join", join)
	}
	return append(args, trust...)
}

// unready waits until n says with 503 why it is not ready.
func (s *clusterSite) unready(n *clusterNode, want string) {
	s.t.Helper()
	code, last := 0, ""
	s.await("a 503 of "+n.name+" that says "+want, func() bool {
		resp, err := http.Get(n.url + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		code, last = resp.StatusCode, string(b)
		return err == nil && code == 503 && strings.Contains(last, want)
	}, func() string { return last })
}

// Nodes with certificates of their operator form a cluster. One whose certificate has expired is refused, and both sides say
// so; as soon as the file has a new one it is let in, without a restart. Other authorities, and tokens, are refused.
func TestCertificatesOfOperator(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 4)
	s.load()
	ca := newAuthority(t, t.TempDir())
	ca.issue("a", time.Now().Add(time.Hour))
	ca.issue("b", time.Now().Add(-time.Hour))
	first, expired, foreign, token := s.nodes[0], s.nodes[1], s.nodes[2], s.nodes[3]
	s.launchWith(first, s.ownArgs(first, ca.flags("a"), "")...)
	if err := first.waitReady(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	other := newAuthority(t, t.TempDir())
	other.issue("c", time.Now().Add(time.Hour))
	s.launchWith(expired, s.ownArgs(expired, ca.flags("b"), first.peer)...)
	s.launchWith(foreign, s.ownArgs(foreign, other.flags("c"), first.peer)...)
	s.launchWith(token, s.ownArgs(token, []string{"--cluster-token-file", s.token}, first.peer)...)
	s.unready(expired, "is valid from")
	s.unready(foreign, "authorit")
	s.unready(token, "the cluster token")
	for _, class := range []string{"class=expired-certificate", "class=foreign-certificate", "class=wrong-token"} {
		s.await("the first node to log "+class, func() bool { return strings.Contains(first.output(), class) }, first.output)
	}
	if n := strings.Count(first.output(), "class=expired-certificate"); n > 3 {
		t.Errorf("the first node says %d times that a certificate has expired", n)
	}
	ca.issue("b", time.Now().Add(time.Hour))
	if err := expired.waitReady(60 * time.Second); err != nil {
		t.Errorf("with a new certificate: %v", err)
	}
	if _, err := s.download(expired.url, app); err != nil {
		t.Errorf("through the node with the new certificate: %v", err)
	}
}

// Whoever does not belong to the cluster says why at /readyz and in its log, and so does the other side.
func TestRefusedNodesSayWhy(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	s.run()
	s.voters(3)
	stranger := s.addNode()
	stranger.token = s.newToken("other-token")
	s.launch(stranger)
	s.unready(stranger, "do not have the same token")
	s.await("a node to log the wrong token", func() bool {
		return strings.Contains(s.nodes[0].output(), "class=wrong-token")
	}, s.nodes[0].output)
	stranger.kill()

	twin := s.addNode()
	twin.name = "n2"
	s.launch(twin)
	s.unready(twin, "the name n2 belongs to another data directory")
	twin.kill()

	clone := s.addNode()
	original := s.nodes[1]
	if err := os.CopyFS(clone.dir, os.DirFS(original.dir)); err != nil {
		t.Fatal(err)
	}
	clone.name = original.name
	s.launch(clone)
	s.unready(clone, "runs right now")
	s.await("the clone to log it", func() bool { return hasLine(clone.output(), "the other nodes do not take this one", "runs right now") }, clone.output)
	s.await("a node to log the clone", func() bool { return strings.Contains(s.nodes[0].output(), "class=same-id-twice") }, s.nodes[0].output)
	clone.kill()

	alone := s.addNode()
	s.launchWith(alone, s.ownArgs(alone, []string{"--cluster-token-file", s.token}, "")...) // founds its own cluster
	if err := alone.waitReady(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	if err := alone.stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	s.launchWith(alone, s.ownArgs(alone, []string{"--cluster-token-file", s.token}, s.nodes[0].peer)...)
	s.await("a node with another cluster to say so", func() bool {
		return hasLine(alone.output(), "does not belong to this node's cluster", "belongs to cluster")
	}, alone.output)
	s.await("a node to log the foreign cluster", func() bool { return strings.Contains(s.nodes[0].output(), "class=foreign-cluster") }, s.nodes[0].output)
	alone.kill()
	s.voters(3)
}
