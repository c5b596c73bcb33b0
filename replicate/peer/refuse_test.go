package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// stream opens a Raft stream from a to b and sends something each way.
func stream(t testing.TB, a, b *testNode) {
	t.Helper()
	out, in := openStream(t, a, b)
	defer out.Close()
	defer in.Close()
	echo(t, out, in)
	echo(t, in, out)
}

func openStream(t testing.TB, a, b *testNode) (out, in net.Conn) {
	t.Helper()
	got := make(chan net.Conn, 1)
	go func() {
		c, err := b.Raft().Accept()
		if err == nil {
			got <- c
		}
		close(got)
	}()
	out, err := a.DialRaft(t.Context(), b.Self().Node, b.addr())
	if err != nil {
		t.Fatal(err)
	}
	return out, <-got
}

func echo(t testing.TB, w, r net.Conn) {
	t.Helper()
	if _, err := io.WriteString(w, "ping"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "ping" {
		t.Fatalf("read %q, %v", b, err)
	}
}

// everyWay tries to get through from a to the node that is called to at b, in each protocol, and wants each refused.
func everyWay(t *testing.T, a *testNode, to string, b *testNode, class Class, words ...string) {
	t.Helper()
	_, err := a.DialRaft(t.Context(), to, b.addr())
	wantRefusal(t, err, class, words...)
	for _, bulk := range []bool{false, true} {
		_, err := a.Do(t.Context(), Request{Node: to, Addr: b.addr(), Path: "/v1/status", Bulk: bulk})
		wantRefusal(t, err, class, words...)
	}
}

func TestRefusals(t *testing.T) {
	b := start(t, "bbbbbbbbbbbb", func(c *Config, h *Hello) {
		c.Was = func(cluster string) (time.Time, bool) {
			return time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), cluster == "before"
		}
		c.Check = func(h Hello) error {
			switch h.Node {
			case "removed":
				return RefuseRemoved(h)
			case "clone":
				return RefuseClone(h, Hello{Node: "clone", Starts: 9, Address: "old:1"})
			case "name":
				return RefuseName(h, Hello{Node: "owner", Address: "owner:1"})
			case "other":
				return errors.New("the catalog says no")
			}
			return nil
		}
	})
	id := "bbbbbbbbbbbb"
	for _, c := range []struct {
		name, node, to string
		change         func(*Config, *Hello)
		class          Class
		words          []string
	}{
		{"removed", "removed", id, nil, Removed, []string{"was removed from cluster c1", "--join"}},
		{"clone", "clone", id, nil, Clone, []string{"copy or an old image", "start 1, known is start 9, last at old:1", "move its data directory away"}},
		{"name", "name", id, nil, NameTaken, []string{"the name name-name belongs to another data directory (node owner, last at owner:1)", "modmirror cluster remove name-name"}},
		{"other reason", "other", id, nil, Refused, []string{"the catalog says no"}},
		{"left behind", "x", id, func(_ *Config, h *Hello) { h.Cluster = "before" }, ForeignCluster, []string{"belongs to cluster before", "recovered without it on 2026-03-04, as cluster c1", "cluster reset --keep-blobs", "--join"}},
		{"foreign cluster", "x", id, func(_ *Config, h *Hello) { h.Cluster = "c2" }, ForeignCluster, []string{"belongs to cluster c2", "to cluster c1", "--join"}},
		{"fresh", "x", id, func(_ *Config, h *Hello) { h.Cluster = "" }, Fresh, []string{"has no cluster yet"}},
		{"other node", "x", "wanted", nil, OtherNode, []string{"node wanted was expected at", "(bbbbbbbb)", "modmirror cluster remove"}},
		{"copy of the one it dials", id, id, func(_ *Config, h *Hello) { h.Boot = "another" }, Twice, []string{"another process that runs right now", "Stop the one that is the copy"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := start(t, c.node, c.change)
			everyWay(t, a, c.to, b, c.class, c.words...)
			_, err := a.Do(t.Context(), Request{Node: c.to, Addr: b.addr(), Path: "/v1/status"})
			if r, ok := errors.AsType[*Refusal](err); !ok || r.By != b.addr() {
				t.Errorf("%v: want the refusal of the other end", err)
			}
			b.logs.wait(t, append(c.words, "class="+string(c.class))...)
			if _, err := a.Probe(t.Context(), "127.0.0.1:1"); ClassOf(err) != "" || err == nil {
				t.Errorf("nobody there: %v, want an error that is no refusal", err)
			}
		})
	}
	b.logs.mu.Lock()
	defer b.logs.mu.Unlock()
	if n := strings.Count(strings.Join(b.logs.lines, ""), "class=removed"); n != 1 {
		t.Errorf("the same refusal was logged %d times, want once a minute", n)
	}
}

func TestMemberDoesNotAskFreshNode(t *testing.T) {
	fresh := start(t, "fresh", func(_ *Config, h *Hello) { h.Cluster = "" })
	a := start(t, "a", nil)
	everyWay(t, a, "fresh", fresh, Fresh, "(fresh)", "has no cluster yet", "has joined")
	if h, err := a.Probe(t.Context(), fresh.addr()); err != nil || h.Node != "fresh" {
		t.Errorf("Probe = %v, %v", h, err)
	}
}

func TestWrongToken(t *testing.T) {
	other := NewToken()
	a := start(t, "a", func(c *Config, _ *Hello) { c.Credentials = FromToken(other, "a") })
	b := start(t, "b", nil)
	words := []string{testToken.Fingerprint(), other.Fingerprint(), "do not have the same token", "--cluster-token-file"}
	everyWay(t, a, "b", b, WrongToken, words...)
	b.logs.wait(t, append(words, "class=wrong-token")...)
	// Not only because a hangs up: b does not listen to one who would go on.
	cfg := a.clientTLS(protoRaft)
	cfg.VerifyConnection = nil
	tc, err := tls.Dial("tcp", b.addr(), cfg)
	if err == nil {
		defer tc.Close()
		_, err = readFrame(tc)
	}
	if err == nil || ClassOf(refusedDial(err, b.addr(), nil, time.Now())) != ForeignCertificate {
		t.Errorf("a node with another token that does not care: %v", err)
	}
	for _, n := range []*testNode{a, b} {
		select {
		case <-n.raft.ch:
			t.Error("a stream came through")
		default:
		}
	}
}

func TestTokenAgainstFiles(t *testing.T) {
	f := newCertFiles(t)
	ca := newAuthority(NewToken())
	ca.cert.Subject.CommonName = "Example CA"
	f.write(t, ca, "a", time.Now())
	creds, err := FromFiles(f.ca, f.cert, f.key, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, b := start(t, "a", func(c *Config, _ *Hello) { c.Credentials = creds }), start(t, "b", nil)
	everyWay(t, a, "b", b, WrongToken, "the cluster token "+testToken.Fingerprint(), "files")
	b.logs.wait(t, "class=wrong-token", "files", testToken.Fingerprint())
	everyWay(t, b, "a", a, WrongToken)
}

// rawDial connects with settings that no node has, and returns how that ends.
func rawDial(t *testing.T, b *testNode, change func(*tls.Config)) error {
	t.Helper()
	a := start(t, "raw", nil)
	cfg := a.clientTLS(protoRaft)
	cfg.VerifyConnection = nil
	change(cfg)
	tc, err := tls.Dial("tcp", b.addr(), cfg)
	if err != nil {
		return err
	}
	defer tc.Close()
	tc.SetDeadline(time.Now().Add(20 * time.Second))
	_, err = tc.Read(make([]byte, 1))
	return err
}

func TestRefusesOthers(t *testing.T) {
	b := start(t, "b", nil)
	for _, c := range []struct {
		name   string
		change func(*tls.Config)
		class  Class
		alerts []uint8
		words  string
	}{
		{"TLS 1.2", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, OldTLS, []uint8{alertProtocolVersion}, "does not speak TLS 1.3"},
		{"no certificate", func(c *tls.Config) { c.GetClientCertificate = nil }, NoCertificate, []uint8{alertBadCertificate}, "no certificate was shown"},
		{"no protocol that is spoken", func(c *tls.Config) { c.NextProtos = []string{"imap"} }, WrongProtocol, []uint8{alertNoProtocol}, "none of the protocols"},
		{"no protocol at all", func(c *tls.Config) { c.NextProtos = nil }, WrongProtocol, nil, "no protocol"},
	} {
		err := rawDial(t, b, c.change)
		if err == nil || len(c.alerts) > 0 && !isAlert(err, c.alerts...) {
			t.Errorf("%s: %v, want the alert %d", c.name, err, c.alerts)
		}
		if c.alerts != nil && ClassOf(refusedDial(err, b.addr(), nil, time.Now())) == "" {
			t.Errorf("%s: the dialer has no words for %v", c.name, err)
		}
		b.logs.wait(t, "class="+string(c.class), c.words)
	}
}

func TestPlainTalk(t *testing.T) {
	b := start(t, "b", func(c *Config, _ *Hello) {})
	c, err := net.Dial("tcp", b.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	b.logs.wait(t, "class=old-tls", "public port")

	// And the other way round: what answers is no node.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			c.(*net.TCPConn).CloseWrite()
		}
	}()
	_, err = b.DialRaft(t.Context(), "x", ln.Addr().String())
	wantRefusal(t, err, OldTLS, "does not speak TLS", "--peer-listen")
}

// A copy of a data directory is refused while the original runs, and let in when that is gone.
func TestTwice(t *testing.T) {
	b := start(t, "b", nil)
	orig := start(t, "n", nil)
	stream(t, orig, b)
	cp := start(t, "n", func(_ *Config, h *Hello) { h.Boot, h.Starts = "copy", 2 })
	everyWay(t, cp, "b", b, Twice, "another process that runs right now, at "+orig.addr())
	b.logs.wait(t, "class=same-id-twice", orig.addr())
	stream(t, orig, b)
	orig.Close()
	stream(t, cp, b)
	old := start(t, "n", func(_ *Config, h *Hello) { h.Boot, h.Starts = "image", 1 })
	everyWay(t, old, "b", b, Clone, "start 1, known is start 2")
	early := start(t, "n", func(_ *Config, h *Hello) { h.Boot, h.Starts = "early", 0 })
	everyWay(t, early, "b", b, Starting, "cannot say yet which start", "full disk")
}

func TestDialerChecksToo(t *testing.T) {
	a := start(t, "a", func(c *Config, _ *Hello) {
		c.Check = func(h Hello) error { return RefuseRemoved(h) }
	})
	b := start(t, "b", nil)
	_, err := a.DialRaft(t.Context(), "b", b.addr())
	wantRefusal(t, err, Removed, "name-b")
}

func TestDialRaftEndsWithItsContext(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a := start(t, "a", nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := a.DialRaft(ctx, "b", ln.Addr().String()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("DialRaft = %v", err)
	}
}

// A node that lets in whoever comes is not believed to be another one.
func TestDialerChecksWhoAnswers(t *testing.T) {
	a := start(t, "a", nil)
	var b *testNode
	b = start(t, "b", func(c *Config, _ *Hello) {
		c.Check = func(Hello) error {
			b.set(func(h *Hello) { h.Node = "z" })
			return nil
		}
	})
	_, err := a.DialRaft(t.Context(), "b", b.addr())
	wantRefusal(t, err, OtherNode, "node b was expected", "(z)")
	b.set(func(h *Hello) { h.Node = "b" })
	b.Handle("GET /v1/x", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set(helloHeader, b.Self().header()) }))
	_, err = a.Do(t.Context(), Request{Node: "b", Addr: b.addr(), Path: "/v1/x"})
	wantRefusal(t, err, OtherNode, "node b was expected", "(z)")
}
