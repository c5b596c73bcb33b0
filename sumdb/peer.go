package sumdb

import (
	"net/http"
	"strings"
	"sync"
	"time"
)

// Limits of peers.
const (
	peerBudget = time.Second // for one request to a peer
	maxPeers   = 16          // peers that are asked
)

// peerSet holds what is known of each peer from one look at who they are to the next.
type peerSet struct {
	mu   sync.Mutex
	now  map[string]*source // guarded by mu; by name
	next int                // guarded by mu; the id of the next new one
}

// peers returns the peers of now.
func (db *DB) peers() []*source {
	if db.Peers == nil {
		return nil
	}
	list := db.Peers()
	list = list[:min(len(list), maxPeers)]
	db.known.mu.Lock()
	defer db.known.mu.Unlock()
	now := make(map[string]*source, len(list))
	var out []*source
	for _, p := range list {
		name := p.String()
		if now[name] != nil {
			continue
		}
		s := db.known.now[name]
		if s == nil {
			db.known.next++
			s = newSource(len(db.sources)+db.known.next, p, false)
			s.peer = true
		}
		now[name] = s
		out = append(out, s)
	}
	db.known.now = now
	return out
}

// askable reports whether there is anybody to ask for a tile.
func (db *DB) askable() bool { return len(db.sources) > 0 || len(db.peers()) > 0 }

// patience returns how long s may say nothing to a request of class c before the next source is asked as well.
func (s *source) patience(c class) time.Duration {
	if s.peer {
		return peerBudget
	}
	return c.patience()
}

// budget returns how long one request to s may take.
func (s *source) budget() time.Duration {
	if s.peer {
		return peerBudget
	}
	return fetchBudget
}

// refuse remembers that tiles of s were bad, because of err. A peer is asked after the others then for a while: unlike a
// proxy, whose answers to lookups count, it has nothing to say that must not be drowned out.
func (db *DB) refuse(s *source, err error) {
	s.mu.Lock()
	s.refused++
	s.mu.Unlock()
	if !s.peer {
		s.blame(err)
		return
	}
	db.metrics.badPeers.Inc()
	s.delay(classTile, err, hangingFor)
}

// ServePeer answers another node: /tile/… with what is held here, and /latest with the newest head that is known here to
// be right, which need not be committed. Nobody is asked, so that two nodes which lack the same do not ask each other in
// circles. Like ServeHTTP it wants the prefix /sumdb/<name> taken off.
func (db *DB) ServePeer(w http.ResponseWriter, r *http.Request) { db.servePeer(w, r, r.URL.Path) }

// servePeer is ServePeer for path instead of r.URL.Path.
func (db *DB) servePeer(w http.ResponseWriter, r *http.Request, path string) {
	if path == "/latest" {
		h, err := db.newest(r.Context())
		if err != nil {
			writeError(w, db.Log, err)
			return
		}
		newReply(h.note, typeText, cacheNever).send(w, r)
		return
	}
	if !strings.HasPrefix(path, "/tile/") {
		writeError(w, db.Log, &statusError{http.StatusNotFound, "a peer has /latest and /tile"})
		return
	}
	held := r.Clone(r.Context())
	held.Header.Set("Disable-Module-Fetch", "true")
	db.serve(w, held, path)
}
