package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/replicate/peer"
)

func someManifest(t testing.TB) artifact.Manifest {
	t.Helper()
	mv := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	h1 := "h1:" + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	text := []byte("example.com/m v1.0.0 " + h1 + "\nexample.com/m v1.0.0/go.mod " + h1 + "\n")
	return artifact.Manifest{Module: mv, ZipSum: h1, ModSum: h1, Record: artifact.Record{Database: "sum.example.com", ID: 0, Text: text, TreeSize: 1, Proof: tlog.RecordProof{}}}
}

func TestSpreadHead(t *testing.T) {
	man := someManifest(t)
	head, err := spreadHead(man, artifact.Zip)
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(io.MultiReader(bytes.NewReader(head), bytes.NewReader([]byte("the blob"))))
	got, k, err := readSpreadHead(r)
	if err != nil || k != artifact.Zip || got.Module != man.Module || got.ZipSum != man.ZipSum {
		t.Fatalf("%+v, %v, %v", got, k, err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "the blob" {
		t.Errorf("after the head comes %q", rest)
	}
	for i := range head {
		if _, _, err := readSpreadHead(bufio.NewReader(bytes.NewReader(head[:i]))); err == nil {
			t.Errorf("%d of %d bytes are taken", i, len(head))
		}
	}
	long := binary.AppendUvarint([]byte{byte(artifact.Zip)}, maxManifest+1)
	if _, _, err := readSpreadHead(bufio.NewReader(io.MultiReader(bytes.NewReader(long), endless{}))); !errors.Is(err, artifact.ErrMalformed) {
		t.Errorf("a manifest that is too long: %v", err)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// Whatever stands before a blob is taken or refused, and takes no more memory than a manifest may have.
func FuzzReadSpreadHead(f *testing.F) {
	head, err := spreadHead(someManifest(f), artifact.Zip)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(head)
	f.Add([]byte{2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		man, k, err := readSpreadHead(r)
		if err != nil {
			return
		}
		again, err := spreadHead(man, k)
		if err != nil {
			t.Fatalf("%+v cannot be written again: %v", man, err)
		}
		if m2, k2, err := readSpreadHead(bytes.NewReader(again)); err != nil || k2 != k || m2.Module != man.Module || m2.Zip != man.Zip || m2.Mod != man.Mod {
			t.Fatalf("%+v becomes %+v, %v", man, m2, err)
		}
	})
}

// spreadRig is a node that can spread, and the voters that it spreads to.
type spreadRig struct {
	t     *testing.T
	token peer.Token
	n     *node
}

func newSpreadRig(t *testing.T) *spreadRig {
	t.Helper()
	g := &spreadRig{t: t, token: peer.NewToken(), n: newNode(config{}, slog.New(slog.DiscardHandler))}
	replica, err := replicate.Open(t.Context(), replicate.Config{Dir: t.TempDir(), Self: replicate.Peer{Address: "localhost:1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { replica.Close() })
	g.n.replica = replica
	g.n.opened.Store(replica)
	g.n.link = g.open("SELF")
	return g
}

func (g *spreadRig) open(id string) *peer.Link {
	g.t.Helper()
	l, err := peer.Listen(peer.Config{Listen: "localhost:0", Credentials: peer.FromToken(g.token, id), Self: func() peer.Hello { return peer.Hello{Cluster: "C", Node: id, Boot: "B"} }})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { l.Close() })
	return l
}

// voter is a node that answers what is spread to it with what f returns.
func (g *spreadRig) voter(id string, f func(r *http.Request) (any, error)) peer.Member {
	g.t.Helper()
	l := g.open(id)
	l.Handle("PUT /v1/blob/{digest}", answering(f))
	return peer.Member{ID: id, Name: id, Address: l.Self().Address}
}

// An ack is taken from the node that was asked, for what was sent to it, and from nobody else.
func TestSendTakesOnlyTheOwnAck(t *testing.T) {
	g := newSpreadRig(t)
	man, ref := someManifest(t), artifact.Ref{Size: 8}
	head, err := spreadHead(man, artifact.Zip)
	if err != nil {
		t.Fatal(err)
	}
	good := g.voter("GOOD", func(r *http.Request) (any, error) {
		got, err := blobRef(r)
		body := bufio.NewReader(r.Body)
		m, k, err2 := readSpreadHead(body)
		rest, err3 := io.ReadAll(body)
		if err := errors.Join(err, err2, err3); err != nil || got != ref || m.Module != man.Module || k != artifact.Zip || string(rest) != "the blob" || r.Header.Get(appliedHeader) == "" || r.ProtoMajor != 1 {
			t.Errorf("it gets %v, %v, %v, %q, %v, %v", got, m.Module, k, rest, r.Header, err)
		}
		return ack{"GOOD", 7}, nil
	})
	a, err := peers{g.n}.send(t.Context(), good, head, ref, strings.NewReader("the blob"))
	if err != nil || a.Node != "GOOD" || a.Starts != 7 || a.Ref != ref || a.At.IsZero() {
		t.Errorf("%+v, %v", a, err)
	}
	for what, answer := range map[string]any{"another's": ack{"GOOD", 7}, "nobody's": ack{}, "none": []byte("yes")} {
		bad := g.voter("BAD"+what[:1], func(*http.Request) (any, error) { return answer, nil })
		if a, err := (peers{g.n}).send(t.Context(), bad, head, ref, strings.NewReader("the blob")); err == nil {
			t.Errorf("%s ack is taken: %+v", what, a)
		}
	}
}

// In the place of a voter that does not take the bytes the next is asked; too few in the end is an error that lets the
// request be tried again.
func TestSpreadGoesOn(t *testing.T) {
	g := newSpreadRig(t)
	head, err := spreadHead(someManifest(t), artifact.Zip)
	if err != nil {
		t.Fatal(err)
	}
	no := g.voter("NO", func(*http.Request) (any, error) { return nil, artifact.ErrRefused })
	yes := g.voter("YES", func(*http.Request) (any, error) { return ack{"YES", 1}, nil })
	run := func(need int, targets ...peer.Member) ([]artifact.Ack, error) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &spreading{p: peers{g.n}, cancel: cancel, acks: make(chan artifact.Ack, len(targets)), done: make(chan struct{}), need: need, slow: 10 * time.Millisecond}
		go s.run(ctx, targets, head, artifact.Ref{Size: 8}, strings.NewReader("the blob"))
		waiting, stop := context.WithTimeout(t.Context(), 20*time.Second) // less than after what a connection counts as dead
		defer stop()
		return s.Wait(waiting)
	}
	if acks, err := run(1, no, yes); err != nil || len(acks) != 1 || acks[0].Node != "YES" {
		t.Errorf("one of two: %v, %v", acks, err)
	}
	if acks, err := run(2, no, yes); !errors.Is(err, artifact.ErrUnavailable) || len(acks) != 1 {
		t.Errorf("two of two: %v, %v", acks, err)
	}
	if acks, err := run(1); !errors.Is(err, artifact.ErrUnavailable) || len(acks) != 0 {
		t.Errorf("one of none: %v, %v", acks, err)
	}
	hanging := g.voter("HANGS", func(r *http.Request) (any, error) { <-r.Context().Done(); return nil, r.Context().Err() })
	if acks, err := run(1, hanging, yes); err != nil || len(acks) != 1 || acks[0].Node != "YES" {
		t.Errorf("one hangs: %v, %v", acks, err)
	}
	if acks, err := run(0, no, yes); err != nil || len(acks) != 0 {
		t.Errorf("none needed: %v, %v", acks, err)
	}
}
