package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

func bodyOf(client *http.Client, url string) ([]byte, error) {
	resp, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.300s", url, resp.Status, b)
	}
	return b, err
}

// balancer sends each request to the next node, and to the one after it if a node cannot be reached, breaks off or says 503:
// what deploy/balancer has nginx and HAProxy do.
type balancer struct {
	nodes  []*clusterNode
	urls   []string // of the nodes, which stay
	turn   atomic.Int64
	client *http.Client
}

func (s *clusterSite) balance() *balancer {
	b := &balancer{nodes: s.nodes, client: &http.Client{Timeout: time.Minute}}
	for _, n := range s.nodes {
		b.urls = append(b.urls, "http://"+n.listen)
	}
	return b
}

func (b *balancer) get(path string) ([]byte, error) {
	var errs []error
	at := int(b.turn.Add(1))
	for i := range b.urls {
		body, err := bodyOf(b.client, b.urls[(at+i)%len(b.urls)]+path)
		if err == nil {
			return body, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// ServeHTTP makes the balancer a server, for clients that know one address.
func (b *balancer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at := int(b.turn.Add(1))
	for i := range b.urls {
		req, err := http.NewRequestWithContext(r.Context(), r.Method, b.urls[(at+i)%len(b.urls)]+r.URL.RequestURI(), nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		resp, err := b.client.Do(req)
		if err != nil {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode == http.StatusServiceUnavailable && i < len(b.urls)-1 {
			continue
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = w.Write(body) // the client sees if it is cut short
		return
	}
	http.Error(w, "no node answers", http.StatusBadGateway)
}

// A rolling restart behind a balancer fails no request, and afterwards all nodes are members as before.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(7, 8))
	var all []module.Version
	for i := range 40 {
		all = append(all, s.addRandom(r, fmt.Sprintf("example.com/roll%d", i)))
	}
	s.run()
	s.voters(3)
	b := s.balance()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	var asked atomic.Int64
	go func() {
		for i := 0; ctx.Err() == nil; i++ {
			m := all[i%len(all)]
			for _, path := range []string{artifactPath(m, artifact.Info), artifactPath(m, artifact.Mod), lookupPath(m), artifactPath(m, artifact.Zip)} {
				if _, err := b.get(path); err != nil {
					failed <- err
					return
				}
				asked.Add(1)
			}
		}
		failed <- nil
	}()
	for _, n := range s.nodes {
		before := asked.Load()
		if err := n.stop(time.Minute); err != nil {
			t.Fatal(err)
		}
		s.await("requests without "+n.name, func() bool { return asked.Load() > before+20 || len(failed) > 0 }, func() string { return "" })
		s.run(n)
		s.voters(3)
	}
	cancel()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d requests", asked.Load())
	s.allSame()
}

// A leader that is told to stop hands the leadership over, so that nobody waits for an election.
func TestLeaderHandsOver(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	for _, n := range s.nodes {
		n.extra = []string{"--log-level", "debug"}
	}
	s.run()
	s.voters(3)
	lead := s.leader()
	if err := lead.stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	_, out, _ := strings.Cut(lead.output(), "msg=draining")
	if !hasLine(out, "raft: entering follower state") || hasLine(out, "the leadership is not handed over") {
		t.Errorf("the leadership was not handed over:\n%s", tail(out, 3000))
	}
	if next := s.leader(); next == lead {
		t.Errorf("%s still leads", lead.name)
	}
}
