package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
	"modmirror/mirror/upstream"
	"modmirror/replicate/peer"
)

// ownerRig is a node that asks others for what the upstream says.
type ownerRig struct {
	*spreadRig
	mu    sync.Mutex
	asked []string // guarded by mu; "hop id"
}

func newOwnerRig(t *testing.T) *ownerRig {
	g := &ownerRig{spreadRig: newSpreadRig(t)}
	g.n.config.Limits.Fetch = time.Minute
	g.n.table.Store(peer.NewTable(peer.TableConfig{Link: g.n.link, Parse: parseStatus, Members: func() []peer.Member { return nil }}))
	return g
}

// owner is a node that answers with what say returns.
func (g *ownerRig) owner(id string, say func() (any, error)) peer.Member {
	g.t.Helper()
	l := g.open(id)
	l.Handle("POST /v1/ask", answering(func(r *http.Request) (any, error) {
		q, err := readRequest(r)
		if err != nil || q.Module != "example.com/m" || mirror.Op(q.Op) != mirror.OpList {
			g.t.Errorf("%s is asked %+v, %v", id, q, err)
		}
		g.mu.Lock()
		g.asked = append(g.asked, q.Hop+" "+id)
		g.mu.Unlock()
		return say()
	}))
	return peer.Member{ID: id, Name: id, Address: l.Self().Address}
}

func (g *ownerRig) tell(t turn) (string, bool, error) {
	g.t.Helper()
	g.mu.Lock()
	g.asked = nil
	g.mu.Unlock()
	r := askInTurn(g.t.Context(), peers{g.n}, g.n.telling(mirror.OpList, "example.com/m", ""), t)
	return string(r.value.Body), r.said, r.err
}

func saying(body string) func() (any, error) {
	return func() (any, error) { return told{Body: []byte(body)}, nil }
}

func refusing(err error) func() (any, error) { return func() (any, error) { return nil, err } }

// Of an upstream to which one node's packets get lost another node may hear: it is asked. A node whose own time is over has the
// last word.
func TestSilentUpstreamIsOneNodes(t *testing.T) {
	g := newOwnerRig(t)
	next := g.owner("NEXT", saying("next"))
	silent := g.owner("SILENT", refusing(fmt.Errorf("dial upstream.example: %w: %w", artifact.ErrUnavailable, context.DeadlineExceeded)))
	late := g.owner("LATE", refusing(fmt.Errorf("not ready: %w", context.DeadlineExceeded)))
	if body, said, err := g.tell(turn{cluster: []peer.Member{silent, next}}); body != "next" || !said || err != nil {
		t.Errorf("after a silent upstream: %q, %v, %v", body, said, err)
	}
	if _, said, err := g.tell(turn{cluster: []peer.Member{late, next}}); !said || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after a node that is late: %v, %v", said, err)
	}
}

// The zone's owner is asked first, and the cluster's only if that is silent or cannot say, and it is nobody's turn here.
func TestAskInTurn(t *testing.T) {
	g := newOwnerRig(t)
	zone, cluster := g.owner("ZONE", saying("zone")), g.owner("CLUSTER", saying("cluster"))
	cannot, absent := g.owner("CANNOT", refusing(artifact.ErrUnavailable)), g.owner("ABSENT", refusing(fs.ErrNotExist))
	bad := g.owner("BAD", func() (any, error) { return []byte("rubbish"), nil })
	silent := peer.Member{ID: "SILENT", Name: "SILENT", Address: "127.0.0.1:1"}
	list := func(m ...peer.Member) []peer.Member { return m }
	for _, test := range []struct {
		name  string
		turn  turn
		body  string
		said  bool
		err   error
		asked []string
	}{
		{"the zone's owner says it", turn{list(zone), list(cluster), true}, "zone", true, nil, []string{"zone ZONE"}},
		{"this node is the zone's owner", turn{nil, list(cluster), true}, "cluster", true, nil, []string{"cluster CLUSTER"}},
		{"the zone's owner is silent", turn{list(silent), list(cluster), true}, "cluster", true, nil, []string{"cluster CLUSTER"}},
		{"and so is the next", turn{list(silent, silent), list(silent, cluster), true}, "cluster", true, nil, []string{"cluster CLUSTER"}},
		{"the zone's owner is answered no", turn{list(absent), list(cluster), true}, "", true, fs.ErrNotExist, []string{"zone ABSENT"}},
		{"the zone's owner gets no answer, and it may be this node's turn", turn{list(cannot), list(cluster), true}, "", false, artifact.ErrUnavailable, []string{"zone CANNOT"}},
		{"the zone's owner gets no answer, and it never is", turn{list(cannot), list(cluster), false}, "cluster", true, nil, []string{"zone CANNOT", "cluster CLUSTER"}},
		{"rubbish", turn{list(bad), list(bad, cluster), true}, "cluster", true, nil, []string{"zone BAD", "cluster BAD", "cluster CLUSTER"}},
		{"nobody can say", turn{nil, list(cannot, silent), true}, "", false, artifact.ErrUnavailable, []string{"cluster CANNOT"}},
		{"it is this node's turn", turn{nil, nil, true}, "", false, nil, nil},
	} {
		body, said, err := g.tell(test.turn)
		if body != test.body || said != test.said || !errors.Is(err, test.err) || (err == nil) != (test.err == nil) {
			t.Errorf("%s: %q, %v, %v", test.name, body, said, err)
		}
		if !slices.Equal(g.asked, test.asked) {
			t.Errorf("%s: asked %q, want %q", test.name, g.asked, test.asked)
		}
	}
	if n := g.n.badAnswers.Load(); n != 2 {
		t.Errorf("%d answers were none", n)
	}
}

// fromUpstream is an error of an upstream as it answers with a status, or with a page of HTML.
func fromUpstream(t *testing.T, status int, contentType string) error {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		io.WriteString(w, "log in\n")
	}))
	defer s.Close()
	l, err := upstream.Parse(s.URL, upstream.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err = l.Versions(t.Context(), "example.com/m"); err == nil {
		t.Fatalf("%d is no error", status)
	}
	return fmt.Errorf("example.com/m list: %w", err)
}

// What an upstream may have answered to one node alone another node is asked for, once; two that are told the same have the last
// word, and both are named. What is said to all is final, and so is a failed check.
func TestUpstreamAnswersOneNodeStrangely(t *testing.T) {
	g := newOwnerRig(t)
	next, absent := g.owner("NEXT", saying("next")), g.owner("ABSENT", refusing(fs.ErrNotExist))
	refused := g.owner("REFUSED", refusing(fmt.Errorf("other bytes: %w", artifact.ErrRefused)))
	for _, test := range []struct {
		status      int
		contentType string
		final       error // of two nodes; nil: it is the first one's word already
	}{
		{401, "text/plain", artifact.ErrPolicy}, {403, "text/plain", artifact.ErrPolicy}, {407, "text/plain", nil},
		{200, "text/html", artifact.ErrMalformed}, {302, "text/html", artifact.ErrMalformed}, {418, "text/plain", artifact.ErrMalformed},
	} {
		err := fromUpstream(t, test.status, test.contentType)
		one, two := g.owner(fmt.Sprint("ONE", test.status), refusing(err)), g.owner(fmt.Sprint("TWO", test.status), refusing(err))
		if body, said, err := g.tell(turn{cluster: []peer.Member{one, next}}); body != "next" || !said || err != nil {
			t.Errorf("%d, then the list: %q, %v, %v", test.status, body, said, err)
		}
		if _, said, err := g.tell(turn{cluster: []peer.Member{one, absent}}); !said || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d, then 404: %v, %v", test.status, said, err)
		}
		if _, said, err := g.tell(turn{cluster: []peer.Member{one, refused, next}}); !said || !errors.Is(err, artifact.ErrRefused) {
			t.Errorf("%d, then a failed check: %v, %v", test.status, said, err)
		}
		if _, said, err := g.tell(turn{cluster: []peer.Member{one}, mine: true}); said || err == nil || !strings.Contains(err.Error(), one.Name) {
			t.Errorf("%d, and nobody else: %v, %v", test.status, said, err)
		}
		_, said, err := g.tell(turn{cluster: []peer.Member{one, two, next}})
		if test.final == nil {
			if !said || err != nil {
				t.Errorf("%d twice, then the list: %v, %v", test.status, said, err)
			}
			continue
		}
		if !said || !errors.Is(err, test.final) || mirror.OneNodes(err) || !strings.Contains(err.Error(), one.Name) || !strings.Contains(err.Error(), two.Name) {
			t.Errorf("%d twice: %v, %v", test.status, said, err)
		}
	}
	for _, status := range []int{404, 410, 451} {
		if _, said, err := g.tell(turn{cluster: []peer.Member{g.owner(fmt.Sprint("FINAL", status), refusing(fromUpstream(t, status, "text/plain"))), next}}); !said || err == nil {
			t.Errorf("%d is not final: %v, %v", status, said, err)
		}
	}
	if _, said, err := g.tell(turn{cluster: []peer.Member{g.owner("POLICY", refusing(artifact.ErrPolicy)), next}}); !said || !errors.Is(err, artifact.ErrPolicy) {
		t.Errorf("a node's own policy is not final: %v, %v", said, err)
	}
}

// Who asks the cluster's owner the same at the same time asks once.
func TestZoneOwnerJoins(t *testing.T) {
	g := newOwnerRig(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	var questions atomic.Int64
	owner := g.owner("CLUSTER", func() (any, error) {
		if questions.Add(1) == 1 {
			close(entered)
		}
		<-leave
		return told{Body: []byte("it")}, nil
	})
	q := g.n.telling(mirror.OpList, "example.com/m", "")
	ask := func(ctx context.Context) reply[mirror.Told] {
		return askInTurn(ctx, peers{g.n}, q, turn{cluster: []peer.Member{owner}})
	}
	first := make(chan reply[mirror.Told])
	go func() { first <- ask(t.Context()) }()
	<-entered
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 5 {
		if r := ask(gone); !errors.Is(r.err, context.Canceled) {
			t.Errorf("whoever asks is gone: %+v", r)
		}
	}
	close(leave)
	if r := <-first; string(r.value.Body) != "it" || r.err != nil || r.value.From != "node CLUSTER" {
		t.Errorf("%+v", r)
	}
	if r := ask(t.Context()); string(r.value.Body) != "it" { // what was asked besides has arrived by now
		t.Errorf("%+v", r)
	}
	if n := questions.Load(); n != 2 {
		t.Errorf("%d questions, want the one that was joined and the one after it", n)
	}
}

// A question says which hop it is, in a way that earlier versions pass over; and what they send is the last hop.
func TestHopOnTheWire(t *testing.T) {
	b, err := json.Marshal(request{Module: "m", Hop: hopZone})
	if want := `{"module":"m","hop":"zone"}`; err != nil || string(b) != want {
		t.Errorf("%s, %v; want %s", b, err, want)
	}
	var old struct{ Module string }
	if err := json.Unmarshal(b, &old); err != nil || old.Module != "m" {
		t.Errorf("an earlier version reads %+v, %v", old, err)
	}
	if s := fmt.Sprint(hopZone, hopCluster); s != "zonecluster" {
		t.Errorf("the hops are called %q", s)
	}
}
