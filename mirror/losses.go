package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/time/rate"

	"modmirror/mirror/artifact"
)

// What becomes of a stored blob that is not what it was. Whoever meets one, a read, the scrub or another node that asks for it,
// reports it (ReportDamage). It is looked at again, moved into quarantine (Store.Condemn), counted, and from then on missing here: no
// ack is given for it, and this node's watermark falls behind it, so that the node does not count as one that holds it. Follow
// finds out which module version it is of and brings it back, from another node, else from the upstream, through the gate; a
// read brings it back at once. If nobody has the right bytes it is tried again for ever. What is true if the process dies:
//
//	before the quarantine  the damaged bytes are in their place, and are found again by the next read or scrub
//	after it               the blob is missing, and described in quarantine; the next process begins with what is described there
//	after it is back       all is well; what is in quarantine is for whoever looks at the disk
//
// A blob that is merely missing leaves nothing in quarantine: it is what the catalog names and the store does not have, which
// the scrub looks for (and the follower, for what came in since its watermark).

// finder is who met a damaged blob.
type finder uint8

const (
	byRead finder = iota
	byScrub
	byPeer  // another node asked for it
	byStart // an earlier process had found it
	numFinder
)

var finderNames = [numFinder]string{"read", "scrub", "peer", "start"}

// Unhealed is a blob that was here and whose right bytes are not back yet.
type Unhealed struct {
	Digest  string          `json:"digest"`
	Module  string          `json:"module,omitempty"` // empty until it is known which version it is of
	Version string          `json:"version,omitempty"`
	Kind    string          `json:"kind,omitempty"`
	Damage  artifact.Damage `json:"damage"`
	Found   time.Time       `json:"found"`
	Tries   int             `json:"tries"`
	Next    time.Time       `json:"next,omitzero"`   // not to be tried again before
	Error   string          `json:"error,omitempty"` // of the last try
}

// losses are the blobs that were here and are not now, and the numbers of those that were lost and came back.
type losses struct {
	mu   sync.Mutex
	open map[artifact.Digest]*loss // guarded by mu, as the rest

	bad    [numFinder]map[artifact.Damage]int64
	healed map[string]int64 // by where the right bytes came from

	ask   chan artifact.Digest // to be found in the catalog
	more  bool                 // others of open are to be, which found no room in ask
	lines *rate.Limiter        // of the log, of what is found
	tries *rate.Limiter        // likewise, of what cannot be had, whether it was here or not
}

// loss is one of them.
type loss struct {
	damage artifact.Damage
	by     finder
	found  time.Time
	reason string
	module module.Version
	kind   artifact.Kind
	tries  int
	next   time.Time
	err    error
}

// What is remembered of losses at most. What finds no room is found again by the next scrub.
const (
	maxLosses   = 1 << 16
	maxUnhealed = 100 // that are listed
	maxWhy      = 500 // bytes of an error in the list
)

const (
	fromNode     = "peer"
	fromUpstream = "upstream"
)

func newLosses() *losses {
	l := &losses{open: map[artifact.Digest]*loss{}, healed: map[string]int64{fromNode: 0, fromUpstream: 0}, ask: make(chan artifact.Digest, 1024),
		lines: rate.NewLimiter(1, lossLines), tries: rate.NewLimiter(1, lossLines)}
	for by := range numFinder {
		l.bad[by] = map[artifact.Damage]int64{artifact.Missing: 0, artifact.WrongBytes: 0, artifact.Unreadable: 0}
	}
	return l
}

// ReportDamage is for whoever was told by the Store that a blob is damaged, and has not asked for it through the Mirror: it is
// looked at, and brought back. The caller does not wait for that.
func (m *Mirror) ReportDamage(d artifact.Digest, why error) { m.report(d, byPeer, why) }

// reportRead is ReportDamage for a client's answer that broke off.
func (m *Mirror) reportRead(d artifact.Digest) {
	m.report(d, byRead, fmt.Errorf("an answer was cut short: %w", artifact.ErrDamaged))
}

func (m *Mirror) report(d artifact.Digest, by finder, why error) {
	background(m.flights, damagedKey(d), m.config.ZipBudget, m.condemns, func(ctx context.Context) (any, error) {
		return m.condemn(ctx, d, by, why)
	})
}

func damagedKey(d artifact.Digest) string { return "damaged " + d.String() }

// damaged has a blob looked at that a read could not have, and moved out of the way. When it returns the right bytes can take its
// place. why is the error of the Store.
func (m *Mirror) damaged(ctx context.Context, man artifact.Manifest, k artifact.Kind, why error) {
	d := man.Ref(k).Digest
	_, _ = fly(ctx, m.flights, damagedKey(d), m.config.ClientWait, m.config.ZipBudget, m.condemns, func(ctx context.Context) (struct{}, error) {
		before := m.followed.seen() // and what was not looked at then is only late
		damage, err := m.condemn(ctx, d, byRead, why)
		if damage == artifact.Missing && m.wasHere(ctx, man.Module, d, before) {
			m.lost(d, &loss{damage: damage, by: byRead, reason: why.Error(), module: man.Module, kind: k})
		}
		return struct{}{}, err
	}) // what cannot be moved is replaced where it is
}

// wasHere reports whether a blob that is missing was here: its change was looked at before, and it was not missing then.
func (m *Mirror) wasHere(ctx context.Context, mv module.Version, d artifact.Digest, before int64) bool {
	if before == 0 || m.followed.lacking(d) {
		return false
	}
	seq, err := m.config.Changes.Place(ctx, mv)
	return err == nil && seq < before
}

// condemn looks at a blob again and moves it out of the way. An error means that it stands where it stood.
func (m *Mirror) condemn(ctx context.Context, d artifact.Digest, by finder, why error) (artifact.Damage, error) {
	damage, err := m.config.Store.Condemn(ctx, d, artifact.Truncate(why.Error(), maxWhy))
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return damage, err
	case damage == artifact.Intact && err == nil:
		m.log.Warn("a stored blob could not be read right, and could when it was looked at again", "digest", d, "err", why)
	case damage == artifact.WrongBytes || damage == artifact.Unreadable:
		m.lost(d, &loss{damage: damage, by: by, reason: why.Error()})
	}
	if err != nil {
		m.log.Error("a damaged blob cannot be moved into quarantine", "digest", d, "err", err)
	}
	return damage, err
}

// lost notes a loss, if it is a new one, and has it looked for in the catalog.
func (m *Mirror) lost(d artifact.Digest, l *loss) {
	if m.losses.add(d, l) {
		m.alarmLoss(d, l)
	}
	m.losses.seek(d)
}

// seek has a loss looked for in the catalog.
func (ls *losses) seek(d artifact.Digest) {
	select {
	case ls.ask <- d:
	default:
		ls.mu.Lock()
		defer ls.mu.Unlock()
		ls.more = true
	}
}

// sought returns the losses that seek had no room for, and others that the follower does not know yet; none if it had.
func (m *Mirror) sought() map[artifact.Digest]bool {
	wanted := map[artifact.Digest]bool{}
	m.losses.mu.Lock()
	defer m.losses.mu.Unlock()
	if !m.losses.more {
		return wanted
	}
	m.losses.more = false
	for d := range m.losses.open {
		if !m.followed.lacking(d) {
			wanted[d] = true
		}
	}
	return wanted
}

// lostAt notes a blob that is missing for certain, and tells the follower as soon as it has room for it.
func (m *Mirror) lostAt(ctx context.Context, c artifact.Change, k artifact.Kind, ref artifact.Ref, by finder) error {
	for m.followed.full() {
		select {
		case <-time.After(followRescan):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	why := fmt.Sprintf("%s %s is published, and its bytes are not here any more", c.Manifest.Module, k)
	l := &loss{damage: artifact.Missing, by: by, reason: why, module: c.Manifest.Module, kind: k}
	if m.losses.add(ref.Digest, l) {
		m.alarmLoss(ref.Digest, l)
	}
	m.followed.want(ctx, &missing{seq: c.Seq, module: c.Manifest.Module, kind: k, ref: ref, since: time.Now(), lost: true})
	return nil
}

// A disk that has lost everything must not fill another one with log: some lines at once, then one a second. All are counted.
const lossLines = 20

// alarmLoss counts and logs a loss.
func (m *Mirror) alarmLoss(d artifact.Digest, l *loss) {
	m.losses.count(l)
	if l.by == byScrub {
		m.scrub.foundBad()
	}
	m.losses.mu.Lock()
	e := Event{What: Damaged, Module: l.module, Kind: l.kind} // which may not be known yet
	m.losses.mu.Unlock()
	m.happened(e, errors.New(l.reason))
	if !m.losses.lines.Allow() {
		return
	}
	m.log.Error("a stored blob is damaged: look at the disk; the right bytes are fetched from another node or the upstream",
		"digest", d, "damage", l.damage, "by", finderNames[l.by], "err", l.reason)
}

// add reports whether l is new.
func (ls *losses) add(d artifact.Digest, l *loss) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.open[d] != nil || len(ls.open) >= maxLosses {
		return false
	}
	l.found = time.Now()
	ls.open[d] = l
	return true
}

func (ls *losses) count(l *loss) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.bad[l.by][l.damage]++
}

// located notes what a lost blob is of, and reports whether it is still lost.
func (ls *losses) located(d artifact.Digest, mv module.Version, k artifact.Kind) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.open[d]
	if l != nil {
		l.module, l.kind = mv, k
	}
	return l != nil
}

// unnamed is called if the catalog does not name a blob: nobody misses it.
func (m *Mirror) unnamed(d artifact.Digest) {
	m.losses.mu.Lock()
	delete(m.losses.open, d)
	m.losses.mu.Unlock()
	if err := m.config.Store.Unnamed(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Warn("cannot note that nothing names a damaged blob", "digest", d, "err", err)
	}
}

// returned is called when the right bytes of a blob were stored, wherever they came from.
func (m *Mirror) returned(d artifact.Digest, from string) {
	ls := m.losses
	ls.mu.Lock()
	l := ls.open[d]
	if l == nil {
		ls.mu.Unlock()
		return
	}
	delete(ls.open, d)
	ls.healed[from]++
	ls.mu.Unlock()
	m.happened(Event{What: Healed, Module: l.module, Kind: l.kind, Took: time.Since(l.found), Source: from}, nil)
	m.log.Info("a damaged blob is healed", "module", l.module.Path, "version", l.module.Version, "kind", l.kind, "digest", d, "from", from, "after", time.Since(l.found))
}

// tried notes that a blob could not be brought back, and when that will be tried again.
func (ls *losses) tried(d artifact.Digest, next time.Time, err error) (tries int) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.open[d]
	if l == nil {
		return 0
	}
	l.tries++
	l.next, l.err = next, err
	return l.tries
}

// has reports whether d is known to be lost.
func (ls *losses) has(d artifact.Digest) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.open[d] != nil
}

// Health is what this node knows of damaged blobs.
type Health struct {
	Bad      int64      `json:"bad"`      // found since the start
	Healed   int64      `json:"healed"`   // of these, and of those that an earlier process had found
	Unhealed int        `json:"unhealed"` // whose right bytes are not back
	Untried  int        `json:"untried"`  // of these, nothing has been tried yet
	List     []Unhealed `json:"list"`     // the oldest of them
}

// Health returns what this node knows of damaged blobs.
func (m *Mirror) Health() Health { return m.losses.health() }

func (ls *losses) health() Health {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	h := Health{List: []Unhealed{}}
	for _, by := range ls.bad {
		for _, n := range by {
			h.Bad += n
		}
	}
	for _, n := range ls.healed {
		h.Healed += n
	}
	for d, l := range ls.open {
		h.Unhealed++
		if l.tries == 0 {
			h.Untried++
		}
		u := Unhealed{Digest: d.String(), Damage: l.damage, Found: l.found.UTC().Truncate(time.Second), Tries: l.tries, Module: l.module.Path, Version: l.module.Version}
		if l.kind != 0 {
			u.Kind = l.kind.String()
		}
		if l.err != nil {
			u.Error, u.Next = artifact.Truncate(l.err.Error(), maxWhy), l.next.UTC().Truncate(time.Second)
		}
		h.List = append(h.List, u)
	}
	slices.SortFunc(h.List, func(a, b Unhealed) int { return cmp.Or(a.Found.Compare(b.Found), cmp.Compare(a.Digest, b.Digest)) })
	h.List = h.List[:min(len(h.List), maxUnhealed)]
	return h
}

// resume begins with what earlier processes had found and not healed.
func (m *Mirror) resume() {
	list, err := m.config.Store.Damaged()
	if err != nil {
		m.log.Warn("cannot read which blobs were damaged before", "err", err)
	}
	for _, about := range list {
		d, err := artifact.ParseDigest(about.Digest)
		if err != nil || about.Replaced || about.Unnamed {
			continue
		}
		if m.losses.lines.Allow() {
			m.log.Warn("a blob that was found damaged before is not healed yet", "digest", d, "damage", about.Damage, "since", about.Time, "err", about.Reason)
		}
		m.losses.add(d, &loss{damage: about.Damage, by: byStart, reason: about.Reason})
		m.losses.seek(d)
	}
}

// locateRest bounds the rest between two walks through the catalog for blobs that were lost, which is nine times as long as the
// walk.
const locateRest = time.Minute

// locate finds out what lost blobs are of, until ctx ends, and tells the follower.
func (m *Mirror) locate(ctx context.Context) {
	for {
		wanted := m.sought()
		if len(wanted) == 0 {
			select {
			case d := <-m.losses.ask:
				wanted[d] = true
			case <-ctx.Done():
				return
			}
		}
		for range cap(m.losses.ask) {
			select {
			case d := <-m.losses.ask:
				wanted[d] = true
			default:
			}
		}
		begin := time.Now()
		m.locateAll(ctx, wanted)
		select {
		case <-time.After(min(9*time.Since(begin), locateRest)):
		case <-ctx.Done():
			return
		}
	}
}

// locateAll walks through the catalog once, for all of wanted.
func (m *Mirror) locateAll(ctx context.Context, wanted map[artifact.Digest]bool) {
	whole := true
	for c, err := range m.config.Changes.Changes(ctx, 0) {
		if err != nil { // one row may be damaged; the rest follows
			whole = false
			continue
		}
		for k, ref := range blobsOf(c.Manifest) {
			if !wanted[ref.Digest] || m.forgeries.of(c.Manifest, k) != nil {
				continue
			}
			delete(wanted, ref.Digest)
			if m.losses.located(ref.Digest, c.Manifest.Module, k) {
				m.followed.want(ctx, &missing{seq: c.Seq, module: c.Manifest.Module, kind: k, ref: ref, since: time.Now(), lost: true})
			}
		}
		if len(wanted) == 0 {
			return
		}
	}
	if !whole || ctx.Err() != nil {
		for d := range wanted { // it may be named where nothing could be read
			m.losses.tried(d, time.Time{}, fmt.Errorf("the catalog cannot say what it is of: %w", artifact.ErrUnavailable))
		}
		return
	}
	for d := range wanted {
		m.unnamed(d)
	}
}

// blobsOf yields the parts of a manifest that lie in the store.
func blobsOf(man artifact.Manifest) func(yield func(artifact.Kind, artifact.Ref) bool) {
	return func(yield func(artifact.Kind, artifact.Ref) bool) {
		for _, k := range []artifact.Kind{artifact.Mod, artifact.Zip} {
			ref := man.Ref(k)
			if ref.IsZero() || k == artifact.Mod && ref.Size <= artifact.MaxInline {
				continue
			}
			if !yield(k, ref) {
				return
			}
		}
	}
}
