package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
	"modmirror/replicate/peer"
)

// tokenName is the file in the data directory of a node that was given no secret. It is how other nodes on this machine can
// join it.
const tokenName = "cluster-token"

// openLink opens the internal port, and finds the cluster that this node belongs to, or founds one, if it has none.
// founding is what the catalog has to be opened with.
func (n *node) openLink(ctx context.Context) (founding replicate.Config, err error) {
	c := n.config.Cluster
	id, err := replicate.Identify(n.config.DataDir)
	if errors.Is(err, replicate.ErrLocked) {
		return founding, fmt.Errorf("--data-dir %s: another modmirror runs on this directory; stop it or choose another directory", n.config.DataDir)
	}
	if err != nil {
		return founding, fmt.Errorf("--data-dir %s: %w", n.config.DataDir, err)
	}
	n.identity.Store(&id)
	n.boot = rand.Text()
	cred, err := n.credentials(id.Node)
	if err != nil {
		return founding, err
	}
	addr, err := advertised(ctx, c)
	if err != nil {
		return founding, err
	}
	n.link, err = peer.Listen(peer.Config{
		Listen: c.peerListen(), Advertise: addr, Credentials: cred,
		Self: n.hello, Check: n.checkPeer, Was: n.was, Leader: n.leader,
		Refused: func(r *peer.Refusal) { n.front.blame(r) },
		Network: n.outside.network, Log: n.log, Metrics: n.metrics,
	})
	if errors.Is(err, syscall.EADDRINUSE) && !c.clustered() {
		n.log.Info("no other node can join this one: another process uses the internal port; see --peer-listen", "address", c.peerListen())
		n.link = nil
		return founding, nil
	}
	if err != nil {
		return founding, fmt.Errorf("--peer-listen %s: %w", c.peerListen(), err)
	}
	n.closers = append(n.closers, n.link.Close)
	if !id.Fresh || c.Expect <= 1 && len(c.Join) == 0 {
		return founding, nil
	}
	return n.form(ctx, id)
}

// form finds or founds a cluster. It takes as long as it takes.
func (n *node) form(ctx context.Context, id replicate.Identity) (founding replicate.Config, err error) {
	c := n.config.Cluster
	if c.Expect > 1 {
		n.front.say("it is looking for the %d new nodes that are to found a cluster, or for one of a cluster that exists", c.Expect)
	} else {
		n.front.say("it is looking for a node of the cluster that it is to join")
	}
	f, err := n.find(ctx, c.Expect)
	if err != nil {
		return founding, err
	}
	founding.FirstTrip = n.longestTrip(ctx, slices.Concat(f.Servers, f.Ask))
	if f.Servers != nil && f.Servers[0].ID == id.Node {
		founding.Found = &replicate.Founding{Cluster: f.Cluster}
		for _, m := range f.Servers {
			founding.Found.Servers = append(founding.Found.Servers, replicate.Member{ID: m.ID, Address: m.Address, Voter: true})
		}
		return founding, nil
	}
	founding.Join = true
	n.ask = f.Ask
	return founding, nil
}

// find agrees with others about a cluster, or finds theirs. From then on this node introduces itself as one of it.
func (n *node) find(ctx context.Context, expect int) (peer.Formation, error) {
	c := n.config
	f, err := peer.Form(ctx, peer.FormConfig{Expect: expect, Join: c.Cluster.Join, File: filepath.Join(c.DataDir, "formed.json"), Link: n.link, Log: n.log})
	if err != nil {
		return f, fmt.Errorf("find the other nodes: %w", err)
	}
	id := *n.identity.Load()
	id.Cluster = f.Cluster
	n.identity.Store(&id)
	return f, nil
}

// resume goes on where an earlier process ended: it had made the log of a node that joins, or that waits for the one that
// founds, and nothing had been replicated into it yet. Without that the node would belong nowhere, and be refused by a cluster
// that may count on its vote.
func (n *node) resume(ctx context.Context) error {
	known := cmp.Or(n.identity.Load().Cluster, n.replica.Cluster())
	if known != "" || len(n.config.Cluster.Join) == 0 {
		return nil
	}
	n.front.say("it is looking for the cluster that it was about to join when it was stopped")
	f, err := n.find(ctx, 0) // it has a log, so it founds nothing any more
	n.ask = f.Ask
	return err
}

// credentials are what this node shows to others.
func (n *node) credentials(node string) (peer.Credentials, error) {
	c := n.config.Cluster
	if !c.TLS.isZero() {
		cred, err := peer.FromFiles(c.TLS.CA, c.TLS.Cert, c.TLS.Key, n.log)
		if err != nil {
			return nil, fmt.Errorf("--tls-ca, --tls-cert, --tls-key: %w", err)
		}
		return cred, nil
	}
	file := c.TokenFile
	if file == "" {
		file = filepath.Join(n.config.DataDir, tokenName)
		if err := ensureToken(file); err != nil {
			return nil, err
		}
	}
	token, err := peer.ReadToken(file)
	if err != nil {
		return nil, fmt.Errorf("--cluster-token-file: %w", err)
	}
	// Of another user's file it is not said: this one may be able to read it for no other reason, as in a container.
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o004 != 0 && isOwn(info) {
		n.log.Warn("every user of this machine can read the cluster's secret; chmod 600 it", "file", file)
	}
	return peer.FromToken(token, node), nil
}

// ensureToken makes a secret at file, unless there is one. Two processes that do so at once end up with the same.
func ensureToken(file string) error {
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".token-")
	if err != nil {
		return fmt.Errorf("make a cluster token: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = io.WriteString(tmp, peer.NewToken().String()+"\n")
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("make a cluster token: %w", err)
	}
	if err := os.Link(tmp.Name(), file); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make a cluster token: %w", err)
	}
	return nil
}

// hello is how this node introduces itself.
func (n *node) hello() peer.Hello {
	c, id := n.config.Cluster, n.identity.Load()
	h := peer.Hello{Cluster: id.Cluster, Node: id.Node, Name: cmp.Or(c.NodeName, shortID(id.Node)), Boot: n.boot,
		Zone: c.Zone, Role: c.Role, Version: buildVersion(), Level: replicate.NewestLevel}
	if self := n.counted.Load(); self != nil { // raft speaks with others before the catalog's Open returns
		h.Boot, h.Starts = self.Boot, self.Starts
	}
	if r := n.opened.Load(); r != nil {
		self := r.Self()
		h.Boot, h.Starts = self.Boot, startOf(self.Starts, r.Counted())
		h.Cluster = cmp.Or(r.Cluster(), id.Cluster)
	}
	return h
}

// startOf returns which start a node says this is: none on a full disk, where it is not written down yet. It would be taken for a
// copy of the start before, and its operator told to give up its data.
func startOf(starts uint64, counted bool) uint64 {
	if !counted {
		return 0
	}
	return starts
}

// checkPeer is what the catalog has against a node that wants to speak to this one.
func (n *node) checkPeer(h peer.Hello) error {
	r := n.opened.Load()
	if r == nil || h.Role == "" { // nothing is known yet, or it is a command and no node
		return nil
	}
	p := replicate.Peer{ID: h.Node, Name: h.Name, Address: h.Address, Zone: h.Zone, Role: h.Role, Version: h.Version, Boot: h.Boot, Starts: max(h.Starts, 1), Level: h.Level}
	err := r.Check(p)
	switch {
	case errors.Is(err, replicate.ErrRemoved):
		return peer.RefuseRemoved(h)
	case errors.Is(err, replicate.ErrTooOld):
		return peer.Refuse(peer.TooOld, "%v", err)
	case errors.Is(err, replicate.ErrClone) && h.Starts == 0:
		return peer.RefuseStarting(h)
	case errors.Is(err, replicate.ErrClone):
		return peer.RefuseClone(h, n.knownAs(func(o replicate.Peer) bool { return o.ID == h.Node }))
	case errors.Is(err, replicate.ErrNameTaken):
		return peer.RefuseName(h, n.knownAs(func(o replicate.Peer) bool { return o.Name == h.Name }))
	}
	return err
}

// was says whether this node's cluster was recovered from the one with that id.
func (n *node) was(cluster string) (at time.Time, ok bool) {
	if r := n.opened.Load(); r != nil {
		return r.Was(cluster)
	}
	return at, false
}

// knownAs returns what the node table says of a node, for messages.
func (n *node) knownAs(is func(replicate.Peer) bool) peer.Hello {
	all, _ := n.opened.Load().Peers(context.Background())
	for _, p := range all {
		if is(p) {
			return peer.Hello{Node: p.ID, Name: p.Name, Address: p.Address, Boot: p.Boot, Starts: p.Starts}
		}
	}
	return peer.Hello{}
}

// leader returns the member that leads, as far as this node knows.
func (n *node) leader() (peer.Member, bool) {
	r := n.opened.Load()
	if r == nil {
		return peer.Member{}, false
	}
	all, err := r.Peers(context.Background())
	if err != nil {
		return peer.Member{}, false
	}
	for _, p := range all {
		if p.Leader {
			return memberOf(p), p.Address != ""
		}
	}
	return peer.Member{}, false
}

func memberOf(p replicate.Peer) peer.Member {
	return peer.Member{ID: p.ID, Name: nameOf(p), Address: p.Address, Zone: p.Zone}
}

// nameOf is what people call a member; one that has not registered yet has no name.
func nameOf(p replicate.Peer) string { return cmp.Or(p.Name, shortID(p.ID)) }

// shortID is the name of a node that was given none.
func shortID(id string) string { return id[:min(8, len(id))] }

// raftStream carries raft's connections over the internal port.
type raftStream struct {
	net.Listener
	link *peer.Link
}

func (s raftStream) Dial(ctx context.Context, id, addr string) (net.Conn, error) {
	return s.link.DialRaft(ctx, id, addr)
}

// clusterOptions adds to the catalog's configuration what connects it with the others.
func (n *node) clusterOptions(c *replicate.Config) {
	cl := n.config.Cluster
	c.Voters, c.Profile = cl.Voters, cl.Profile
	c.OnRefused = n.onRefused
	c.OnCounted = func(self replicate.Peer) { n.counted.Store(&self) }
	if n.link == nil {
		return
	}
	c.Stream = raftStream{n.link.Raft(), n.link}
	c.Forward = n.forward
	c.Complete, c.Trip, c.Fit, c.Silent = n.complete, n.trip, n.fit, n.mute
	c.Priority, c.KeepLeader = n.priority, n.keepLeader
	c.Self = replicate.Peer{Name: cl.NodeName, Address: n.link.Self().Address, Zone: cl.Zone, Role: cl.Role, Version: buildVersion()}
}

// forward carries a proposal to the leader.
func (n *node) forward(ctx context.Context, leader replicate.Member, body []byte) ([]byte, error) {
	ctx, cancel := n.whileLeader(ctx, leader.ID)
	defer cancel()
	resp, err := n.link.Do(ctx, peer.Request{Node: leader.ID, Addr: leader.Address, Method: http.MethodPost, Path: "/v1/propose", Body: bytes.NewReader(body)})
	if err != nil {
		return nil, err
	}
	b, _, err := answerOf(resp)
	return b, err
}

// onRefused is called when the cluster does not take this node, for good.
func (n *node) onRefused(err error) {
	n.log.Error("this node is no part of its cluster any more; what it holds is served, and nothing new is taken", "err", err)
	n.activity.alarm("the cluster does not take this node any more: %v", err)
	n.mu.Lock()
	n.refused = err
	n.mu.Unlock()
	n.stopIfDiverged()
}

// stopIfDiverged ends the answers of a node that holds something else than its cluster; also those that its mirror has in
// memory, for which no catalog is asked.
func (n *node) stopIfDiverged() {
	n.mu.Lock()
	err := n.refused
	n.mu.Unlock()
	if m := n.front.mirror.Load(); m != nil && errors.Is(err, artifact.ErrDamaged) {
		m.StopServing(err)
	}
}

// joinCluster asks to be a member, until this node is one.
func (n *node) joinCluster(ctx context.Context) error {
	if n.ask == nil {
		return nil
	}
	if err := n.link.Join(ctx, n.identity.Load().Cluster, n.ask); err != nil {
		return fmt.Errorf("join the cluster: %w", err)
	}
	return n.catchUp(ctx)
}

// catchUp waits until a node that is new has the catalog as it was when it joined: until then it could say less than any other.
func (n *node) catchUp(ctx context.Context) error {
	n.front.say("it has joined the cluster and is receiving the catalog")
	for try := 0; ; try++ {
		asking, cancel := context.WithTimeout(ctx, 10*time.Second) // a leader that does not answer may not lead any more
		err := n.sync(asking)
		cancel()
		if err == nil {
			return nil
		}
		if try%10 == 0 {
			n.log.Info("receiving the catalog", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// handOver gives the leadership away before this node goes, so that nobody has to wait for an election.
func (n *node) handOver(ctx context.Context) {
	if n.link == nil || n.isLeader() != nil {
		return
	}
	if _, need := n.spreadTo(); need == 0 { // there is nobody else
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := n.replica.TransferLeadership(ctx); err != nil {
		n.log.Warn("the leadership is not handed over; the others elect a new leader", "err", err)
	}
}

// others returns the members that this node does not hear of as dead, without itself.
func (n *node) others() []peer.Member {
	all, err := n.replica.Peers(context.Background())
	if err != nil {
		return nil
	}
	var out []peer.Member
	for _, p := range all {
		if p.Member && p.ID != n.replica.ID() && p.Address != "" {
			out = append(out, memberOf(p))
		}
	}
	return out
}

// nearest returns the other nodes in the order in which bytes are fetched from them: those that answer first, of the own zone
// before others, the quicker before the slower, and the leader, which has most to do, last of its kind.
func (n *node) nearest() []peer.Member {
	others := n.others()
	lead, _ := n.leader()
	rank := func(m peer.Member) [4]int64 {
		s, known := n.seen(m.ID)
		var r [4]int64
		if !known || !s.Healthy {
			r[0] = 1
		}
		if m.Zone != n.config.Cluster.Zone {
			r[1] = 1
		}
		if m.ID == lead.ID {
			r[2] = 1
		}
		r[3] = int64(s.RTT / (5 * time.Millisecond)) // finer differences are chance
		return r
	}
	slices.SortStableFunc(others, func(a, b peer.Member) int {
		x, y := rank(a), rank(b)
		return slices.Compare(x[:], y[:])
	})
	return others
}

// meet begins to speak with the other nodes, and waits until this one is a member.
func (n *node) meet(ctx context.Context) error {
	if n.link == nil {
		return nil
	}
	n.handleCatalog()
	n.table.Store(peer.NewTable(peer.TableConfig{Link: n.link, Members: n.others, Parse: parseStatus}))
	if err := n.resume(ctx); err != nil {
		return err
	}
	return n.joinCluster(ctx)
}

// trust makes the cluster trust a checksum database, as long as that takes: there may be no leader yet.
func (n *node) trust(ctx context.Context, key string) error {
	for try := 0; ; try++ {
		err := n.replica.TrustDatabase(ctx, key)
		if !errors.Is(err, artifact.ErrUnavailable) || n.link == nil {
			return err
		}
		n.front.say("it waits for a leader of the cluster: %v", err)
		if try == 0 {
			n.log.Info("waiting for a leader of the cluster", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// relisted is called when the catalog's listing of a path changed.
func (n *node) relisted(path string) {
	if m := n.front.mirror.Load(); m != nil {
		m.Relisted(path)
	}
}
