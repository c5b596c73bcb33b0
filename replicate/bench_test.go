package replicate

import (
	"fmt"
	"sync/atomic"
	"testing"

	"modmirror/replicate/replicatetest"
)

func BenchmarkOpenNew(b *testing.B) {
	for b.Loop() {
		n := openNode(b, Config{Dir: b.TempDir()})
		b.StopTimer()
		n.Close()
		b.StartTimer()
	}
}

func BenchmarkOpenAgain(b *testing.B) {
	dir := b.TempDir()
	openNode(b, Config{Dir: dir}).Close()
	for b.Loop() {
		n := openNode(b, Config{Dir: dir})
		b.StopTimer()
		n.Close()
		b.StartTimer()
	}
}

// filled returns a node with count modules, each with a go.mod of its own.
func filled(b *testing.B, count int) (*Node, *replicatetest.Database, []replicatetest.Module) {
	b.Helper()
	n := openNode(b, Config{Dir: b.TempDir()})
	db := trusting(b, n)
	ms := make([]replicatetest.Module, count)
	for i := range ms {
		path := fmt.Sprintf("example.com/some/module%d", i)
		ms[i] = db.AddModule(path, "v1.0.0", "module "+path+"\n\ngo 1.26\n\nrequire (\n"+fmt.Sprintf("%900d", i)+"\n)\n")
	}
	advance(b, n, db)
	return n, db, ms
}

func BenchmarkManifest(b *testing.B) {
	n, db, ms := filled(b, 1000)
	publishAll(b, n, db, ms)
	b.ReportAllocs()
	b.ResetTimer()
	var next atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := n.Manifest(b.Context(), ms[next.Add(1)%1000].Version); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkInline(b *testing.B) {
	n, db, ms := filled(b, 1000)
	publishAll(b, n, db, ms)
	ref := db.Publication(ms[500], db.Size()).Manifest.Mod
	b.ReportAllocs()
	for b.Loop() {
		if _, err := n.Inline(b.Context(), ref.Digest); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, publishers := range []int{1, 64} {
		b.Run(fmt.Sprint(publishers), func(b *testing.B) {
			n, db, ms := filled(b, b.N)
			var next atomic.Int64
			done := make(chan error)
			b.ResetTimer()
			for range publishers {
				go func() {
					for {
						i := next.Add(1) - 1
						if i >= int64(b.N) {
							done <- nil
							return
						}
						if _, err := n.Publish(b.Context(), db.Publication(ms[i], db.Size())); err != nil {
							done <- err
							return
						}
					}
				}()
			}
			for range publishers {
				if err := <-done; err != nil {
					b.Error(err)
				}
			}
		})
	}
}

func BenchmarkApply(b *testing.B) {
	n, db, ms := filled(b, 1)
	entry := entryOf(b, publishCommand{db.Publication(ms[0], 1)})
	undo := fmt.Errorf("undo")
	for b.Loop() {
		n.update(func(s state) error {
			cmds, err := parseEntry(entry)
			if err != nil {
				b.Fatal(err)
			}
			if r, err := s.apply(cmds[0]); err != nil || r.err != nil {
				b.Fatal(r.err, err)
			}
			return undo
		})
	}
}
