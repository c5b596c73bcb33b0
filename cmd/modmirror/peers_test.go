package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/replicate/peer"
)

// What a node did not do, it says with a class, and that is the answer; anything else that is no success is none, so another
// node is asked.
func TestAnswerOf(t *testing.T) {
	for _, test := range []struct {
		name  string
		write func(w http.ResponseWriter)
		body  string
		said  bool
		err   error // nil: none
	}{
		{"success", func(w http.ResponseWriter) { io.WriteString(w, "it") }, "it", true, nil},
		{"absent", func(w http.ResponseWriter) { sendError(w, fs.ErrNotExist) }, "", true, fs.ErrNotExist},
		{"conflict", func(w http.ResponseWriter) { sendError(w, artifact.ErrConflict) }, "", true, artifact.ErrConflict},
		{"no quorum", func(w http.ResponseWriter) { sendError(w, artifact.ErrNoQuorum) }, "", true, artifact.ErrNoQuorum},
		{"a class of later", func(w http.ResponseWriter) { w.Header().Set(classHeader, "lunch") }, "", true, artifact.ErrUnavailable},
		{"404 without a class", func(w http.ResponseWriter) { http.NotFound(w, nil) }, "", false, artifact.ErrUnavailable},
		{"about to stop", func(w http.ResponseWriter) { w.WriteHeader(503) }, "", false, artifact.ErrUnavailable},
		{"endless", func(w http.ResponseWriter) { w.Write(make([]byte, maxAnswer+1)) }, "", false, artifact.ErrUnavailable},
	} {
		w := httptest.NewRecorder()
		test.write(w)
		body, said, err := answerOf(w.Result())
		if string(body) != test.body || said != test.said || (err == nil) != (test.err == nil) || !errors.Is(err, test.err) {
			t.Errorf("%s: %.20q, %v, %v", test.name, body, said, err)
		}
		if errors.Is(err, fs.ErrNotExist) && test.err != fs.ErrNotExist {
			t.Errorf("%s: it says that something does not exist", test.name)
		}
	}
	for err, want := range map[error]bool{errDraining: false, artifact.ErrMalformed: true, nil: true} {
		w := httptest.NewRecorder()
		answering(func(*http.Request) (any, error) { return []byte("x"), err }).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if _, said, got := answerOf(w.Result()); said != want || (got == nil) != (err == nil) {
			t.Errorf("%v arrives as %v, %v", err, said, got)
		}
	}
}

// Waiting for another node ends when there is a reason, which is the cause.
func TestWhile(t *testing.T) {
	reasons := make(chan error, 2)
	why := errors.New("it hangs")
	reasons <- nil
	reasons <- why
	ctx, cancel := while(t.Context(), func() error { return <-reasons })
	defer cancel()
	<-ctx.Done()
	if err := context.Cause(ctx); err != why {
		t.Errorf("the cause is %v", err)
	}
	ctx, cancel = while(t.Context(), func() error { return nil })
	cancel()
	<-ctx.Done()
	if err := context.Cause(ctx); !strings.Contains(err.Error(), "canceled") {
		t.Errorf("after the end: %v", err)
	}
}

// Nobody waits for a node that does not answer the questions how it is any more.
func TestWhileAlive(t *testing.T) {
	g := newSpreadRig(t)
	other := g.open("OTHER")
	other.Handle("GET /v1/status", answering(func(*http.Request) (any, error) { return selfStatus{memberView: memberView{ID: "OTHER"}}, nil }))
	m := peer.Member{ID: "OTHER", Name: "other", Address: other.Self().Address}
	table := peer.NewTable(peer.TableConfig{Link: g.n.link, Parse: parseStatus, Interval: 10 * time.Millisecond, Members: func() []peer.Member { return []peer.Member{m} }})
	g.n.table.Store(table)
	running, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); table.Run(running) }()
	defer func() { stop(); <-done }()
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		if s, _, ok := g.n.heard("OTHER"); ok && s.ID == "OTHER" {
			break
		}
	}
	if err := g.n.shunned(); err != nil {
		t.Errorf("a node that is well is shunned: %v", err)
	}
	ctx, cancel := g.n.whileAlive(t.Context(), m)
	defer cancel()
	other.Close()
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, artifact.ErrUnavailable) || !strings.Contains(err.Error(), "other") {
		t.Errorf("the cause is %v", err)
	}
}

// Nobody waits for a leader of before.
func TestWhileLeader(t *testing.T) {
	g := newSpreadRig(t)
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C { // until it has registered its address
		if _, ok := g.n.leader(); ok {
			break
		}
	}
	same, cancelSame := g.n.whileLeader(t.Context(), g.n.replica.ID())
	defer cancelSame()
	ctx, cancel := g.n.whileLeader(t.Context(), "ANOTHER")
	defer cancel()
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, artifact.ErrUnavailable) || !strings.Contains(err.Error(), "another node leads") {
		t.Errorf("the cause is %v", err)
	}
	if err := same.Err(); err != nil {
		t.Errorf("the leader itself is not waited for: %v", err)
	}
}
