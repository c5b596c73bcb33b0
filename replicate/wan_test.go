package replicate

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"modmirror/replicate/replicatetest"
)

// way is how long something takes between datacenters: round trips of 80 ms, up to 200 ms more in each direction, which is the
// same on all connections for a quarter of a second, as where they share a line; and one in fifty is lost and sent again.
func way() time.Duration {
	jitter := rand.New(rand.NewPCG(1, uint64(time.Now().UnixMilli()/250)))
	d := 40*time.Millisecond + time.Duration(jitter.Int64N(int64(200*time.Millisecond)))
	for rand.N(50) == 0 {
		d += 500 * time.Millisecond
	}
	return d
}

// lane is one direction of a connection between datacenters. What is sent arrives in order, each time after a way of its own.
// Writes never block.
type lane struct {
	way  func() time.Duration
	wake chan struct{} // has room for one

	mu    sync.Mutex
	sent  []parcel  // guarded by mu
	last  time.Time // guarded by mu; when the last of sent arrives
	ended bool      // guarded by mu
}

type parcel struct {
	at   time.Time
	data []byte
}

func (l *lane) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *lane) end() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.notify()
}

func (l *lane) write(p []byte) (int, error) {
	at := time.Now().Add(l.way())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return 0, io.ErrClosedPipe
	}
	if at.Before(l.last) {
		at = l.last
	}
	l.last = at
	l.sent = append(l.sent, parcel{at, append([]byte(nil), p...)})
	l.notify()
	return len(p), nil
}

func (l *lane) read(p []byte) (int, error) {
	for {
		n, wait, err := l.take(p)
		if n > 0 || err != nil {
			return n, err
		}
		if wait == 0 {
			<-l.wake
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-l.wake:
		}
		timer.Stop()
	}
}

// take returns what has arrived, or how long it takes until something does; 0: nothing is on its way.
func (l *lane) take(p []byte) (n int, wait time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		l.notify() // whoever else reads
		return 0, 0, io.EOF
	}
	if len(l.sent) == 0 {
		return 0, 0, nil
	}
	if wait = time.Until(l.sent[0].at); wait > 0 {
		return 0, wait, nil
	}
	n = copy(p, l.sent[0].data)
	if l.sent[0].data = l.sent[0].data[n:]; len(l.sent[0].data) == 0 {
		l.sent = l.sent[1:]
	}
	return n, 0, nil
}

// distant is an end of a connection between datacenters.
type distant struct {
	net.Conn // for what nobody uses here
	in, out  *lane
}

func (n *network) distantPipe() (a, b net.Conn) {
	there, back := &lane{way: n.way, wake: make(chan struct{}, 1)}, &lane{way: n.way, wake: make(chan struct{}, 1)}
	a, b = distant{in: back, out: there}, distant{in: there, out: back}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.far = append(n.far, a, b)
	return a, b
}

// hangUp ends all connections: raft keeps some, and synctest waits for who reads them.
func (n *network) hangUp() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.far {
		c.Close()
	}
}

// newDistantCluster returns a cluster without nodes.
func newDistantCluster(t *testing.T) *cluster {
	c := &cluster{t: t, net: newNetwork()}
	c.net.way = way
	t.Cleanup(c.net.hangUp) // after the nodes are closed
	return c
}

func (d distant) Read(p []byte) (int, error)         { return d.in.read(p) }
func (d distant) Write(p []byte) (int, error)        { return d.out.write(p) }
func (d distant) Close() error                       { d.in.end(); d.out.end(); return nil }
func (d distant) LocalAddr() net.Addr                { return address("distant") }
func (d distant) RemoteAddr() net.Addr               { return address("distant") }
func (d distant) SetDeadline(time.Time) error        { return nil } // nothing is lost here
func (d distant) SetReadDeadline(t time.Time) error  { return nil }
func (d distant) SetWriteDeadline(t time.Time) error { return nil }

// distantCluster is three voters in three zones.
func distantCluster(t *testing.T, profile string, trip func(string) (time.Duration, bool)) *cluster {
	c := newDistantCluster(t)
	c.config = func(i int, conf *Config) {
		conf.Profile, conf.Trip = profile, trip
		conf.HeartbeatTimeout, conf.CommitTimeout, conf.reconcile = time.Second, 250*time.Millisecond, time.Second
		conf.Self.Zone = fmt.Sprint("zone", i)
	}
	c.grow(3)
	return c
}

// elections writes for a while, and returns by how much the term rose.
func (c *cluster) elections(for_ time.Duration) uint64 {
	c.t.Helper()
	before := c.leader().raft.CurrentTerm()
	for i, end := 0, time.Now().Add(for_); time.Now().Before(end); i++ {
		key := replicatetest.NewDatabase(c.t, fmt.Sprintf("db%d-%d.example.org", before, i)).Key
		if err := c.nodes[i%3].TrustDatabase(c.t.Context(), key); err != nil {
			c.t.Logf("write %d: %v", i, err)
		}
		time.Sleep(5 * time.Second) // of the bubble
	}
	return c.leader().raft.CurrentTerm() - before
}

// Over such a network nobody loses its office for ten minutes under wan, nor under auto once it has
// adapted, with the lease of lan until the next start and with that of wan after it. Under lan somebody does.
func TestDistantVoters(t *testing.T) {
	far := func(string) (time.Duration, bool) { return 80 * time.Millisecond, true }
	t.Run(ProfileWAN, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			if n := distantCluster(t, ProfileWAN, nil).elections(10 * time.Minute); n > 0 {
				t.Errorf("%d elections in ten minutes", n)
			}
		})
	})
	t.Run(ProfileLAN, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := distantCluster(t, ProfileLAN, nil).elections(10 * time.Minute)
			if t.Logf("%d elections", n); n == 0 {
				t.Error("no election in ten minutes: this network is too good to show anything")
			}
		})
	})
	t.Run(ProfileAuto, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := distantCluster(t, ProfileAuto, far)
			adapted := func() bool {
				for _, n := range c.nodes {
					if n.Profile() != ProfileWAN {
						return false
					}
				}
				return true
			}
			waitFor(t, "a change of the profile", adapted)
			if n := c.elections(10 * time.Minute); n > 0 {
				t.Errorf("%d elections in ten minutes with the lease of lan", n)
			}
			for i, n := range c.nodes {
				if n.pace.lease != time.Second {
					t.Errorf("node %d has the lease %v", i, n.pace.lease)
				}
				c.close(i)
				n := c.open(i)
				if n.Profile() != ProfileWAN || n.pace.lease != 2500*time.Millisecond {
					t.Errorf("node %d starts again with %s and the lease %v", i, n.Profile(), n.pace.lease)
				}
				c.registered(i)
			}
			if n := c.elections(10 * time.Minute); n > 0 {
				t.Errorf("%d elections in ten minutes after a restart", n)
			}
		})
	})
}

// A follower with the patience of lan, whose leader sends heartbeats as wan has it, may stand for election, and raises no term.
func TestMixedProfiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDistantCluster(t)
		c.config = func(i int, conf *Config) {
			conf.Profile = []string{ProfileWAN, ProfileWAN, ProfileLAN}[i]
			conf.HeartbeatTimeout, conf.CommitTimeout, conf.reconcile = time.Second, 3*time.Second, time.Second // only heartbeats are heard
		}
		c.grow(3)
		c.lead("a leader with wan", func(lead *Node) error {
			if lead != c.nodes[0] {
				return lead.TransferLeadershipTo(t.Context(), c.nodes[0].ID())
			}
			return nil
		})
		if n := c.elections(10 * time.Minute); n > 0 {
			t.Errorf("%d elections in ten minutes", n)
		}
	})
}

// A leader that is cut off and is more patient than the others is in office for a while beside the next one, but none is that
// was not in office alone a lease ago.
func TestOfficesOverlapByALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDistantCluster(t)
		c.net.way = func() time.Duration { return time.Millisecond }
		c.config = func(i int, conf *Config) {
			conf.Profile = []string{ProfileWAN, ProfileLAN, ProfileLAN}[i]
			conf.HeartbeatTimeout, conf.CommitTimeout, conf.reconcile = time.Second, 250*time.Millisecond, time.Second
		}
		c.grow(3)
		old, beside := c.nodes[0], time.Duration(0)
		for try := 0; beside <= 0; try++ { // the votes may be split, and the election take longer than the lease
			if try == 5 {
				t.Fatal("they are never in office beside each other: this shows nothing")
			}
			c.host(0).partition(false)
			c.lead("a leader with wan", func(lead *Node) error {
				if lead != old {
					return lead.TransferLeadershipTo(t.Context(), old.ID())
				}
				return nil
			})
			waitFor(t, "office", func() bool { return old.InOffice() && !c.nodes[1].InOffice() && !c.nodes[2].InOffice() })
			c.host(0).partition(true)
			var next, last time.Time
			for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(time.Millisecond) {
				if next.IsZero() && (c.nodes[1].InOffice() || c.nodes[2].InOffice()) {
					next = time.Now()
				}
				if old.InOffice() {
					last = time.Now()
				}
			}
			if beside = last.Sub(next); next.IsZero() || beside >= old.Lease() {
				t.Errorf("one is in office until %v, and the next from %v on, with a lease of %v", last, next, old.Lease())
			}
		}
		c.host(0).partition(false)
	})
}

func TestChooser(t *testing.T) {
	const ms = time.Millisecond
	begin := time.Now()
	for _, test := range []struct {
		name  string
		far   bool
		looks []trip // the round trip to one of two voters, a second apart; that to the other is 1 ms
		want  bool   // far, in the end
	}{
		{"near", false, looksOf(100, ms), false},
		{"far", false, looksOf(6, 31*ms), true},
		{"far for too short", false, looksOf(5, 31*ms), false},
		{"far, and not for one look", false, append(append(looksOf(5, 31*ms), 30*ms), looksOf(5, 31*ms)...), false},
		{"neither", false, looksOf(100, 30*ms), false},
		{"far, and near again", true, looksOf(61, 15*ms), false},
		{"near for too short", true, looksOf(60, 15*ms), true},
		{"near, and not for one look", true, append(append(looksOf(60, 15*ms), 16*ms), looksOf(60, 15*ms)...), true},
		{"far, and not so far", true, looksOf(200, 29*ms), true},
		{"silent", true, looksOf(200, 0), true},
		{"silent and near before", false, looksOf(200, 0), false},
	} {
		c := chooser{far: test.far}
		for i, d := range test.looks {
			c.look(begin.Add(time.Duration(i)*time.Second), []trip{ms, d})
		}
		if c.far != test.want {
			t.Errorf("%s: far is %v", test.name, c.far)
		}
	}
	c := chooser{far: true}
	for i := range 200 {
		if c.look(begin.Add(time.Duration(i)*time.Second), nil) {
			t.Error("a node without other voters changes its profile")
		}
	}
}

func looksOf(n int, d trip) (all []trip) {
	for range n {
		all = append(all, d)
	}
	return all
}

// raft takes every pair of timeouts that a life can come to.
func TestPace(t *testing.T) {
	for _, begin := range []string{ProfileLAN, ProfileWAN} {
		for _, then := range []string{ProfileLAN, ProfileWAN} {
			n := openNode(t, Config{Dir: t.TempDir(), Profile: ProfileAuto, FirstTrip: map[string]time.Duration{ProfileWAN: 31 * time.Millisecond}[begin], Stream: newNetwork().stream("", "host")})
			if n.Profile() != begin {
				t.Fatalf("the profile is %s", n.Profile())
			}
			n.setProfile(then)
			for _, leads := range []bool{false, true} {
				n.setLeads(leads)
				want := map[string]time.Duration{"lan lan false": 1000, "lan lan true": 1000, "lan wan false": 5000, "lan wan true": 1000,
					"wan wan false": 5000, "wan wan true": 5000, "wan lan false": 2500, "wan lan true": 2500}[fmt.Sprint(begin, " ", then, " ", leads)]
				if got := n.raft.ReloadableConfig(); got.HeartbeatTimeout != want*time.Millisecond+slack || got.ElectionTimeout != n.heartbeat()+slack {
					t.Errorf("from %s to %s, leader %v: heartbeat %v, election %v, want heartbeat %v", begin, then, leads, got.HeartbeatTimeout, got.ElectionTimeout, want*time.Millisecond)
				}
			}
			if got := n.Profile(); got != then {
				t.Errorf("the profile is %s, want %s", got, then)
			}
		}
	}
}

// Of a voter that does not answer nothing is known, whatever it took before: one that fails answers late at last.
func TestTripOfASilentVoter(t *testing.T) {
	var known atomic.Bool
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(i int, conf *Config) {
		conf.Trip = func(string) (time.Duration, bool) { return time.Second, known.Load() }
	}
	c.grow(2)
	for want, ok := range map[time.Duration]bool{0: false, time.Second: true} {
		known.Store(ok)
		if got := c.leader().trips(); len(got) != 1 || got[0] != want {
			t.Errorf("the round trips are %v, want %v", got, want)
		}
	}
}

// What a start begins with.
func TestInitialProfile(t *testing.T) {
	dir := t.TempDir()
	c := Config{Dir: dir}
	c.setDefaults()
	check := func(what, profile string, first, lease time.Duration, want string) {
		t.Helper()
		c.Profile, c.FirstTrip = profile, first
		if got := c.initialProfile(); got != want || c.leaseOf(got) != lease {
			t.Errorf("%s: a start begins with %s and the lease %v, want %s and %v", what, got, c.leaseOf(got), want, lease)
		}
	}
	const s = time.Second
	check("not said", "", s, s/2, ProfileLAN)
	check("lan", ProfileLAN, s, s/2, ProfileLAN)
	check("wan", ProfileWAN, 0, 5*s/2, ProfileWAN)
	check("nothing known", ProfileAuto, 0, s, ProfileLAN)
	check("near", ProfileAuto, 30*time.Millisecond, s, ProfileLAN)
	check("far", ProfileAuto, 31*time.Millisecond, 5*s/2, ProfileWAN)
	if err := writeProfile(dir, ProfileWAN); err != nil {
		t.Fatal(err)
	}
	check("was wan", ProfileAuto, time.Millisecond, 5*s/2, ProfileWAN)
	check("was wan, and lan is configured", ProfileLAN, s, s/2, ProfileLAN)
	for _, text := range []string{"", "{", `{"format":2,"profile":"wan"}`, `{"format":1,"profile":"auto"}`} {
		if err := writeFile(dir+"/"+profileFile, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := readProfile(dir); got != "" || err == nil || !strings.Contains(err.Error(), profileFile) {
			t.Errorf("readProfile of %q = %q, %v", text, got, err)
		}
		check("damaged", ProfileAuto, 0, s, ProfileLAN)
	}
	if got, err := readProfile(t.TempDir()); got != "" || err != nil {
		t.Errorf("readProfile of nothing = %q, %v", got, err)
	}
}
