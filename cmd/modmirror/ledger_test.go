//go:build faults || wan

package main

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"sync"
)

type digest = [sha256.Size]byte

// ledger is what there is to be had, and what clients were told of it: for each path a register that is written once.
type ledger struct {
	mu    sync.Mutex
	truth map[string]map[digest]bool // guarded by mu; path → what the upstream ever had there
	said  map[string]digest          // guarded by mu; path → of the bodies that were answered with 200 and called committed
	order []string                   // guarded by mu; of said
	wrong []string                   // guarded by mu; what must not happen
}

func (l *ledger) add(path string, body []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.truth[path] == nil {
		l.truth[path] = make(map[digest]bool)
	}
	l.truth[path][sha256.Sum256(body)] = true
}

// said is one answer of a node.
type said struct {
	code      int
	body      []byte
	committed bool // not marked as one that is not
}

// note holds an answer against what is true: a 200 has exactly what the upstream had at some time, a committed one what the first
// committed one had, and 404 is for what nobody has.
func (l *ledger) note(path, from string, a said) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := sha256.Sum256(a.body)
	first, before := l.said[path]
	switch {
	case a.code == http.StatusOK && !l.truth[path][sum]:
		l.wrong = append(l.wrong, fmt.Sprintf("%s from %s: %d bytes that the upstream never had", path, from, len(a.body)))
	case a.code == http.StatusOK && a.committed && before && sum != first:
		l.wrong = append(l.wrong, fmt.Sprintf("%s from %s: %x, and before it was %x", path, from, sum, first))
	case a.code == http.StatusOK && a.committed && !before:
		l.said[path] = sum
		l.order = append(l.order, path)
	case a.code == http.StatusNotFound && l.truth[path] != nil:
		l.wrong = append(l.wrong, fmt.Sprintf("%s from %s: 404 for what the upstream has", path, from))
	case a.code != http.StatusOK && a.code < 500:
		l.wrong = append(l.wrong, fmt.Sprintf("%s from %s: %d %.300s", path, from, a.code, a.body))
	}
}
