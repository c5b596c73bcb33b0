package peer

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// clock is a time that tests move.
type clock struct{ t atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.t.Store(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.t.Load()) }
func (c *clock) advance(d time.Duration) { c.t.Add(int64(d)) }

func TestTokenAuthorityIsTheSameEverywhere(t *testing.T) {
	tok := NewToken()
	if a, b := newAuthority(tok), newAuthority(tok); !bytes.Equal(a.cert.Raw, b.cert.Raw) {
		t.Error("one token makes two authorities")
	}
	if a, b := newAuthority(tok), newAuthority(NewToken()); a.cert.PublicKey == nil || bytes.Equal(a.cert.RawSubjectPublicKeyInfo, b.cert.RawSubjectPublicKeyInfo) {
		t.Error("two tokens make one authority")
	}
}

func TestTokenLeafIsRenewed(t *testing.T) {
	clk := newClock()
	c := fromToken(NewToken(), "n1", clk.now)
	first, err := c.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	clk.advance(leafFresh - time.Second)
	if again, _ := c.Certificate(); again != first {
		t.Error("a fresh leaf was made anew")
	}
	clk.advance(2 * time.Second)
	second, _ := c.Certificate()
	if second == first || !second.Leaf.NotAfter.After(first.Leaf.NotAfter) {
		t.Error("a leaf that is no longer fresh was not renewed")
	}
	clk.advance(-48 * time.Hour) // the clock was set
	if third, _ := c.Certificate(); third == second {
		t.Error("a leaf from the future is still shown")
	}
	if err := judge([]*x509.Certificate{second.Leaf}, c, second.Leaf.NotAfter.Add(time.Second), x509.ExtKeyUsageServerAuth); err == nil || err.Class != ExpiredCertificate {
		t.Errorf("an expired leaf: %v", err)
	}
}

// A leaf of any age at which it is still shown is valid for a clock that is two hours off.
func TestTokenLeafToleratesSkew(t *testing.T) {
	clk := newClock()
	c := fromToken(NewToken(), "n1", clk.now)
	leaf, _ := c.Certificate()
	for age := time.Duration(0); age < leafFresh; age += time.Hour {
		for _, skew := range []time.Duration{-2 * time.Hour, 0, 2 * time.Hour} {
			if r := judge([]*x509.Certificate{leaf.Leaf}, c, clk.now().Add(age+skew), x509.ExtKeyUsageClientAuth); r != nil {
				t.Errorf("age %v, skew %v: %v", age, skew, r)
			}
		}
	}
}

// certFiles are an operator's own.
type certFiles struct{ ca, cert, key string }

func newCertFiles(t *testing.T) certFiles {
	dir := t.TempDir()
	return certFiles{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
}

func (f certFiles) write(t *testing.T, a *authority, node string, now time.Time) {
	t.Helper()
	leaf, err := a.leaf(node, now)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []struct {
		path, kind string
		der        []byte
	}{{f.ca, "CERTIFICATE", a.cert.Raw}, {f.cert, "CERTIFICATE", leaf.Certificate[0]}, {f.key, "PRIVATE KEY", der}} {
		if err := os.WriteFile(e.path, pem.EncodeToMemory(&pem.Block{Type: e.kind, Bytes: e.der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFilesReload(t *testing.T) {
	clk, log := newClock(), newLogs()
	f := newCertFiles(t)
	a := newAuthority(NewToken())
	f.write(t, a, "n1", clk.now())
	c, err := fromFiles(f.ca, f.cert, f.key, log.logger(), clk.now)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := c.Certificate()
	f.write(t, a, "n1", clk.now().Add(time.Hour))
	if again, _ := c.Certificate(); again != first {
		t.Error("files are read at each handshake")
	}
	clk.advance(2 * time.Second)
	second, _ := c.Certificate()
	if second == first {
		t.Fatal("new files are not read")
	}
	old, _ := os.ReadFile(f.key)
	os.WriteFile(f.key, old[:len(old)/2], 0o600) // somebody is writing it
	clk.advance(2 * time.Second)
	if third, _ := c.Certificate(); third != second {
		t.Error("half a key is taken over")
	}
	log.wait(t, "cannot be used", f.key)
	os.Remove(f.key)
	clk.advance(2 * time.Second)
	if third, _ := c.Certificate(); third != second {
		t.Error("no key is taken over")
	}
	b := newAuthority(NewToken())
	f.write(t, b, "n1", clk.now())
	clk.advance(2 * time.Second)
	leaf, _ := c.Certificate()
	if r := judge([]*x509.Certificate{leaf.Leaf}, c, clk.now(), x509.ExtKeyUsageServerAuth); r != nil {
		t.Errorf("after the authority was replaced: %v", r)
	}
}

func TestFilesRefuse(t *testing.T) {
	f, g := newCertFiles(t), newCertFiles(t)
	a := newAuthority(NewToken())
	f.write(t, a, "n1", time.Now())
	g.write(t, newAuthority(NewToken()), "n1", time.Now())
	for _, c := range []struct{ ca, cert, key, want string }{
		{f.ca, f.cert, g.key, "do not make a certificate with its key"},
		{g.ca, f.cert, f.key, "does not stand for it"},
		{f.key, f.cert, f.key, "no certificate in it"},
		{f.ca + "x", f.cert, f.key, "read certificates"},
	} {
		if _, err := FromFiles(c.ca, c.cert, c.key, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("FromFiles(%v): %v, want %q", c, err, c.want)
		}
	}
}

// Long-running links go on while leaves come and go, and when files are replaced by those of another authority.
func TestLinksOutliveCertificates(t *testing.T) {
	clk := newClock()
	f := newCertFiles(t)
	f.write(t, newAuthority(NewToken()), "shared", clk.now())
	for name, creds := range map[string]func(node string) Credentials{
		"token": func(node string) Credentials { return fromToken(testToken, node, clk.now) },
		"files": func(string) Credentials {
			c, err := fromFiles(f.ca, f.cert, f.key, nil, clk.now)
			if err != nil {
				t.Fatal(err)
			}
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			conf := func(id string) func(*Config, *Hello) {
				return func(c *Config, _ *Hello) { c.Credentials, c.now = creds(id), clk.now }
			}
			a, b := start(t, "a", conf("a")), start(t, "b", conf("b"))
			for range 3 {
				stream(t, a, b)
				clk.advance(30 * time.Hour) // every leaf so far has expired
				f.write(t, newAuthority(NewToken()), "shared", clk.now())
			}
			stream(t, a, b)
		})
	}
}

func TestExpiredFilesAreRefusedInWords(t *testing.T) {
	clk := newClock()
	a := newAuthority(NewToken())
	good, old := newCertFiles(t), newCertFiles(t)
	good.write(t, a, "n1", clk.now())
	old.write(t, a, "n2", clk.now().Add(-40*time.Hour))
	link := func(id string, f certFiles) *testNode {
		return start(t, id, func(c *Config, _ *Hello) {
			creds, err := fromFiles(f.ca, f.cert, f.key, nil, clk.now)
			if err != nil {
				t.Fatal(err)
			}
			c.Credentials, c.now = creds, clk.now
		})
	}
	n1, n2 := link("n1", good), link("n2", old)
	for range 20 { // the alert comes while something else is on its way
		for _, dial := range []struct{ from, to *testNode }{{n2, n1}, {n1, n2}} {
			_, err := dial.from.DialRaft(t.Context(), dial.to.Self().Node, dial.to.addr())
			wantRefusal(t, err, ExpiredCertificate, "n2", "2029-12-31T08:00:00Z", "set the clocks", "--tls-cert")
			_, err = dial.from.Do(t.Context(), Request{Addr: dial.to.addr(), Path: "/v1/hello"})
			wantRefusal(t, err, ExpiredCertificate, "n2", "2029-12-31T08:00:00Z", "set the clocks")
			_, err = dial.from.Do(t.Context(), Request{Addr: dial.to.addr(), Path: "/v1/hello", Bulk: true})
			wantRefusal(t, err, ExpiredCertificate, "n2", "2029-12-31T08:00:00Z", "set the clocks")
		}
	}
	n1.logs.wait(t, "refused", string(ExpiredCertificate), "n2", "set the clocks")
	n2.logs.wait(t, "refused", "does not accept this node's certificate")
}

func wantRefusal(t testing.TB, err error, class Class, words ...string) {
	t.Helper()
	r, ok := errors.AsType[*Refusal](err)
	if !ok || r.Class != class || !containsAll(r.Text, words...) {
		t.Fatalf("got %v (class %q), want a refusal of class %s with %q", err, ClassOf(err), class, words)
	}
}
