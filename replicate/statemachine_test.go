package replicate

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/mod/module"
	"pgregory.net/rapid"

	"modmirror/mirror/artifact"
)

// Whatever commands come, in whatever order and however often, the catalog answers and holds what a few maps do (model).
// And whatever the way to an entry is, the catalog is the same there, byte for byte: entry by entry, in batches cut
// anywhere, with entries that come twice, with a process that ends while it writes, from a snapshot at any point.
func TestStateMachine(t *testing.T) {
	w, dir := newWorld(t), inMemory(t)
	rapid.Check(t, func(rt *rapid.T) {
		r := &run{t: t, rt: rt, dir: dir, model: newModel(w)}
		r.straight, r.crooked = r.machine(), r.machine()
		r.dumps = []string{dump(t, r.straight.catalog)}
		r.enter([]step{{"trust left", trustCommand{w.dbs[left].Key}, func(m *model) verdict { return m.trust(w.dbs[left].Name, w.dbs[left].Key) }}})
		for range 2 {
			rt.Repeat(map[string]func(*rapid.T){
				"":                      r.check,
				"entry":                 r.entry,
				"another entry":         r.entry,
				"a third entry":         r.entry,
				"entry again":           r.entryAgain,
				"members":               r.members,
				"batch":                 r.batch,
				"crash":                 r.crash,
				"start again":           r.startAgain,
				"snapshot to the other": r.snapshot,
				"snapshot to a new one": r.replace,
			})
		}
		r.crooked.ApplyBatch(r.straight.logs)
		r.check(rt)
		if at := r.crooked.at(); at != len(r.straight.logs) {
			rt.Fatalf("the other machine ends at entry %d of %d", at, len(r.straight.logs))
		}
		for err := range (&Catalog{catalog: r.crooked.catalog}).Check(t.Context(), nil) {
			rt.Errorf("Check: %v", err)
		}
	})
}

// run is one sequence of entries on its way into two machines. The log is that of the straight one.
type run struct {
	t                 *testing.T
	rt                *rapid.T
	dir               string
	model             *model
	straight, crooked *machine
	steps             [][]step
	said              [][]result // answers to each entry of the log
	dumps             []string   // the catalog after each entry; the first is that before any
	conf              raft.Configuration
	confIndex         uint64 // of the entry that conf is of
}

// machine returns one that is closed when the run is over, not only when the test is.
func (r *run) machine() *machine {
	dir, err := os.MkdirTemp(r.dir, "")
	if err != nil {
		r.t.Fatal(err)
	}
	path := filepath.Join(dir, "catalog.db")
	if err := createCatalog(path); err != nil {
		r.t.Fatal(err)
	}
	m := &machine{tb: r.t}
	m.open(path)
	r.rt.Cleanup(func() {
		m.catalog.close()
		os.RemoveAll(dir)
	})
	return m
}

// inMemory returns a directory in memory where the system has such a place: what is tested on it is what is computed, and the
// fsyncs of a disk would be most of the time.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "modmirror-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// at returns the index of the last entry that is in the catalog, as raft is told when a node starts.
func (m *machine) at() int {
	m.tb.Helper()
	list, err := m.store.List()
	if err != nil {
		m.tb.Fatal(err)
	}
	if len(list) == 0 {
		return 0
	}
	return int(list[0].Index)
}

// enter appends an entry and lets the straight machine and the model apply it.
func (r *run) enter(steps []step) {
	r.rt.Helper()
	index := len(r.straight.logs) + 1
	var cmds []command
	var want []verdict
	for _, s := range steps {
		cmds = append(cmds, s.command)
		v := s.judge(r.model)
		want = append(want, v)
		r.rt.Logf("entry %d: %s: %v", index, s.text, v.err)
	}
	said := r.straight.apply(cmds...)
	for i, v := range want {
		if bad := v.differs(said[i]); bad != "" {
			r.rt.Fatalf("entry %d: %s: %s", index, steps[i].text, bad)
		}
	}
	r.steps, r.said = append(r.steps, steps), append(r.said, said)
	r.dumps = append(r.dumps, dump(r.t, r.straight.catalog))
}

func (r *run) entry(rt *rapid.T) {
	var steps []step
	for range rapid.SampledFrom([]int{1, 2, 3, 5, 8}).Draw(rt, "commands") {
		steps = append(steps, stepper{rt, r.model.w, r.model}.step())
	}
	r.enter(steps)
}

// entryAgain enters what was entered before: who proposed it did not hear that it was committed.
func (r *run) entryAgain(rt *rapid.T) {
	if again := r.steps[rapid.IntRange(0, len(r.steps)-1).Draw(rt, "entry")]; len(again) > 0 {
		r.enter(again)
	}
}

func (r *run) members(rt *rapid.T) {
	var conf raft.Configuration
	r.model.members = nil
	for i := range rapid.IntRange(1, 3).Draw(rt, "members") {
		conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID("ABC"[i : i+1]), Address: "x"})
		r.model.members = append(r.model.members, "ABC"[i:i+1])
	}
	l := &raft.Log{Index: uint64(len(r.straight.logs) + 1), Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(conf)}
	rt.Logf("entry %d: %d members", l.Index, len(conf.Servers))
	r.straight.logs = append(r.straight.logs, l)
	r.straight.ApplyBatch([]*raft.Log{l})
	r.conf, r.confIndex = conf, l.Index
	r.steps, r.said = append(r.steps, nil), append(r.said, nil)
	r.dumps = append(r.dumps, dump(r.t, r.straight.catalog))
}

// next draws a part of the log that begins with entries which the crooked machine has, and goes beyond them.
func (r *run) next(rt *rapid.T) (from, to int) {
	at := r.crooked.at()
	from = max(0, at-rapid.IntRange(0, 3).Draw(rt, "again"))
	return from, min(len(r.straight.logs), at+rapid.IntRange(0, 10).Draw(rt, "more"))
}

func (r *run) batch(rt *rapid.T) {
	before := r.crooked.at()
	from, to := r.next(rt)
	rt.Logf("the other machine, at %d, gets entries %d to %d", before, from+1, to)
	for i, got := range r.crooked.ApplyBatch(r.straight.logs[from:to]) {
		index := from + i + 1
		results, _ := got.([]result)
		if want := r.said[index-1]; index <= before && got != nil || index > before && !sameAnswers(results, want) {
			rt.Fatalf("the other machine, at %d, answers %+v to entry %d, want %+v", before, got, index, want)
		}
	}
}

func sameAnswers(a, b []result) bool {
	return slices.EqualFunc(a, b, func(a, b result) bool {
		return fmt.Sprint(a.err) == fmt.Sprint(b.err) && verdict{classOf(b.err), b.manifest, b.listed, b.forked, b.peers}.differs(a) == ""
	})
}

// crash ends the crooked machine's process at one of its commits while it applies a batch.
func (r *run) crash(rt *rapid.T) {
	from, to := r.next(rt)
	left := rapid.IntRange(0, 1).Draw(rt, "commits before the crash")
	rt.Logf("the other machine, at %d, gets entries %d to %d, and ends after %d commits", r.crooked.at(), from+1, to, left)
	r.crooked.catalog.beforeCommit = func() error {
		if left--; left < 0 {
			return errors.New("the process ends here")
		}
		return nil
	}
	r.crooked.ApplyBatch(r.straight.logs[from:to])
	r.reopen()
}

func (r *run) startAgain(rt *rapid.T) {
	rt.Logf("the other machine starts again at %d", r.crooked.at())
	r.reopen()
}

func (r *run) reopen() {
	m, path := r.crooked, r.crooked.catalog.path
	if err := m.catalog.close(); err != nil {
		r.t.Fatal(err)
	}
	m.open(path)
}

func (r *run) snapshot(rt *rapid.T) {
	rt.Logf("the other machine, at %d, gets a snapshot", r.crooked.at())
	r.straight.snapshotInto(r.crooked)
}

// replace gives a new machine the snapshot of the crooked one, and goes on with it.
func (r *run) replace(rt *rapid.T) {
	if r.crooked.at() == 0 {
		return // there is no snapshot yet
	}
	rt.Logf("a new machine gets a snapshot of the other one at %d", r.crooked.at())
	m := r.machine()
	r.crooked.snapshotInto(m)
	r.crooked = m
}

// check compares the straight machine with the model, and the crooked one with what the straight one was at that entry.
func (r *run) check(rt *rapid.T) {
	if at := r.crooked.at(); dump(r.t, r.crooked.catalog) != r.dumps[at] {
		rt.Fatalf("the other machine, at %d, holds\n%s\nwant\n%s", at, dump(r.t, r.crooked.catalog), r.dumps[at])
	}
	for _, what := range []struct {
		name      string
		got, want any
	}{
		{"status", r.status(), r.wantStatus()},
		{"manifests", r.manifests(), r.model.manifests},
		{"inline bytes", r.inline(), r.model.inline},
		{"tree heads", r.heads(), r.model.heads},
		{"forks", r.forks(), r.wantForks()},
		{"conflicts", r.conflicts(), r.model.conflicts},
		{"listings", r.listings(), r.model.listings},
		{"nodes", r.nodes(), r.model.nodes},
		{"audit", r.audits(), r.model.audits},
		{"changes", r.changes(), r.model.changes()},
		{"the node to which a vote is on its way", r.vote(), r.model.vote},
	} {
		if !reflect.DeepEqual(what.got, what.want) {
			rt.Fatalf("%s: %+v, want %+v", what.name, what.got, what.want)
		}
	}
	for id := range r.model.gone {
		if !errors.Is(r.straight.catalog.Check(Peer{ID: id, Name: "x", Boot: "x", Starts: 9, Role: RoleVoter, Level: newestLevel}), ErrRemoved) {
			rt.Fatalf("node %s was removed, and may come back", id)
		}
	}
}

// status is what is counted and computed over everything.
func (r *run) status() string {
	var st Status
	if err := r.straight.catalog.fill(r.t.Context(), &st); err != nil {
		r.t.Fatal(err)
	}
	seq, root := r.straight.catalog.Root()
	var conf raft.Configuration
	var confIndex uint64
	level := 0
	r.view(func(s state) error { conf, confIndex = s.members(); level = s.level(); return nil })
	return fmt.Sprintln(level, r.straight.at(), conf, confIndex, st.Cluster, st.Manifests, st.Conflicts, st.Databases, st.Frozen, seq, root)
}

func (r *run) wantStatus() string {
	conflicts := 0
	for _, all := range r.model.conflicts {
		conflicts += len(all)
	}
	databases := slices.Sorted(maps.Keys(r.model.keys))
	frozen := slices.DeleteFunc(slices.Clone(databases), func(db string) bool { return !r.model.frozen(db) })
	return fmt.Sprintln(r.model.level, len(r.straight.logs), r.conf, r.confIndex, r.model.cluster, len(r.model.manifests), conflicts, databases, frozen, len(r.model.leaves), r.model.root())
}

// manifests, and what else is read below, is read as everybody reads it, where there is a way.
func (r *run) manifests() map[module.Version]artifact.Manifest {
	all := map[module.Version]artifact.Manifest{}
	for m, err := range r.straight.catalog.Manifests(r.t.Context()) {
		if err != nil {
			r.t.Fatal(err)
		}
		again, err := r.straight.catalog.Manifest(r.t.Context(), m.Module)
		if err != nil || !sameManifest(again, m) {
			r.t.Fatalf("Manifest(%v) = %+v, %v, and among all %+v", m.Module, again, err, m)
		}
		all[m.Module] = m
	}
	return all
}

func (r *run) view(f func(s state) error) {
	if err := r.straight.catalog.view(f); err != nil {
		r.t.Fatal(err)
	}
}

func (r *run) inline() map[artifact.Digest][]byte {
	all := map[artifact.Digest][]byte{}
	r.view(func(s state) error {
		return s.bucket(bucketInline).ForEach(func(k, _ []byte) (err error) {
			all[artifact.Digest(k)], err = r.straight.catalog.Inline(r.t.Context(), artifact.Digest(k))
			return err
		})
	})
	return all
}

func (r *run) heads() map[string]map[int64]tree {
	all := map[string]map[int64]tree{}
	for db := range r.model.keys {
		for below := int64(math.MaxInt64); ; {
			note, err := r.straight.catalog.TreeHead(r.t.Context(), db, below)
			if errors.Is(err, fs.ErrNotExist) {
				break
			}
			if err != nil {
				r.t.Fatal(err)
			}
			if all[db] == nil {
				all[db] = map[int64]tree{}
			}
			t := r.model.w.treeOf(r.t, note)
			all[db][t.n], below = t, t.n
		}
	}
	return all
}

// forks returns the evidence of each database, as text, and whether it was acknowledged.
func (r *run) forks() map[string]map[string]bool {
	all := map[string]map[string]bool{}
	r.view(func(s state) error {
		for db := range r.model.keys {
			all[db] = map[string]bool{}
			if err := s.forks(db, func(_ []byte, row forkRow) error {
				a, b := r.model.w.treeOf(r.t, row.A), r.model.w.treeOf(r.t, row.B)
				if a.n == b.n && a.history > b.history {
					a, b = b, a
				}
				all[db][fmt.Sprint(a, b)] = row.acked
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	return all
}

func (r *run) wantForks() map[string]map[string]bool {
	all := map[string]map[string]bool{}
	for db := range r.model.keys {
		all[db] = map[string]bool{}
		for _, f := range r.model.forks[db] {
			all[db][fmt.Sprint(f.a, f.b)] = f.acked
		}
	}
	return all
}

func (r *run) conflicts() map[module.Version]map[string]bool {
	all := map[module.Version]map[string]bool{}
	r.view(func(s state) error {
		return s.bucket(bucketConflicts).ForEach(func(_, v []byte) error {
			d := decoder{b: v}
			var committed, refused artifact.Manifest
			if err := errors.Join(committed.UnmarshalBinary(d.bytes()), refused.UnmarshalBinary(d.bytes()), d.end()); err != nil {
				return err
			}
			if all[refused.Module] == nil {
				all[refused.Module] = map[string]bool{}
			}
			all[refused.Module][string(encoded(refused))] = true
			return nil
		})
	})
	return all
}

func (r *run) listings() map[string]artifact.Listing {
	all := map[string]artifact.Listing{}
	r.view(func(s state) error {
		return s.bucket(bucketListings).ForEach(func(k, _ []byte) (err error) {
			all[string(k)], err = r.straight.catalog.Listing(r.t.Context(), string(k))
			return err
		})
	})
	return all
}

func (r *run) nodes() map[string]Peer {
	all := map[string]Peer{}
	r.view(func(s state) error {
		rows, err := s.peers()
		for _, p := range rows {
			all[p.ID] = p
		}
		return err
	})
	return all
}

// changes also asks for the first change since the time of each.
func (r *run) changes() (all []string) {
	ctx, c := r.t.Context(), r.straight.catalog
	last, total := time.Time{}, int64(len(r.model.leaves))
	for change, err := range c.Changes(ctx, 0) {
		if err != nil {
			r.t.Fatal(err)
		}
		for _, tt := range []struct {
			t    time.Time
			want int64
		}{{change.At, change.Seq}, {change.At.Add(1), change.Seq + 1}, {change.At.Add(-1), change.Seq}} {
			if got, err := c.SeqAt(ctx, tt.t); err != nil || got != tt.want {
				r.rt.Fatalf("SeqAt(%v) = %d, %v, want %d", tt.t, got, err, tt.want)
			}
		}
		if at, err := c.TimeAt(ctx, change.Seq); err != nil || !at.Equal(change.At) {
			r.rt.Fatalf("TimeAt(%d) = %v, %v, want %v", change.Seq, at, err, change.At)
		}
		if !change.At.After(last) {
			r.rt.Fatalf("change %d is of %v, after one of %v", change.Seq, change.At, last)
		}
		last = change.At
		all = append(all, fmt.Sprint(change.Seq, change.At.UnixMicro(), change.Manifest.Module))
	}
	before := time.Time{}
	for seq := range total { // also what a later one stands for
		at, err := c.TimeAt(ctx, seq)
		if err != nil || !at.After(before) {
			r.rt.Fatalf("TimeAt(%d) = %v, %v, after one of %v", seq, at, err, before)
		}
		before = at
	}
	for _, seq := range []int64{-1, total} {
		if at, err := c.TimeAt(ctx, seq); !errors.Is(err, fs.ErrNotExist) {
			r.rt.Fatalf("TimeAt(%d) of %d leaves = %v, %v", seq, total, at, err)
		}
	}
	now, err := c.Clock(ctx)
	if err != nil || now.Before(last) {
		r.rt.Fatalf("Clock() = %v, %v, and the last change is of %v", now, err, last)
	}
	if got, err := c.SeqAt(ctx, now.Add(time.Microsecond)); err != nil || got != total {
		r.rt.Fatalf("SeqAt(behind the clock) = %d, %v, want %d", got, err, total)
	}
	return all
}

func (r *run) vote() (to string) {
	r.view(func(s state) error { to = s.rebalancing(); return nil })
	return to
}

func (r *run) audits() (all []Audit) {
	r.view(func(s state) (err error) { all, err = s.audits(); return err })
	return all
}
