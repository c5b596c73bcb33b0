package replicate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"modmirror/mirror/artifact"
)

// lived returns the directory of a node that has published something, and a copy from before that.
func lived(t *testing.T) (dir, early string) {
	t.Helper()
	dir = t.TempDir()
	n := openNode(t, Config{Dir: dir})
	db := trusting(t, n)
	publish(t, n, db, "example.com/a", "v1.0.0")
	n.Close()
	early = copyDir(t, dir)
	n = openNode(t, Config{Dir: dir})
	publish(t, n, db, "example.com/b", "v1.0.0")
	n.Close()
	return dir, early
}

// changeDB changes rows of a bbolt file.
func changeDB(path string, f func(tx *bbolt.Tx) error) error {
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	return errors.Join(db.Update(f), db.Close())
}

func setRow(path, bucket string, key, value []byte) error {
	return changeDB(path, func(tx *bbolt.Tx) error {
		if value == nil {
			return tx.Bucket([]byte(bucket)).Delete(key)
		}
		return tx.Bucket([]byte(bucket)).Put(key, value)
	})
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

// Files that are lost, old or damaged, singly or together. A start is refused with words, and changes nothing; the
// offline check says it too.
func TestLostAndOldFiles(t *testing.T) {
	catalogOf := func(dir string) string { return filepath.Join(dir, "catalog.db") }
	jsonOf := func(dir string) string { return filepath.Join(dir, "node.json") }
	entry := func(dir string, f func(logs *bbolt.Bucket, last []byte) error) error {
		return changeDB(logPath(dir), func(tx *bbolt.Tx) error {
			logs := tx.Bucket([]byte("logs"))
			last, _ := logs.Cursor().Last()
			return f(logs, bytes.Clone(last))
		})
	}
	const either = "either" // what is behind the catalog's end is not read at the start
	for name, tt := range map[string]struct {
		spoil func(dir, early string) error
		start string // what the refusal says; "": the node starts
		check string // what the check says; "-": there is nothing to check
	}{
		"log lost":           {func(dir, _ string) error { return os.RemoveAll(filepath.Dir(logPath(dir))) }, "there is no raft log", "there is no raft log"},
		"log empty":          {func(dir, _ string) error { return os.Truncate(logPath(dir), 0) }, "it is empty", "it is empty"},
		"log cut":            {func(dir, _ string) error { return os.Truncate(logPath(dir), 4*4096) }, "cut short", "cut short"},
		"log cut in header":  {func(dir, _ string) error { return os.Truncate(logPath(dir), 100) }, "raft.db", "raft.db"},
		"older log":          {func(dir, early string) error { return copyFile(logPath(early), logPath(dir)) }, "older than the catalog", "older than the catalog"},
		"new log":            {newLogIn, "the raft log", "the raft log"},
		"log without a term": {func(dir, _ string) error { return setRow(logPath(dir), "conf", keyCurrentTerm, nil) }, "knows of no term", "knows of no term"},
		"log of an older term": {func(dir, _ string) error {
			return setRow(logPath(dir), "conf", keyCurrentTerm, bigEndian(1))
		}, "no term after 1", "no term after 1"},
		"malformed term": {func(dir, _ string) error { return setRow(logPath(dir), "conf", keyCurrentTerm, []byte{1}) }, "malformed", "malformed"},
		"last entry lost": {func(dir, _ string) error {
			return entry(dir, func(logs *bbolt.Bucket, last []byte) error { return logs.Delete(last) })
		}, "older than the catalog", "older than the catalog"},
		"all entries lost": {func(dir, _ string) error {
			return changeDB(logPath(dir), func(tx *bbolt.Tx) error {
				if err := tx.DeleteBucket([]byte("logs")); err != nil {
					return err
				}
				_, err := tx.CreateBucket([]byte("logs"))
				return err
			})
		}, "older than the catalog", "older than the catalog"},
		"last entry damaged": {func(dir, _ string) error {
			return entry(dir, func(logs *bbolt.Bucket, last []byte) error { return logs.Put(last, []byte{0xff, 0xfe}) })
		}, either, "raft log: entry"},
		"entry lost": {func(dir, _ string) error {
			return setRow(logPath(dir), "logs", bigEndian(3), nil)
		}, either, "entries between 2 and 4 are missing"},
		"entry of the future": {func(dir, _ string) error { return badEntry(logPath(dir), raft.LogCommand, "\x02") }, either, "the entry has format 2"},
		"entry of a later term": {func(dir, _ string) error {
			return changeEntry(logPath(dir), &raft.Log{Index: 3, Term: 9, Type: raft.LogNoop})
		}, either, "entry 3: it is of term 9"},
		"entry of an older term": {func(dir, _ string) error {
			return changeEntry(logPath(dir), &raft.Log{Index: 4, Term: 1, Type: raft.LogNoop})
		}, either, "entry 4: it is of term 1"},
		"entry under another index": {func(dir, _ string) error {
			return entry(dir, func(logs *bbolt.Bucket, last []byte) error {
				return logs.Put(last, bytes.Clone(logs.Get(bigEndian(3))))
			})
		}, "it is entry 3", "it is entry 3"},
		"entry of no type": {func(dir, _ string) error { return badEntry(logPath(dir), 77, "") }, either, "unknown type 77"},
		"configuration damaged": {func(dir, _ string) error {
			return badEntry(logPath(dir), raft.LogConfiguration, "\xff")
		}, either, "raft log: entry 3"},
		"catalog lost": {func(dir, _ string) error { return os.Remove(catalogOf(dir)) }, "there is no catalog", "-"},
		"new log, catalog lost": {func(dir, early string) error {
			return errors.Join(newLogIn(dir, early), os.Remove(catalogOf(dir)))
		}, "there is no catalog", "-"},
		"catalog empty": {func(dir, _ string) error { return os.Truncate(catalogOf(dir), 0) }, "it is empty", "-"},
		"older catalog": {func(dir, early string) error { return copyFile(catalogOf(early), catalogOf(dir)) }, "", ""},
		"catalog of the future": {func(dir, _ string) error {
			return setRow(catalogOf(dir), "cfg", keyFormat, []byte{2})
		}, "has format 2, and this version of modmirror knows up to 1", "-"},
		"level of the future": {func(dir, _ string) error {
			return setRow(catalogOf(dir), "cfg", keyLevel, []byte{newestLevel + 1})
		}, fmt.Sprintf("the cluster is at feature level %d, and this version of modmirror knows up to %d: start the version", newestLevel+1, newestLevel), fmt.Sprintf("feature level %d", newestLevel+1)},
		"level damaged": {func(dir, _ string) error {
			return setRow(catalogOf(dir), "cfg", keyLevel, []byte{0x82, 0})
		}, `"level": malformed`, `"level": malformed`},
		"log and catalog lost": {func(dir, _ string) error {
			return errors.Join(os.RemoveAll(filepath.Dir(logPath(dir))), os.Remove(catalogOf(dir)))
		}, "there is no raft log", "-"},
		"node.json lost": {func(dir, _ string) error { return os.Remove(jsonOf(dir)) }, "there is no node.json", "there is no node.json"},
		"node.json and log lost": {func(dir, _ string) error {
			return errors.Join(os.Remove(jsonOf(dir)), os.RemoveAll(filepath.Dir(logPath(dir))))
		}, "there is no node.json", "there is no node.json"},
		"node.json and catalog lost": {func(dir, _ string) error {
			return errors.Join(os.Remove(jsonOf(dir)), os.Remove(catalogOf(dir)))
		}, "there is no node.json", "-"},
		"node.json damaged": {func(dir, _ string) error { return os.WriteFile(jsonOf(dir), []byte{0xff}, 0o600) }, `"\xff"`, `"\xff"`},
		"node.json with a letter changed": {func(dir, _ string) error {
			id, err := readIdentity(jsonOf(dir))
			id.Node = "x" + id.Node[1:] // which no random one begins with
			return errors.Join(err, id.write(jsonOf(dir)))
		}, `is of node "x`, `is of node "x`},
		"node.json of the future": {func(dir, _ string) error {
			return os.WriteFile(jsonOf(dir), []byte(`{"format":2,"name":"x"}`), 0o600)
		}, "node.json has format 2, and this version of modmirror knows up to 1", "node.json has format 2"},
		"node.json of another cluster": {otherCluster, "of cluster y", "of cluster y"},
		"applied lost":                 {func(dir, _ string) error { return setRow(catalogOf(dir), "cfg", keyApplied, nil) }, "does not say at which index", "does not say at which index"},
		"applied damaged": {func(dir, _ string) error {
			return setRow(catalogOf(dir), "cfg", keyApplied, []byte("x"))
		}, `"applied" = 78 is malformed`, `"applied" = 78 is malformed`},
		"applied of another term": {func(dir, _ string) error {
			return setRow(catalogOf(dir), "cfg", keyApplied, append(bigEndian(4), bigEndian(1)...))
		}, "they are not of one node", "they are not of one node"},
		"members lost":     {func(dir, _ string) error { return setRow(catalogOf(dir), "cfg", keyMembers, nil) }, "", "who the members"},
		"members damaged":  {func(dir, _ string) error { return setRow(catalogOf(dir), "cfg", keyMembers, []byte("damaged row")) }, "malformed", "malformed"},
		"members short":    {func(dir, _ string) error { return setRow(catalogOf(dir), "cfg", keyMembers, []byte("x")) }, "malformed", "malformed"},
		"members too new":  {futureMembers, "its members are those of index 99", "its members are those of index 99"},
		"cluster lost":     {func(dir, _ string) error { return setRow(catalogOf(dir), "cfg", keyCluster, nil) }, "", "of which cluster it is"},
		"cluster changed":  {func(dir, _ string) error { return setRow(catalogOf(dir), "cfg", keyCluster, []byte("\xff")) }, `of cluster \xff`, `of cluster \xff`},
		"unknown row":      {func(dir, _ string) error { return setRow(catalogOf(dir), "cfg", []byte("new"), []byte("x")) }, "is not known", "is not known"},
		"count damaged":    {func(dir, _ string) error { return setRow(catalogOf(dir), "cfg", keyManifests, []byte{0x80}) }, "malformed", "malformed"},
		"nothing is wrong": {func(string, string) error { return nil }, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir, early := lived(t)
			if err := tt.spoil(dir, early); err != nil {
				t.Fatal(err)
			}
			checkSays(t, dir, tt.check)
			before := filesOf(t, dir)
			n, err := Open(t.Context(), Config{Dir: dir})
			if err == nil {
				n.Close()
			}
			if tt.start == either {
				return
			}
			if (err == nil) != (tt.start == "") {
				t.Fatalf("Open: %v, want %q", err, tt.start)
			}
			if tt.start == "" {
				return
			}
			if !strings.Contains(err.Error(), tt.start) || strings.Contains(err.Error(), "\n") || !utf8.ValidString(err.Error()) {
				t.Errorf("Open: %q, want one line with %q", err, tt.start)
			}
			if !strings.Contains(err.Error(), restore) && !errors.Is(err, errNewer) {
				t.Errorf("Open: %q, want an instruction", err)
			}
			if after := filesOf(t, dir); !slices.Equal(before, after) {
				t.Errorf("the refused start left %q, before it was %q", after, before)
			}
		})
	}
}

// checkSays checks the catalog in dir for one problem.
func checkSays(t *testing.T, dir, want string) {
	t.Helper()
	c, err := OpenCatalog(dir)
	if want == "-" {
		if err == nil {
			c.Close()
			t.Error("OpenCatalog succeeds")
		}
		return
	}
	if err != nil {
		t.Errorf("OpenCatalog: %v", err)
		return
	}
	defer c.Close()
	var all []string
	for err := range c.Check(t.Context(), nil) {
		all = append(all, err.Error())
	}
	got := strings.Join(all, "\n")
	if !strings.Contains(got, want) || (want == "") != (got == "") || !utf8.ValidString(got) {
		t.Errorf("Check says %q, want %q", got, want)
	}
}

// filesOf returns the names and contents of the files of a directory, but for the log, in which an open starts a new
// transaction. An empty directory does not count.
func filesOf(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		if name == logPath(dir) && len(b) > 0 {
			b = nil
		}
		all = append(all, name+" "+artifact.DigestOf(b).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// newLogIn puts the log of a node that was just founded in the place of the node's.
func newLogIn(dir, _ string) error {
	other := filepath.Join(dir, "other")
	n := &Node{config: Config{Dir: other}, catalog: newCatalog(filepath.Join(other, "catalog.db")), id: identity{Node: "x", Cluster: "y", State: stateNew}}
	n.config.setDefaults()
	_, n.config.transport = raft.NewInmemTransport("")
	return errors.Join(makeDir(filepath.Join(other, "raft")), n.createLog(), os.Rename(logPath(other), logPath(dir)), os.RemoveAll(other))
}

// badEntry puts another entry in the place of the third.
func badEntry(path string, kind raft.LogType, data string) error {
	return changeEntry(path, &raft.Log{Index: 3, Term: 2, Type: kind, Data: []byte(data)})
}

func changeEntry(path string, l *raft.Log) error {
	store, err := newLog(path, false)
	if err != nil {
		return err
	}
	return errors.Join(store.StoreLog(l), store.Close())
}

func otherCluster(dir, _ string) error {
	path := filepath.Join(dir, "node.json")
	id, err := readIdentity(path)
	id.Cluster = "y"
	return errors.Join(err, id.write(path))
}

func futureMembers(dir, _ string) error {
	return changeDB(filepath.Join(dir, "catalog.db"), func(tx *bbolt.Tx) error {
		v := bytes.Clone(tx.Bucket(bucketConfig).Get(keyMembers))
		copy(v, bigEndian(99))
		return tx.Bucket(bucketConfig).Put(keyMembers, v)
	})
}

// node.json says when a node is not new any more, and of which cluster it is once that is known.
func TestIdentityGrows(t *testing.T) {
	c := newCluster(t, 2)
	c.publish("example.com/a", "v1.0.0")
	c.same()
	for i := range c.nodes {
		var have identity
		b, err := os.ReadFile(filepath.Join(c.dirs[i], "node.json"))
		if err := errors.Join(err, json.Unmarshal(b, &have)); err != nil || have.State != stateFounded || have.Node != c.nodes[i].ID() {
			t.Errorf("node %d: node.json is %s, %v", i, b, err)
		}
	}
	c.close(1)
	cluster := c.nodes[0].id.Cluster
	if n := c.open(1); n.id.Cluster != cluster {
		t.Errorf("the joined node is of cluster %q, want %q", n.id.Cluster, cluster)
	}
	c.close(1)
	if err := setRow(filepath.Join(c.dirs[1], "catalog.db"), "cfg", keyCluster, []byte("other")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: c.dirs[1], Join: true}); err == nil || !strings.Contains(err.Error(), "of cluster other") {
		t.Errorf("a joined node opens the catalog of another cluster: %v", err)
	}
}

// Wherever the log is cut, and whatever bit of a page's header is turned, it is refused or works: nothing kills the process.
func TestDamagedLogPages(t *testing.T) {
	dir, _ := lived(t)
	good, err := os.ReadFile(logPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := checkPages(logPath(dir)); err != nil {
		t.Fatal(err)
	}
	if err := checkPages(filepath.Join(dir, "catalog.db")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "raft.db")
	refused := 0
	try := func(what string, at int, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		store, err := openLog(path)
		if err != nil {
			refused++
			if what == "cut" && !strings.Contains(err.Error(), path) {
				t.Errorf("cut at %d: %v", at, err)
			}
			return
		}
		if _, err := factsOf(store, 3); err != nil {
			refused++
		}
		store.Close()
	}
	for at := 0; at < len(good); at += 2048 {
		try("cut", at, good[:at])
	}
	if refused < len(good)/4096 {
		t.Errorf("only %d cuts are noticed", refused)
	}
	for page := 0; page < len(good); page += 4096 {
		for _, at := range []int{0, 3, 8, 9, 10, 12, 14, 16, 20, 21, 24, 28, 30, 32, 36, 64, 80} {
			b := bytes.Clone(good)
			b[page+at] ^= 0x15
			try("flip", page+at, b)
		}
	}
	if refused < 20 {
		t.Errorf("only %d damages are noticed", refused)
	}
}

// A file is never replaced by one that is being created, also where there are no hard links.
func TestCreateFileNeverReplaces(t *testing.T) {
	defer func() { link = os.Link }()
	for _, link = range []func(string, string) error{os.Link, func(string, string) error { return errors.ErrUnsupported }} {
		path := filepath.Join(t.TempDir(), "file")
		if err := createFile(path, func(tmp string) error { return os.WriteFile(tmp, []byte("first"), 0o600) }); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "first" {
			t.Errorf("the file holds %q, %v", b, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := createFile(path, func(tmp string) error {
			return errors.Join(os.WriteFile(tmp, []byte("second"), 0o600), os.WriteFile(path, []byte("faster"), 0o600))
		}); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "faster" {
			t.Errorf("the file of a faster process holds %q now, %v", b, err)
		}
		if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
			t.Errorf("the directory holds %v, %v", entries, err)
		}
	}
}

// What the system refuses is no damage: nobody is told to give data up for it.
func TestAdvice(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"no permission":   {&fs.PathError{Op: "open", Err: syscall.EACCES}, "owner"},
		"read-only disk":  {&fs.PathError{Op: "open", Err: syscall.EROFS}, "mounted"},
		"too many files":  {fmt.Errorf("open: %w", syscall.EMFILE), "ulimit -n"},
		"no memory":       {fmt.Errorf("map: %w", syscall.ENOMEM), "ulimit -v"},
		"no space":        {errNoSpace, "make room"},
		"a directory":     {&fs.PathError{Op: "read", Err: syscall.EISDIR}, "mend the cause"},
		"an unsound disk": {&fs.PathError{Op: "read", Err: syscall.EIO}, restore},
		"cut short":       {errCut, restore},
		"in use":          {ErrLocked, ErrLocked.Error()},
	} {
		got := advised(tt.err).Error()
		if !strings.Contains(got, tt.want) || strings.Contains(got, restore) != (tt.want == restore) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	for _, file := range []string{"catalog.db", "raft/raft.db"} {
		dir, _ := lived(t)
		path := filepath.Join(dir, file)
		if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700), os.Mkdir(filepath.Join(path, "x"), 0o700)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), Config{Dir: dir}); err == nil || strings.Contains(err.Error(), restore) || !strings.Contains(err.Error(), "mend the cause") {
			t.Errorf("%s is a directory: %v", file, err)
		}
	}
}

// Only a snapshot that was installed explains a catalog that is ahead of its log.
func TestFactsAgree(t *testing.T) {
	for name, tt := range map[string]struct {
		f           facts
		index, term uint64
		ok          bool
	}{
		"new node":                      {facts{}, 0, 0, true},
		"new cluster":                   {facts{first: 1, last: 1, term: 1}, 0, 0, true},
		"catalog behind":                {facts{first: 1, last: 9, term: 2}, 5, 2, true},
		"catalog at the log's end":      {facts{first: 1, last: 9, term: 2, entryTerm: 2}, 9, 2, true},
		"catalog ahead":                 {facts{first: 1, last: 9, term: 2}, 10, 2, false},
		"installed, log empty":          {facts{term: 2, installed: 10}, 10, 2, true},
		"installed, log behind":         {facts{first: 1, last: 9, term: 2, installed: 20}, 20, 2, true},
		"ahead of what was installed":   {facts{first: 1, last: 9, term: 2, installed: 20}, 21, 2, false},
		"installed, but no term":        {facts{installed: 10}, 10, 2, false},
		"installed, but of an old term": {facts{term: 1, installed: 10}, 10, 2, false},
		"log cut behind the catalog":    {facts{first: 7, last: 9, term: 2}, 6, 2, true},
		"log cut before the catalog":    {facts{first: 8, last: 9, term: 2}, 6, 2, false},
		"entry of another term":         {facts{first: 1, last: 9, term: 3, entryTerm: 3}, 9, 2, false},
	} {
		if err := tt.f.agree(tt.index, tt.term); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
