package sumdb

import (
	"bytes"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/sumdb/sumdbtest"
)

const realName = "sum.golang.org"

// What the recorded answers of sum.golang.org are about: testdata/sum.golang.org, recorded on 2026-11-23.
var realModules = []module.Version{
	{Path: "golang.org/x/text", Version: "v0.3.0"},
	{Path: "rsc.io/quote", Version: "v1.5.2"},
	{Path: "github.com/BurntSushi/toml", Version: "v1.4.0"},
	{Path: "github.com/hashicorp/raft", Version: "v1.7.3"},
	{Path: "golang.org/toolchain", Version: "v0.0.1-go1.25.0.linux-amd64"},
	{Path: "github.com/spf13/cobra", Version: "v1.10.2"},
	{Path: "golang.org/x/mod", Version: "v0.42.0"},
}

var realIDs = map[string]int64{
	"golang.org/x/text": 0, "rsc.io/quote": 942, "github.com/BurntSushi/toml": 26192615, "github.com/hashicorp/raft": 35446165,
	"golang.org/toolchain": 41959331, "github.com/spf13/cobra": 47802283, "golang.org/x/mod": 67638482,
}

func realFiles() *sumdbtest.Files {
	return &sumdbtest.Files{FS: os.DirFS(filepath.Join("testdata", realName))}
}

// realLookup returns the recorded response and its tree head.
func realLookup(t testing.TB, m module.Version) (msg, head []byte) {
	t.Helper()
	esc, err := escape(m)
	if err != nil {
		t.Fatal(err)
	}
	msg, err = os.ReadFile(filepath.Join("testdata", realName, "lookup", filepath.FromSlash(esc)))
	if err != nil {
		t.Fatal(err)
	}
	_, head, _ = bytes.Cut(msg, []byte("\n\n"))
	return msg, head
}

func realLatest(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", realName, "latest"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newReal returns a lab without a test database, on the recorded answers.
func newReal(t testing.TB) (*lab, *sumdbtest.Files) {
	t.Helper()
	f := realFiles()
	l := &lab{cat: sumdbtest.NewCatalog(known[realName]), tiles: openTiles(t, t.TempDir())}
	l.DB = open(t, Config{Key: known[realName], Catalog: l.cat, Tiles: l.tiles, Direct: f})
	return l, f
}

// publishReal verifies and publishes ms, and has all heads that were met checked.
func publishReal(t testing.TB, l *lab, ms ...module.Version) {
	t.Helper()
	for _, m := range ms {
		r, err := l.Record(t.Context(), m)
		if err != nil {
			t.Fatalf("Record(%s): %v", m, err)
		}
		if r.ID != realIDs[m.Path] {
			t.Errorf("Record(%s).ID = %d, want %d", m, r.ID, realIDs[m.Path])
		}
		if err := l.cat.Publish(m, r); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range drain(t, l.DB) {
		if o != "anchor" && o != "consistent" {
			t.Fatalf("witness: %s", o)
		}
	}
}

// offline returns another DB on what l holds, without any source.
func (l *lab) offline(t testing.TB) *DB {
	return open(t, Config{Key: l.Key, Catalog: l.cat, Tiles: openTiles(t, l.tiles.root.Name()), Offline: true})
}

func TestRealRecordsVerify(t *testing.T) {
	l, _ := newReal(t)
	publishReal(t, l, realModules...)
	h, err := l.committed(t.Context())
	if err != nil || h.N != 71909756 {
		t.Fatalf("head = %d, %v", h.N, err)
	}
	for _, m := range realModules {
		r, err := l.Record(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Check(h.Hash); err != nil {
			t.Error(err)
		}
		if err := CheckOffline(l.tiles, h.Tree, r); err != nil {
			t.Error(err)
		}
	}
	s, err := l.Status(t.Context())
	if err != nil || s.Size != 71909756 || s.Anchor != 69959272 || s.Deep != 66398721 || s.Checked.IsZero() {
		t.Errorf("Status = %+v, %v", s, err)
	}
}

// A go command with an empty GOPATH, or with the tree of any head that was recorded, verifies offline.
func TestRealOfflineClients(t *testing.T) {
	l, _ := newReal(t)
	publishReal(t, l, realModules...)
	off := l.offline(t)
	heads := map[string][]byte{"fresh": nil, "latest": realLatest(t)}
	for _, m := range realModules {
		_, head := realLookup(t, m)
		heads[m.Path] = head
	}
	for name, head := range heads {
		for _, m := range realModules {
			wantLines(t, newGoClient(off, known[realName], head), m)
		}
		_ = name
	}
}

// The lookup of an old record is answered with the deep anchor, that of a newer one with the anchor.
func TestRealAnchors(t *testing.T) {
	l, _ := newReal(t)
	publishReal(t, l, realModules...)
	for _, m := range realModules {
		esc, _ := escape(m)
		w := get(t, l, "/lookup/"+esc)
		_, note, _ := strings.Cut(w.Body.String(), "\n\n")
		want := "go.sum database tree\n66398721\n"
		if m.Path == "golang.org/x/mod" { // record 67638482
			want = "go.sum database tree\n69959272\n"
		}
		if w.Code != http.StatusOK || !strings.HasPrefix(note, want) {
			t.Errorf("%s: %d\n%s", m, w.Code, w.Body)
		}
	}
}

// A mirror that never saw a newer tree than 69,959,272 serves a client whose own tree has 71,909,756: with the deep
// anchor, whose edge is full. This is what anchors are for.
func TestRealNewerClient(t *testing.T) {
	l, f := newReal(t)
	_, old := realLookup(t, realModules[0])   // 66,385,784
	_, newer := realLookup(t, realModules[6]) // 69,959,272
	f.Replace("latest", old)
	publishReal(t, l, realModules[0])
	publishReal(t, l, realModules[6]) // moves the head
	if got, want := l.cat.Commits(), []int64{66385784, 69959272}; !slices.Equal(got, want) {
		t.Fatalf("commits %v, want %v", got, want)
	}
	off := l.offline(t)
	c := newGoClient(off, known[realName], realLatest(t))
	// Such a client has the right edge of its own tree in its module cache.
	for _, tile := range []string{"3/000.p/4", "2/004.p/73", "1/x001/097.p/65", "0/x280/897.p/124"} {
		b, err := os.ReadFile(filepath.Join("testdata", realName, "tile/8", tile))
		if err != nil {
			t.Fatal(err)
		}
		c.cache[realName+"/tile/8/"+tile] = b
	}
	wantLines(t, c, realModules[0])
	if h, _ := l.openHead(newer); h.N != 69959272 {
		t.Fatalf("newer head is %d", h.N)
	}
	// The control: with the mirror's newest head the same client asks for tiles that the mirror cannot have.
	now, err := off.committed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, _ := off.Record(t.Context(), realModules[0])
	text, err := tlog.FormatRecord(r.ID, r.Text)
	if err != nil {
		t.Fatal(err)
	}
	esc, _ := escape(realModules[0])
	off.composed.put("/lookup/"+esc, composed{module: realModules[0], reply: newReply(slices.Concat(text, now.note), typeText, cacheLookup), newest: now.N}, 0)
	c.cache = map[string][]byte{}
	if lines, err := c.lookup(realModules[0]); err == nil {
		t.Errorf("with the newest head: %q, want an error", lines)
	}
}

// Whichever byte of a lookup response is changed, it is refused, or it was not part of what is verified.
func TestFlipEveryByteOfLookup(t *testing.T) {
	l, _ := newReal(t)
	m := realModules[1]
	msg, _ := realLookup(t, m)
	want, err := l.verify(t.Context(), "test", m, msg)
	if err != nil {
		t.Fatal(err)
	}
	passed := 0
	for i := range msg {
		for _, mask := range []byte{0x01, 0x20, 0x80} {
			bad := bytes.Clone(msg)
			bad[i] ^= mask
			r, err := l.verify(t.Context(), "test", m, bad)
			switch {
			case err == nil && !sameRecord(r, want):
				t.Fatalf("byte %d ^ %#x: other record %+v", i, mask, r)
			case err == nil:
				passed++
				h, _ := l.openHead(bad[bytes.Index(bad, []byte("\n\n"))+2:])
				if g, _ := l.openHead(msg[bytes.Index(msg, []byte("\n\n"))+2:]); !bytes.Equal(h.note, g.note) {
					t.Fatalf("byte %d ^ %#x: other note %q", i, mask, h.note)
				}
			case statusOf(err) == http.StatusNotFound || statusOf(err) >= 500 && statusOf(err) != http.StatusBadGateway:
				t.Fatalf("byte %d ^ %#x: %v is status %d", i, mask, err, statusOf(err))
			}
		}
	}
	if passed > 3 {
		t.Errorf("%d changes did not matter", passed)
	}
}

func sameRecord(a, b artifact.Record) bool {
	return a.Database == b.Database && a.ID == b.ID && bytes.Equal(a.Text, b.Text) && a.TreeSize == b.TreeSize && slices.Equal(a.Proof, b.Proof)
}

// A forged text for record 0 with a forged tile 0/000 under the genuine head, with real data. x/mod v0.39.0 accepts it.
func TestCVE_2026_56865_RealForgedTile(t *testing.T) {
	l, f := newReal(t)
	m := realModules[0]
	msg, head := realLookup(t, m)
	text := sumdbtest.Text(m, sumdbtest.Sum("evil"), sumdbtest.Sum("evil mod"))
	f.Replace("lookup/golang.org/x/text@v0.3.0", fmt.Appendf(nil, "0\n%s\n%s", text, head))
	tile, err := os.ReadFile(filepath.Join("testdata", realName, "tile/8/0/000"))
	if err != nil {
		t.Fatal(err)
	}
	copy(tile, recordHash(text))
	f.Replace("tile/8/0/000", tile)
	if r, err := l.Record(t.Context(), m); statusOf(err) != http.StatusForbidden {
		t.Fatalf("Record = %+v, %v", r, err)
	}
	if _, err := l.tiles.Tile(tileAt(0, 0)); err == nil {
		t.Error("the forged tile is stored")
	}
	if _, err := l.cat.Fork(t.Context(), realName); err == nil {
		t.Error("a bad tile counts as a fork")
	}
	// Honest again, it verifies at once: nothing is remembered.
	f.Replace("lookup/golang.org/x/text@v0.3.0", msg)
	good, _ := os.ReadFile(filepath.Join("testdata", realName, "tile/8/0/000"))
	f.Replace("tile/8/0/000", good)
	if _, err := l.Record(t.Context(), m); err != nil {
		t.Error(err)
	}
	if h, err := l.committedBelow(t.Context(), math.MaxInt64); err != nil || h.N != 71909756 {
		t.Errorf("head %d, %v", h.N, err)
	}
}
