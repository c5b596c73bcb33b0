package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
)

const theBlob = "the blob"

// relayRig is a node that lacks theBlob, and others that it asks for it.
type relayRig struct {
	*spreadRig
	want mirror.Want

	mu    sync.Mutex
	asked []string // guarded by mu; "GET A", "ask A", "bring A"
}

func newRelayRig(t *testing.T) *relayRig {
	t.Helper()
	g := &relayRig{spreadRig: newSpreadRig(t), want: mirror.Want{Module: module.Version{Path: "example.com/m", Version: "v1.0.0"}, Kind: artifact.Zip, Ref: artifact.RefOf([]byte(theBlob))}}
	g.n.config.Cluster.Zone = "here"
	store, err := artifact.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	g.n.store = store
	return g
}

func (g *relayRig) note(what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, what)
}

func (g *relayRig) log() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.asked...)
}

// other is a node that says of a blob what has says, and of a question to relay it what relay says; nil: it does not know that.
type other struct {
	has   func() bool
	relay func(q relayRequest) (any, error)
}

func yes() bool { return true }
func no() bool  { return false }

func (g *relayRig) node(id, zone string, o other) peer.Member {
	g.t.Helper()
	l := g.open(id)
	l.Handle("GET /v1/blob/{digest}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.note("GET " + id)
		if ref, err := blobRef(r); err != nil || ref != g.want.Ref {
			g.t.Errorf("%s is asked for %v, %v", id, ref, err)
		}
		if !o.has() {
			if id == "ARRIVING" {
				w.Header().Set(arrivingHeader, "1")
			}
			sendError(w, fs.ErrNotExist)
			return
		}
		io.WriteString(w, theBlob)
	}))
	if o.relay != nil {
		l.Handle("POST /v1/relay", answering(func(r *http.Request) (any, error) {
			var q relayRequest
			b, err := readBody(r, 1<<10)
			if err := errors.Join(err, json.Unmarshal(b, &q)); err != nil || q.Digest != g.want.Ref.Digest.String() || r.Header.Get(appliedHeader) == "" {
				g.t.Errorf("%s is asked %s: %v", id, b, err)
			}
			g.note(map[bool]string{true: "bring ", false: "ask "}[q.Bring] + id)
			return o.relay(q)
		}))
	}
	return peer.Member{ID: id, Name: id, Address: l.Self().Address, Zone: zone}
}

// fetch fetches along r, and returns from where the blob was taken.
func (g *relayRig) fetch(w mirror.Want, r route) (string, error) {
	g.t.Helper()
	from := ""
	f := &fetching{peers: peers{g.n}, want: w, lacking: true, accept: func(body io.Reader, _ int64, source string) error {
		b, err := io.ReadAll(body)
		if err == nil && string(b) != theBlob {
			g.t.Errorf("%s sends %q", source, b)
		}
		from = source
		return err
	}}
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	return from, f.run(ctx, r)
}

func (g *relayRig) check(what, from string, err error, want string, asked ...string) {
	g.t.Helper()
	if err != nil || from != "node "+want {
		g.t.Errorf("%s: from %q, %v; want %s", what, from, err, want)
	}
	got := g.log()
	if len(got) != len(asked) {
		g.t.Errorf("%s: asked %q, want %q", what, got, asked)
		return
	}
	for i := range asked {
		if got[i] != asked[i] {
			g.t.Errorf("%s: asked %q, want %q", what, got, asked)
			return
		}
	}
}

// What a node of the zone has is taken from there; else the relay brings it; and nobody asks another zone without need.
func TestFetchWithinTheZone(t *testing.T) {
	g := newRelayRig(t)
	s := g.node("S", "here", other{has: yes})
	r := g.node("R", "here", other{has: no, relay: func(relayRequest) (any, error) { return relayAnswer{Here: true}, nil }})
	far := g.node("F", "there", other{has: yes})
	from, err := g.fetch(g.want, route{siblings: []peer.Member{s}, relays: []peer.Member{r}, far: []peer.Member{far}})
	g.check("a sibling has it", from, err, "S", "GET S")

	g = newRelayRig(t)
	s = g.node("S", "here", other{has: no})
	var here atomic.Bool
	brings := 0
	r = g.node("R", "here", other{has: here.Load, relay: func(q relayRequest) (any, error) {
		if brings++; brings < 2*relayPatient { // it makes progress for longer than one that makes none may take
			return relayAnswer{Received: int64(brings)}, nil
		}
		if q.Background || !q.Bring || q.Module != "example.com/m" || q.Version != "v1.0.0" || q.Kind != uint8(artifact.Zip) || q.Size != int64(len(theBlob)) {
			t.Errorf("the relay is asked %+v", q)
		}
		here.Store(true)
		return relayAnswer{Here: true}, nil
	}})
	far = g.node("F", "there", other{has: yes})
	from, err = g.fetch(g.want, route{siblings: []peer.Member{s}, relays: []peer.Member{r}, far: []peer.Member{far}})
	g.check("the relay brings it", from, err, "R", "GET S", "bring R", "bring R", "bring R", "bring R", "bring R", "bring R", "GET R")
	if n := g.n.fromAfar.pulled.Load(); n != 0 {
		t.Errorf("%d blobs were taken out of another zone", n)
	}
}

// In the place of a relay that fails, whatever the reason, comes the next, and in the end this node itself.
func TestRelayFails(t *testing.T) {
	for what, relay := range map[string]func(relayRequest) (any, error){
		"no room":     func(relayRequest) (any, error) { return nil, artifact.ErrNoSpace },
		"cut off":     func(relayRequest) (any, error) { return nil, artifact.ErrUnavailable },
		"no progress": func(relayRequest) (any, error) { return relayAnswer{Received: 0}, nil },
		"draining":    func(relayRequest) (any, error) { return nil, errDraining },
		"rubbish":     func(relayRequest) (any, error) { return []byte("yes"), nil },
		"it lied":     func(relayRequest) (any, error) { return relayAnswer{Here: true}, nil },
		"old":         nil,
	} {
		g := newRelayRig(t)
		bad := g.node("BAD", "here", other{has: no, relay: relay})
		good := g.node("GOOD", "here", other{has: yes, relay: func(relayRequest) (any, error) { return relayAnswer{Here: true}, nil }})
		far := g.node("F", "there", other{has: yes})
		if from, err := g.fetch(g.want, route{relays: []peer.Member{bad, good}, far: []peer.Member{far}}); err != nil || from != "node GOOD" {
			t.Errorf("%s: from %q, %v, not from the next relay", what, from, err)
		}
		if from, err := g.fetch(g.want, route{relays: []peer.Member{bad}, far: []peer.Member{far}}); err != nil || from != "node F" {
			t.Errorf("%s: from %q, %v, not by itself", what, from, err)
		}
	}
	g := newRelayRig(t)
	dead := g.node("DEAD", "here", other{has: yes})
	far := g.node("F", "there", other{has: yes})
	dead.Address = "127.0.0.1:1"
	if from, err := g.fetch(g.want, route{relays: []peer.Member{dead}, far: []peer.Member{far}}); err != nil || from != "node F" {
		t.Errorf("nobody answers: from %q, %v, not by itself", from, err)
	}
}

// A relay that has to wait itself is waited for; longer if nobody waits for the blob, and not for ever.
func TestRelayWaits(t *testing.T) {
	for _, test := range []struct {
		background bool
		waits      int // questions that it answers so
		from       string
	}{
		{false, relayQueue - 1, "R"}, {false, relayQueue, "F"}, {true, relayIdle - 1, "R"}, {true, relayIdle, "F"},
	} {
		g := newRelayRig(t)
		if test.background {
			g.want.Background = mirror.NewBackground()
		}
		asked, here := 0, false
		r := g.node("R", "here", other{has: func() bool { return here }, relay: func(relayRequest) (any, error) {
			if asked++; asked <= test.waits {
				return relayAnswer{Waits: true}, nil
			}
			here = true
			return relayAnswer{Here: true}, nil
		}})
		far := g.node("F", "there", other{has: yes})
		if from, err := g.fetch(g.want, route{relays: []peer.Member{r}, far: []peer.Member{far}}); err != nil || from != "node "+test.from {
			t.Errorf("%+v: from %q, %v", test, from, err)
		}
	}
}

// A relay of an earlier version, which does not know that it is one, gives what it has.
func TestRelayOfAnEarlierVersion(t *testing.T) {
	g := newRelayRig(t)
	old := g.node("OLD", "here", other{has: yes})
	from, err := g.fetch(g.want, route{relays: []peer.Member{old}, far: []peer.Member{g.node("F", "there", other{has: yes})}})
	g.check("an earlier version", from, err, "OLD", "GET OLD")
}

// What the relay finds nowhere, nobody of its zone looks for again; and only if all say so is it nowhere.
func TestRelayFindsNothing(t *testing.T) {
	g := newRelayRig(t)
	r := g.node("R", "here", other{has: no, relay: func(relayRequest) (any, error) { return nil, fs.ErrNotExist }})
	s := g.node("S", "here", other{has: no})
	far := g.node("F", "there", other{has: yes})
	_, err := g.fetch(g.want, route{siblings: []peer.Member{s}, relays: []peer.Member{r}, far: []peer.Member{far}})
	if !errors.Is(err, fs.ErrNotExist) || len(g.log()) != 2 {
		t.Errorf("%v after %q", err, g.log())
	}
	s.Address = "127.0.0.1:1"
	from, err := g.fetch(g.want, route{siblings: []peer.Member{s}, relays: []peer.Member{r}, far: []peer.Member{far}})
	if err != nil || from != "node F" {
		t.Errorf("a sibling may have it: from %q, %v", from, err)
	}
	_, err = g.fetch(g.want, route{siblings: []peer.Member{s}})
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("who may have it does not answer: %v", err)
	}
}

// A relay asks no relay, but those who may have the blob.
func TestRelayAsksNoRelay(t *testing.T) {
	g := newRelayRig(t)
	g.want.Relayed = true
	r := g.node("R", "here", other{has: no, relay: func(relayRequest) (any, error) { return relayAnswer{Here: true}, nil }})
	s := g.node("S", "here", other{has: no})
	from, err := g.fetch(g.want, route{siblings: []peer.Member{s}, relays: []peer.Member{r}, far: []peer.Member{g.node("F", "there", other{has: yes})}})
	g.check("a relay", from, err, "F", "GET R", "GET S", "GET F")
	if n := g.n.fromAfar.pulled.Load(); n != 1 {
		t.Errorf("%d blobs were taken out of another zone", n)
	}
}

// What is on its way to a sibling is waited for.
func TestFetchWaitsForWhatArrives(t *testing.T) {
	g := newRelayRig(t)
	var here atomic.Bool
	s := g.node("ARRIVING", "here", other{has: here.Load, relay: func(q relayRequest) (any, error) {
		if q.Bring {
			t.Error("it is asked to bring what it receives already")
		}
		here.Store(true)
		return relayAnswer{Here: true}, nil
	}})
	from, err := g.fetch(g.want, route{siblings: []peer.Member{s}, far: []peer.Member{g.node("F", "there", other{has: yes})}})
	g.check("it arrives there", from, err, "ARRIVING", "GET ARRIVING", "ask ARRIVING", "GET ARRIVING")
}

// What another node waits for because somebody waits for it there is not held up here either, also if it only asks whether it comes.
func TestWhoeverWaitsHurriesWhatArrives(t *testing.T) {
	for _, background := range []bool{true, false} {
		g := newRelayRig(t)
		b := mirror.NewBackground()
		a, _ := g.n.arrivals.begin(g.want.Ref.Digest, b)
		q, err := json.Marshal(relayRequest{Digest: g.want.Ref.Digest.String(), Size: g.want.Ref.Size, Background: background})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // whoever asks does not wait for the answer
		if answer, err := g.n.handleRelay(httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/relay", bytes.NewReader(q))); err != nil || answer != (relayAnswer{}) {
			t.Errorf("%+v, %v", answer, err)
		}
		select {
		case <-b.Hurried():
			if background {
				t.Error("what nobody waits for is hurried")
			}
		default:
			if !background {
				t.Error("what somebody waits for is not hurried")
			}
		}
		a.end()
	}
}

// Of two pulls of a blob out of another zone one joins the other, which then has somebody who waits for it.
func TestPullsAreJoined(t *testing.T) {
	g := newRelayRig(t)
	started, leave := make(chan struct{}), make(chan struct{})
	far := g.node("F", "there", other{has: func() bool { close(started); <-leave; return true }})
	r := route{far: []peer.Member{far}}
	background := g.want
	background.Background = mirror.NewBackground()
	first := make(chan error, 1)
	go func() {
		f := &fetching{peers: peers{g.n}, want: background, lacking: true, accept: func(body io.Reader, _ int64, _ string) error {
			d, err := g.n.store.Create(100)
			if err != nil {
				return err
			}
			defer d.Discard()
			if _, err := io.Copy(d, body); err != nil {
				return err
			}
			_, err = d.Commit()
			return err
		}}
		first <- f.run(t.Context(), r)
	}()
	<-started
	second := make(chan error, 1)
	go func() {
		from, err := g.fetch(g.want, r)
		if from != "" {
			t.Errorf("the second takes it from %s", from)
		}
		second <- err
	}()
	<-background.Background.Hurried()
	close(leave)
	if err := errors.Join(<-first, <-second); err != nil {
		t.Error(err)
	}
	if got := g.log(); len(got) != 1 {
		t.Errorf("asked %q", got)
	}
	if a := g.n.arrivals.get(g.want.Ref.Digest); a != nil {
		t.Error("it is on its way for ever")
	}
}

// If the pull that was joined fails, those who joined it make their own.
func TestJoinedPullFails(t *testing.T) {
	g := newRelayRig(t)
	far := g.node("F", "there", other{has: yes})
	a, _ := g.n.arrivals.begin(g.want.Ref.Digest, nil)
	done := make(chan error, 1)
	go func() {
		from, err := g.fetch(g.want, route{far: []peer.Member{far}})
		if from != "node F" {
			t.Errorf("from %q", from)
		}
		done <- err
	}()
	a.end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
