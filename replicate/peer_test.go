package replicate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"modmirror/mirror/artifact"
)

func somePeer() Peer {
	return Peer{ID: "ID1", Name: "one", Address: "host1:3001", Zone: "eu1", Role: RoleVoter, Version: "v1.2.3", Boot: "B1", Starts: 3}
}

// Each life of a data directory registers, and of two at once the later one counts.
func TestRegister(t *testing.T) {
	m := newMachine(t)
	peer := func(f func(p *Peer)) Peer {
		p := somePeer()
		f(&p)
		return p
	}
	for _, tt := range []struct {
		name string
		c    command
		want error
	}{
		{"first", registerCommand{somePeer()}, nil},
		{"again", registerCommand{somePeer()}, nil},
		{"copy of the directory", registerCommand{peer(func(p *Peer) { p.Boot = "B2" })}, ErrClone},
		{"old image", registerCommand{peer(func(p *Peer) { p.Boot, p.Starts = "B2", 2 })}, ErrClone},
		{"restart elsewhere", registerCommand{peer(func(p *Peer) { p.Boot, p.Starts, p.Address = "B2", 4, "host9:3001" })}, nil},
		{"the life before", registerCommand{somePeer()}, ErrClone},
		{"taken name", registerCommand{peer(func(p *Peer) { p.ID = "ID2" })}, ErrNameTaken},
		{"another node", registerCommand{peer(func(p *Peer) { p.ID, p.Name = "ID2", "two" })}, nil},
		{"another's name later", registerCommand{peer(func(p *Peer) { p.ID, p.Starts = "ID2", 9 })}, ErrNameTaken},
		{"without a name", registerCommand{peer(func(p *Peer) { p.Name = "" })}, artifact.ErrRefused},
		{"without starts", registerCommand{peer(func(p *Peer) { p.Starts = 0 })}, artifact.ErrRefused},
		{"with a strange id", registerCommand{peer(func(p *Peer) { p.ID = "a@b" })}, artifact.ErrRefused},
		{"with an unknown role", registerCommand{peer(func(p *Peer) { p.Role = "witness" })}, artifact.ErrRefused},
		{"with a newline in its zone", registerCommand{peer(func(p *Peer) { p.Zone = "a\nb" })}, artifact.ErrRefused},
		{"forget", forgetCommand{"ID1"}, nil},
		{"forget twice", forgetCommand{"ID1"}, nil},
		{"removed", registerCommand{peer(func(p *Peer) { p.Starts = 99 })}, ErrRemoved},
		{"name of a removed one", registerCommand{peer(func(p *Peer) { p.ID = "ID3" })}, nil},
		{"forget nobody", forgetCommand{""}, artifact.ErrRefused},
	} {
		if c, ok := tt.c.(registerCommand); ok {
			if err := m.catalog.Check(c.Peer); !errors.Is(err, tt.want) {
				t.Errorf("%s: Check() = %v, want %v", tt.name, err, tt.want)
			}
		}
		before := stripApplied(dump(t, m.catalog))
		err := m.one(tt.c)
		if !errors.Is(err, tt.want) || err == nil != (tt.want == nil) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if after := stripApplied(dump(t, m.catalog)); err != nil && after != before {
			t.Errorf("%s: refused, and the catalog changed", tt.name)
		}
		if err := m.catalog.view(func(s state) error { return s.checkConfig() }); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	table(t, m.catalog, "ID2", "ID3")
}

func table(t *testing.T, c *catalog, want ...string) {
	t.Helper()
	var got []string
	if err := c.view(func(s state) error {
		all, err := s.peers()
		for _, p := range all {
			got = append(got, p.ID)
		}
		return err
	}); err != nil || strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("the node table has %q, %v, want %q", got, err, want)
	}
}

// What an operator said of a node stays when it starts again.
func TestHold(t *testing.T) {
	m := newMachine(t)
	p := somePeer()
	m.apply(registerCommand{p}, holdCommand{p.ID, true})
	p.Starts++
	m.apply(registerCommand{p}, holdCommand{"nobody", true})
	held := func() (held bool) {
		if err := m.catalog.view(func(s state) error {
			p, ok, err := s.peer(p.ID)
			held = ok && p.Held && p.Starts == 4
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return held
	}
	if !held() {
		t.Error("a restart promotes a node that was demoted")
	}
	m.apply(holdCommand{p.ID, false})
	if held() {
		t.Error("it is held for ever")
	}
}

func TestPeerRowRefused(t *testing.T) {
	key, good := []byte(nodePrefix+"ID1"), appendPeer(nil, somePeer())
	if p, err := parsePeer(key, good); err != nil || p != somePeer() {
		t.Fatalf("parsePeer() = %+v, %v", p, err)
	}
	for name, tt := range map[string]struct{ k, v []byte }{
		"other format":     {key, append([]byte{2}, good[1:]...)},
		"cut short":        {key, good[:len(good)-1]},
		"a byte too many":  {key, append(bytes.Clone(good), 0)},
		"long form":        {key, append([]byte{1, 0x83, 0}, good[2:]...)},
		"strange flag":     {key, append([]byte{1, 3, 2}, good[3:]...)},
		"no id":            {[]byte(nodePrefix), good},
		"nothing":          {key, nil},
		"removed, long":    {[]byte(gonePrefix + "ID1"), []byte{1, 1}},
		"removed, nothing": {[]byte(gonePrefix), []byte{1}},
	} {
		if err := checkConfigRow(tt.k, tt.v); err == nil {
			t.Errorf("%s: checkConfigRow(%q, %x) accepts it", name, tt.k, tt.v)
		}
	}
}

// Each start is counted, durably, before the node is used. A node.json of before they were counted begins at 0.
func TestStarts(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "node.json")
	boots := map[string]bool{}
	for want := range uint64(3) {
		n := openNode(t, Config{Dir: dir})
		id, err := readIdentity(path)
		self := n.Self()
		if err != nil || id.Starts != want+1 || self.Starts != want+1 || self.ID != id.Node || self.Name != id.Node[:8] || self.Role != RoleVoter {
			t.Errorf("start %d: node.json %+v, %v; %+v", want+1, id, err, self)
		}
		if st, _ := n.Status(t.Context()); st.Starts != want+1 || st.Boot != self.Boot || st.LastIndex == 0 || st.CommitIndex == 0 {
			t.Errorf("start %d: %+v", want+1, st)
		}
		boots[self.Boot] = true
		n.Close()
	}
	if len(boots) != 3 {
		t.Errorf("boots of 3 starts: %v", boots)
	}
	id, err := readIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	old, err := json.Marshal(map[string]string{"node": id.Node, "cluster": id.Cluster})
	if err := errors.Join(err, os.WriteFile(path, old, 0o600)); err != nil {
		t.Fatal(err)
	}
	if n := openNode(t, Config{Dir: dir}); n.Self().Starts != 1 {
		t.Errorf("the first start that is counted has the number %d", n.Self().Starts)
	}
}

// Whoever forms a cluster knows the id before the node is opened. Until there is a log, any cluster may still come of it.
func TestIdentify(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	id, err := Identify(dir)
	if err != nil || !id.Fresh || id.Node == "" || id.Cluster != "" {
		t.Fatalf("Identify() = %+v, %v", id, err)
	}
	n := openNode(t, Config{Dir: dir})
	defer n.Close()
	again, err := Identify(dir)
	if err != nil || again.Fresh || again.Node != id.Node || again.Cluster == "" || n.ID() != id.Node {
		t.Errorf("Identify() of a node that was opened = %+v, %v, want node %s", again, err, id.Node)
	}
}

// A node that starts on a full disk is counted, and registers, when there is room.
func TestStartCountedLater(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	c.registered(0)
	before := n.Self().Starts
	n.id.Starts = before // as in node.json
	n.uncounted.Store(true)
	if err := n.registerOnce(context.Background()); err != nil {
		t.Fatal(err)
	}
	id, err := readIdentity(n.identityPath())
	if err != nil || id.Starts != before+1 || n.Self().Starts != before+1 || n.uncounted.Load() {
		t.Errorf("after there was room: node.json %+v, %v, starts %d, want %d", id, err, n.Self().Starts, before+1)
	}
	all, err := n.Peers(t.Context())
	if err != nil || len(all) != 1 || all[0].Starts != before+1 || all[0].Address != c.addr(0) || !all[0].Voter || !all[0].Leader || !all[0].Member {
		t.Errorf("Peers() = %+v, %v", all, err)
	}
}

// The node table is read once, and again after each change of it.
func TestPeersAreOfNow(t *testing.T) {
	c := newCluster(t, 1)
	n := c.leader()
	for i := range 3 {
		self := n.Self()
		self.Version = fmt.Sprintf("version-%d", i)
		if _, err := n.propose(t.Context(), registerCommand{self}); err != nil {
			t.Fatal(err)
		}
		all, err := n.Peers(t.Context())
		if err != nil || len(all) != 1 || all[0].Version != self.Version || !all[0].Voter {
			t.Fatalf("Peers() = %+v, %v after %s", all, err, self.Version)
		}
		all[0].Version = "changed by who asked"
	}
	before := n.rows.Load()
	c.publish("example.com/a", "v1.0.0")
	if _, err := n.Peers(t.Context()); err != nil || n.rows.Load() != before {
		t.Errorf("the table is read again though it did not change: %v", err)
	}
	n.diverge(errors.New("another root"))
	if _, err := n.Peers(t.Context()); err == nil {
		t.Error("Peers() of a catalog that is not what was committed")
	}
}

// A start that is not counted yet, as the disk is full, is as many as the one before, and no copy of it.
func TestUncountedStartIsNoClone(t *testing.T) {
	c := newCluster(t, 1)
	n := c.leader()
	before := n.Self()
	before.Boot = "life-before"
	if err := n.update(func(s state) error {
		return s.bucket(bucketConfig).Put([]byte(nodePrefix+before.ID), appendPeer(nil, before))
	}); err != nil {
		t.Fatal(err)
	}
	n.uncounted.Store(true)
	if n.checkSelf(); n.whyRefused() != nil {
		t.Errorf("an uncounted start: %v", n.whyRefused())
	}
	n.uncounted.Store(false)
	if n.checkSelf(); !errors.Is(n.whyRefused(), ErrClone) {
		t.Errorf("a counted one of the same number: %v, want ErrClone", n.whyRefused())
	}
}
