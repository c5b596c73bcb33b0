package replicate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

// fullMachine has a row in every bucket.
func fullMachine(t testing.TB) (*machine, *replicatetest.Database) {
	t.Helper()
	m := newMachine(t)
	db := replicatetest.NewDatabase(t, "sum.example.org")
	a := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n")
	b := db.AddModule("example.com/b", "v1.0.0", "module example.com/b\n")
	a2 := db.AddModule("example.com/a", "v1.0.0", "module example.com/a // other\n")
	f := db.Fork()
	db.Add("left\n")
	f.Add("right\n")
	part := db.Publication(a, 3)
	part.Info, part.Manifest.Info = nil, artifact.Ref{}
	for _, r := range m.apply(
		trustCommand{db.Key}, clusterCommand{"c"}, forgetCommand{"ID2"},
		registerCommand{Peer{ID: "ID1", Name: "one", Address: "host:1", Role: RoleVoter, Boot: "B", Starts: 1}},
		headCommand{Database: db.Name, Note: db.Head(3)},
		publishCommand{part}, publishCommand{db.Publication(a, 3)}, publishCommand{db.Publication(b, 3)},
		listingCommand{artifact.Listing{Path: "example.com/a", Versions: []string{"v1.0.0"}, Listed: time.Unix(1, 0)}},
	) {
		if r.err != nil {
			t.Fatal(r.err)
		}
	}
	m.apply(publishCommand{db.Publication(a2, 3)}, forkCommand{artifact.Fork{Database: db.Name, A: db.Head(4), B: f.Head(4)}})
	return m, db
}

func problems(t *testing.T, m *machine) (out []string) {
	t.Helper()
	for err := range (&Catalog{catalog: m.catalog}).Check(t.Context(), nil) {
		out = append(out, err.Error())
	}
	return out
}

// Check finds whatever was planted, and says what it is.
func TestCheckFindsDamage(t *testing.T) {
	key := []byte("example.com/a@v1.0.0")
	// change replaces the first row of a bucket that has the prefix.
	change := func(bucket []byte, prefix []byte, f func(v []byte) []byte) func(s state) error {
		return func(s state) error {
			k, v := s.bucket(bucket).Cursor().Seek(prefix)
			k, v = bytes.Clone(k), f(bytes.Clone(v))
			if k == nil {
				return errors.New("no such row")
			}
			if v == nil {
				return s.bucket(bucket).Delete(k)
			}
			return s.bucket(bucket).Put(k, v)
		}
	}
	flipLast := func(v []byte) []byte { v[len(v)-1] ^= 1; return v }
	remove := func([]byte) []byte { return nil }
	rename := func(bucket, prefix []byte, f func(k []byte) []byte) func(s state) error {
		return func(s state) error {
			k, v := s.bucket(bucket).Cursor().Seek(prefix)
			k, v = bytes.Clone(k), bytes.Clone(v)
			return errors.Join(s.bucket(bucket).Delete(k), s.bucket(bucket).Put(f(k), v))
		}
	}
	remanifest := func(f func(m *artifact.Manifest)) func(s state) error {
		return change(bucketManifests, key, func(v []byte) []byte {
			row, err := parseManifestRow(v)
			if err != nil {
				t.Fatal(err)
			}
			f(&row.Manifest)
			enc, err := row.AppendBinary(binary.AppendUvarint(nil, uint64(row.seq)))
			if err != nil {
				t.Fatal(err)
			}
			return enc
		})
	}
	for name, tt := range map[string]struct {
		plant func(s state) error
		want  string
	}{
		"manifest not canonical":        {change(bucketManifests, key, func(v []byte) []byte { return append(v, 0) }), "decode manifest"},
		"manifest lost":                 {change(bucketManifests, key, remove), "has no manifest that new"},
		"manifest under another key":    {rename(bucketManifests, key, func(k []byte) []byte { k[0] = 'E'; return k }), "is that of example.com/a"},
		"manifest with another zip":     {remanifest(func(m *artifact.Manifest) { m.Zip.Size++ }), "is not what leaf 1"},
		"manifest with another sum":     {remanifest(func(m *artifact.Manifest) { m.ZipSum = m.ModSum }), "its record"},
		"record with another proof":     {remanifest(func(m *artifact.Manifest) { m.Record.Proof[0][0] ^= 1 }), "is not in its signed tree"},
		"record with another id":        {remanifest(func(m *artifact.Manifest) { m.Record.ID++ }), "is not in its signed tree"},
		"record of an unknown head":     {remanifest(func(m *artifact.Manifest) { m.Record.TreeSize++ }), "4 records is missing"},
		"head lost":                     {change(bucketHeads, nil, remove), "3 records is missing"},
		"head with another root":        {change(bucketHeads, nil, func(v []byte) []byte { v[0] ^= 1; return v }), "the signed note says"},
		"head with another note":        {change(bucketHeads, nil, func(v []byte) []byte { v[40] ^= 1; return v }), "is not signed by"},
		"head at another size":          {rename(bucketHeads, nil, flipLast), "the signed note says"},
		"head of an unknown database":   {rename(bucketHeads, nil, func(k []byte) []byte { k[0] = 'x'; return k }), "is not trusted"},
		"key lost":                      {change(bucketKeys, nil, remove), "is not trusted"},
		"key of another":                {change(bucketKeys, nil, func(v []byte) []byte { v[0] = 'x'; return v }), "key of database"},
		"inline bytes turned":           {change(bucketInline, nil, flipLast), "inline bytes"},
		"inline bytes lost":             {change(bucketInline, nil, remove), "does not hold its bytes"},
		"inline bytes of nobody":        {func(s state) error { return s.putInline(artifact.DigestOf([]byte("x")), 0, []byte("x")) }, "belong to no manifest"},
		"inline bytes of a future leaf": {func(s state) error { return s.putInline(artifact.DigestOf([]byte("x")), 9, []byte("x")) }, "belong to no manifest"},
		"leaf turned":                   {change(bucketLeaves, bigEndian(0), func(v []byte) []byte { v[0] ^= 1; return v }), "Merkle tree: 3 leaves have the root"},
		"leaf lost":                     {change(bucketLeaves, bigEndian(0), remove), "out of order"},
		"last leaf lost":                {change(bucketLeaves, bigEndian(2), remove), "Merkle tree: 2 leaves"},
		"leaf of another key":           {change(bucketLeaves, bigEndian(0), flipLast), "has no manifest that new"},
		"Merkle state turned":           {change(bucketConfig, keyMerkle, flipLast), "Merkle tree"},
		"Merkle state lost":             {change(bucketConfig, keyMerkle, remove), "malformed Merkle state"},
		"count of manifests":            {func(s state) error { return s.count(keyManifests) }, "counts 3 manifests, and holds 2"},
		"count of conflicts":            {func(s state) error { return s.count(keyConflicts) }, "counts 2 conflicts, and holds 1"},
		"conflict cut short":            {change(bucketConflicts, nil, func(v []byte) []byte { return v[:len(v)-1] }), "conflict"},
		"conflict of equals": {change(bucketConflicts, nil, func(v []byte) []byte {
			d := decoder{b: v}
			a := d.bytes()
			return appendString(appendString(nil, a), a)
		}), "do not contradict"},
		"evidence turned":       {change(bucketForks, nil, func(v []byte) []byte { v[80] ^= 1; return v }), "evidence of a fork"},
		"evidence cut short":    {change(bucketForks, nil, func(v []byte) []byte { return v[:9] }), "evidence of a fork"},
		"listing not canonical": {change(bucketListings, nil, func(v []byte) []byte { return append(v, 0) }), "listing of"},
		"listing of another":    {rename(bucketListings, nil, flipLast), "it is that of example.com/a"},
	} {
		m, _ := fullMachine(t)
		if err := m.catalog.update(tt.plant); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := strings.Join(problems(t, m), "\n"); !strings.Contains(got, tt.want) {
			t.Errorf("%s: Check says\n%s\nwant %q", name, got, tt.want)
		}
	}
	m, _ := fullMachine(t)
	if got := problems(t, m); len(got) > 0 {
		t.Errorf("Check of a healthy catalog says %q", got)
	}
}

// Any byte of the file may be turned: Check finds it, or nothing that it says has changed.
func TestCheckAnyDamagedPage(t *testing.T) {
	m, _ := fullMachine(t)
	_, r, err := m.store.Open(liveID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var file bytes.Buffer
	if _, err := file.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	want := dump(t, m.catalog)
	found := 0
	for at := 2 * 4096; at < file.Len(); at += 4096 {
		damaged := bytes.Clone(file.Bytes())
		damaged[at] ^= 1
		got, errs := dumpAndCheck(t, damaged)
		if len(errs) > 0 {
			found++
		} else if got != want {
			t.Errorf("page %d is damaged, and Check finds nothing", at/4096)
		}
	}
	if found == 0 {
		t.Error("no damage is found at all")
	}
}

func dumpAndCheck(t *testing.T, file []byte) (string, []error) {
	t.Helper()
	c := newCatalog(t.TempDir() + "/catalog.db")
	if err := createFile(c.path, func(tmp string) error { return writeFile(tmp, file) }); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.db, err = openDB(c.path, true); err != nil {
		return "", []error{err}
	}
	defer c.close()
	var errs []error
	for err := range (&Catalog{catalog: c}).Check(t.Context(), nil) {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return "", errs
	}
	return dump(t, c), nil
}

func TestCheckStops(t *testing.T) {
	m, _ := fullMachine(t)
	if err := m.catalog.update(func(s state) error {
		return errors.Join(s.count(keyManifests), s.count(keyConflicts), s.setMerkle(compact{}))
	}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for range (&Catalog{catalog: m.catalog}).Check(t.Context(), nil) {
		n++
		break
	}
	if n != 1 {
		t.Errorf("%d problems after a break", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n = 0
	for err := range (&Catalog{catalog: m.catalog}).Check(ctx, nil) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Check(canceled) yields %v", err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("Check(canceled) yields %d errors", n)
	}
	var done, total int
	for range (&Catalog{catalog: m.catalog}).Check(t.Context(), func(d, n int) { done, total = d, n }) {
	}
	if done == 0 || done != total {
		t.Errorf("progress ends at %d of %d", done, total)
	}
}

func TestRootIsTheTreeOfChanges(t *testing.T) {
	m, _ := fullMachine(t)
	seq, root := m.catalog.Root()
	var tree compact
	if err := m.catalog.view(func(s state) error {
		return s.bucket(bucketLeaves).ForEach(func(_, v []byte) error {
			tree.add(tlog.Hash(v[:tlog.HashSize]))
			return nil
		})
	}); err != nil || tree.root() != root || tree.size != seq || seq != 3 {
		t.Errorf("Root() = %d %v, want %d %v (%v)", seq, root, tree.size, tree.root(), err)
	}
}
