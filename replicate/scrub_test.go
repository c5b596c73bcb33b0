package replicate

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// A row that is lost while the node is down is missed soon after the start. From then on nothing passes for absent.
func TestScrubFindsWhatIsHidden(t *testing.T) {
	dir, _ := lived(t)
	key := []byte("example.com/b@v1.0.0")
	if err := setRow(filepath.Join(dir, "catalog.db"), "m", key, nil); err != nil {
		t.Fatal(err)
	}
	n := openNode(t, Config{Dir: dir})
	waitFor(t, "the scrub", func() bool { st, _ := n.Status(t.Context()); return st.Damage != "" })
	if st, _ := n.Status(t.Context()); !strings.Contains(st.Damage, "example.com/b@v1.0.0") {
		t.Errorf("Status().Damage = %q", st.Damage)
	}
	for _, path := range []string{"example.com/b", "example.com/never"} {
		if _, err := n.Manifest(t.Context(), module.Version{Path: path, Version: "v1.0.0"}); !errors.Is(err, artifact.ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Manifest(%s) = %v", path, err)
		}
	}
	if _, err := n.Manifest(t.Context(), module.Version{Path: "example.com/a", Version: "v1.0.0"}); err != nil {
		t.Errorf("what is whole: %v", err)
	}
}

// A row that is lost while the node runs is found by the next scrub.
func TestScrubAgain(t *testing.T) {
	dir, _ := lived(t)
	n := openNode(t, Config{Dir: dir})
	for range 2 {
		if err := n.Scrub(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st, _ := n.Status(t.Context()); st.Damage != "" {
			t.Fatalf("Status().Damage = %q of a healthy catalog", st.Damage)
		}
	}
	if err := n.catalog.update(func(s state) error { return s.bucket(bucketManifests).Delete([]byte("example.com/b@v1.0.0")) }); err != nil {
		t.Fatal(err)
	}
	if err := n.Scrub(t.Context()); err != nil {
		t.Error(err)
	}
	if st, _ := n.Status(t.Context()); !strings.Contains(st.Damage, "example.com/b@v1.0.0") {
		t.Errorf("Status().Damage = %q", st.Damage)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Scrub(t.Context()); err == nil {
		t.Error("a catalog that is closed was looked at")
	}
}

// The scrub reads a bucket in parts, beside a node that goes on committing, and finds nothing in a healthy one.
func TestScrubInParts(t *testing.T) {
	m, _ := fullMachine(t)
	path := func(i int) string { return fmt.Sprintf("example.com/m%04d", i) }
	var cmds []command
	for i := range 2*scrubRows + 10 {
		cmds = append(cmds, listingCommand{artifact.Listing{Path: path(i), Versions: []string{"v1.0.0"}, Listed: time.Unix(1, 0)}})
	}
	m.apply(cmds...)
	if err := m.catalog.scrub(t.Context()); err != nil || m.catalog.damage.err() != nil {
		t.Fatalf("scrub of a healthy catalog: %v, %v", err, m.catalog.damage.err())
	}
	if err := m.catalog.update(func(s state) error {
		return s.bucket(bucketListings).Put([]byte(path(2*scrubRows+1)), []byte("x"))
	}); err != nil {
		t.Fatal(err)
	}
	if err := m.catalog.scrub(t.Context()); err != nil || m.catalog.damage.err() == nil {
		t.Errorf("scrub of a damaged catalog: %v, %v", err, m.catalog.damage.err())
	}
}

// A bit that turned is this node's fault: the answer is 503, never that the module is refused or unknown.
func TestTurnedRowsAreDamage(t *testing.T) {
	mod := module.Version{Path: "example.com/a", Version: "v1.0.0"}
	for name, tt := range map[string]struct {
		bucket, prefix []byte
		read           func(c *catalog) error
	}{
		"manifest":   {bucketManifests, nil, func(c *catalog) error { return second(c.Manifest(t.Context(), mod)) }},
		"record":     {bucketManifests, nil, func(c *catalog) error { return second(c.Record(t.Context(), "sum.example.org", mod)) }},
		"leaf":       {bucketLeaves, bigEndian(1), func(c *catalog) error { return second(c.Manifest(t.Context(), mod)) }},
		"head":       {bucketHeads, nil, func(c *catalog) error { return second(c.TreeHead(t.Context(), "sum.example.org", math.MaxInt64)) }},
		"listing":    {bucketListings, nil, func(c *catalog) error { return second(c.Listing(t.Context(), "example.com/a")) }},
		"key":        {bucketKeys, nil, func(c *catalog) error { return second(c.TreeHead(t.Context(), "sum.example.org", math.MaxInt64)) }},
		"Merkle row": {bucketConfig, keyMerkle, func(c *catalog) error { return c.fill(t.Context(), &Status{}) }},
	} {
		for at := range 40 {
			m, _ := fullMachine(t)
			if err := m.catalog.update(func(s state) error {
				k, v := s.bucket(tt.bucket).Cursor().Seek(tt.prefix)
				v = bytes.Clone(v)
				v[at*(len(v)-1)/39] ^= 0x40
				return s.bucket(tt.bucket).Put(bytes.Clone(k), v)
			}); err != nil {
				t.Fatal(err)
			}
			if err := tt.read(m.catalog); err != nil && (!errors.Is(err, artifact.ErrDamaged) || errors.Is(err, artifact.ErrRefused)) {
				t.Errorf("%s, byte %d of 39ths: %v", name, at, err)
			} else if err == nil && name != "listing" && name != "Merkle row" {
				t.Errorf("%s, byte %d of 39ths: not noticed", name, at)
			}
		}
	}
}

// Inline bytes that the disk lost are had again from who brings them, and nothing else changes.
func TestLostInlineBytesHeal(t *testing.T) {
	n := openNode(t, Config{Dir: t.TempDir()})
	db := trusting(t, n)
	mod := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n")
	advance(t, n, db)
	p := db.Publication(mod, db.Size())
	if _, err := n.Publish(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	before := dump(t, n.catalog)
	d := p.Manifest.Mod.Digest
	for name, spoil := range map[string]func(b *bbolt.Bucket) error{
		"turned": func(b *bbolt.Bucket) error {
			v := bytes.Clone(b.Get(d[:]))
			v[len(v)-1] ^= 1
			return b.Put(d[:], v)
		},
		"no row":    func(b *bbolt.Bucket) error { return b.Put(d[:], []byte{9}) },
		"wrong seq": func(b *bbolt.Bucket) error { return b.Put(d[:], []byte{0, 99, 'x'}) },
		"lost":      func(b *bbolt.Bucket) error { return b.Delete(d[:]) },
	} {
		if err := n.update(func(s state) error { return spoil(s.bucket(bucketInline)) }); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Inline(t.Context(), d); name != "lost" && !errors.Is(err, artifact.ErrDamaged) {
			t.Errorf("%s: Inline() = %v", name, err)
		}
		other := p
		other.Mod = []byte("module example.com/b\n")
		if _, err := n.Publish(t.Context(), other); err != nil && !errors.Is(err, artifact.ErrRefused) {
			t.Errorf("%s: Publish(other bytes) = %v", name, err)
		}
		if _, err := n.Publish(t.Context(), p); err != nil {
			t.Errorf("%s: Publish() = %v", name, err)
		}
		if b, err := n.Inline(t.Context(), d); err != nil || !bytes.Equal(b, p.Mod) {
			t.Errorf("%s: Inline() = %q, %v", name, b, err)
		}
		if got := dump(t, n.catalog); got != before {
			t.Errorf("%s: the catalog became\n%s\nwant\n%s", name, got, before)
		}
	}
	if st, _ := n.Status(t.Context()); st.Damage != "" {
		t.Errorf("Status().Damage = %q after all is healed", st.Damage)
	}
}

// A snapshot whose pages are whole, but whose rows are not what was committed, is refused as a whole.
func TestSnapshotWithTurnedRow(t *testing.T) {
	for name, change := range map[string]func(s state) error{
		"as it is": func(s state) error { return nil },
		"manifest": func(s state) error { return s.bucket(bucketManifests).Delete([]byte("example.com/a@v1.0.0")) },
		"leaf":     func(s state) error { return s.bucket(bucketLeaves).Delete(bigEndian(0)) },
		"inline": func(s state) error {
			k, v := s.bucket(bucketInline).Cursor().First()
			return s.bucket(bucketInline).Put(bytes.Clone(k), append(bytes.Clone(v), 'x'))
		},
	} {
		from, _ := fullMachine(t)
		if err := from.catalog.update(change); err != nil {
			t.Fatal(err)
		}
		sent := snapshotOf(t, from)
		if _, err := receive(newMachine(t), bytes.NewReader(sent)); (err == nil) != (name == "as it is") {
			t.Errorf("%s: install = %v", name, err)
		}
	}
}
