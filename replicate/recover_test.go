package replicate

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"modmirror/mirror/artifact"
)

// lost makes a cluster of three, of which the leader alone is left: its data directory, with entries behind the last that it
// knows to be committed. Nothing runs any more.
func lost(t *testing.T) (c *cluster, survivor int, committed, tail artifact.Manifest) {
	t.Helper()
	c = newCluster(t, 3)
	committed = c.publish("example.com/committed", "v1.0.0")
	c.same()
	lead := c.leader()
	survivor = slices.Index(c.nodes, lead)
	m := c.db.AddModule("example.com/tail", "v1.0.0", "module example.com/tail\n")
	p, err := c.advanced(lead, m)
	if err != nil {
		t.Fatal(err)
	}
	p.Acks = c.acks(p)
	tail = p.Manifest
	for i := range c.nodes {
		if i != survivor {
			c.host(i).partition(true)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // it cannot be committed
	defer cancel()
	if _, err := lead.Publish(ctx, p); err == nil {
		t.Fatal("it was committed without a majority")
	}
	for i := range c.nodes {
		c.close(i)
	}
	return c, survivor, committed, tail
}

func recovering(why string) Audit {
	return Audit{Time: time.Now(), Actor: "root@host", Action: "recover", Reason: why}
}

func recoverIn(t *testing.T, dir string) (old, now string) {
	t.Helper()
	v, err := OpenSurvivor(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	old = v.Cluster()
	if now, err = v.Recover(recovering("two disks burned")); err != nil {
		t.Fatal(err)
	}
	return old, now
}

// Cluster is for tests.
func (v *Survivor) Cluster() (id string) {
	_ = v.view(func(s state) error { id = s.cluster(); return nil })
	return id
}

// One of three goes on alone with all that it has, also what is behind the end of its catalog, as another cluster, which grows
// again. The others are gone for good.
func TestRecover(t *testing.T) {
	c, i, committed, tail := lost(t)
	dir := c.dirs[i]
	v, err := OpenSurvivor(dir)
	if err != nil {
		t.Fatal(err)
	}
	r, err := v.Remains()
	if err != nil || len(r.Members) != 3 || len(r.Others()) != 2 || len(r.Tail) != 1 || r.Tail[0].Module != tail.Module || r.Index <= r.Applied || !r.Recovered.IsZero() {
		t.Fatalf("Remains = %+v, %v", r, err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	old, now := recoverIn(t, dir)
	if now == old || now == "" {
		t.Errorf("the cluster %s became %q", old, now)
	}
	checkSays(t, dir, "")
	if first, last := logOf(t, dir); first != 0 || last != 0 {
		t.Errorf("the log has the entries %d to %d of the old cluster", first, last)
	}
	n := c.open(i)
	for j := range c.nodes { // they do not exist any more
		if j != i {
			c.net.stream("", c.addr(j))
		}
	}
	if !n.alone() || n.Cluster() != now {
		t.Errorf("the members are %+v, of cluster %s", n.Members(), n.Cluster())
	}
	for _, m := range []artifact.Manifest{committed, tail} {
		if got, err := n.Manifest(t.Context(), m.Module); err != nil || got.ModSum != m.ModSum {
			t.Errorf("%s: %+v, %v", m.Module, got, err)
		}
	}
	if at, ok := n.Was(old); !ok || time.Since(at) > time.Minute {
		t.Errorf("Was = %v, %v", at, ok)
	}
	if _, ok := n.Was(now); ok {
		t.Error("it was recovered from itself")
	}
	for _, p := range r.Others() {
		if err := n.Check(Peer{ID: p.ID, Name: p.Name, Role: RoleVoter, Boot: "B", Starts: 99, Level: newestLevel}); !errors.Is(err, ErrRemoved) {
			t.Errorf("%s comes back: %v", p.Name, err)
		}
	}
	audits, err := n.Audits(t.Context())
	if err != nil || len(audits) != 1 {
		t.Fatalf("Audits = %+v, %v", audits, err)
	}
	a := audits[0]
	for _, want := range []string{"two disks burned [", old + " became " + now, r.Others()[0].ID, r.Others()[1].ID} {
		if a.Action != "recover" || a.Actor != "root@host" || !strings.Contains(a.Reason, want) {
			t.Errorf("the audit is %+v, want %q", a, want)
		}
	}
	fresh := c.publish("example.com/fresh", "v1.0.0")
	for range 2 {
		c.join(c.add(), true)
	}
	c.same()
	if got, err := c.nodes[3].Manifest(t.Context(), fresh.Module); err != nil || got.ModSum != fresh.ModSum || c.nodes[3].Cluster() != now {
		t.Errorf("at a new node of %s: %+v, %v", c.nodes[3].Cluster(), got, err)
	}
	if _, ok := c.nodes[4].Was(old); !ok {
		t.Error("a new node does not know from which cluster its own was recovered")
	}
	c.close(i)
	c.publish("example.com/later", "v1.0.0")
	c.same()
}

// errDied ends a recovery as a death of the process would.
var errDied = errors.New("died")

// Wherever a recovery dies, the directory is that of the old cluster or of the new one, to whoever opens it next, and repeating
// the recovery is harmless.
func TestRecoveryDies(t *testing.T) {
	c, i, _, tail := lost(t)
	id, err := readIdentity(filepath.Join(c.dirs[i], "node.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, cluster := range []string{id.Cluster, ""} { // a node that joined, and was not started since, has not noted it yet
		id.Cluster = cluster
		if err := id.write(filepath.Join(c.dirs[i], "node.json")); err != nil {
			t.Fatal(err)
		}
		t.Run("cluster "+cluster, func(t *testing.T) { recoveryDies(t, c.dirs[i], tail) })
	}
}

func recoveryDies(t *testing.T, original string, tail artifact.Manifest) {
	old := ""
	for _, step := range []struct {
		name    string
		done    bool // the new cluster is there
		pending bool // the offline check says that it is not complete
	}{{"begin", false, false}, {"commit", false, false}, {"log", true, true}, {"cut", true, true}, {"node.json", true, true}, {"done", true, false}} {
		dir := copyDir(t, original)
		v, err := openSurvivor(dir, func(s string) error {
			if s == step.name {
				return errDied
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		old = v.Cluster()
		if _, err := v.Recover(recovering("why")); !errors.Is(err, errDied) {
			t.Errorf("%s: %v", step.name, err)
		}
		image := copyDir(t, dir)
		if err := v.Close(); err != nil {
			t.Error(err)
		}
		want := ""
		if step.pending {
			want = "recovery of this node was begun and is not complete"
		}
		checkSays(t, image, want)

		// Somebody starts the node.
		n, err := Open(t.Context(), Config{Dir: copyDir(t, image), HeartbeatTimeout: 100 * time.Millisecond})
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		_, terr := n.Manifest(t.Context(), tail.Module)
		if is := n.Cluster() != old; is != step.done || n.alone() != is || (terr == nil) != is || len(n.Members()) == 1 != is {
			t.Errorf("%s: the node is of cluster %s, which was %s, with %d members; the tail: %v", step.name, n.Cluster(), old, len(n.Members()), terr)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}

		// Somebody repeats the recovery.
		v, err = OpenSurvivor(image)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		r, err := v.Remains()
		if err != nil || r.Recovered.IsZero() == step.done {
			t.Errorf("%s: Remains = %+v, %v", step.name, r, err)
		}
		if _, err := v.Recover(recovering("why")); (err == nil) == step.done {
			t.Errorf("%s: repeated: %v", step.name, err)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
		checkSays(t, image, "")
		n = openNode(t, Config{Dir: image})
		if n.Cluster() == old || !n.alone() {
			t.Errorf("%s: repeated, the node is of cluster %s, which was %s", step.name, n.Cluster(), old)
		}
		if all, err := n.Audits(t.Context()); err != nil || len(all) != 1 {
			t.Errorf("%s: repeated, the audit is %+v, %v", step.name, all, err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A node.json from before the recovery that is put back later does not cost the new cluster its log.
func TestOldIdentityAfterRecovery(t *testing.T) {
	c, i, _, _ := lost(t)
	dir := c.dirs[i]
	before, err := os.ReadFile(filepath.Join(dir, "node.json"))
	if err != nil {
		t.Fatal(err)
	}
	recoverIn(t, dir)
	n := openNode(t, Config{Dir: dir})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "node.json"), before, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "node.json is of cluster") {
		t.Errorf("Open = %v", err)
	}
	if _, last := logOf(t, dir); last == 0 {
		t.Error("the log has lost its entries")
	}
}

// logOf returns between which indexes the log of a stopped node has entries.
func logOf(t *testing.T, dir string) (first, last uint64) {
	t.Helper()
	store, err := openLog(logPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	f, err := factsOf(store, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f.first, f.last
}

// What cannot be recovered, or needs no recovery, is refused with words and stays as it is.
func TestRecoverRefuses(t *testing.T) {
	single := t.TempDir()
	openNode(t, Config{Dir: single}).Close()
	fresh := t.TempDir()
	if _, err := Identify(fresh); err != nil {
		t.Fatal(err)
	}
	c, i, _, _ := lost(t)
	damaged := copyDir(t, c.dirs[i])
	if err := setRow(logPath(damaged), "conf", keyCurrentTerm, nil); err != nil {
		t.Fatal(err)
	}
	running := t.TempDir()
	n := openNode(t, Config{Dir: running})
	defer n.Close()
	none := filepath.Join(single, "none")
	if _, err := OpenSurvivor(none); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	for name, tt := range map[string]struct{ dir, why, want string }{
		"a single node":      {single, "why", "the only member of its cluster"},
		"a new node":         {fresh, "why", "has never been part of a cluster"},
		"nothing":            {t.TempDir(), "why", "there is no node.json"},
		"no reason":          {c.dirs[i], "a\nb", "cannot be printed"},
		"half restored":      {restoringIn(t, copyDir(t, c.dirs[i])), "why", ErrRestoring.Error()},
		"a damaged log":      {damaged, "why", "knows of no term"},
		"a node that runs":   {running, "why", ErrLocked.Error()},
		"a removed survivor": {removedIn(t, copyDir(t, c.dirs[i])), "why", "was removed from its cluster"},
	} {
		before := filesOf(t, tt.dir)
		v, err := OpenSurvivor(tt.dir)
		if err == nil {
			_, err = v.Recover(recovering(tt.why))
			v.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if after := filesOf(t, tt.dir); name != "a node that runs" && !slices.Equal(before, after) {
			t.Errorf("%s: it left %q, before it was %q", name, after, before)
		}
	}
}

func restoringIn(t *testing.T, dir string) string {
	t.Helper()
	if err := NoteRestore(dir, "note"); err != nil {
		t.Fatal(err)
	}
	return dir
}

func removedIn(t *testing.T, dir string) string {
	t.Helper()
	id, err := readIdentity(filepath.Join(dir, "node.json"))
	if err == nil {
		err = setRow(filepath.Join(dir, "catalog.db"), "cfg", []byte(gonePrefix+id.Node), []byte{rowFormat})
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
