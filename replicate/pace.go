package replicate

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// pace is how patient raft is at this node now. What raft cannot change while it runs is the leader's lease, which must not be
// longer than the heartbeat timeout. So a change of the profile in one life goes as far as the lease lets it:
//
//   - From lan to wan: a follower is as patient as wan says at once, so that no election is begun too early. A leader whose lease
//     is that of lan goes on to send heartbeats as often as lan does, because with those of wan, half a second to a
//     second apart, it would step down. Its lease is that of wan from its next start on.
//   - From wan to lan: the heartbeat timeout goes down to the lease, half of what it was; the rest follows with the next start.
//
// The profiles of nodes may differ, as they do while they adapt. raft is safe with any timing, and a follower that is less
// patient than its leader does not get the others to follow it: before it raises the term it asks them whether they would vote
// for it (pre-vote), and who hears its leader says no.
type pace struct {
	lease time.Duration // of this life

	heartbeat atomic.Int64           // a follower's timeout, as a time.Duration
	profile   atomic.Pointer[string] // ProfileLAN or ProfileWAN

	tuning sync.Mutex // held by who reads raft's settings, changes some, and writes them back
	leads  bool       // guarded by tuning
}

// slack is by how much the timeouts of raft are longer than they are said to be, see hurry.
const slack = time.Millisecond

// Profile returns how patient this node is now: [ProfileLAN] or [ProfileWAN].
func (n *Node) Profile() string { return *n.pace.profile.Load() }

// heartbeat returns after how long a follower that hears nothing stands for election, now.
func (n *Node) heartbeat() time.Duration { return time.Duration(n.pace.heartbeat.Load()) }

// begin sets the pace of a life. raft does not run yet.
func (p *pace) begin(c *Config) {
	profile := c.initialProfile()
	p.profile.Store(&profile)
	p.lease = c.leaseOf(profile)
	p.heartbeat.Store(int64(c.heartbeatOf(profile)))
}

// timeouts returns the heartbeat and the election timeout of raft. The caller holds tuning.
func (p *pace) timeouts() (heartbeat, election time.Duration) {
	election = time.Duration(p.heartbeat.Load())
	if heartbeat = election; p.leads && p.lease < heartbeat/2 {
		heartbeat = p.lease
	}
	return heartbeat + slack, election + slack
}

// tune changes settings of raft that can be changed while it runs.
func (n *Node) tune(change func(rc *raft.ReloadableConfig)) error {
	n.pace.tuning.Lock()
	defer n.pace.tuning.Unlock()
	return n.tuneLocked(change)
}

func (n *Node) tuneLocked(change func(rc *raft.ReloadableConfig)) error {
	rc := n.raft.ReloadableConfig()
	before := rc
	if change(&rc); rc == before {
		return nil
	}
	return n.raft.ReloadConfig(rc)
}

// setLeads has raft know how often to send heartbeats.
func (n *Node) setLeads(leads bool) {
	n.pace.tuning.Lock()
	defer n.pace.tuning.Unlock()
	n.pace.leads = leads
	n.retime()
}

// setProfile changes the profile of this life as far as that goes.
func (n *Node) setProfile(profile string) {
	n.pace.tuning.Lock()
	defer n.pace.tuning.Unlock()
	n.pace.profile.Store(&profile)
	n.pace.heartbeat.Store(int64(max(n.config.heartbeatOf(profile), n.pace.lease)))
	n.retime()
}

// retime brings raft's timeouts to what they should be. The caller holds tuning.
func (n *Node) retime() {
	if n.config.Profile != ProfileAuto {
		return // nothing ever changes, and hurry stays
	}
	heartbeat, election := n.pace.timeouts()
	if err := n.tuneLocked(func(rc *raft.ReloadableConfig) { rc.HeartbeatTimeout, rc.ElectionTimeout = heartbeat, election }); err != nil {
		n.log.Error("change how patient raft is", "heartbeat", heartbeat, "err", err)
	}
}

// adaptEvery is how often the round trips are looked at.
const adaptEvery = time.Second

// adapt keeps the profile to what the round trips to the other voters say, until ctx ends.
func (n *Node) adapt(ctx context.Context) {
	tick := time.NewTicker(adaptEvery)
	defer tick.Stop()
	c := chooser{far: far(n.Profile())}
	kept, err := readProfile(n.config.Dir)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		trips := n.trips()
		if c.look(time.Now(), trips) {
			n.setProfile(profileOf(c.far))
			n.log.Info("the round trips to the other voters have raft change its profile", "profile", n.Profile(), "trips", trips,
				"heartbeat", n.heartbeat(), "lease", n.pace.lease, "lease_of_next_start", n.config.leaseOf(n.Profile()))
		}
		if profile := n.Profile(); (err != nil || kept != profile) && len(trips) > 0 && n.latch.fault() == nil {
			if err = writeProfile(n.config.Dir, profile); err != nil {
				n.log.Debug("keep the choice of a profile for the next start", "err", err) // it is made again then
			}
			kept = profile
		}
	}
}

// trips returns the round trips to the other voters. What one that does not answer took before is no longer so: its last answers
// may have been late because it was about to fail.
func (n *Node) trips() (out []trip) {
	for _, s := range n.servers() {
		if s.Suffrage == raft.Voter && string(s.ID) != n.id.Node {
			t, ok := n.config.Trip(string(s.ID))
			if !ok {
				t = 0
			}
			out = append(out, t)
		}
	}
	return out
}
