package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"modmirror/mirror/artifact"
)

// Without a majority everything that is committed is served by who is left; what is new is verified and passed through, says so,
// and is committed when the others are back.
func TestQuorumIsLost(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(3, 4))
	fresh := s.addRandom(r, "example.com/fresh")
	s.run()
	sum, err := s.download(s.nodes[0].url, app)
	if err != nil {
		t.Fatal(err)
	}
	s.allSame()
	left := s.nodes[2]
	s.nodes[0].kill()
	s.nodes[1].kill()
	if again, err := s.download(left.url, app); err != nil || again != sum {
		t.Errorf("through the one node left: %v", err)
	}
	path := artifactPath(fresh, artifact.Zip)
	resp, err := http.Get(left.url + path)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if h := resp.Header; resp.StatusCode != 200 || h.Get("Modmirror-Committed") != "false" || h.Get("Cache-Control") != "no-store" || h.Get("ETag") != "" {
		t.Errorf("a new zip without quorum: %d, %v", resp.StatusCode, h)
	}
	s.run(s.nodes[0], s.nodes[1])
	s.voters(3)
	s.up.Down(true)
	for _, n := range s.nodes {
		s.await("the zip committed at "+n.name, func() bool {
			resp, err := http.Get(n.url + path)
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == 200 && resp.Header.Get("Modmirror-Committed") == "" && resp.Header.Get("ETag") != ""
		}, n.output)
	}
}

// A single mirror becomes a cluster of three by starting two more; nothing of its data is moved.
func TestSingleNodeGrows(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 1)
	s.load()
	alone := s.nodes[0]
	args := s.args(alone)
	s.launchWith(alone, append(args[:4:4], args[12:]...)...) // as if nobody had ever heard of clusters: data and name only
	if err := alone.waitReady(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	sum, err := s.download(alone.url, app)
	if err != nil {
		t.Fatal(err)
	}
	if err := alone.stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	s.run(alone) // with the token, and a port that others reach
	s.run(s.addNode(), s.addNode())
	s.voters(3)
	s.up.Down(true)
	alone.kill()
	for _, n := range s.nodes[1:] {
		if again, err := s.download(n.url, app); err != nil || again != sum {
			t.Errorf("through %s: %v", n.name, err)
		}
	}
}

// 500 clients of three nodes ask for one cold zip: the upstream is asked once.
func TestCrowdOfThreeNodes(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(5, 6))
	m := s.addRandom(r, "example.com/crowd")
	s.run()
	s.voters(3)
	path := artifactPath(m, artifact.Zip)
	want := s.up.Artifact(m, artifact.Zip)
	const clients = 500
	errs := make(chan error, clients)
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 200}, Timeout: time.Minute}
	for i := range clients {
		go func() {
			body, err := bodyOf(client, s.nodes[i%3].url+path)
			if err == nil && string(body) != string(want) {
				err = fmt.Errorf("client %d: %d bytes, want %d", i, len(body), len(want))
			}
			errs <- err
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := s.asked(path); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

// A node that was away takes requests once it has what was committed meanwhile, and not before: with the upstream gone, nobody
// who goes by /readyz is told less by it than by the others.
func TestRestartedNodeIsReadyWhenItHasCaughtUp(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(15, 16))
	s.run()
	s.voters(3)
	away := s.nodes[2]
	away.kill()
	var paths []string
	for i := range 20 {
		m := s.addRandom(r, fmt.Sprintf("example.com/away%d", i))
		for _, k := range []artifact.Kind{artifact.Mod, artifact.Zip} {
			path := artifactPath(m, k)
			paths = append(paths, path)
			if _, err := bodyOf(http.DefaultClient, s.nodes[0].url+path); err != nil {
				t.Fatal(err)
			}
		}
		paths = append(paths, lookupPath(m))
	}
	s.up.Down(true)
	s.run(away) // until it says that it is ready
	for _, path := range paths {
		if _, err := bodyOf(http.DefaultClient, away.url+path); err != nil {
			t.Errorf("right after it was ready: %v", err)
		}
	}
}

// A node that lives and has lost its own way to the upstream fails no request of the others, although it is its turn for a third
// of what is new.
func TestOneNodeLosesItsUpstream(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(17, 18))
	gone := s.nodes[1]
	gone.extra = []string{"--upstream", "http://127.0.0.1:1"}
	s.run()
	s.voters(3)
	for i := range 12 {
		m := s.addRandom(r, fmt.Sprintf("example.com/egress%d", i))
		for _, n := range s.nodes {
			if n == gone {
				continue
			}
			for _, path := range []string{artifactPath(m, artifact.Mod), artifactPath(m, artifact.Zip), "/" + m.Path + "/@v/list"} {
				if _, err := bodyOf(http.DefaultClient, n.url+path); err != nil {
					t.Errorf("through %s: %v", n.name, err)
				}
			}
		}
		if _, err := bodyOf(http.DefaultClient, gone.url+artifactPath(m, artifact.Zip)); err != nil {
			t.Errorf("what the others brought in, through %s: %v", gone.name, err)
		}
	}
}
