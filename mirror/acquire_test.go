package mirror

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/time/rate"

	"modmirror/mirror/artifact"
)

// What is acquired is published as if a client had asked for it, once; what must not be taken has the class of its error.
func TestAcquire(t *testing.T) {
	g := newRig(t, func(c *Config) { c.Private = "corp.example" })
	ctx := t.Context()
	for range 2 {
		for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
			if err := g.Acquire(ctx, helloV, k); err != nil {
				t.Errorf("%s: %v", k, err)
			}
			if n := g.up.Count(helloPath + "v1.0.0." + k.String()); n != 1 {
				t.Errorf("%s: the upstream was asked %d times", k, n)
			}
		}
	}
	if man, err := g.index.Manifest(ctx, helloV); err != nil || man.Info.IsZero() || man.Mod.IsZero() || man.Zip.IsZero() {
		t.Errorf("published: %+v, %v", man, err)
	}
	bad := g.add("example.com/bad@v1.0.0\n-- go.mod --\nmodule example.com/bad\n")
	g.up.Tamper(bad, artifact.Zip, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	for name, tt := range map[string]struct {
		mv   module.Version
		want error
	}{
		"tampered":  {bad, artifact.ErrRefused},
		"private":   {module.Version{Path: "corp.example/x", Version: "v1.0.0"}, artifact.ErrPolicy},
		"no module": {module.Version{Path: "127.0.0.1/x", Version: "v1.0.0"}, ErrBadRequest},
	} {
		if err := g.Acquire(ctx, tt.mv, artifact.Zip); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

// A client that asks for what is acquired at a limit is not held to it, and nothing is fetched twice.
func TestAcquireIsHurried(t *testing.T) {
	g := newRig(t)
	g.acquires = rate.NewLimiter(1, paceStep) // byte a second
	g.acquires.AllowN(time.Now(), paceStep)
	acquired := make(chan error, 1)
	go func() { acquired <- g.Acquire(t.Context(), helloV, artifact.Zip) }()
	eventually(t, func() bool { return g.up.Count(helloPath+"v1.0.0.zip") == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	g.want(helloPath+"v1.0.0.zip", 200, "", func(r *http.Request) { *r = *r.WithContext(ctx) })
	if err := <-acquired; err != nil {
		t.Error(err)
	}
	if n := g.up.Count(helloPath + "v1.0.0.zip"); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

// Whoever comes first, who waits hurries what is acquired; who has gone does not.
func TestHurried(t *testing.T) {
	isHurried := func(b *Background) bool {
		select {
		case <-b.Hurried():
			return true
		default:
			return false
		}
	}
	h := newHurried()
	done := h.wait("a")
	other := h.wait("a")
	done()
	b, end := h.begin("a")
	if !isHurried(b) {
		t.Error("who waited before is not noticed")
	}
	end()
	other()
	b, end = h.begin("a")
	if isHurried(b) {
		t.Error("who has gone hurries")
	}
	h.wait("b")()
	if isHurried(b) {
		t.Error("who waits for something else hurries")
	}
	h.wait("a")()
	if !isHurried(b) {
		t.Error("who comes later is not noticed")
	}
	end()
	if len(h.waiting)+len(h.paced) > 0 {
		t.Errorf("it remembers %v, %v", h.waiting, h.paced)
	}
}

// The limit holds the download back, all of it.
func TestAcquireIsPaced(t *testing.T) {
	g := newRig(t)
	n := 0
	pace := func(_ context.Context, more int) error { n += more; return nil }
	if _, err := g.bringPaced(t.Context(), helloV, artifact.Zip, "key", "follow", pace); err != nil {
		t.Fatal(err)
	}
	if want := len(g.up.Artifact(helloV, artifact.Zip)); n != want {
		t.Errorf("%d bytes were held back, want %d", n, want)
	}
	for limit, want := range map[int64]int{0: 16, MinAcquireLimit: 1, 4 * MinAcquireLimit: 4, 1 << 30: 16} {
		g.config.AcquireLimit = limit
		if got := g.AcquireZips(16); got != want {
			t.Errorf("at %d bytes a second %d zips, want %d", limit, got, want)
		}
	}
}
