//go:build faults

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

// FAULTS 34, a disk that hangs for ever: under the blobs, the tiles or the log of the leader. After the time that a write may take
// another node leads; the one whose disk hangs serves what it holds all the while, without waiting, and can be told to end.
func TestHangingDiskOfLeader(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"blob.fsync", "log.store", "tile.fsync"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			s := newClusterSite(t, 3)
			s.load()
			for _, n := range s.nodes {
				n.env = []string{"MODMIRROR_FAULTS=" + filepath.Join(s.dir, n.name+".faults"), "MODMIRROR_FAULTS_LIMITS=hung-milliseconds=2000"}
				n.extra = []string{"--drain-timeout", "2s"}
			}
			s.run()
			s.voters(3)
			const stored = "/example.com/quote/@v/v1.2.0."
			s.says(s.nodes[0].process, stored+"zip", 200, "PK")
			s.says(s.nodes[0].process, stored+"mod", 200, "module")
			s.allSame()
			lead := s.leader()
			var others []*clusterNode
			for _, n := range s.nodes {
				if n != lead {
					others = append(others, n)
				}
			}
			if err := os.WriteFile(filepath.Join(s.dir, lead.name+".faults"), []byte(point+" 1+ delay 1h\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(34, 1))
			for i := 0; !strings.Contains(lead.output(), "the disk failed"); i++ {
				m := s.addRandom(r, fmt.Sprintf("example.com/hang%d", i))
				go func() { _, _ = httpStatus(t.Context(), others[0].url+artifactPath(m, artifact.Zip)) }() // it waits for the leader, or not
				for _, kind := range []string{"zip", "mod"} {
					begin := time.Now()
					s.says(lead.process, stored+kind, 200, "")
					if took := time.Since(begin); took > time.Second {
						t.Errorf("a stored %s took %v while the disk hangs", kind, took)
					}
				}
				if i == 500 {
					t.Fatalf("the leader never meets the fault\n%s", lead.output())
				}
				time.Sleep(50 * time.Millisecond) // the load; nothing is waited for
			}
			s.sees(others[0], "another leader", func(v clusterView) bool { return v.Leader != "" && v.nameOf(v.Leader) != lead.name })
			m := s.addRandom(r, "example.com/after")
			for _, n := range others {
				for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
					s.becomes(n.process, artifactPath(m, k), 200)
				}
			}
			s.says(lead.process, stored+"zip", 200, "PK")
			s.says(lead.process, "/example.com/never/@v/v1.0.0.mod", 503, "hanging for 2s")
			s.says(lead.process, "/readyz?writes", 503, "hanging for 2s")
			s.says(lead.process, "/readyz", 200, "")
			if err := lead.stop(2 * time.Minute); err == nil || lead.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(lead.output(), "the disk failed while this process ran") {
				t.Errorf("SIGTERM while the disk hangs: %v\n%s", err, tail(lead.output(), 2000))
			}
		})
	}
}
