package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/replicate/peer"
)

// liar is a member of the cluster, with its secret, that answers everything and never the truth.
type liar struct {
	link  *peer.Link
	asked map[string]chan struct{} // closed at the first request of that kind
}

// newLiar has a liar join the cluster of s through n.
func (s *clusterSite) newLiar(n *clusterNode) *liar {
	s.t.Helper()
	token, err := peer.ReadToken(s.token)
	if err != nil {
		s.t.Fatal(err)
	}
	v := s.view(n)
	self := func() peer.Hello {
		return peer.Hello{Cluster: v.Cluster, Node: "LIAR", Name: "liar", Boot: "B", Starts: 1, Role: roleReplica, Version: "v0", Level: replicate.NewestLevel}
	}
	l := &liar{asked: make(map[string]chan struct{})}
	l.link, err = peer.Listen(peer.Config{Listen: "localhost:0", Credentials: peer.FromToken(token, "LIAR"), Self: self})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.link.Close() })
	status := selfStatus{Fetches: true}
	status.ID, status.Ready, status.Writes, status.Version = "LIAR", "ok\x1b[2J", "ok", "v0\n! all is well"
	b, err := json.Marshal(status)
	if err != nil {
		s.t.Fatal(err)
	}
	l.answer("GET /v1/status", b)
	wrong := someManifest(s.t)
	enc, err := wrong.AppendBinary(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	l.answer("POST /v1/resolve", enc) // well-formed, of something else
	l.answer("POST /v1/ask", []byte(`{"body":"e30=","age":-1}`))
	l.handle("GET /v1/blob/{digest}", func(w http.ResponseWriter, r *http.Request) {
		if ref, err := blobRef(r); err == nil {
			w.Write(make([]byte, ref.Size)) // as many as it should have
		}
	})
	l.answer("GET /sumdb/", make([]byte, 8192))
	var ask []peer.Member
	for _, m := range v.Nodes {
		ask = append(ask, peer.Member{ID: m.ID, Address: m.Address})
	}
	if err := l.link.Join(s.t.Context(), v.Cluster, ask); err != nil {
		s.t.Fatal(err)
	}
	return l
}

func (l *liar) answer(pattern string, b []byte) {
	l.handle(pattern, func(w http.ResponseWriter, _ *http.Request) { w.Write(b) })
}

func (l *liar) handle(pattern string, h http.HandlerFunc) {
	first, once := make(chan struct{}), new(sync.Once)
	l.asked[pattern] = first
	l.link.Handle(pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(first) })
		h(w, r)
	}))
}

// wasAsked reports whether the liar had occasion to lie.
func (l *liar) wasAsked(pattern string) bool {
	select {
	case <-l.asked[pattern]:
		return true
	default:
		return false
	}
}

// A member that lies about everything changes nothing that any client gets; the others name it and count what it says.
func TestLyingNode(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 3)
	s.load()
	r := rand.New(rand.NewPCG(21, 22))
	s.run()
	s.voters(3)
	l := s.newLiar(s.nodes[0])
	for _, n := range s.nodes {
		s.sees(n, "the liar seen by "+n.name, func(v clusterView) bool {
			m, err := v.find("LIAR")
			if err == nil && m.Alive && (m.Ready != "ok?[2J" || m.Version != "v0?! all is well") {
				t.Fatalf("%s prints what the liar says as it is: %+v", n.name, m)
			}
			return err == nil && m.Alive
		})
	}
	var all []module.Version
	var members []peer.Member
	for _, m := range s.view(s.nodes[0]).Nodes {
		members = append(members, peer.Member{ID: m.ID})
	}
	turn := func(key string) bool { return peer.Owner(key, members)[0].ID == "LIAR" }
	resolves, asks := 0, 0
	for i := 0; resolves < 3 || asks < 3; i++ {
		path := fmt.Sprintf("example.com/lie%d", i)
		if r, a := turn(path+"@v1.0.0"), turn(path); !r && !a {
			continue // it is an honest node's turn
		} else if r {
			resolves++
		} else {
			asks++
		}
		m := s.addRandom(r, path)
		all = append(all, m)
		n := s.nodes[i%3]
		for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
			if body, err := bodyOf(http.DefaultClient, n.url+artifactPath(m, k)); err != nil || string(body) != string(s.up.Artifact(m, k)) {
				t.Errorf("%v %v through %s: %d bytes, %v", m, k, n.name, len(body), err)
			}
		}
		if body, err := bodyOf(http.DefaultClient, n.url+"/"+m.Path+"/@v/list"); err != nil || strings.TrimSpace(string(body)) != m.Version {
			t.Errorf("list of %v through %s: %q, %v", m, n.name, body, err)
		}
	}
	for _, n := range s.nodes {
		s.sees(n, "all blobs at "+n.name, func(v clusterView) bool {
			m, err := v.find(n.name)
			return err == nil && m.Missing == 0 && m.Blobs == m.Seq && m.Seq > 0
		})
	}
	s.counted("modmirror_cluster_bad_answers_total") // before anybody is started again
	lead := s.leader()
	followers := slices.DeleteFunc(slices.Clone(s.nodes), func(n *clusterNode) bool { return n == lead })
	for _, n := range followers { // what they have in memory goes
		n.kill()
		s.run(n)
	}
	for _, n := range followers {
		s.sees(n, "leader and liar seen by "+n.name, func(v clusterView) bool {
			m, err := v.find("LIAR")
			return err == nil && m.Alive && v.Leader != "" && v.quorum() == quorum{3, 3}
		})
		s.loseBlobs(n) // so that the leader has the bytes, who is asked last
	}
	for _, m := range all {
		for _, n := range followers {
			if body, err := bodyOf(http.DefaultClient, n.url+artifactPath(m, artifact.Zip)); err != nil || string(body) != string(s.up.Artifact(m, artifact.Zip)) {
				t.Errorf("lost zip of %v at %s: %d bytes, %v", m, n.name, len(body), err)
			}
		}
	}
	for _, what := range []string{"POST /v1/resolve", "POST /v1/ask", "GET /v1/blob/{digest}"} {
		if !l.wasAsked(what) {
			t.Errorf("the liar was never asked: %s", what)
		}
	}
	for what, name := range map[string]string{"a node answers with what is no answer": "node=LIAR", "verification failed": `source="node LIAR"`} {
		if !slices.ContainsFunc(s.nodes, func(n *clusterNode) bool { return hasLine(n.output(), what, name) }) {
			t.Errorf("nobody logs %q of %s", what, name)
		}
	}
	s.counted(`modmirror_mirror_verification_failures_total{reason="peer"}`)
}

// counted wants some node to have counted what the metric is about.
func (s *clusterSite) counted(metric string) {
	s.t.Helper()
	if !slices.ContainsFunc(s.nodes, func(n *clusterNode) bool {
		all, err := bodyOf(http.DefaultClient, n.url+"/metrics")
		return err == nil && strings.Contains(string(all), "\n"+metric+" ") && !strings.Contains(string(all), "\n"+metric+" 0\n")
	}) {
		s.t.Errorf("nobody counts %s", metric)
	}
}

func hasLine(s string, want ...string) bool {
	return slices.ContainsFunc(strings.Split(s, "\n"), func(line string) bool {
		return !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(line, w) })
	})
}

// loseBlobs removes all blobs of a node.
func (s *clusterSite) loseBlobs(n *clusterNode) {
	s.t.Helper()
	lost := 0
	err := filepath.WalkDir(filepath.Join(n.dir, "blobs"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			lost++
			err = os.Remove(path)
		}
		return err
	})
	if err != nil || lost == 0 {
		s.t.Fatalf("%d blobs of %s removed, %v", lost, n.name, err)
	}
}
