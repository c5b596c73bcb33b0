package replicate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/raft"

	"modmirror/mirror/artifact"
)

// The feature level of a cluster says which rules its nodes apply entries by. It is in the catalog, begins with 1, rises by
// a command in the log, and is never lowered. What a release adds to what Apply does belongs to a level: a kind of command is
// not proposed below it, and a rule asks for the level in the catalog, which is the same on all nodes at one place of the log:
//
//	1  the kinds up to kindHold
//	2  kindAudit, kindLevel
//	3  kindClock; a change has a time, which is a part of its leaf
//	4  kindRebalance
//
// A node says with its registration which level it supports. The leader raises the level to what all nodes support that are
// members or in the node table, also those that do not answer now; Apply holds the command against the node table as it is
// at that place of the log. So no node can be a member that does not know the rules: one that registers with less than the
// cluster's level is refused, by Apply and at the door of each other node, and an entry, a catalog or a snapshot of a level
// that a node does not support stops that node with the reason. It is not taken for something else.
//
// If a node dies while the level is raised, the command is in the log or it is not; the next leader looks again.
const (
	firstLevel     = 1
	auditLevel     = 2
	clockLevel     = 3
	rebalanceLevel = 4
	newestLevel    = rebalanceLevel
)

// NewestLevel is the highest feature level that this version supports.
const NewestLevel = newestLevel

// ErrTooOld means that a node does not support the feature level of its cluster. It is for good, and matches
// [artifact.ErrRefused].
var ErrTooOld error = notTaken("its version is older than the feature level of the cluster")

// errNewer means that a later version of modmirror wrote what this one cannot read. It is no damage.
var errNewer = errors.New("start the version that ran here before, or a later one (docs/upgrade.md)")

// newer says that what, which stands in a format or level of its own, is of a later version than this one.
func newer(what string, have, known uint64) error {
	return fmt.Errorf("%s %d, and this version of modmirror knows up to %d: %w", what, have, known, errNewer)
}

// unknownFormat says that a format is not one that this version reads.
func unknownFormat(what string, have, known byte) error {
	if have > known {
		return newer(what+" has format", uint64(have), uint64(known))
	}
	return fmt.Errorf("%s has format %d, which never was", what, have)
}

// levelOf returns from which level on commands of a kind may be in the log.
func levelOf(kind byte) int {
	switch {
	case kind <= kindHold:
		return firstLevel
	case kind <= kindLevel:
		return auditLevel
	case kind <= kindClock:
		return clockLevel
	}
	return rebalanceLevel
}

// levelCommand raises the level of the cluster.
type levelCommand struct {
	Level int64
	By    string // the node that proposes it, and so supports it, also if it has not registered
}

func (levelCommand) kind() byte { return kindLevel }

func (c levelCommand) encode(b []byte) ([]byte, error) {
	if c.Level < 0 {
		return nil, errors.New("level out of range")
	}
	return appendString(binary.AppendUvarint(b, uint64(c.Level)), c.By), nil
}

// level returns the feature level of the cluster.
func (s state) level() int {
	if v := s.bucket(bucketConfig).Get(keyLevel); len(v) > 0 {
		n, _ := binary.Uvarint(v)
		return int(n)
	}
	return firstLevel
}

func (s state) setLevel(level int) error {
	return s.bucket(bucketConfig).Put(keyLevel, binary.AppendUvarint(nil, uint64(level)))
}

// checkLevelRow reports whether the row of the level is well-formed, and of a level that this version supports.
func checkLevelRow(v []byte) error {
	n, size := binary.Uvarint(v)
	if size != len(v) || n <= firstLevel || uvarintLen(n) != size {
		return errors.New("malformed")
	}
	if n > newestLevel {
		return newer("the cluster is at feature level", n, newestLevel)
	}
	return nil
}

// applyLevel raises the level, if all nodes that the catalog knows support it.
func (s state) applyLevel(c levelCommand) (result, error) {
	have := s.level()
	if c.Level <= int64(have) {
		return result{}, nil // raised before; it is never lowered
	}
	waits, err := s.levelWaits(int(min(c.Level, 1<<30)), c.By)
	if err != nil {
		return result{}, err
	}
	if len(waits) > 0 {
		return refused("feature level %d: %s", c.Level, strings.Join(waits, ", ")), nil
	}
	if c.Level > newestLevel { // others know it
		return result{}, newer("the cluster rises to feature level", uint64(c.Level), newestLevel)
	}
	return result{peers: true}, s.setLevel(int(c.Level))
}

// levelWaits says which nodes besides by keep the cluster from a level: those in the node table that support less, and
// members that have not said what they support.
func (s state) levelWaits(level int, by string) (waits []string, err error) {
	all, err := s.peers()
	if err != nil {
		return nil, err
	}
	known := map[string]bool{by: true}
	for _, p := range all {
		known[p.ID] = true
		if p.ID != by && p.supports() < level {
			waits = append(waits, fmt.Sprintf("%s (%s) supports level %d", p.Name, p.Version, p.supports()))
		}
	}
	conf, _ := s.members()
	for _, m := range conf.Servers {
		if !known[string(m.ID)] {
			waits = append(waits, fmt.Sprintf("member %s has not said what it supports", m.ID))
		}
	}
	slices.Sort(waits)
	return waits, nil
}

// Level is the feature level of a cluster.
type Level struct {
	Now    int      `json:"now"`
	Newest int      `json:"newest"`          // that this version supports
	Waits  []string `json:"waits,omitempty"` // what keeps the cluster from the newest
}

// Level returns the feature level as this node's catalog has it.
func (n *Node) Level(ctx context.Context) (l Level, err error) {
	l.Newest = n.config.level
	err = n.read(ctx, func(s state) (err error) {
		if l.Now = s.level(); l.Now < l.Newest {
			l.Waits, err = s.levelWaits(l.Newest, n.id.Node)
		}
		return err
	})
	return l, err
}

// raiseLevel raises the level to the highest that all nodes support, if this node leads.
func (n *Node) raiseLevel(ctx context.Context) error {
	to := int64(0)
	if err := n.view(func(s state) error {
		for level := n.config.level; level > s.level() && to == 0; level-- {
			waits, err := s.levelWaits(level, n.id.Node)
			if err != nil {
				return err
			}
			if len(waits) == 0 {
				to = int64(level)
			}
		}
		return nil
	}); err != nil || to == 0 {
		return err
	}
	c := levelCommand{to, n.id.Node}
	cmd, err := appendCommand(nil, c)
	if err != nil {
		return err
	}
	_, err = n.proposeHere(ctx, c, cmd, nil)
	switch {
	case err == nil:
		n.log.Info("the feature level of the cluster is raised: all nodes support it", "level", to)
	case errors.Is(err, artifact.ErrRefused):
		return nil // a node registered in between
	}
	return err
}

// allowed says why c is not to be proposed yet.
func (n *Node) allowed(c command) error {
	need, have := levelOf(c.kind()), firstLevel
	if need <= have || c.kind() == kindLevel {
		return nil
	}
	var waits []string
	if err := n.view(func(s state) (err error) {
		if have = s.level(); have < need {
			waits, err = s.levelWaits(need, n.id.Node)
		}
		return err
	}); err != nil || need <= have {
		return err
	}
	return fmt.Errorf("this needs feature level %d of the cluster, which is at %d: upgrade every node, see modmirror cluster status (%s): %w",
		need, have, strings.Join(waits, ", "), artifact.ErrUnavailable)
}

// levelMark stands between the version and the level that a node supports in the row of the node table: the row's format is
// older than levels, and older nodes, which must be able to read it, take both for the version. Level 1 is not written.
const levelMark = ";level="

func (p Peer) markedVersion() string {
	if p.supports() == firstLevel {
		return p.Version
	}
	return p.Version + levelMark + strconv.Itoa(p.Level)
}

func (p *Peer) setMarkedVersion(s string) {
	p.Version = s
	i := strings.LastIndex(s, levelMark)
	if i < 0 {
		return
	}
	if n, err := strconv.ParseUint(s[i+len(levelMark):], 10, 16); err == nil && n > firstLevel {
		p.Version, p.Level = s[:i], int(n)
	}
}

// supports returns the highest feature level that the node supports.
func (p Peer) supports() int { return max(p.Level, firstLevel) }

// isAlone reports whether this node is the only member, whether it registers or not.
func (n *Node) isAlone() bool {
	servers := n.servers()
	return len(servers) == 1 && servers[0].ID == raft.ServerID(n.id.Node)
}
