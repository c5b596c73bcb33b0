package replicate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
)

func levelIn(t *testing.T, c *catalog) (level int) {
	t.Helper()
	if err := c.view(func(s state) error { level = s.level(); return s.checkConfig() }); err != nil {
		t.Fatal(err)
	}
	return level
}

// The level rises only when all nodes that the catalog knows support it, and never falls. Who supports less is refused then.
func TestLevel(t *testing.T) {
	m := newMachine(t)
	conf := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "ID1", Address: "a"}, {ID: "ID2", Address: "b"}}})
	m.logs = append(m.logs, &raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: conf})
	m.Apply(m.logs[0])
	peer := func(id string, level int) registerCommand {
		return registerCommand{Peer{ID: id, Name: "n" + id, Role: RoleVoter, Version: "v" + id, Boot: "B", Starts: uint64(len(m.logs)), Level: level}}
	}
	for _, tt := range []struct {
		name string
		c    command
		want string // "": it is no error
		now  int
	}{
		{"an old node", peer("ID1", 0), "", 1},
		{"a member is unknown", levelCommand{2, "ID1"}, "member ID2 has not said what it supports", 1},
		{"a new node", peer("ID2", 2), "", 1},
		{"one is old", levelCommand{2, "ID2"}, "nID1 (vID1) supports level 1", 1},
		{"the old one proposes", levelCommand{2, "ID1"}, "", 2},
		{"repeated", levelCommand{2, "ID1"}, "", 2},
		{"lowered", levelCommand{1, "ID1"}, "", 2},
		{"of nothing", levelCommand{0, "ID1"}, "", 2},
		{"far too high", levelCommand{1 << 40, "ID1"}, "supports level 2", 2},
		{"an old one comes back", peer("ID1", 0), "older than the feature level", 2},
		{"a new one comes back", peer("ID1", 2), "", 2},
		{"a later one comes", peer("ID3", 9), "", 2},
	} {
		err := m.one(tt.c)
		if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || !errors.Is(err, artifact.ErrRefused)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if now := levelIn(t, m.catalog); now != tt.now {
			t.Errorf("%s: the level is %d, want %d", tt.name, now, tt.now)
		}
	}
	if err := m.catalog.Check(peer("ID4", 1).Peer); !errors.Is(err, ErrTooOld) {
		t.Errorf("Check of an old node: %v", err)
	}
}

// A level that this version does not know stops the node, with the reason; it is not skipped.
func TestLevelOfTheFuture(t *testing.T) {
	m := newMachine(t)
	m.apply(registerCommand{Peer{ID: "ID1", Name: "one", Role: RoleVoter, Boot: "B", Starts: 1, Level: newestLevel + 1}})
	err, ok := m.Apply(m.entry(levelCommand{newestLevel + 1, "ID1"})).(error)
	if !ok || !errors.Is(err, errNewer) || !strings.Contains(err.Error(), "rises to feature level 5, and this version of modmirror knows up to 4") {
		t.Errorf("Apply = %v", err)
	}
	l := m.entry(clusterCommand{"c"})
	l.Data = []byte{entryFormat, kindRebalance + 1, 0}
	if _, err := parseEntry(l.Data); !errors.Is(err, errNewer) || !strings.Contains(err.Error(), "of kind 15, and this version of modmirror knows up to 14") {
		t.Errorf("parseEntry = %v", err)
	}
}

// What a node supports stands in its row in a form that versions without levels can read, as a part of the version.
func TestLevelInTheNodeTable(t *testing.T) {
	p := somePeer()
	if old := string(appendPeer(nil, p)); !strings.Contains(old, "v1.2.3") || strings.Contains(old, levelMark) {
		t.Errorf("the row of a node of level 1 is %q", old)
	}
	p.Level = 2
	row := appendPeer(nil, p)
	if !strings.Contains(string(row), "\x0ev1.2.3;level=2") || row[0] != 1 {
		t.Errorf("the row of a node of level 2 is %q", row)
	}
	if got, err := parsePeer([]byte(nodePrefix+p.ID), row); err != nil || got != p {
		t.Errorf("parsePeer = %+v, %v", got, err)
	}
	for _, v := range []string{"v;level=1", "v;level=02", "v;level=x", "v;level=", "v;level=2;level=3", ";level=99999"} {
		p := somePeer()
		p.Version = v
		if got, err := parsePeer([]byte(nodePrefix+p.ID), appendPeer(nil, p)); err == nil {
			t.Errorf("version %q was read as %+v", v, got)
		}
	}
}

// The number of errors that cross the wire is part of its form: older nodes take an answer with more for malformed.
func TestSentinelsAreThoseOfLevelOne(t *testing.T) {
	if len(sentinels) != 13 {
		t.Errorf("there are %d sentinels; more than 13 need a feature level", len(sentinels))
	}
}

// A node alone raises the level by itself, whether it registers or not, and finds all features when it is open.
func TestSingleNodeRaisesTheLevel(t *testing.T) {
	n := openNode(t, Config{Dir: t.TempDir()})
	defer n.Close()
	if l, err := n.Level(t.Context()); err != nil || l.Now != newestLevel || len(l.Waits) > 0 {
		t.Errorf("Level = %+v, %v", l, err)
	}
	if err := n.Audit(t.Context(), someAudit()); err != nil {
		t.Error(err)
	}
}

// A cluster raises its level when the last of its nodes supports it; until then what needs it is refused with words, and a
// node of the old version may come back. Afterwards it may not.
func TestClusterRaisesTheLevel(t *testing.T) {
	level := []int{1, 1, 1}
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(i int, conf *Config) { conf.level = level[i] }
	c.grow(3)
	level[0], level[1] = 2, 2
	for i := range 2 {
		c.close(i)
		c.open(i)
		c.registered(i)
	}
	err := c.nodes[0].Audit(t.Context(), someAudit()) // whoever leads
	if !errors.Is(err, artifact.ErrUnavailable) || !strings.Contains(err.Error(), "needs feature level 2 of the cluster, which is at 1") ||
		!strings.Contains(err.Error(), "node2 (test) supports level 1") {
		t.Errorf("Audit = %v", err)
	}
	if err := c.nodes[2].Check(c.nodes[2].Self()); err != nil {
		t.Errorf("the old node: %v", err)
	}
	c.close(2)
	level[2] = 2
	c.open(2)
	for i, n := range c.nodes {
		waitFor(t, "level 2", func() bool { l, err := n.Level(context.Background()); return err == nil && l.Now == 2 })
		if err := n.Check(Peer{ID: "ID", Name: "x", Role: RoleVoter, Boot: "B", Starts: 1}); !errors.Is(err, ErrTooOld) {
			t.Errorf("node %d lets an old node in: %v", i, err)
		}
	}
	if err := c.nodes[2].Audit(t.Context(), someAudit()); err != nil {
		t.Error(err)
	}
	c.close(2)
	level[2] = 1
	c.nodes[2] = c.open(2)
	waitFor(t, "refusal", func() bool { return c.nodes[2].whyRefused() != nil })
	if err := c.nodes[2].whyRefused(); !strings.Contains(err.Error(), "supports level 1, and the cluster is at level 2") {
		t.Errorf("it is refused for %v", err)
	}
}

// docs/formats.md names every kind of command, bucket and row of bucket cfg.
func TestFormatsPage(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "docs", "formats.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for kind := byte(1); kind <= kindRebalance; kind++ {
		if !regexp.MustCompile(fmt.Sprintf(`[| ]%d [a-z-]+[,| ]`, kind)).MatchString(page) {
			t.Errorf("it does not name kind %d", kind)
		}
	}
	for _, name := range buckets {
		if !strings.Contains(page, fmt.Sprintf("\n| `%s` | ", name)) {
			t.Errorf("it does not name bucket %s", name)
		}
	}
	for _, row := range [][]byte{keyFormat, keyApplied, keyMembers, keyMerkle, keyManifests, keyConflicts, keyCluster, keyLevel, keyClock, keyRebalance,
		[]byte(nodePrefix + "<"), []byte(gonePrefix + "<"), []byte(auditPrefix + "<"), []byte(wasPrefix + "<")} {
		if !strings.Contains(page, "`"+string(row)) {
			t.Errorf("it does not name row %s", row)
		}
	}
}
