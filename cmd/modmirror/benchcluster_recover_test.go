//go:build bench && linux

package main

import (
	"fmt"
	"testing"
	"time"

	"modmirror/mirror/artifact"
)

// clusterRecover measures what docs/recover.md takes, without the time in which an operator thinks: from the loss of two of three
// nodes until the survivor, which was stopped, recovered and started again, has committed something new.
func (b *bench) clusterRecover(t *testing.T) {
	const rounds = 7
	var took, command samples
	for i := range rounds {
		s := b.newCluster(t, fmt.Sprintf("recover%d", i), "")
		s.load()
		m := s.addRandom(newRand(uint64(31+i)), "example.com/fresh")
		s.run()
		s.voters(3)
		if _, err := s.download(s.nodes[0].url, app); err != nil {
			t.Fatal(err)
		}
		s.allSame()
		left := s.nodes[i%3]
		begin := time.Now()
		for _, n := range s.others(left) {
			n.kill()
		}
		if err := left.stop(time.Minute); err != nil {
			t.Fatal(err)
		}
		asked := time.Now()
		if out, err := s.offline("cluster", "recover", "--yes", "--data-dir", left.dir, "--reason", "measured"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		command = append(command, time.Since(asked).Seconds())
		s.launch(left)
		if err := b.committed("http://" + left.listen + artifactPath(m, artifact.Mod)); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begin).Seconds())
		if err := s.endAll(); err != nil {
			t.Fatal(err)
		}
	}
	b.add(row{fmt.Sprintf("two of three killed to first new artifact committed by the survivor, s, p50 of %d", rounds), nil, took, below(15 * 60)})
	b.add(row{"of that, the command that recovers it, s", nil, command, below(60)})
}
