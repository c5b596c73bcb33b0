package replicate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

// times returns when each leaf was committed, in microseconds, the superseded ones too.
func times(t *testing.T, c *catalog) (all []int64) {
	t.Helper()
	if err := c.view(func(s state) error {
		return s.bucket(bucketLeaves).ForEach(func(k, v []byte) error {
			l, err := parseLeaf(k, v)
			all = append(all, l.at())
			return err
		})
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// datedMachine is one of level 3 whose database has count modules, none of them published.
func datedMachine(t *testing.T, level int64, count int) (*machine, []artifact.Publication) {
	t.Helper()
	m := newMachine(t)
	db := replicatetest.NewDatabase(t, "sum.example.org")
	var mods []replicatetest.Module
	for i := range count {
		mods = append(mods, db.AddModule(fmt.Sprintf("example.com/m%d", i), "v1.0.0", "module x\n"))
	}
	for _, r := range m.apply(trustCommand{db.Key}, headCommand{Database: db.Name, Note: db.Head(db.Size())}, levelCommand{level, "ID1"}) {
		if r.err != nil {
			t.Fatal(r.err)
		}
	}
	var all []artifact.Publication
	for _, mod := range mods {
		all = append(all, db.Publication(mod, db.Size()))
	}
	return m, all
}

// The times of changes follow the leader's clock when it shows more than the last of them, and grow by a microsecond each when
// it does not. Nothing that a clock shows breaks the order.
func TestChangesHaveTimes(t *testing.T) {
	const second = int64(time.Second / time.Microsecond)
	m, p := datedMachine(t, clockLevel, 12)
	now := int64(1_700_000_000) * second
	for _, tt := range []struct {
		name string
		cmds []command
		want []int64 // of the changes that are added
	}{
		{"before any clock", []command{publishCommand{p[0]}}, []int64{0}},
		{"the first clock", []command{clockCommand{now}, publishCommand{p[1]}}, []int64{now + 1}},
		{"two in an entry", []command{clockCommand{now + second}, publishCommand{p[2]}, publishCommand{p[3]}}, []int64{now + second + 1, now + second + 2}},
		{"the same again", []command{clockCommand{now + 2*second}, publishCommand{p[2]}}, nil},
		{"the clock goes back", []command{clockCommand{now}, publishCommand{p[4]}}, []int64{now + 2*second + 1}},
		{"without a clock", []command{publishCommand{p[5]}}, []int64{now + 2*second + 2}},
		{"far ahead", []command{clockCommand{maxClock}, publishCommand{p[6]}}, []int64{maxClock + 1}},
		{"put right", []command{clockCommand{now + 3*second}, publishCommand{p[7]}}, []int64{maxClock + 2}},
		{"further ahead than is heeded", []command{clockCommand{maxClock + 1}, publishCommand{p[8]}}, []int64{maxClock + 3}},
	} {
		before := len(times(t, m.catalog))
		for _, r := range m.apply(tt.cmds...) {
			if r.err != nil && tt.cmds[0] != (clockCommand{maxClock + 1}) {
				t.Errorf("%s: %v", tt.name, r.err)
			}
		}
		if got := times(t, m.catalog)[before:]; !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	if got := problems(t, m); len(got) > 0 {
		t.Errorf("Check says %q", got)
	}
}

// What was committed before there were times counts as of 1970, in its order, and is not written again.
func TestChangesFromBeforeTimes(t *testing.T) {
	m, p := datedMachine(t, auditLevel, 4)
	m.apply(publishCommand{p[0]}, publishCommand{p[1]})
	old := dump(t, m.catalog)
	if r := m.apply(clockCommand{5}); !errors.Is(r[0].err, artifact.ErrRefused) {
		t.Errorf("a clock below level %d: %v", clockLevel, r[0].err)
	}
	m.apply(levelCommand{clockLevel, "ID1"}, publishCommand{p[2]}, clockCommand{1000}, publishCommand{p[3]})
	if got, want := times(t, m.catalog), []int64{0, 1, 2, 1001}; !slices.Equal(got, want) {
		t.Errorf("times %v, want %v", got, want)
	}
	for line := range strings.Lines(old) {
		if strings.HasPrefix(line, "s ") && !strings.Contains(dump(t, m.catalog), line) {
			t.Errorf("the row of an old leaf was written again: %s", line)
		}
	}
	if got := problems(t, m); len(got) > 0 {
		t.Errorf("Check says %q", got)
	}
}

// A time is a part of its leaf: whoever has another one has another root.
func TestTimeIsInTheRoot(t *testing.T) {
	roots := map[string]bool{}
	for at := range int64(2) {
		m, p := datedMachine(t, clockLevel, 1)
		m.apply(clockCommand{100 + at}, publishCommand{p[0]})
		_, root := m.catalog.Root()
		roots[root.String()] = true
	}
	if len(roots) != 2 {
		t.Error("two times have one root")
	}
}

// Damage of a time is found, when it is read and by a check.
func TestDamagedTimes(t *testing.T) {
	for name, tt := range map[string]struct {
		plant func(s state) error
		want  string
	}{
		"a bit of a time":   {changeLeaf(1, func(v []byte) []byte { v[len(v)-1] ^= 1; return v }), "is not what leaf 1"},
		"a time lost":       {changeLeaf(1, func(v []byte) []byte { return v[:len(v)-9] }), "it has no time, and leaf 0 has one"},
		"a time cut short":  {changeLeaf(1, func(v []byte) []byte { return v[:len(v)-1] }), "malformed"},
		"before another":    {changeLeaf(2, func(v []byte) []byte { clear(v[len(v)-8:]); return v }), "is not after that of leaf 1"},
		"before 1970":       {changeLeaf(2, func(v []byte) []byte { v[len(v)-8] = 0x80; return v }), "malformed time"},
		"clock behind":      {func(s state) error { return s.setClock(1001) }, "clock shows 1001 µs, and leaf 2 is of 1003 µs"},
		"clock lost":        {func(s state) error { return s.bucket(bucketConfig).Delete(keyClock) }, "clock shows 2 µs"},
		"clock not written": {func(s state) error { return s.bucket(bucketConfig).Put(keyClock, []byte{0x80, 0}) }, "is malformed"},
		"clock of nobody":   {func(s state) error { return s.bucket(bucketConfig).Put(keyClock, binary.AppendUvarint(nil, 1<<63)) }, "is malformed"},
	} {
		m, p := datedMachine(t, clockLevel, 3)
		m.apply(clockCommand{1000}, publishCommand{p[0]}, publishCommand{p[1]}, publishCommand{p[2]})
		if err := m.catalog.update(tt.plant); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(problems(t, m), "\n"); !strings.Contains(got, tt.want) {
			t.Errorf("%s: Check says\n%s\nwant %q", name, got, tt.want)
		}
		if !strings.HasPrefix(name, "clock") {
			bad := 0
			for _, err := range m.catalog.Changes(t.Context(), 0) {
				if errors.Is(err, artifact.ErrDamaged) {
					bad++
				}
			}
			if bad != 1 {
				t.Errorf("%s: %d changes are damaged, want 1", name, bad)
			}
		}
	}
}

func changeLeaf(seq int64, f func(v []byte) []byte) func(s state) error {
	return func(s state) error {
		b := s.bucket(bucketLeaves)
		return b.Put(bigEndian(seq), f(bytes.Clone(b.Get(bigEndian(seq)))))
	}
}

// Whoever leads, whatever its clock shows, also after the log is cut and a snapshot installed: all nodes have the same times,
// each one later than the one before. A node that starts again has those that it had.
func TestTimesInCluster(t *testing.T) {
	var skew [3]atomic.Int64
	c := &cluster{t: t, net: newNetwork()}
	c.config = func(i int, conf *Config) {
		conf.now = func() time.Time { return time.Now().Add(time.Duration(skew[i%3].Load())) }
	}
	c.grow(3)
	for i, d := range []time.Duration{0, time.Hour, -time.Hour} {
		skew[i].Store(int64(d))
	}
	for i := range 9 {
		c.publishAt(i%3, fmt.Sprintf("example.com/m%d", i), "v1.0.0")
		if i%3 == 2 {
			c.lead("transfer", func(lead *Node) error { return lead.TransferLeadership(t.Context()) })
		}
	}
	c.same()
	c.cut()
	i := c.follower()
	c.close(i)
	c.open(i)
	c.join(c.add(), false)
	c.same()
	want := times(t, c.leader().catalog)
	if len(want) != 9 || !slices.IsSorted(want) || len(slices.Compact(slices.Clone(want))) != 9 {
		t.Errorf("times %v", want)
	}
	if last := time.UnixMicro(want[8]); time.Since(last) > 2*time.Hour {
		t.Errorf("the last change is of %v", last)
	}
	for i, n := range c.nodes {
		if got := times(t, n.catalog); !slices.Equal(got, want) {
			t.Errorf("node %d has %v, want %v", i, got, want)
		}
	}
}

// A clock that nobody can mean is not proposed.
func TestImpossibleClock(t *testing.T) {
	for _, now := range []time.Time{time.Unix(-1, 0), time.UnixMicro(maxClock + 1)} {
		n := openNode(t, Config{Dir: t.TempDir(), now: func() time.Time { return now }})
		publish(t, n, trusting(t, n), "example.com/a", "v1.0.0")
		if got := times(t, n.catalog); !slices.Equal(got, []int64{0}) {
			t.Errorf("at %v: %v", now, got)
		}
		n.Close()
	}
}
