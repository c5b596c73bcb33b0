package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// zones is a simulated cluster (sim_test.go) of three zones, in which nothing fails but what a test breaks.
type zones struct {
	*sim
	t *testing.T
}

// inZones runs test with a cluster of so many nodes in each of the zones a, b and c. The first of each zone votes. edit, if there
// is one, may change a node before it starts.
func inZones(t *testing.T, each int, edit func(n *simNode), test func(z *zones)) {
	t.Helper()
	dir := simDir(t)
	synctest.Test(t, func(t *testing.T) {
		trace := newSimTrace()
		s, err := newSim(1, dir, trace)
		if err != nil {
			t.Fatal(err)
		}
		s.voters, s.loss, s.short, s.nodes = 3, lossFail, false, nil
		for i := range 3 * each {
			zone := i % 3
			n := &simNode{sim: s, name: fmt.Sprintf("%c%d", 'a'+zone, i/3+1), number: i, zone: string(rune('a' + zone)), role: roleVoter,
				ip: fmt.Sprintf("10.0.%d.%d", zone, i+1), extra: []string{"--no-look-ahead"}}
			if i >= 3 {
				n.role = roleReplica
			}
			if edit != nil {
				edit(n)
			}
			n.wipe()
			s.nodes = append(s.nodes, n)
		}
		z := &zones{s, t}
		z.begin()
		if !t.Failed() {
			test(z)
		}
		s.check.mu.Lock()
		broken := s.check.broken
		s.check.mu.Unlock()
		if len(broken) > 0 {
			t.Error(strings.Join(broken, "\n"))
		}
		if t.Failed() {
			t.Log(trace.tail(100))
		}
		s.end()
	})
}

// begin starts the nodes: first those that found the cluster.
func (z *zones) begin() {
	rest := z.nodes[3:]
	for _, some := range [][]*simNode{z.nodes[:3], rest} {
		z.nodes = z.nodes[:3]
		if len(some) > 0 && some[0].role == roleReplica {
			z.nodes = append(z.nodes, rest...)
		}
		for _, n := range some {
			n.start()
		}
		if !z.becomesWhole(time.Minute) {
			z.t.Errorf("the cluster does not begin: %s", z.lacks())
			return
		}
	}
	time.Sleep(5 * time.Second) // until all have heard how all are
}

// add publishes modules upstream.
func (z *zones) add(name string, n, size int) (mods []module.Version) {
	for i := range n {
		m := module.Version{Path: fmt.Sprintf("example.com/%s%d", name, i), Version: "v1.0.0"}
		z.source.publish(m, nil, size, false)
		mods = append(mods, m)
	}
	return mods
}

// addOwned publishes n modules for which owned holds, which depends on the ids of the nodes.
func (z *zones) addOwned(n, size int, owned func(module.Version) bool) (mods []module.Version) {
	for i := 0; len(mods) < n && i < 1000; i++ {
		m := module.Version{Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0"}
		if owned(m) {
			z.source.publish(m, nil, size, false)
			mods = append(mods, m)
		}
	}
	return mods
}

// named returns a node.
func (z *zones) named(name string) *simNode {
	return z.nodes[slices.IndexFunc(z.nodes, func(n *simNode) bool { return n.name == name })]
}

// get asks a node, which must answer 200.
func (z *zones) get(n *simNode, path string) answer {
	a, ok := n.serving().ask(path)
	if !ok || a.status != http.StatusOK {
		z.t.Errorf("%s: %s: %d %.300s", n.name, path, a.status, a.body)
	}
	return a
}

// all asks all nodes of some zones for a path at once.
func (z *zones) all(in, path string) {
	var wg sync.WaitGroup
	for _, n := range z.nodes {
		if strings.Contains(in, n.zone) {
			wg.Go(func() { z.get(n, path) })
		}
	}
	wg.Wait()
}

// awaitAll waits until every node holds everything.
func (z *zones) awaitAll() {
	if !z.becomesWhole(time.Minute) {
		z.t.Errorf("not all nodes hold everything: %s", z.lacks())
	}
}

// awaits waits until ok, two minutes at most.
func (z *zones) awaits(what string, ok func() bool) {
	for end := time.Now().Add(2 * time.Minute); !ok(); z.sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			z.t.Errorf("it is not so within two minutes that %s", what)
			return
		}
	}
}

// noticed waits until the nodes of a zone and the others hear each other, or do not any more.
func (z *zones) noticed(zone string, hear bool) {
	z.awaits(fmt.Sprintf("zone %s is heard: %v", zone, hear), func() bool {
		for _, n := range z.nodes {
			for _, o := range z.nodes {
				if apart := (n.zone == zone) != (o.zone == zone); !apart {
					continue
				}
				if e, ok := n.serving().n.seen(o.serving().n.replica.ID()); ok && e.Healthy != hear {
					return false
				}
			}
		}
		return true
	})
}

// fromAfar counts the blobs that came to the nodes of a zone out of another one.
func (z *zones) fromAfar(zone string) (n int64) {
	for _, node := range z.nodes {
		if l := node.serving(); l != nil && node.zone == zone {
			n += l.n.fromAfar.pulled.Load() + l.n.fromAfar.spread.Load()
		}
	}
	return n
}

// Each blob comes into each zone once, whoever asks for it, whether at all nodes at once or at one while the others follow.
func TestOneTransferAZone(t *testing.T) {
	inZones(t, 3, nil, func(z *zones) {
		mods := z.add("m", 24, 100_000)
		var wg sync.WaitGroup
		for i, m := range mods {
			path := artifactPath(m, artifact.Zip)
			if i%2 == 0 {
				wg.Go(func() { z.all("abc", path) })
			} else {
				wg.Go(func() { z.get(z.nodes[i%len(z.nodes)], path) })
			}
		}
		wg.Wait()
		z.awaitAll()
		total := int64(0)
		for _, zone := range []string{"a", "b", "c"} {
			n := z.fromAfar(zone)
			total += n
			if n == 0 || n > int64(len(mods)) {
				t.Errorf("%d blobs came to zone %s out of others", n, zone)
			}
		}
		// On a busy machine a voter may be slow enough for another one to be sent the copy as well, and both have it then.
		if must := int64(2 * len(mods)); total < must || total > must+must/8 {
			t.Errorf("%d blobs came out of one zone to another, of %d that must come to two zones each", total, len(mods))
		}
	})
}

// Whatever all nodes of all zones ask for at once, the cluster asks the upstream for once.
func TestOneFetchACluster(t *testing.T) {
	inZones(t, 3, nil, func(z *zones) {
		var paths []string
		for _, m := range z.add("m", 4, 1000) {
			z.source.up.Alias(m.Path, "main", m.Version)
			for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
				paths = append(paths, artifactPath(m, k))
			}
			paths = append(paths, "/"+m.Path+"/@v/list", "/"+m.Path+"/@latest", "/"+m.Path+"/@v/main.info")
		}
		z.source.up.Reset()
		var wg sync.WaitGroup
		for _, path := range paths {
			wg.Go(func() { z.all("abc", path) })
		}
		wg.Wait()
		for _, path := range paths {
			if n := z.source.up.Count(path); n != 1 {
				t.Errorf("the upstream is asked %d times for %s", n, path)
			}
		}
	})
}

// Of a record that clients look up at all nodes of all zones at once, the cluster asks the checksum database once, and for each
// tile that it takes to verify it; a zone that is cut off asks by itself.
func TestOneLookupACluster(t *testing.T) {
	inZones(t, 3, nil, func(z *zones) {
		lookup := func(m module.Version) string { return "/sumdb/" + simDatabase + "/lookup/" + m.Path + "@" + m.Version }
		first, rest, last := z.add("first", 1, 1000)[0], z.add("m", 4, 1000), z.add("last", 1, 1000)[0]
		z.source.countPaths()
		z.all("abc", lookup(first))
		for path, n := range z.source.countPaths() {
			if n != 1 && !strings.HasSuffix(path, "/supported") && !strings.HasSuffix(path, "/latest") {
				t.Errorf("the database is asked %d times for %s", n, path)
			}
		}
		var wg sync.WaitGroup
		for _, m := range rest {
			wg.Go(func() { z.all("abc", lookup(m)) })
		}
		wg.Wait()
		asked := z.source.countPaths()
		for _, m := range rest {
			if n := asked[lookup(m)]; n != 1 {
				t.Errorf("the database is asked %d times for the record of %s", n, m)
			}
		}
		z.cutOff("c")
		z.all("abc", lookup(last))
		if n := z.source.countPaths()[lookup(last)]; n < 2 {
			t.Errorf("the database is asked %d times for a record, by a cluster and a zone that is cut off", n)
		}
		z.net.heal()
	})
}

// A zone that is cut off has its own nodes ask the upstream; once for all of them.
func TestZoneCutOffFetches(t *testing.T) {
	passing := func(n *simNode) { n.extra = append(n.extra, "--on-quorum-loss", lossPassThrough) }
	inZones(t, 3, passing, func(z *zones) {
		z.cutOff("c")
		m := z.add("m", 1, 1000)[0]
		z.noticed("c", false)
		z.source.up.Reset()
		path := artifactPath(m, artifact.Mod)
		z.all("c", path)
		if n := z.source.up.Count(path); n < 1 || n > 3 { // what cannot be committed each node fetches for its own clients
			t.Errorf("the upstream is asked %d times for %s", n, path)
		}
		z.all("ab", path)
		z.net.heal()
		z.awaitAll()
	})
}

// A node to which the upstream falls silent is asked in vain a few times; then others fetch in its place, without delay, for its own
// clients too. Once the upstream answers it again, all is as before.
func TestUpstreamFallsSilent(t *testing.T) {
	inZones(t, 2, nil, func(z *zones) {
		a1, b1 := z.named("a1"), z.named("b1")
		owns := func(m module.Version) bool {
			t := b1.serving().n.turnFor(m.String())
			return len(t.cluster) > 0 && t.cluster[0].ID == a1.serving().n.replica.ID()
		}
		quick := func(what string, n *simNode, m module.Version, most time.Duration) {
			begin := time.Now()
			z.get(n, artifactPath(m, artifact.Mod))
			if took := time.Since(begin); took > most {
				t.Errorf("%s: %s takes %v", what, n.name, took)
			}
		}
		mods := z.addOwned(7, 100, owns)
		z.net.setCut(a1.ip, simUpstream, true)
		var wg sync.WaitGroup
		for _, m := range mods[:3] {
			wg.Go(func() { z.get(b1, artifactPath(m, artifact.Mod)) })
		}
		wg.Wait()
		for _, n := range z.nodes {
			z.awaits(n.name+" says that a1 does not fetch", func() bool {
				return strings.Contains(strings.Join(n.serving().n.view(t.Context()).problems(), "\n"), "a1.1 does not fetch")
			})
		}
		quick("a silent upstream of the owner", b1, mods[3], 2*time.Second)
		quick("one's own silent upstream", a1, mods[4], 2*time.Second)
		time.Sleep(2 * wayOutRetry) // in which it is asked again, in vain
		quick("it is still silent", b1, mods[5], 2*time.Second)
		z.net.setCut(a1.ip, simUpstream, false)
		z.awaits("all know that a1 fetches again", func() bool {
			return a1.serving().n.silent() == nil && owns(mods[6]) && !slices.ContainsFunc(z.nodes, func(n *simNode) bool {
				h, _, ok := n.serving().n.heard(a1.serving().n.replica.ID())
				return n != a1 && !(ok && h.Fetches)
			})
		})
		before := z.askedBy("a")
		quick("it answers again", b1, mods[6], 2*time.Second)
		if z.askedBy("a") == before {
			t.Error("a1 does not fetch what it owns")
		}
	})
}

// A zone of which every question to the upstream ends at a login page, or is forbidden, has no say for the others.
func TestZoneBehindAPortal(t *testing.T) {
	for _, status := range []int{http.StatusOK, http.StatusForbidden} {
		inZones(t, 1, nil, func(z *zones) {
			z.source.set(func() { z.source.portal[z.named("a1").ip] = status })
			for _, m := range z.add("m", 12, 100) {
				z.all("bc", "/"+m.Path+"/@v/list")
				z.get(z.named("b1"), artifactPath(m, artifact.Mod))
			}
			if a, _ := z.named("b1").serving().ask("/example.com/nothing/@v/list"); a.status != http.StatusNotFound {
				t.Errorf("%d: what does not exist: %d %s", status, a.status, a.body)
			}
			if n := z.askedBy("a"); n == 0 {
				t.Errorf("%d: a1 owns nothing", status)
			}
		})
	}
}

// Who asks a zone that is cut off for something new, just then, waits as long as its nodes need to see that nobody else answers and
// that there will be no leader, and not as long as the longest election takes.
func TestZoneCutOffAnswersSoon(t *testing.T) {
	passing := func(n *simNode) {
		n.extra = append(n.extra, "--raft-profile", "wan", "--on-quorum-loss", lossPassThrough)
	}
	inZones(t, 3, passing, func(z *zones) {
		z.cutOff("c")
		for _, m := range z.add("m", 3, 1000) {
			begin := time.Now()
			z.all("c", artifactPath(m, artifact.Mod))
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("%v is answered after %v", m, took)
			}
		}
		z.net.heal()
		z.awaitAll()
	})
}

// cutOff cuts a zone off from the other two, and leaves it its way to the upstream.
func (z *zones) cutOff(zone string) {
	z.net.mu.Lock()
	defer z.net.mu.Unlock()
	for _, a := range z.nodes {
		for _, b := range z.nodes {
			if a.zone == zone && b.zone != zone {
				z.net.cut[way{a.ip, b.ip}], z.net.cut[way{b.ip, a.ip}] = true, true
			}
		}
	}
	z.net.wake()
}

// A relay that dies while it pulls costs a second transfer, and no blob.
func TestRelayDies(t *testing.T) {
	inZones(t, 3, nil, func(z *zones) {
		for _, m := range z.add("m", 20, 1<<20) {
			path := artifactPath(m, artifact.Zip)
			done := make(chan struct{})
			go func() { defer close(done); z.get(z.named("a1"), path) }()
			relay := z.pulling(done)
			if relay == nil {
				<-done
				continue
			}
			relay.fail(false)
			<-done
			for _, n := range z.nodes {
				if n != relay {
					z.get(n, path)
				}
			}
			relay.start()
			z.awaitAll()
			return
		}
		t.Error("no replica was the relay of any of the blobs")
	})
}

// pulling waits until a replica pulls a blob out of another zone, and returns it; nil if all is done before.
func (z *zones) pulling(done chan struct{}) *simNode {
	for ended := 0; ended < 3000; ended++ {
		for _, n := range z.nodes {
			if n.role == roleReplica && n.receives() {
				return n
			}
		}
		select {
		case <-done:
		default:
			ended = 0
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// receives reports whether a part of a blob has come to a node.
func (n *simNode) receives() bool {
	l := n.serving()
	if l == nil {
		return false
	}
	s := &l.n.arrivals
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.all {
		if a.received.Load() > 0 {
			return true
		}
	}
	return false
}

// askedBy counts what the nodes of a zone asked the upstream and the checksum database.
func (z *zones) askedBy(zone string) (n int) {
	z.source.mu.Lock()
	defer z.source.mu.Unlock()
	for _, node := range z.nodes {
		if node.zone == zone {
			n += z.source.asked[node.ip]
		}
	}
	return n
}

// A zone without a way out asks nobody but other zones, and its clients get all they need: what is new, lists, what a branch
// means, and the checksum database. When no other zone answers it says so, and serves what it holds.
func TestZoneWithoutUpstream(t *testing.T) {
	noUpstream := func(n *simNode) {
		if n.zone == "c" {
			n.extra = append(n.extra, "--no-upstream")
		}
	}
	inZones(t, 2, noUpstream, func(z *zones) {
		mods := z.add("m", 3, 1000)
		m := mods[0]
		z.source.up.Alias(m.Path, "main", m.Version)
		c := z.named("c1")
		sumdb := "/sumdb/" + simDatabase
		lookup := sumdb + "/lookup/" + mods[1].Path + "@" + mods[1].Version
		for _, path := range []string{lookup, artifactPath(m, artifact.Info), artifactPath(m, artifact.Mod), artifactPath(m, artifact.Zip),
			"/" + m.Path + "/@v/list", "/" + m.Path + "/@latest", "/" + m.Path + "/@v/main.info", sumdb + "/supported", sumdb + "/latest"} {
			z.get(c, path)
			z.get(z.named("c2"), path)
		}
		if a, _ := c.serving().ask("/example.com/nothing/@v/v1.0.0.info"); a.status != http.StatusNotFound {
			t.Errorf("what the upstream does not know: %d %s", a.status, a.body)
		}
		z.awaitAll()
		z.cutOff("c")
		z.noticed("c", false)
		for _, path := range []string{artifactPath(mods[2], artifact.Mod), artifactPath(mods[2], artifact.Zip), "/" + mods[2].Path + "/@v/list", sumdb + "/lookup/" + mods[2].Path + "@" + mods[2].Version} {
			a, _ := c.serving().ask(path)
			if a.status != http.StatusServiceUnavailable || !strings.Contains(string(a.body), "--no-upstream") {
				t.Errorf("what nobody can fetch: %s: %d %s", path, a.status, a.body)
			}
		}
		for _, path := range []string{artifactPath(m, artifact.Zip), "/" + m.Path + "/@v/list", lookup, sumdb + "/supported", sumdb + "/latest"} {
			z.get(c, path)
		}
		if n := z.askedBy("c"); n != 0 {
			t.Errorf("the zone asks the upstream or the database %d times", n)
		}
		if n := z.askedBy("a") + z.askedBy("b"); n == 0 {
			t.Error("nobody asks the upstream")
		}
		z.net.heal()
		z.noticed("c", true)
		z.get(c, artifactPath(mods[2], artifact.Zip))
		z.awaitAll()
	})
}

// What crosses zones in the background is held to --wan-limit, and what stays in a zone is not; a client is not held up.
func TestZonesHeldToWANLimit(t *testing.T) {
	limit := func(n *simNode) { n.extra = append(n.extra, "--wan-limit", "64KiB") }
	inZones(t, 2, limit, func(z *zones) {
		const size = 500_000
		b1 := z.named("b1").serving().n
		mods := z.addOwned(6, size, func(m module.Version) bool { // what zone a fetches one of the others pulls, a node of its four more than one
			t := b1.turnFor(m.String())
			return len(t.cluster) > 0 && t.cluster[0].Zone == "a"
		})
		begin := time.Now()
		for _, m := range mods {
			z.get(z.named("a1"), artifactPath(m, artifact.Zip))
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("the clients wait %v", took)
		}
		if z.becomesWhole(5 * time.Second) {
			t.Errorf("all of it crosses to nodes that may take 64 KiB a second, within %v", time.Since(begin))
		}
		begin = time.Now()
		z.get(z.named("c2"), artifactPath(mods[len(mods)-1], artifact.Zip))
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("a client waits %v for what is pulled", took)
		}
		if !z.becomesWhole(2 * time.Minute) {
			t.Errorf("not all nodes hold everything: %s", z.lacks())
		}
		if n := z.fromAfar("a") + z.fromAfar("b") + z.fromAfar("c"); n != int64(2*len(mods)) {
			t.Errorf("%d blobs came out of one zone to another, of %d that must come to two each", n, len(mods))
		}
	})
}

// What a relay takes in the background stands still for as long as clients need the line. Who waits for it goes on to do so, and
// does not take the same over the line as well.
func TestRelayMakesRoom(t *testing.T) {
	limit := func(n *simNode) { n.extra = append(n.extra, "--wan-limit", "64KiB") }
	inZones(t, 2, limit, func(z *zones) {
		c1 := z.named("c1").serving().n
		mods := z.add("m", 14, 400_000) // so many that c1 is the relay of some, and too few to be pulled in bulk
		busy, quiet := make(chan struct{}), make(chan struct{})
		go func() { // clients at c1
			defer close(quiet)
			for {
				c1.wan.note(time.Now(), 1<<20)
				select {
				case <-busy:
					return
				case <-time.After(time.Second):
				}
			}
		}()
		z.cutOff("c") // else it gets copies when they are committed
		z.noticed("c", false)
		for _, m := range mods {
			z.get(z.named("a1"), artifactPath(m, artifact.Zip))
		}
		z.net.heal()
		time.Sleep(30 * time.Second) // in which a tenth of the limit is less than one of them
		if c1.arrivals.count() == 0 {
			t.Error("nothing stands still at c1")
		}
		time.Sleep(4 * time.Minute)
		close(busy)
		<-quiet
		if !z.becomesWhole(2 * time.Minute) {
			t.Errorf("not all nodes hold everything: %s", z.lacks())
		}
		if n := z.fromAfar("c"); n != int64(len(mods)) {
			t.Errorf("%d blobs came to zone c out of others, of %d", n, len(mods))
		}
	})
}

// count returns how many blobs are on their way.
func (s *arrivals) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}
