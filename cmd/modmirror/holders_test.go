package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
)

// Who holds a version follows from what the members said, where it does, and is not known where it does not.
func TestJudgeHolders(t *testing.T) {
	zip := artifact.RefOf([]byte("zip"))
	at := time.Now()
	for name, test := range map[string]struct {
		member memberView
		blobs  int
		want   string
	}{
		"it has all":                          {memberView{Seen: at, Alive: true, Seq: 10, Blobs: 10}, 1, "holds"},
		"it had all, and does not answer":     {memberView{Seen: at, Seq: 10, Blobs: 10}, 1, "holds"},
		"it lacks something later":            {memberView{Seen: at, Alive: true, Seq: 10, Blobs: 6, Missing: 1}, 1, "holds"},
		"it lacks this or something earlier":  {memberView{Seen: at, Alive: true, Seq: 10, Blobs: 5, Missing: 1}, 1, "not known"},
		"the same, and there are no blobs":    {memberView{Seen: at, Alive: true, Seq: 10, Blobs: 5, Missing: 1}, 0, "holds"},
		"its catalog does not go that far":    {memberView{Seen: at, Alive: true, Seq: 5, Blobs: 5}, 1, "does not"},
		"the same, and nobody knows if still": {memberView{Seen: at, Seq: 5, Blobs: 5}, 1, "not known"},
		"it never said anything":              {memberView{}, 1, "not known"},
		"it is this node":                     {memberView{ID: "SELF", Seen: at, Alive: true, Seq: 10, Blobs: 10}, 1, "does not"}, // which looks
	} {
		h := holding{place: 5, blobs: []artifact.Ref{zip, zip}[:test.blobs]}
		h.judge([]memberView{test.member}, "SELF", func(artifact.Ref) bool { return false })
		got := map[holder]string{{ID: test.member.ID, Holds: true, Known: true}: "holds", {ID: test.member.ID, Known: true}: "does not", {ID: test.member.ID}: "not known"}[h.holders[0]]
		if got != test.want {
			t.Errorf("%s: %q (%+v), want %q", name, got, h.holders[0], test.want)
		}
	}
}

// Members of which it does not follow are asked, once for all versions, and whoever cannot say stays unknown.
func TestAskHolders(t *testing.T) {
	g := newRelayRig(t)
	here := artifact.RefOf([]byte(theBlob))
	d, err := g.n.store.Create(artifact.MaxZip)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	fmt.Fprint(d, theBlob)
	if _, err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	asked := 0
	members := []memberView{}
	add := func(id string, f func(*http.Request) (any, error)) {
		l := g.open(id)
		if f != nil {
			l.Handle("POST /v1/holds", answering(f))
		}
		members = append(members, memberView{ID: id, Name: id, Address: l.Self().Address, Seen: time.Now(), Alive: true, Seq: 10, Blobs: 1, Missing: 1})
	}
	add("STORE", func(r *http.Request) (any, error) { asked++; return g.n.handleHolds(r) })
	add("OLD", nil)
	add("ODD", func(*http.Request) (any, error) { return holdsAnswer{Holds: []bool{true}}, nil })
	add("HANGS", func(r *http.Request) (any, error) { <-r.Context().Done(); return nil, r.Context().Err() })
	gone := artifact.RefOf([]byte("gone"))
	all := []holding{{place: 5, blobs: []artifact.Ref{here}}, {place: 6, blobs: []artifact.Ref{here, gone}}, {place: 7, blobs: []artifact.Ref{gone}}, {place: 0, blobs: []artifact.Ref{gone}}}
	for i := range all {
		all[i].judge(members, "SELF", nil)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	for i, m := range members {
		if open := openFor(all, i); len(open) == 3 {
			g.n.askHolds(ctx, m, i, open)
		} else {
			t.Errorf("%s is to be asked about %d versions", m.Name, len(open))
		}
	}
	for i, want := range []string{"STORE:yes OLD:? ODD:? HANGS:?", "STORE:no OLD:? ODD:? HANGS:?", "STORE:no OLD:? ODD:? HANGS:?", "STORE:yes OLD:yes ODD:yes HANGS:yes"} {
		var got []string
		for _, h := range all[i].holders {
			got = append(got, h.Name+":"+map[[2]bool]string{{true, true}: "yes", {false, true}: "no"}[[2]bool{h.Holds, h.Known}])
			if !h.Known {
				got[len(got)-1] += "?"
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("version %d: %s, want %s", i, s, want)
		}
	}
	if asked != 1 {
		t.Errorf("a node was asked %d times", asked)
	}
	if got, err := g.n.whoHolds(t.Context(), clusterView{Nodes: members}, []module.Version{{Path: "example.com/none", Version: "v1.0.0"}}); err != nil || len(got) != 1 || got[0] != nil {
		t.Errorf("what is not published: %+v, %v", got, err)
	}
}

// A question about too much, or about what is no blob, is refused; and no answer is read as if that were not there.
func TestHoldsIsBounded(t *testing.T) {
	g := newRelayRig(t)
	l := g.open("STORE")
	l.Handle("POST /v1/holds", answering(g.n.handleHolds))
	for _, body := range []string{`{"blobs":[` + strings.TrimSuffix(strings.Repeat(`{},`, maxHolds+1), ",") + `]}`, `{"blobs":[{"digest":"x"}]}`, `[]`, strings.Repeat(" ", 65<<10)} {
		_, err := g.n.link.Call(t.Context(), peer.Request{Node: "STORE", Addr: l.Self().Address, Method: http.MethodPost, Path: "/v1/holds"}, []byte(body), 1<<10)
		var status *peer.StatusError
		if !errors.As(err, &status) || status.Code == http.StatusNotFound || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%.30s is answered with %v", body, err)
		}
	}
	many := make([]artifact.Ref, maxHolds/2+1)
	all := []holding{{place: 5, blobs: many}, {place: 5, blobs: many}}
	for i := range all {
		all[i].judge([]memberView{{Seen: time.Now(), Alive: true, Seq: 10}}, "SELF", nil)
	}
	if open := openFor(all, 0); len(open) != 1 {
		t.Errorf("asked about %d blobs at once", len(open)*len(many))
	}
}
