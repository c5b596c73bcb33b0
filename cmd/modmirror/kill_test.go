package main

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
)

// killWork is what clients ask of a mirror that is killed: every part of distinct modules, in the go command's order.
type killWork struct {
	mu       sync.Mutex
	answered map[string]string // path → the whole body of a 200; guarded by mu
	cut      int               // requests without a whole answer
	wrong    []string          // other answers
	done     chan struct{}     // one for each whole answer
}

// FAULTS 31 and 32, for a node alone: kill -9 at moments that nobody chose, in the midst of many ingests. After each
// restart everything that was answered with 200 is there with the same bytes, what was not is there whole or not at all,
// and nothing half-written is left; in the end fsck is content.
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	const rounds, perRound, clients = 12, 8, 4
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s := newSite(t)
	s.load()
	w := &killWork{answered: make(map[string]string)}
	truth := make(map[string]string) // path → what the upstream has there
	var all []module.Version
	drafts := 0
	p := s.start()
	for round := range rounds {
		var ms []module.Version
		for i := range perRound {
			ms = append(ms, s.addRandom(r, fmt.Sprintf("example.com/round%d/m%d", round, i)))
		}
		all = append(all, ms...)
		for _, m := range ms {
			for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
				truth[artifactPath(m, k)] = string(s.up.Artifact(m, k))
			}
		}
		after, delay := r.IntN(perRound*4), time.Duration(r.Int64N(int64(4*time.Millisecond)))
		w.run(p, ms, clients, after, delay)

		left, _ := filepath.Glob(filepath.Join(s.data, "tmp", "*"))
		drafts += len(left)
		p = s.start()
		if left, err := filepath.Glob(filepath.Join(s.data, "tmp", "*")); err != nil || len(left) > 0 {
			t.Errorf("round %d: left over in tmp: %v, %v", round, left, err)
		}
		w.check(s, p, "/cached-only", ms, truth)
		for _, text := range w.wrong {
			t.Error(text)
		}
		if t.Failed() {
			t.Fatalf("round %d: killed %v after %d answers", round, delay, after)
		}
	}
	t.Logf("%d answers, %d requests cut, %d drafts found", len(w.answered), w.cut, drafts)
	if w.cut == 0 {
		t.Error("no request was under way when the mirror was killed")
	}

	p.kill()
	p = s.start("--offline")
	w.check(s, p, "", all, truth)
	s.end(p)
	s.wantClean()
}

// addRandom gives the upstream and the database a module with up to 64 KiB that cannot be compressed.
func (s *site) addRandom(r *rand.Rand, path string) module.Version {
	m := module.Version{Path: path, Version: "v1.0.0"}
	data := make([]byte, 1+r.IntN(64<<10))
	_, _ = rand.NewChaCha8([32]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())}).Read(data) // never fails
	mod := fmt.Sprintf("module %s\n\ngo 1.21\n\n// %x\n", path, data[:len(data)%(8<<10)])             // small ones lie in the catalog
	zip := mirrortest.Zip(m, map[string]string{"go.mod": mod, "data.bin": string(data)})
	s.up.AddZip(m, zip, []byte(mod), nil)
	zipSum, modSum := s.up.Sums(m)
	s.db.Add(m, zipSum, modSum)
	s.db.Grow(r.IntN(40)) // tiles have to be fetched, too
	return m
}

func artifactPath(m module.Version, k artifact.Kind) string {
	return "/" + m.Path + "/@v/" + m.Version + "." + k.String()
}

func lookupPath(m module.Version) string {
	return "/sumdb/" + databaseName + "/lookup/" + m.Path + "@" + m.Version
}

// run asks for everything of ms, and kills the node a delay after so many answers.
func (w *killWork) run(p *process, ms []module.Version, clients, after int, delay time.Duration) {
	w.done = make(chan struct{}, len(ms)*4)
	queue := make(chan module.Version, len(ms))
	for _, m := range ms {
		queue <- m
	}
	close(queue)
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for m := range queue {
				for _, path := range []string{artifactPath(m, artifact.Info), artifactPath(m, artifact.Mod), lookupPath(m), artifactPath(m, artifact.Zip)} {
					w.ask(p, path)
				}
			}
		})
	}
	for range after {
		<-w.done
	}
	time.Sleep(delay) // not to wait for anything: the moment is what is being drawn
	p.kill()
	wg.Wait()
}

// ask notes a whole answer. An answer other than 200 is a mistake, unless the node is dead.
func (w *killWork) ask(p *process, path string) {
	code, body, err := fetch(p.url + path)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.cut++
	} else if code != 200 {
		w.wrong = append(w.wrong, fmt.Sprintf("GET %s: %d %s", path, code, body))
	} else {
		w.answered[path] = string(body)
	}
	w.done <- struct{}{} // it has room for all
}

// check compares what the node has of ms with what was answered, and with the truth.
func (w *killWork) check(s *site, p *process, prefix string, ms []module.Version, truth map[string]string) {
	t := s.t
	t.Helper()
	for _, m := range ms {
		held := false
		for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
			path := artifactPath(m, k)
			before, acknowledged := w.answered[path]
			code, body := s.get(p, prefix+path)
			held = held || code == 200
			switch {
			case code == 200 && body != truth[path]:
				t.Errorf("GET %s: %d bytes that are not the %d of the upstream", path, len(body), len(truth[path]))
			case acknowledged && (code != 200 || body != before):
				t.Errorf("GET %s: %d, but it was answered before: lost or changed", path, code)
			case code != 200 && code != 404:
				t.Errorf("GET %s: %d %s", path, code, body)
			}
		}
		if !held {
			continue
		}
		// Whatever is served can be verified and is listed.
		code, body := s.get(p, prefix+lookupPath(m))
		if code != 200 || !strings.Contains(body, "\n"+m.Path+" "+m.Version+" h1:") {
			t.Errorf("lookup of %s: %d %s", m, code, body)
		}
		if before, ok := w.answered[lookupPath(m)]; ok && record(before) != record(body) {
			t.Errorf("lookup of %s: %q, before it was %q", m, record(body), record(before))
		}
		if code, body := s.get(p, prefix+"/"+m.Path+"/@v/list"); code != 200 || body != m.Version+"\n" {
			t.Errorf("list of %s: %d %q", m.Path, code, body)
		}
	}
}

// record returns the part of a lookup's answer that never changes.
func record(lookup string) string {
	text, _, _ := strings.Cut(lookup, "\n\n")
	return text
}
