package mirror

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/mod/module"

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
