package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
)

// manifestOf returns the manifest of a module version with its record and no parts, as it is spread.
func (c *cluster) manifestOf(mv module.Version) artifact.Manifest {
	c.t.Helper()
	r, err := c.sums.Record(c.t.Context(), mv)
	if err != nil {
		c.t.Fatal(err)
	}
	man, err := artifact.NewManifest(mv, r)
	if err != nil {
		c.t.Fatal(err)
	}
	return man
}

// quarantined returns the reasons in a node's quarantine.
func (g *rig) quarantined() (reasons string) {
	g.t.Helper()
	q, err := g.store.Quarantined()
	if err != nil {
		g.t.Fatal(err)
	}
	for _, one := range q {
		reasons += one.Reason + "\n"
	}
	return reasons
}

// What a peer spreads is stored if it is what the record says, once, and is nothing that a client is served.
func TestAdmit(t *testing.T) {
	c := newCluster(t, 1)
	n, man, zip := c.nodes[0], c.manifestOf(helloV), c.up.Artifact(helloV, artifact.Zip)
	ref := artifact.RefOf(zip)
	if err := n.Admit(t.Context(), man, artifact.Zip, ref, bytes.NewReader(zip), "node9"); err != nil {
		t.Fatal(err)
	}
	if err := n.store.Verify(t.Context(), ref); err != nil {
		t.Error(err)
	}
	if !n.index.empty() {
		t.Error("something is published")
	}
	if err := n.Admit(t.Context(), man, artifact.Zip, ref, iotest.ErrReader(errors.New("read")), "node9"); err != nil {
		t.Errorf("again: %v, want nothing to be read", err)
	}
	if got := n.metric("peer_bytes_total"); got != float64(len(zip)) {
		t.Errorf("%v bytes counted, want %d", got, len(zip))
	}
}

// A go.mod that is too large to travel in the log is a blob like a zip.
func TestAdmitLargeMod(t *testing.T) {
	c := newCluster(t, 1)
	mod := "module example.com/large\n" + strings.Repeat("// much to say\n", 5000)
	mv := c.up.Add("example.com/large@v1.0.0\n-- go.mod --\n" + mod + "-- a.go --\npackage a\n")
	zipSum, modSum := c.up.Sums(mv)
	c.sums.set(mv, zipSum, modSum)
	n, man := c.nodes[0], c.manifestOf(mv)
	if err := n.Admit(t.Context(), man, artifact.Mod, artifact.RefOf([]byte(mod)), strings.NewReader(mod), "node9"); err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(mod, "much", "more", 1)
	err := n.Admit(t.Context(), man, artifact.Mod, artifact.RefOf([]byte(other)), strings.NewReader(other), "node9")
	if !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("other bytes: %v", err)
	}
}

// A peer that lies is refused and named; nothing of it is stored but the evidence.
func TestAdmitLies(t *testing.T) {
	evil := func(files map[string]string) []byte { return mirrortest.Zip(helloV, files) }
	for name, lie := range map[string]struct {
		change  func(c *cluster, man *artifact.Manifest, k *artifact.Kind, ref *artifact.Ref, body *[]byte)
		kept    bool // its bytes are in quarantine
		refusal error
		says    string
	}{
		"wrong bytes": {func(_ *cluster, _ *artifact.Manifest, _ *artifact.Kind, _ *artifact.Ref, body *[]byte) {
			*body = bytes.Clone(*body)
			(*body)[40] ^= 1
		}, true, artifact.ErrRefused, "not sha256:"},
		"more bytes": {func(_ *cluster, _ *artifact.Manifest, _ *artifact.Kind, _ *artifact.Ref, body *[]byte) {
			*body = append(bytes.Clone(*body), 'x')
		}, true, artifact.ErrRefused, "not sha256:"},
		"another zip under its own digest": {func(_ *cluster, _ *artifact.Manifest, _ *artifact.Kind, ref *artifact.Ref, body *[]byte) {
			*body = evil(map[string]string{"go.mod": "module example.com/hello\n", "hello.go": "package evil\n"})
			*ref = artifact.RefOf(*body)
		}, true, artifact.ErrRefused, "checksum mismatch"},
		"no zip under its own digest": {func(_ *cluster, _ *artifact.Manifest, _ *artifact.Kind, ref *artifact.Ref, body *[]byte) {
			*body = []byte("PK\x03\x04 no zip")
			*ref = artifact.RefOf(*body)
		}, true, artifact.ErrRefused, "not a module zip"},
		"sums that the record does not have": {func(_ *cluster, man *artifact.Manifest, _ *artifact.Kind, ref *artifact.Ref, body *[]byte) {
			*body = evil(map[string]string{"go.mod": "module example.com/hello\n"})
			*ref, man.ZipSum = artifact.RefOf(*body), mirrortest.ZipSum(*body)
		}, false, artifact.ErrRefused, "manifest"},
		"a record that is in no tree": {func(_ *cluster, man *artifact.Manifest, _ *artifact.Kind, ref *artifact.Ref, body *[]byte) {
			*body = evil(map[string]string{"go.mod": "module example.com/hello\n"})
			*ref = artifact.RefOf(*body)
			man.Record.Text = bytes.ReplaceAll(man.Record.Text, []byte(man.ZipSum), []byte(mirrortest.ZipSum(*body)))
			man.ZipSum = mirrortest.ZipSum(*body)
		}, false, artifact.ErrRefused, "not in the tree"},
		"the record of another module": {func(c *cluster, man *artifact.Manifest, _ *artifact.Kind, _ *artifact.Ref, _ *[]byte) {
			other := c.up.Add("example.com/other@v1.0.0\n-- go.mod --\nmodule example.com/other\n")
			c.sums.set(other, man.ZipSum, man.ModSum)
			man.Record = c.manifestOf(other).Record
		}, false, artifact.ErrRefused, "lacks the line"},
		"an info": {func(_ *cluster, _ *artifact.Manifest, k *artifact.Kind, _ *artifact.Ref, _ *[]byte) {
			*k = artifact.Info
		}, false, artifact.ErrRefused, "is no blob"},
		"a small go.mod": {func(_ *cluster, _ *artifact.Manifest, k *artifact.Kind, _ *artifact.Ref, _ *[]byte) {
			*k = artifact.Mod
		}, false, artifact.ErrRefused, "is no blob"},
		"more than there can be": {func(_ *cluster, _ *artifact.Manifest, _ *artifact.Kind, ref *artifact.Ref, _ *[]byte) {
			ref.Size = artifact.MaxZip + 1
		}, false, artifact.ErrRefused, "is no blob"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1)
			n, man, k, zip := c.nodes[0], c.manifestOf(helloV), artifact.Zip, c.up.Artifact(helloV, artifact.Zip)
			ref := artifact.RefOf(zip)
			lie.change(c, &man, &k, &ref, &zip)
			err := n.Admit(t.Context(), man, k, ref, bytes.NewReader(zip), "node9")
			if !errors.Is(err, lie.refusal) || !strings.Contains(err.Error(), "peer node9") || !strings.Contains(err.Error(), lie.says) {
				t.Errorf("Admit = %v", err)
			}
			n.nothingStored()
			if got := n.quarantined(); strings.Contains(got, "peer node9") != lie.kept {
				t.Errorf("quarantine: %q", got)
			}
			if got := n.metric("verification_failures_total", "peer"); got != 1 {
				t.Errorf("%v failures counted", got)
			}
			if logs := n.logs.String(); !strings.Contains(logs, "level=ERROR") || !strings.Contains(logs, "source=node9") {
				t.Errorf("no evidence in the log:\n%s", logs)
			}
		})
	}
}

// What is nobody's lie is no refusal: it leaves nothing behind, and may be tried again.
func TestAdmitOutage(t *testing.T) {
	c := newCluster(t, 1)
	n, man, zip := c.nodes[0], c.manifestOf(helloV), c.up.Artifact(helloV, artifact.Zip)
	ref := artifact.RefOf(zip)
	admit := func(body io.Reader) error { return n.Admit(t.Context(), man, artifact.Zip, ref, body, "node9") }
	expect := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, artifact.ErrUnavailable) || isRefusal(err) || isAbsent(err) {
			t.Errorf("%s: %v", what, err)
		}
		n.nothingStored()
		if got := n.quarantined(); got != "" {
			t.Errorf("%s: quarantine %q", what, got)
		}
		if got := n.metric("verification_failures_total"); got != 0 {
			t.Errorf("%s: %v failures counted", what, got)
		}
	}
	expect("cut short", admit(bytes.NewReader(zip[:len(zip)-1])))
	expect("broken off", admit(io.MultiReader(bytes.NewReader(zip[:10]), iotest.ErrReader(io.ErrUnexpectedEOF))))
	c.set(func() { n.heads = false })
	expect("the head is not here yet", admit(bytes.NewReader(zip)))
	c.set(func() { n.heads = true })
	if err := admit(bytes.NewReader(zip)); err != nil {
		t.Errorf("then: %v", err)
	}
}

// What this node's catalog has decides: other sums are a conflict, other bytes come too late.
func TestAdmitAgainstCatalog(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	n.want(helloPath+"v1.0.0.zip", 200, "")
	man := c.manifestOf(helloV)
	again := mirrortest.Repack(c.up.Artifact(helloV, artifact.Zip))
	err := n.Admit(t.Context(), man, artifact.Zip, artifact.RefOf(again), bytes.NewReader(again), "node9")
	if !errors.Is(err, artifact.ErrStale) || isRefusal(err) {
		t.Errorf("other bytes of the same sum: %v", err)
	}
	evil := mirrortest.Zip(helloV, map[string]string{"go.mod": "module example.com/hello\n"})
	c.sums.set(helloV, mirrortest.ZipSum(evil), man.ModSum)
	err = n.Admit(t.Context(), c.manifestOf(helloV), artifact.Zip, artifact.RefOf(evil), bytes.NewReader(evil), "node9")
	if !errors.Is(err, artifact.ErrConflict) {
		t.Errorf("other sums: %v", err)
	}
	// With the record in the catalog, no head is needed to judge.
	n.lose(n.zipRef())
	c.set(func() { n.heads = false })
	zip := c.up.Artifact(helloV, artifact.Zip)
	if err := n.Admit(t.Context(), man, artifact.Zip, n.zipRef(), bytes.NewReader(zip), "node9"); err != nil {
		t.Errorf("what is committed: %v", err)
	}
}

// A peer that hangs or drips is given up for the next one; what we do with what it sent is not held against it.
func TestAdmitSlow(t *testing.T) {
	const size = 10 * pullSlowest
	read := func(body io.Reader, pause time.Duration) (time.Duration, error) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		start := time.Now()
		p := newTimedBody(ctx, body, size)
		defer p.close()
		b := make([]byte, 1<<10)
		for {
			_, err := p.Read(b)
			if err != nil {
				return time.Since(start), err
			}
			time.Sleep(pause)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		hang, end := io.Pipe()
		took, err := read(hang, 0)
		if took != pullStall || !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("hangs: %v after %v", err, took)
		}
		end.Close()
		drip := &dripping{pause: pullStall / 2, n: 1 << 20}
		if took, err = read(drip, 0); took != pullTime(size) || !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("drips: %v after %v, want %v", err, took, pullTime(size))
		}
		if took, err = read(bytes.NewReader(make([]byte, size)), time.Minute); err != io.EOF {
			t.Errorf("we are slow: %v after %v", err, took)
		}
		time.Sleep(time.Hour) // let the drip end
	})
}

// Admit gives such a peer up, and tells it from a liar.
func TestAdmitHangs(t *testing.T) {
	c := newCluster(t, 1)
	n, man := c.nodes[0], c.manifestOf(helloV)
	synctest.Test(t, func(t *testing.T) {
		body, end := io.Pipe()
		defer end.Close()
		start := time.Now()
		err := n.Admit(t.Context(), man, artifact.Zip, artifact.Ref{Size: 100}, body, "node9")
		if took := time.Since(start); took != pullStall || !errors.Is(err, artifact.ErrUnavailable) || isRefusal(err) {
			t.Errorf("%v after %v", err, took)
		}
	})
	n.nothingStored()
}

// dripping sends n bytes, one at a time.
type dripping struct {
	pause time.Duration
	n     int
}

func (d *dripping) Read(b []byte) (int, error) {
	if d.n--; d.n < 0 {
		return 0, io.EOF
	}
	time.Sleep(d.pause)
	return copy(b, "x"), nil
}

// The class of an error survives the way to another node, and its text.
func TestErrorsTravel(t *testing.T) {
	for _, err := range []error{
		notExist("no such version"), badRequest("what"), errPrivate, &waitError{time.Second},
		fmt.Errorf("sum: %w", artifact.ErrRefused), fmt.Errorf("sum: %w", artifact.ErrConflict), fmt.Errorf("html: %w", artifact.ErrMalformed),
		fmt.Errorf("down: %w", artifact.ErrUnavailable), fmt.Errorf("rot: %w", artifact.ErrDamaged), fmt.Errorf("late: %w", artifact.ErrStale),
		fmt.Errorf("alone: %w", artifact.ErrNoQuorum), context.Canceled,
		fmt.Errorf("both: %w: %w", artifact.ErrUnavailable, notExist("x")),
	} {
		got := travel(err)
		if statusOf(got) != statusOf(err) || got.Error() != err.Error() || errors.Is(got, artifact.ErrNoQuorum) != errors.Is(err, artifact.ErrNoQuorum) ||
			isRefusal(got) != isRefusal(err) {
			t.Errorf("%v (%d) becomes %v (%d)", err, statusOf(err), got, statusOf(got))
		}
	}
	silent := fmt.Errorf("no answer: %w: %w", artifact.ErrUnavailable, context.DeadlineExceeded)
	for range 2 { // over two nodes
		if silent = travel(silent); !errors.Is(silent, artifact.ErrUnavailable) || statusOf(silent) != 504 {
			t.Errorf("an upstream that is silent becomes %v (%d)", silent, statusOf(silent))
		}
	}
	for err, status := range map[error]int{&strange{artifact.ErrPolicy}: 403, &strange{artifact.ErrMalformed}: 502} {
		for range 2 {
			if err = travel(err); !OneNodes(err) || statusOf(err) != status {
				t.Errorf("what an upstream answers one node becomes %v (%d)", err, statusOf(err))
			}
		}
		if err := travel(fmt.Errorf("%w: %w", err, artifact.ErrRefused)); OneNodes(err) {
			t.Errorf("a failed check may be one node's: %v", err)
		}
	}
	if errors.Is(travel(&waitError{time.Second}), artifact.ErrUnavailable) {
		t.Error("a node that is late looks like a silent upstream")
	}
	if got := travel(errors.New("a bug")); isAbsent(got) || statusOf(got) < 500 {
		t.Errorf("an unclassified error becomes %d", statusOf(got))
	}
	if got := ClassError("of next year", "x"); statusOf(got) != 503 {
		t.Errorf("an unknown class becomes %d", statusOf(got))
	}
	if class, text := ErrorClass(errors.New(strings.Repeat("x", 1<<20))); class != "internal" || len(text) > maxTold {
		t.Errorf("%s of %d bytes", class, len(text))
	}
}

// strange is an answer of an upstream that it may have given to one node alone.
type strange struct{ error }

func (s *strange) OneNodes() bool { return true }
func (s *strange) Unwrap() error  { return s.error }

// The zip of another module, which is here, gets no ack as one of this module.
func TestAdmitBytesOfAnotherModule(t *testing.T) {
	c := newCluster(t, 3)
	refs := c.fill(1)
	n := c.nodes[1]
	if err := n.store.Verify(t.Context(), refs[0]); err != nil {
		t.Fatal("the test needs a node that has them: ", err)
	}
	mv := c.up.Add("example.com/other@v1.0.0\n-- go.mod --\nmodule example.com/other\n")
	zip, mod := c.up.Sums(mv)
	c.sums.set(mv, zip, mod)
	man, err := artifact.NewManifest(mv, c.sums.records[mv])
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Admit(t.Context(), man, artifact.Zip, refs[0], strings.NewReader("not read"), "a liar"); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("Admit = %v", err)
	}
	if err := n.store.Verify(t.Context(), refs[0]); err != nil {
		t.Error("what they are of has lost them: ", err)
	}
}
