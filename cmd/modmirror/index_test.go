package main

import (
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"

	"github.com/spf13/pflag"
	"golang.org/x/mod/sumdb"

	"modmirror/mirror/artifact"
)

// idleNodes opens nodes of one cluster in this process and starts none of their background work: what one of them has, it
// fetched for a client or was given.
func (s *clusterSite) idleNodes() (out []*node) {
	s.t.Helper()
	out = make([]*node, len(s.nodes))
	var wg sync.WaitGroup
	for i, cn := range s.nodes {
		var c config
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		c.flags(fs)
		if err := fs.Parse(s.args(cn)); err != nil {
			s.t.Fatal(err)
		}
		c.Listen = cn.listen
		wg.Go(func() {
			n, err := openNode(s.t.Context(), c, slog.New(slog.DiscardHandler))
			if err != nil {
				s.t.Error(err)
				return
			}
			s.t.Cleanup(func() { n.close() })
			out[i] = n
		})
	}
	wg.Wait()
	if s.t.Failed() {
		s.t.FailNow()
	}
	return out
}

// What was answered once can be verified through a majority, whatever happens to the node that answered: the tiles that prove
// a record are on their disks before it is published, as the bytes are.
func TestTilesAreSpreadBeforeTheRecord(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	m := s.addRandom(rand.New(rand.NewPCG(31, 32)), "example.com/proof")
	s.db.Grow(600) // more than a tile
	nodes := s.idleNodes()
	front := httptest.NewServer(&nodes[0].front)
	defer front.Close()
	if _, err := bodyOf(http.DefaultClient, front.URL+artifactPath(m, artifact.Zip)); err != nil {
		t.Fatal(err)
	}
	s.up.Down(true)
	able := 0
	for _, n := range nodes[1:] {
		n.link.Close() // nobody can be asked
		alone := httptest.NewServer(&n.front)
		defer alone.Close()
		client := &robin{sumConfig: newSumConfig(s.db.Key()), t: t, base: []string{alone.URL}}
		if lines, err := sumdb.NewClient(client).Lookup(m.Path, m.Version); err == nil && len(lines) == 1 {
			able++
		} else {
			t.Logf("%s: %q, %v", filepath.Base(n.config.DataDir), lines, err)
		}
	}
	if able == 0 {
		t.Error("no other node can prove the record")
	}
}
