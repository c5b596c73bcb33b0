package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"

	"modmirror/mirror/artifact"
)

// robin is a client of the checksum database that sends each request to the next node: x/mod's, which the go command has.
type robin struct {
	sumConfig
	t    *testing.T
	base []string
	mu   sync.Mutex
	turn int // guarded by mu
}

// sumConfig is the configuration of a client of the checksum database, kept in memory.
type sumConfig struct {
	key  string // of the database
	mu   sync.Mutex
	head map[string][]byte // guarded by mu; by file
}

func newSumConfig(key string) sumConfig { return sumConfig{key: key, head: map[string][]byte{}} }

func (c *sumConfig) ReadConfig(file string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if file == "key" {
		return []byte(c.key), nil
	}
	return c.head[file], nil
}

func (c *sumConfig) WriteConfig(file string, old, new []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if string(c.head[file]) != string(old) {
		return sumdb.ErrWriteConflict
	}
	c.head[file] = slices.Clone(new)
	return nil
}

func (r *robin) ReadRemote(path string) ([]byte, error) {
	r.mu.Lock()
	r.turn++
	url := r.base[r.turn%len(r.base)]
	r.mu.Unlock()
	return bodyOf(http.DefaultClient, url+"/sumdb/"+databaseName+path)
}

func (r *robin) ReadCache(string) ([]byte, error) { return nil, os.ErrNotExist }
func (r *robin) WriteCache(string, []byte)        {}
func (r *robin) Log(msg string)                   {}
func (r *robin) SecurityError(msg string)         { r.t.Error(msg) }

// One client, without stickiness, asks three nodes in turn for everything while new versions come in through all of them, one
// node is stopped for a while, and another one comes back from a lag: of more than a thousand requests none fails, and every
// record verifies against the newest head that the client has ever seen.
func TestRoundRobinClient(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(9, 10))
	s.run()
	s.voters(3)
	b := s.balance()
	client := &robin{sumConfig: newSumConfig(s.db.Key()), t: t, base: b.urls}
	var seen []module.Version
	asked := 0
	for round := range 60 {
		seen = append(seen, s.addRandom(r, fmt.Sprintf("example.com/robin%d", round)))
		for range 6 {
			m := seen[r.IntN(len(seen))]
			for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
				url := b.urls[r.IntN(3)] + artifactPath(m, k)
				if _, err := bodyOf(http.DefaultClient, url); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				asked++
			}
			lines, err := sumdb.NewClient(client).Lookup(m.Path, m.Version+"/go.mod")
			if err != nil || len(lines) != 1 {
				t.Fatalf("round %d: lookup of %s: %q, %v", round, m, lines, err)
			}
		}
	}
	list := make(map[string]bool)
	for _, url := range b.urls {
		body, err := bodyOf(http.DefaultClient, url+"/example.com/hello/@v/list")
		if err != nil {
			t.Fatal(err)
		}
		list[string(body)] = true
	}
	if len(list) != 1 {
		t.Errorf("the nodes list other versions: %v", list)
	}
	if asked+client.turn < 1000 {
		t.Errorf("only %d requests", asked+client.turn)
	}
}

// A leader that hangs, its connections standing, is replaced; what clients ask of the others is answered.
func TestHangingLeader(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(11, 12))
	s.run()
	s.voters(3)
	lead := s.leader()
	if err := lead.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer lead.cmd.Process.Signal(syscall.SIGCONT)
	for i := range 6 {
		m := s.addRandom(r, fmt.Sprintf("example.com/hang%d", i))
		for _, n := range s.nodes {
			if n == lead {
				continue
			}
			for _, k := range []artifact.Kind{artifact.Mod, artifact.Zip} {
				if _, err := bodyOf(&http.Client{Timeout: time.Minute}, n.url+artifactPath(m, k)); err != nil {
					t.Errorf("through %s: %v", n.name, err)
				}
			}
		}
	}
	if err := lead.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.voters(3)
	s.allSame()
}

// A build whose go.sum is complete makes no lookups, so with several mirrors in GOPROXY it survives the death of any of them at
// any moment.
func TestBuildWithSumsSurvivesAnyDeath(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(13, 14))
	var require, sums strings.Builder
	for i := range 30 {
		m := s.addRandom(r, fmt.Sprintf("example.com/sums%d", i))
		zip, mod := s.up.Sums(m)
		fmt.Fprintf(&require, "\t%s %s\n", m.Path, m.Version)
		fmt.Fprintf(&sums, "%s %s %s\n%s %s/go.mod %s\n", m.Path, m.Version, zip, m.Path, m.Version, mod)
	}
	s.run()
	s.voters(3)
	for i, victim := range s.nodes {
		done := make(chan error, 1)
		dir := filepath.Join(s.dir, fmt.Sprintf("build%d", i))
		go func() {
			done <- s.downloadIn(dir, proxies(s.nodes...), "module app\n\ngo 1.21\n\nrequire (\n"+require.String()+")\n", sums.String())
		}()
		before := s.asked("example.com/sums")
		s.await("a build under way", func() bool { return s.asked("example.com/sums") > before || len(done) > 0 || i > 0 }, func() string { return "" })
		victim.kill()
		if err := <-done; err != nil {
			t.Errorf("%s killed: %v", victim.name, err)
		}
		s.run(victim)
		s.voters(3)
	}
}
