package sumdb

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/sumdb/sumdbtest"
)

// counted is a source that counts the requests that it has under way, and hangs until the context ends or free is closed.
type counted struct {
	Source
	free      chan struct{}
	now, most atomic.Int64
}

func (c *counted) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	n := c.now.Add(1)
	defer c.now.Add(-1)
	for most := c.most.Load(); n > most && !c.most.CompareAndSwap(most, n); most = c.most.Load() {
	}
	select {
	case <-c.free:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return c.Source.Get(ctx, path, limit)
}

// However many ask at once, so many requests are under way to the sources and so many lookups wait for them; the others
// are told to come back. All that were let in get their answer.
func TestConcurrencyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := sumdbtest.New("sum.example.com")
		slow := &counted{Source: src, free: make(chan struct{})}
		const more = 10
		for i := range maxLookups + more {
			add(src, mv(fmt.Sprintf("example.com/m%d@v1.0.0", i)))
		}
		db := open(t, Config{Key: src.Key(), Catalog: sumdbtest.NewCatalog(src.Key()), Direct: slow})
		var wg sync.WaitGroup
		var found, refused atomic.Int64
		for i := range maxLookups + more {
			wg.Go(func() {
				_, err := db.Record(t.Context(), mv(fmt.Sprintf("example.com/m%d@v1.0.0", i)))
				switch {
				case err == nil:
					found.Add(1)
				case errors.Is(err, artifact.ErrUnavailable) && strings.Contains(err.Error(), "too many"):
					refused.Add(1)
				default:
					t.Errorf("Record: %v", err)
				}
			})
		}
		synctest.Wait()
		if n := slow.now.Load(); n != maxFetches {
			t.Errorf("%d requests under way, want %d", n, maxFetches)
		}
		if n := refused.Load(); n != more {
			t.Errorf("%d lookups refused, want %d", n, more)
		}
		close(slow.free)
		wg.Wait()
		if n := found.Load(); n != maxLookups {
			t.Errorf("%d records, want %d", n, maxLookups)
		}
		if n := slow.most.Load(); n > maxFetches {
			t.Errorf("%d requests at once, want %d", n, maxFetches)
		}
		if len(db.sources[0].fetches) != 0 || len(db.lookups) != 0 {
			t.Errorf("%d and %d places not given back", len(db.sources[0].fetches), len(db.lookups))
		}
	})
}

// A record may have artifact.MaxRecord bytes and no more, even if all of the answer would be let in.
func TestRecordSizeIsBounded(t *testing.T) {
	for size, good := range map[int]bool{artifact.MaxRecord: true, artifact.MaxRecord + 1: false} {
		text := strings.Repeat("x", size-1) + "\n"
		a, err := parseLookup([]byte("7\n" + text + "\nhead\n"))
		if good && (err != nil || len(a.text) != size) || !good && !errors.Is(err, artifact.ErrMalformed) {
			t.Errorf("record of %d bytes: %v", size, err)
		}
	}
}

// endless is a source that does not keep to limits.
type endless struct{ size int }

func (e endless) Get(context.Context, string, int64) ([]byte, error) {
	return make([]byte, e.size), nil
}
func (e endless) String() string { return "endless" }

func TestBodySizeIsBounded(t *testing.T) {
	src := sumdbtest.New("sum.example.com")
	db := open(t, Config{Key: src.Key(), Catalog: sumdbtest.NewCatalog(src.Key()), Direct: endless{101}})
	for limit, good := range map[int64]bool{101: true, 100: false} {
		b, err := db.get(t.Context(), db.sources[0], "/latest", limit)
		if good && (err != nil || len(b) != 101) || !good && (b != nil || !errors.Is(err, artifact.ErrMalformed) || db.sources[0].lastErr == nil) {
			t.Errorf("101 bytes, limit %d: %d bytes, %v", limit, len(b), err)
		}
	}
}

// A signed tree of an absurd size is refused, before anything is computed from its size.
func TestTreeSizeIsBounded(t *testing.T) {
	skey, vkey, err := note.GenerateKey(rand.Reader, "sum.example.com")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	db := open(t, Config{Key: vkey, Catalog: sumdbtest.NewCatalog(vkey)})
	for n, good := range map[int64]bool{0: true, maxTree: true, maxTree + 1: false, 1<<63 - 1: false} {
		msg, err := note.Sign(&note.Note{Text: string(tlog.FormatTree(tlog.Tree{N: n}))}, signer)
		if err != nil {
			t.Fatal(err)
		}
		h, err := db.openHead(msg)
		if good && (err != nil || h.N != n || !bytes.Equal(h.note, msg)) || !good && !errors.Is(err, artifact.ErrRefused) {
			t.Errorf("tree of %d records: %v", n, err)
		}
	}
}

// A name takes memory wherever it is remembered: a client may send long ones.
func TestNamesAreCounted(t *testing.T) {
	l := newLab(t, 3, nil)
	known, unknown := module.Version{Path: "example.com/" + strings.Repeat("k", 500), Version: "v1.0.0"}, module.Version{Path: "example.com/" + strings.Repeat("u", 500), Version: "v1.0.0"}
	l.add(known)
	if w := get(t, l, "/lookup/"+known.Path+"@v1.0.0"); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w := get(t, l, "/lookup/"+unknown.Path+"@v1.0.0"); w.Code != 404 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	for name, n := range map[string]int64{"verified": l.verified.size() - int64(len(known.Path)), "composed": l.composed.size() - int64(len(known.Path)), "absent": l.absent.size()} {
		if n < 500+entryCost {
			t.Errorf("%s: %d bytes are counted", name, n)
		}
	}
	if w := get(t, l, "/tile/8/0/000.p/3"); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if n := l.tilePaths.size(); n < entryCost {
		t.Errorf("paths of tiles: %d bytes are counted", n)
	}
	if all, want := l.cached(), l.heads.size()+l.verified.size()+l.absent.size()+l.composed.size()+l.tilePaths.size()+l.seen.size()+l.others.size()+
		l.ready.size()+l.tiles.Cached(); all != want {
		t.Errorf("%d bytes in all, want %d", all, want)
	}
	if l.tiles.Cached() == 0 {
		t.Error("no bytes of tiles are counted")
	}
}
