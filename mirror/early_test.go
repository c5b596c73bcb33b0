package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// patient is a checksum database that answers once the upstream was asked for the artifact itself.
type patient struct {
	*checksums
	wait func(ctx context.Context) error
}

func (p patient) Record(ctx context.Context, m module.Version) (artifact.Record, error) {
	if err := p.wait(ctx); err != nil {
		return artifact.Record{}, fmt.Errorf("%w: %w", err, artifact.ErrUnavailable)
	}
	return p.checksums.Record(ctx, m)
}

// An info or go.mod is on its way while its record is looked up; a zip is not asked for before the record is known.
func TestEarly(t *testing.T) {
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod} {
		path := helloPath + "v1.0.0." + k.String()
		var g *rig
		g = newRig(t, func(c *Config) {
			c.Checksums = patient{c.Checksums.(*checksums), func(ctx context.Context) error { return g.up.Await(ctx, path, 1) }}
		})
		g.want(path, 200, "")
		if n := g.up.Count(path); n != 1 {
			t.Errorf("%s was fetched %d times", path, n)
		}
	}
	zip := helloPath + "v1.0.0.zip"
	var g *rig
	g = newRig(t, func(c *Config) {
		c.Checksums = patient{c.Checksums.(*checksums), func(context.Context) error {
			if n := g.up.Count(zip); n != 0 {
				return errors.New("the zip was asked for first")
			}
			return nil
		}}
	})
	g.want(zip, 200, "")
}

// What came early passes the same gate: not without a record, and not with another sum.
func TestEarlyPassesTheGate(t *testing.T) {
	g := newRig(t)
	delete(g.sums.records, helloV)
	g.want(helloPath+"v1.0.0.mod", 404, "")
	g.nothingStored()
	g.sums.set(helloV, "h1:"+strings.Repeat("A", 43)+"=", artifact.ModSum([]byte("module example.com/other\n")))
	if n := g.metric("verification_failures_total"); n != 0 {
		t.Errorf("%v failures without a record", n)
	}
	g.negative.drop(flightKey(artifact.Mod, helloV))
	g.want(helloPath+"v1.0.0.mod", 403, "checksum mismatch")
	g.nothingStored()
	if n := g.metric("verification_failures_total", failSum); n != 1 {
		t.Errorf("one wrong go.mod counts as %v failures", n)
	}
}

// A body that breaks off, says too little, or that the upstream does not have ends as without the haste.
func TestEarlyBroken(t *testing.T) {
	tries := 0
	g := newRig(t, func(c *Config) {
		up := c.Upstream
		c.Upstream = source{up, func(ctx context.Context, m module.Version, k artifact.Kind, accept func(io.Reader, int64, string) error) error {
			if tries++; tries == 1 {
				return accept(strings.NewReader("module"), 100, "first")
			}
			return up.Fetch(ctx, m, k, accept)
		}}
	})
	g.want(helloPath+"v1.0.0.mod", 200, "module example.com/hello")
	if tries != 2 {
		t.Errorf("%d tries", tries)
	}
	g.up.Status(helloPath+"v1.0.0.info", 503, "busy")
	g.want(helloPath+"v1.0.0.info", 503, "")
}
