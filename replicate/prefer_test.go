package replicate

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// priorities are what nodes say of how much they are to lead, in tests.
type priorities struct {
	mu     sync.Mutex
	of     map[string]int  // guarded by mu, as all that follows
	unfit  map[string]bool // cannot lead
	placed bool            // an operator has placed the leadership
}

func (p *priorities) change(f func(p *priorities)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

func (p *priorities) configure(c *Config) {
	c.Priority = func(id string) (int, bool) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.of[id], true
	}
	c.Fit = func(id string) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return !p.unfit[id]
	}
	c.KeepLeader = func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.placed
	}
}

// The leadership goes to the highest voter that has kept up for a minute, and stays where an operator has put it.
func TestPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		said := &priorities{of: map[string]int{}, unfit: map[string]bool{}}
		c := newDistantCluster(t)
		c.config = func(i int, conf *Config) {
			said.configure(conf)
			conf.Profile, conf.HeartbeatTimeout, conf.CommitTimeout, conf.reconcile = ProfileWAN, time.Second, 250*time.Millisecond, time.Second
		}
		c.grow(3)
		first := c.leader()
		var others []*Node
		for _, n := range c.nodes {
			if n != first {
				others = append(others, n)
			}
		}
		low, high := others[0], others[1]
		stays := func(lead *Node, long time.Duration, why string) {
			t.Helper()
			time.Sleep(long) // of the bubble
			if got := c.leader(); got != lead {
				t.Fatalf("%s: node %d leads, want node %d", why, c.indexOf(got), c.indexOf(lead))
			}
		}
		said.change(func(p *priorities) { p.of[low.ID()], p.of[high.ID()] = 1, 2 })
		stays(first, 50*time.Second, "before a minute is over")
		said.change(func(p *priorities) { p.unfit[high.ID()] = true })
		stays(low, 20*time.Second, "after a minute, the highest of those that can")
		said.change(func(p *priorities) { p.unfit[high.ID()] = false })
		stays(low, 50*time.Second, "before a minute is over for another leader")
		said.change(func(p *priorities) { p.placed = true })
		stays(low, 10*time.Minute, "an operator has placed it")
		said.change(func(p *priorities) { p.placed = false })
		stays(high, 10*time.Second, "no longer")
		said.change(func(p *priorities) { p.of[low.ID()] = 2 })
		stays(high, 10*time.Minute, "the same priority is no higher one")
	})
}

// However a preferred zone comes and goes, the leadership is handed over a few times an hour at most.
func TestPriorityOfAFlappingZone(t *testing.T) {
	for _, test := range []struct {
		up, down time.Duration
		most     int // of a day, by one node
	}{
		{10 * time.Second, 10 * time.Second, 0},
		{59 * time.Second, time.Second, 0},
		{70 * time.Second, 50 * time.Second, 28},
		{10 * time.Minute, 5 * time.Minute, 28},
		{2 * time.Hour, time.Hour, 8},
	} {
		var p preference
		begin, tries := time.Now(), 0
		inARow, worst := 0, 0 // in an hour
		lead := false
		for at := time.Duration(0); at < 24*time.Hour; at += time.Second {
			if at%time.Hour == 0 {
				inARow = 0
			}
			up := at%(test.up+test.down) < test.up
			if !up && lead { // it leads no more: this node is elected again
				lead = false
			}
			if lead {
				continue
			}
			if at%(test.up+test.down) == test.up {
				p.begin()
			}
			var able []string
			if up {
				able = []string{"a"}
			}
			if p.since == nil {
				p.begin()
			}
			if len(p.steady(begin.Add(at), able, time.Minute)) > 0 && p.try(begin.Add(at)) {
				tries++
				inARow++
				worst = max(worst, inARow)
				lead = true
			}
		}
		t.Logf("%v up, %v down: %d times a day, %d in an hour", test.up, test.down, tries, worst)
		if tries > test.most || test.most > 0 && tries == 0 || worst > 4 {
			t.Errorf("%v up, %v down: %d times a day, %d in an hour, want %d at most", test.up, test.down, tries, worst, test.most)
		}
	}
}

// Who of the voters could take over.
func TestPreferred(t *testing.T) {
	var held completeness
	said := &priorities{of: map[string]int{"1": 1, "2": 2, "3": 3, "4": 4, "5": 5, "6": 6, "7": 7, "8": 2}, unfit: map[string]bool{"7": true}}
	n := &Node{config: Config{Complete: held.of}}
	said.configure(&n.config)
	n.id.Node = "1"
	var all []Peer
	for id := range said.of {
		all = append(all, Peer{ID: id, Member: true, Voter: id != "4"})
		held.set(id, 9)
	}
	held.set("5", 8)
	n.pulse.heard("6", false)
	if got := n.preferred(all, 9); !slices.Equal(got, []string{"3", "2", "8"}) {
		t.Errorf("preferred() = %v, want 3, which comes first, 2 and 8", got)
	}
	n.id.Node = "3"
	if got := n.preferred(all, 9); len(got) > 0 {
		t.Errorf("preferred() = %v at the highest of those that can", got)
	}
}
