package mirror

import (
	"context"
	"errors"
	"go/version"
	"os"
	"sync"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// lookAhead brings in go.mod files that a client is about to ask for. A go command that loads a module graph asks for one
// go.mod after the other, as many at a time as it has processors, and waits for each; the mirror has the requirements of
// a go.mod in hand as soon as it has let it in, and can fetch and verify them side by side.
//
// It follows what minimal version selection reads (go.dev/ref/mod#graph-pruning), and no more. A go.mod that says go 1.17
// or later lists all that its packages need, so the go command does not read the go.mod files of its requirements on its
// account, and nothing is done for it. The requirements of an older one are read, and theirs if they are older too. (In
// theory those of a newer one are read as well, if it is reached through an older one; measured on a real graph, one of 27
// of these was.)
//
// Nothing of it is in a client's way: it has few places of its own, gives way while clients' fetches are many, and stops
// when no client has asked for anything for a while: what waits is forgotten, what is on its way is cancelled. What it
// fetches passes the same gate; a client that asks for something that is on its way joins that fetch, which then is the
// client's and goes on. Errors are nobody's: who asks later finds out.
type lookAhead struct {
	m *Mirror

	mu      sync.Mutex // guards all below
	closed  bool
	pending []module.Version
	active  int
	aloft   map[string]*aheadFlight // by key of the flight
	asked   time.Time               // when a client last asked for a go.mod
	clients *cache[bool]            // what clients asked for lately
	seen    *cache[bool]            // what was looked ahead for lately
	unasked map[string]bool         // brought in ahead, and no client has asked yet
	order   []brought               // of the same, the oldest first; those asked for stay in it until their turn
	running sync.WaitGroup          // Add under mu

	parses  chan struct{} // one for each go.mod that is parsed or waits for that
	parsing sync.Mutex    // held while one is: no more than one processor
	places  chan struct{} // of the flights; there is always one free for who is active
}

// brought is a go.mod that was brought in ahead.
type brought struct {
	key string
	at  time.Time
}

const (
	aheadPlaces  = 8                // look-aheads at a time
	aheadPending = 2048             // waiting; more are forgotten, and fetched when a client asks
	aheadIdle    = 10 * time.Second // without a client who asks for a go.mod, all is given up
	aheadMemory  = 4096             // brought in and not asked for, for the metrics
	aheadUseless = 10 * time.Minute // what nobody has asked for after so long was of no use
	aheadSeen    = 3 << 20          // bytes of names: what was looked ahead for lately, and what clients asked for
	aheadParses  = 64               // go.mod files of clients that are parsed or wait for that; of more, nothing is looked ahead for
	aheadMaxMod  = 1 << 20          // bytes of a go.mod that is looked at: the largest known have a tenth
)

func newLookAhead(m *Mirror) *lookAhead {
	return &lookAhead{m: m, places: make(chan struct{}, aheadPlaces), parses: make(chan struct{}, aheadParses), seen: newCache[bool](aheadSeen),
		clients: newCache[bool](aheadSeen), unasked: make(map[string]bool), aloft: make(map[string]*aheadFlight)}
}

// admitted is told of a go.mod that a client asked for and that has just been let in. The client does not wait for more.
func (a *lookAhead) admitted(mv module.Version, data []byte) {
	if a == nil || !a.beginParse() {
		return
	}
	go func() {
		defer a.running.Done()
		a.require(mv, data)
		<-a.parses
		a.dispatch()
	}()
}

// beginParse reports whether one more go.mod may wait for being parsed. The caller then ends what it begins.
func (a *lookAhead) beginParse() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	select {
	case a.parses <- struct{}{}:
		a.running.Add(1)
		return true
	default:
		a.m.metrics.ahead[aheadDropped].Inc()
		return false
	}
}

// require notes what the go.mod of mv requires, as far as the go command will read it.
func (a *lookAhead) require(mv module.Version, data []byte) {
	if len(data) > aheadMaxMod {
		return
	}
	a.parsing.Lock()
	defer a.parsing.Unlock()
	f, err := modfile.ParseLax(mv.Path+"@"+mv.Version+"/go.mod", data, nil)
	if err != nil || pruned(f) {
		return
	}
	var list []module.Version
	for i, r := range f.Require {
		if len(list) == aheadPending {
			a.m.metrics.ahead[aheadDropped].Add(float64(len(f.Require) - i))
			break
		}
		if _, ok := a.seen.get(r.Mod.String()); !ok && a.mayFetch(r.Mod) {
			list = append(list, r.Mod)
		}
	}
	a.enqueue(list)
}

// mayFetch reports whether a client might ask for mv here and be answered: a go.mod can require what no request can name.
func (a *lookAhead) mayFetch(mv module.Version) bool {
	return module.Check(mv.Path, mv.Version) == nil && canonical(mv) && hasPublicHost(mv.Path) &&
		!module.MatchPrefixPatterns(a.m.config.Private, mv.Path)
}

// enqueue appends as much of list to what is pending as there is place for.
func (a *lookAhead) enqueue(list []module.Version) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := min(len(list), aheadPending-len(a.pending))
	if a.closed {
		n = 0
	}
	a.m.metrics.ahead[aheadDropped].Add(float64(len(list) - n))
	for _, mv := range list[:n] {
		a.seen.put(mv.String(), true, 0, aheadUseless)
	}
	a.pending = append(a.pending, list[:n]...)
}

// pruned reports whether the go command needs no more of the graph than f itself says.
func pruned(f *modfile.File) bool {
	return f.Go != nil && version.Compare("go"+f.Go.Version, "go1.17") >= 0
}

// dispatch starts what may run now.
func (a *lookAhead) dispatch() {
	for {
		mv, ok := a.next()
		if !ok {
			return
		}
		go func() {
			defer a.running.Done()
			a.bring(mv)
			a.mu.Lock()
			a.active--
			a.mu.Unlock()
			a.dispatch()
		}()
	}
}

// next takes one go.mod off the queue, if there is a place for it.
func (a *lookAhead) next() (module.Version, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.asked) >= aheadIdle {
		a.m.metrics.ahead[aheadDropped].Add(float64(len(a.pending)))
		a.pending = nil
	}
	if a.closed || len(a.pending) == 0 || a.active >= aheadPlaces || len(a.m.small) > cap(a.m.small)/2 {
		return module.Version{}, false
	}
	mv := a.pending[0]
	a.pending = a.pending[1:]
	a.active++
	a.running.Add(1)
	return mv, true
}

// bring fetches one go.mod, unless it is held, and looks at what it requires.
func (a *lookAhead) bring(mv module.Version) {
	ctx, cancel := context.WithTimeout(a.m.flights.base, a.m.config.FetchBudget)
	defer cancel()
	man, err := a.m.manifest(ctx, mv)
	if err != nil {
		return
	}
	if data, f, err := a.m.load(ctx, man, artifact.Mod); err == nil {
		if f != nil {
			data, _ = readSmall(f, man.Mod.Size) // who asks for it finds out
		}
		a.require(mv, data)
		a.m.metrics.ahead[aheadHeld].Inc()
		return
	}
	got, err := a.fly(ctx, mv)
	if errors.Is(err, errIdle) {
		a.m.metrics.ahead[aheadDropped].Inc()
		return
	}
	if err != nil {
		a.m.metrics.ahead[aheadFailed].Inc()
		return
	}
	if got.joined {
		a.m.metrics.ahead[aheadHeld].Inc() // a client was first
	} else {
		a.m.metrics.ahead[aheadFetched].Inc()
		a.remember(mv)
	}
	if got.value.small != nil {
		a.require(mv, got.value.small)
	}
}

// readSmall reads f, which has size bytes, unless that are too many to look at, and closes it.
func readSmall(f *os.File, size int64) ([]byte, error) {
	if size > aheadMaxMod {
		return nil, f.Close()
	}
	return readFile(f, size)
}

// remember notes that nobody has asked for mv yet, if nobody has.
func (a *lookAhead) remember(mv module.Version) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, key := time.Now(), mv.String()
	if _, ok := a.clients.get(key); ok {
		a.m.metrics.ahead[aheadUseful].Inc() // somebody waited for it
		return
	}
	a.unasked[key] = true
	a.order = append(a.order, brought{key, now})
	for len(a.order) > aheadMemory || len(a.order) > 0 && now.Sub(a.order[0].at) > aheadUseless {
		if oldest := a.order[0].key; a.unasked[oldest] {
			delete(a.unasked, oldest)
			a.m.metrics.ahead[aheadUnasked].Inc()
		}
		a.order = a.order[1:]
	}
}

// wanted is told which go.mod a client asks for.
func (a *lookAhead) wanted(mv module.Version) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = time.Now()
	key := mv.String()
	a.clients.put(key, true, 0, aheadUseless)
	if f := a.aloft[a.key(mv)]; f != nil {
		f.wanted = true
	}
	if a.unasked[key] {
		delete(a.unasked, key)
		a.m.metrics.ahead[aheadUseful].Inc()
	}
}

// stop begins nothing more, and ends what nobody waits for.
func (a *lookAhead) stop() {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed, a.pending = true, nil
	for key, f := range a.aloft {
		a.giveUp(key, f, errClosing)
	}
}

// wait returns when nothing runs any more, after stop.
func (a *lookAhead) wait() {
	if a != nil {
		a.running.Wait()
	}
}
