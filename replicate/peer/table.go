package peer

import (
	"context"
	"encoding/json"
	"errors"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// TableConfig says what a Table watches.
type TableConfig struct {
	Link     *Link
	Members  func() []Member // of the cluster, with or without this node; called at each round
	Interval time.Duration   // between two questions to one member, twice as long to a far one; 0: 1.5 s

	// Parse makes of a status what it means, once for all who look at it, as [Seen.Parsed]. nil: nothing.
	Parse func(status json.RawMessage) any
}

// Seen is what a Table knows of a member.
type Seen struct {
	Member
	Status  json.RawMessage // its last answer to GET /v1/status; nil: none yet
	Parsed  any             // what Parse made of it; not to be changed
	At      time.Time       // of that answer
	Sent    time.Time       // when it was asked for
	RTT     time.Duration   // how long it takes to ask it, smoothed
	Trip    time.Duration   // the shortest of the last times: a round trip, without what a busy node adds; 0: not known
	Healthy bool            // it answered lately
	Asked   bool            // a question to it has ended, whichever way
	Err     error           // why it is not healthy
}

// Table asks each other member for its status, again and again. Call Run.
type Table struct {
	config TableConfig
	slots  chan struct{}

	mu   sync.Mutex
	rows map[string]*row // guarded by mu
}

type row struct {
	Seen
	asking bool
	misses int
	due    time.Time
	times  [tripOf]time.Duration // of the last answers, in a ring
	next   int                   // in times
}

const (
	tableEvery   = 1500 * time.Millisecond
	tableTimeout = 2 * time.Second // for an answer
	tableFar     = 5 * time.Second // for that of a node that is far, where what is lost is sent again only after some round trips
	farTrip      = 30 * time.Millisecond
	tripOf       = 16 // answers
	tableAtOnce  = 16
	maxStatus    = 64 << 10
	maxMisses    = 2 // one lost answer is no illness
)

// NewTable returns a table that knows nothing yet.
func NewTable(c TableConfig) *Table {
	if c.Interval == 0 {
		c.Interval = tableEvery
	}
	return &Table{config: c, slots: make(chan struct{}, tableAtOnce), rows: map[string]*row{}}
}

// Run asks until ctx ends.
func (t *Table) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		for _, m := range t.due(time.Now()) {
			select {
			case t.slots <- struct{}{}:
			default:
				t.postpone(m) // all are waiting for members that hang; the next round comes soon
				continue
			}
			wg.Go(func() {
				defer func() { <-t.slots }()
				t.ask(ctx, m)
			})
		}
		if !pause(ctx, t.config.Interval/8) {
			return ctx.Err()
		}
	}
}

// due takes the members' list over and returns whom to ask now.
func (t *Table) due(now time.Time) (out []Member) {
	members := t.config.Members()
	self := t.config.Link.Self().Node
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.rows {
		if !slices.ContainsFunc(members, func(m Member) bool { return m.ID == id }) {
			delete(t.rows, id)
		}
	}
	for _, m := range members {
		if m.ID == self {
			continue
		}
		r := t.rows[m.ID]
		if r == nil {
			r = &row{Seen: Seen{Err: errors.New("not asked yet")}}
			t.rows[m.ID] = r
		}
		if r.Address != m.Address {
			r.due = now // it moved
		}
		r.Member = m
		if !r.asking && !now.Before(r.due) {
			every := t.interval(r)
			r.asking, r.due = true, now.Add(every*3/4+mrand.N(every/2))
			out = append(out, m)
		}
	}
	return out
}

// interval returns how often a member is asked. What nodes cost at rest is for the most part that each asks each other one how
// it is; between datacenters nothing depends on knowing it as soon as between neighbours, as long as it answers.
func (t *Table) interval(r *row) time.Duration {
	if r.Healthy && r.misses == 0 && r.Trip > farTrip {
		return 2 * t.config.Interval
	}
	return t.config.Interval
}

func (t *Table) postpone(m Member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.rows[m.ID]; r != nil {
		r.asking, r.due = false, time.Time{}
	}
}

func (t *Table) ask(ctx context.Context, m Member) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout(m.ID))
	defer cancel()
	begin := time.Now()
	b, err := t.config.Link.Call(ctx, Request{Node: m.ID, Addr: m.Address, Path: "/v1/status"}, nil, maxStatus)
	if err == nil && !json.Valid(b) {
		err = errors.New("its status is not JSON")
	}
	now := time.Now()
	var parsed any
	if err == nil && t.config.Parse != nil {
		parsed = t.config.Parse(b)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rows[m.ID]
	if r == nil {
		return // it was removed in between
	}
	r.asking, r.Asked = false, true
	if err != nil {
		if r.misses++; r.misses >= maxMisses || !r.Healthy || ClassOf(err) != "" {
			r.Healthy, r.Err = false, err
		}
		return
	}
	r.misses, r.Healthy, r.Err, r.Status, r.Parsed, r.At, r.Sent = 0, true, nil, b, parsed, now, begin
	r.took(now.Sub(begin))
}

// timeout returns how long to wait for the answer of a node.
func (t *Table) timeout(id string) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.rows[id]; r != nil && r.Trip > farTrip {
		return tableFar
	}
	return tableTimeout
}

// took notes how long an answer took. The caller holds mu.
func (r *row) took(d time.Duration) {
	d = max(d, 1) // 0 is none
	if r.RTT == 0 {
		r.RTT = d
	} else {
		r.RTT += (d - r.RTT) / 8
	}
	r.times[r.next%tripOf] = d
	r.next++
	r.Trip = slices.Min(r.times[:min(r.next, tripOf)])
}

// All returns what is known of each other member, sorted by id.
func (t *Table) All() []Seen {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Seen, 0, len(t.rows))
	for _, r := range t.rows {
		out = append(out, r.Seen)
	}
	slices.SortFunc(out, func(a, b Seen) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Get returns what is known of one member.
func (t *Table) Get(id string) (Seen, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.rows[id]
	if !ok {
		return Seen{}, false
	}
	return r.Seen, true
}

// Healthy returns the other members that answered lately, the nearest first.
func (t *Table) Healthy() []Member {
	all := slices.DeleteFunc(t.All(), func(s Seen) bool { return !s.Healthy })
	slices.SortStableFunc(all, func(a, b Seen) int { return int(a.RTT - b.RTT) })
	out := make([]Member, len(all))
	for i, s := range all {
		out[i] = s.Member
	}
	return out
}

// Missed notes that a member did not answer somebody who asked it for something else, so that it is not asked first
// until it answers again. A refusal or an error of the request itself is none of this.
func (t *Table) Missed(id string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.rows[id]; r != nil {
		r.Healthy, r.Err, r.misses, r.due = false, err, maxMisses, time.Time{}
	}
}
