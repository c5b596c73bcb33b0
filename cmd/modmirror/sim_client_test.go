package main

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// client asks for this and that, at any node.
func (s *sim) client(number int, stop chan struct{}) {
	rng := rand.New(rand.NewPCG(s.seed, uint64(100+number)))
	for {
		pause := time.NewTimer(time.Duration(rng.Int64N(int64(800 * time.Millisecond))))
		select {
		case <-pause.C:
		case <-stop:
			pause.Stop()
			return
		case <-s.check.stop:
			pause.Stop()
			return
		}
		l := s.nodes[rng.IntN(len(s.nodes))].serving()
		all := s.source.versions()
		m := all[rng.IntN(len(all))]
		if rng.IntN(3) > 0 { // what is new is asked for most
			m = all[max(0, len(all)-1-rng.IntN(8))]
		}
		what := rng.IntN(12)
		if l == nil {
			continue
		}
		switch {
		case what < 2:
			s.lookup(number, l, m)
		case what < 3:
			s.list(number, l, m)
		case what < 4:
			s.crowd(number, simKey{all[max(0, len(all)-1-rng.IntN(3))], artifact.Zip})
		default:
			s.get(number, l, simKey{m, []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip}[what%3]})
		}
	}
}

func (s *sim) get(number int, l *simLife, k simKey) {
	called := time.Now()
	if a, ok := l.ask(k.path()); ok {
		s.check.artifactAnswer(number, l, k, a, called)
	}
}

// crowd asks all nodes for the same at once. If they do not reach each other, each brings it in for itself.
func (s *sim) crowd(number int, k simKey) {
	var all sync.WaitGroup
	for i, n := range s.nodes {
		if l := n.serving(); l != nil {
			all.Go(func() { s.get(10*number+i, l, k) })
		}
	}
	all.Wait()
}

func (s *sim) lookup(number int, l *simLife, m module.Version) {
	p, err := module.EscapePath(m.Path)
	if err != nil {
		panic(err)
	}
	if a, ok := l.ask(fmt.Sprintf("/sumdb/%s/lookup/%s@%s", simDatabase, p, m.Version)); ok && !a.aborted {
		s.check.sumAnswer(number, l, m, a)
	}
}

func (s *sim) list(number int, l *simLife, m module.Version) {
	if a, ok := l.ask("/" + m.Path + "/@v/list"); ok {
		s.check.count(fmt.Sprintf("list %d", a.status))
		s.trace.add(fmt.Sprintf("c%d", number), "%s list %s: %d %.100q", l.name, m.Path, a.status, a.body)
	}
}
