package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"modmirror/mirror/artifact"
)

// FAULTS 34: the leader's store of blobs fails, once. Without --exit-on-disk-fault that node goes on to serve what it holds and
// says why it takes nothing; with it, it ends with an error. Either way another node leads at once, and the cluster goes on.
func TestLeaderWithAFailedDisk(t *testing.T) {
	t.Parallel()
	for _, exit := range []bool{false, true} {
		t.Run(fmt.Sprintf("exit=%v", exit), func(t *testing.T) {
			t.Parallel()
			s := newClusterSite(t, 3)
			s.load()
			for _, n := range s.nodes {
				n.extra = []string{fmt.Sprintf("--exit-on-disk-fault=%v", exit)}
			}
			s.run()
			s.voters(3)
			const stored = "/example.com/quote/@v/v1.2.0.zip"
			zip := s.says(s.nodes[0].process, stored, 200, "PK")
			s.allSame()
			lead := s.leader()
			blobs := filepath.Join(lead.dir, "blobs", "sha256")
			if err := os.Rename(blobs, blobs+".away"); err != nil { // the next rename into it fails, which no sound disk does
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(34, 0))
			var others []*clusterNode
			for _, n := range s.nodes {
				if n != lead {
					others = append(others, n)
				}
			}
			for i := 0; !strings.Contains(lead.output(), "the disk failed"); i++ { // some copy is sent to the leader, or it fetches
				if i == 50 {
					t.Fatalf("the leader never meets the fault\n%s", lead.output())
				}
				s.becomes(others[0].process, artifactPath(s.addRandom(r, fmt.Sprintf("example.com/fault%d", i)), artifact.Zip), 200)
			}
			if err := os.Rename(blobs+".away", blobs); err != nil { // what was stored can be read; nothing is written any more
				t.Fatal(err)
			}
			s.sees(others[0], "another leader", func(v clusterView) bool { return v.Leader != "" && v.nameOf(v.Leader) != lead.name })
			if strings.Contains(lead.output(), "the leadership is not handed over") {
				t.Errorf("the leadership was not handed over:\n%s", lead.output())
			}
			for i, n := range others {
				m := s.addRandom(r, fmt.Sprintf("example.com/after%d", i))
				for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
					s.says(n.process, artifactPath(m, k), 200, "")
				}
			}
			if exit {
				select {
				case <-lead.exited:
				case <-time.After(30 * time.Second):
					t.Fatalf("the process does not end\n%s", lead.output())
				}
				if code := lead.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(lead.output(), "modmirror: the disk failed, and --exit-on-disk-fault is set: ") {
					t.Errorf("exit code %d\n%s", code, tail(lead.output(), 2000))
				}
				return
			}
			if got := s.says(lead.process, stored, 200, ""); got != zip {
				t.Error("what is stored is served with other bytes")
			}
			s.says(lead.process, lookupPath(s.add("example.com/new@v1.0.0\n-- go.mod --\nmodule example.com/new\n")), 503, "")
			s.says(lead.process, "/example.com/new/@v/v1.0.0.mod", 503, "stopped writing")
			s.says(lead.process, "/readyz", 200, "")
			s.says(lead.process, "/readyz?writes", 503, "stopped writing")
			s.says(lead.process, "/metrics", 200, "modmirror_replicate_fault 1")
			s.sees(others[0], "what is the matter", func(v clusterView) bool {
				m, err := v.find(lead.name)
				return err == nil && strings.Contains(m.Writes, "stopped writing") && m.Ready == "ok"
			})
		})
	}
}
