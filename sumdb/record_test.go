package sumdb

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
	"modmirror/sumdb/sumdbtest"
)

var hello = mv("example.com/hello@v1.0.0")

// A record without both lines for exactly the module asked is refused, and asked for again the next time.
func TestCVE_2026_42501_RecordWithoutTheLine(t *testing.T) {
	good := sumdbtest.Text(hello, sumdbtest.Sum("a"), sumdbtest.Sum("b"))
	zip, mod, _ := strings.Cut(good, "\n")
	for name, text := range map[string]string{
		"another module":    sumdbtest.Text(mv("example.com/other@v1.0.0"), sumdbtest.Sum("a"), sumdbtest.Sum("b")),
		"another version":   sumdbtest.Text(mv("example.com/hello@v1.0.1"), sumdbtest.Sum("a"), sumdbtest.Sum("b")),
		"longer path":       sumdbtest.Text(mv("example.com/hello/v2@v1.0.0"), sumdbtest.Sum("a"), sumdbtest.Sum("b")),
		"no go.mod line":    zip + "\n",
		"no zip line":       mod,
		"conflicting lines": good + zip[:strings.LastIndex(zip, " ")+1] + sumdbtest.Sum("c") + "\n",
		"not h1":            strings.ReplaceAll(good, "h1:", "h2:"),
		"short hash":        strings.Replace(good, "h1:", "h1:AAAA", 1),
		"no lines":          "nothing\n",
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, 3, nil)
			l.src.AddText(hello, text)
			for range 2 {
				r, err := l.Record(t.Context(), hello)
				if !errors.Is(err, artifact.ErrRefused) || errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("Record = %+v, %v", r, err)
				}
			}
			if n := l.src.Count("lookup"); n != 2 {
				t.Errorf("%d lookups, want 2: a refusal must not be remembered", n)
			}
			if w := get(t, l, "/lookup/example.com/hello@v1.0.0"); w.Code != http.StatusForbidden {
				t.Errorf("lookup: %d %s", w.Code, w.Body)
			}
		})
	}
}

func TestLookupResponseIsStrict(t *testing.T) {
	for name, c := range map[string]struct {
		lies sumdbtest.Lies
		want error
	}{
		"negative id":         {sumdbtest.Lies{IDs: map[module.Version]string{hello: "-5"}}, artifact.ErrMalformed},
		"signed id":           {sumdbtest.Lies{IDs: map[module.Version]string{hello: "+3"}}, artifact.ErrMalformed},
		"zeros before the id": {sumdbtest.Lies{IDs: map[module.Version]string{hello: "003"}}, artifact.ErrMalformed},
		"id of 20 digits":     {sumdbtest.Lies{IDs: map[module.Version]string{hello: "12345678901234567890"}}, artifact.ErrMalformed},
		"NUL in the id":       {sumdbtest.Lies{IDs: map[module.Version]string{hello: "3\x00"}}, artifact.ErrMalformed},
		"id beyond the tree":  {sumdbtest.Lies{IDs: map[module.Version]string{hello: "6"}}, artifact.ErrMalformed},
		"id of another":       {sumdbtest.Lies{IDs: map[module.Version]string{hello: "2"}}, artifact.ErrRefused},
		"forged text":         {sumdbtest.Lies{Records: map[module.Version]string{hello: sumdbtest.Text(hello, sumdbtest.Sum("x"), sumdbtest.Sum("y"))}}, artifact.ErrRefused},
		"NUL in the text":     {sumdbtest.Lies{Records: map[module.Version]string{hello: "a\x00b\n"}}, artifact.ErrMalformed},
		"no tree head":        {sumdbtest.Lies{NoHead: true}, artifact.ErrMalformed},
		"unknown key":         {sumdbtest.Lies{WrongKey: true}, artifact.ErrRefused},
		"lines in between":    {sumdbtest.Lies{Between: "example.com/hello v1.0.0 h1:evil\n\n"}, artifact.ErrRefused},
		"junk at the end":     {sumdbtest.Lies{Junk: "example.com/hello v1.0.0 h1:evil\n"}, artifact.ErrRefused},
		"huge":                {sumdbtest.Lies{HugeBody: true}, artifact.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, 3, nil)
			l.add(hello)
			l.src.Grow(2)
			if _, err := l.bootstrap(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.src.Lie(c.lies)
			r, err := l.Record(t.Context(), hello)
			if !errors.Is(err, c.want) || errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("Record = %+v, %v; want %v", r, err, c.want)
			}
			if c.lies.WrongKey && !strings.Contains(err.Error(), "not signed by sum.example.com+") {
				t.Errorf("Record: %v", err)
			}
			l.src.Lie(sumdbtest.Lies{})
			want(t, l.DB, hello) // nothing is remembered
		})
	}
}

// Signed lines behind the tree head, and signatures by unknown keys, are not searched for hashes. The former are kept,
// because they are signed; the latter are not served again.
func TestCVE_2026_56864_LinesInTheTreeHead(t *testing.T) {
	evil := "example.com/hello v1.0.0 " + sumdbtest.Sum("evil")
	l := newLab(t, 3, nil)
	l.add(hello)
	l.src.Lie(sumdbtest.Lies{HeadLines: evil + "\n", Junk: "— unknown.example AAAAAEFB\n"})
	want(t, l.DB, hello)
	w := get(t, l, "/lookup/example.com/hello@v1.0.0")
	record, head, _ := strings.Cut(w.Body.String(), "\n\n")
	if w.Code != http.StatusOK || strings.Contains(record, evil) || !strings.Contains(head, evil) || strings.Contains(head, "unknown.example") {
		t.Errorf("lookup: %d\n%s", w.Code, w.Body)
	}
	wantLines(t, newGoClient(l, l.Key, nil), hello)
}

// wantNotStored fails the test unless l refuses hello because of bad tiles, keeps none of these, sees no fork in them, and
// verifies hello as soon as the source is honest.
func wantNotStored(t *testing.T, l *lab, forged map[string][]byte) {
	t.Helper()
	before := testutil.ToFloat64(l.metrics.badTiles)
	if r, err := l.Record(t.Context(), hello); !errors.Is(err, artifact.ErrRefused) {
		t.Fatalf("Record = %+v, %v", r, err)
	}
	if n := testutil.ToFloat64(l.metrics.badTiles) - before; n == 0 {
		t.Error("bad_tiles_total does not count them")
	}
	for p, data := range forged {
		tile, err := tlog.ParseTilePath(p)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := l.tiles.Tile(tile); err == nil && bytes.Equal(b, data) {
			t.Errorf("the forged %s is stored", p)
		}
		if w := get(t, l, "/"+p); bytes.Equal(w.Body.Bytes(), data) {
			t.Errorf("the forged %s is served", p)
		}
	}
	if _, err := l.cat.Fork(t.Context(), l.name); err == nil {
		t.Error("a bad tile counts as a fork")
	}
	l.src.Lie(sumdbtest.Lies{})
	want(t, l.DB, hello)
}

// Lines that stand in a lookup around its record are not looked at: the answer is refused, whichever sums they name.
func TestCVE_2026_56864_LinesAroundTheRecord(t *testing.T) {
	evil := sumdbtest.Text(hello, sumdbtest.Sum("evil"), sumdbtest.Sum("evil mod"))
	other := mv("example.com/other@v1.0.0")
	for name, lies := range map[string]sumdbtest.Lies{
		"behind the record":        {Between: evil + "\n"},
		"behind the head":          {Junk: evil},
		"behind a record of other": {Between: evil + "\n", Records: map[module.Version]string{hello: sumdbtest.Text(other, sumdbtest.Sum(other.String()), sumdbtest.Sum(other.String()+"/go.mod"))}},
		"in the head of another": {HeadLines: evil, Records: map[module.Version]string{hello: sumdbtest.Text(other, sumdbtest.Sum(other.String()), sumdbtest.Sum(other.String()+"/go.mod"))},
			IDs: map[module.Version]string{hello: "3"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, 3, nil)
			l.add(other)
			l.add(hello)
			if _, err := l.bootstrap(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.src.Lie(lies)
			if r, err := l.Record(t.Context(), hello); !noGood(err) {
				t.Errorf("Record = %+v, %v", r, err)
			}
			if w := get(t, l, "/lookup/example.com/hello@v1.0.0"); w.Code == http.StatusOK || w.Code == http.StatusNotFound {
				t.Errorf("lookup: %d %s", w.Code, w.Body)
			}
			l.src.Lie(sumdbtest.Lies{})
			if w := get(t, l, "/lookup/example.com/hello@v1.0.0"); w.Code != http.StatusOK || strings.Contains(w.Body.String(), sumdbtest.Sum("evil")) {
				t.Errorf("honest lookup: %d %s", w.Code, w.Body)
			}
		})
	}
}

// Genuine tiles but one, and a forged text to go with it.
func TestCVE_2026_56865_ForgedTileOfLevel0(t *testing.T) {
	forged := sumdbtest.Text(hello, sumdbtest.Sum("x"), sumdbtest.Sum("y"))
	for _, size := range []int{10, 256, 300, 65536 + 300} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			l := newLab(t, 5, nil)
			l.add(hello)
			l.src.Grow(size - 6)
			path, data := l.src.ForgedTile(5, forged)
			tiles := map[string][]byte{path: data}
			l.src.Lie(sumdbtest.Lies{Records: map[module.Version]string{hello: forged}, Tiles: tiles})
			wantNotStored(t, l, tiles)
		})
	}
}

// A forged tile of level 1 leads nowhere either, with the genuine record below it.
func TestCVE_2026_56865_ForgedTileOfLevel1(t *testing.T) {
	for _, known := range []bool{false, true} { // whether the genuine head is committed before the lie
		l := newLab(t, 5, nil)
		l.add(hello)
		l.src.Grow(65536)
		if known {
			if _, err := l.bootstrap(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		b, err := l.src.Get(t.Context(), "/tile/8/1/000", tileBytes)
		if err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		tiles := map[string][]byte{"tile/8/1/000": b}
		l.src.Lie(sumdbtest.Lies{Tiles: tiles})
		wantNotStored(t, l, tiles)
	}
}

// Forged tiles of level 0 and 1 that agree with each other and with the forged text, under the genuine head.
func TestCVE_2026_56865_ForgedPairOfTiles(t *testing.T) {
	forged := sumdbtest.Text(hello, sumdbtest.Sum("x"), sumdbtest.Sum("y"))
	for _, size := range []int{300, 65536, 65536 + 300} {
		for _, known := range []bool{false, true} {
			if known && size < 65536 {
				continue // the tile of level 1 is at the edge, and held
			}
			t.Run(fmt.Sprint(size, known), func(t *testing.T) {
				l := newLab(t, 5, nil)
				l.add(hello)
				l.src.Grow(size - 6)
				if known {
					if _, err := l.bootstrap(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				tiles := l.src.ForgedPair(5, forged)
				if len(tiles) != 2 {
					t.Fatalf("%d tiles", len(tiles))
				}
				l.src.Lie(sumdbtest.Lies{Records: map[module.Version]string{hello: forged}, Tiles: tiles})
				wantNotStored(t, l, tiles)
			})
		}
	}
}

// edited is a source whose answers are changed, and which keeps to no limit.
type edited struct {
	*sumdbtest.Database
	edit func(path string, b []byte) []byte // nil: none
}

func (e *edited) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	if e.edit == nil {
		return e.Database.Get(ctx, path, limit)
	}
	b, err := e.Database.Get(ctx, path, 1<<30)
	if err != nil {
		return nil, err
	}
	return e.edit(path, bytes.Clone(b)), nil
}

// Answers that are rubbish are told from lies, say what is wrong with them, and are forgotten at once.
func TestEditedAnswers(t *testing.T) {
	of := func(class string, edit func(b []byte) []byte) func(string, []byte) []byte {
		return func(path string, b []byte) []byte {
			if strings.HasPrefix(path, "/"+class) {
				return edit(b)
			}
			return b
		}
	}
	zipped := func(b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		w.Write(b)
		w.Close()
		return out.Bytes()
	}
	longer := func(b []byte) []byte { return append(b, b...) }
	cut := func(b []byte) []byte { return b[:len(b)-1] }
	signature := func(b []byte) []byte { b[len(b)-20] = 'A' + (b[len(b)-20]-'A'+1)%26; return b }
	for name, c := range map[string]struct {
		edit func(string, []byte) []byte
		want error
		text string
	}{
		"tile too long":         {of("tile", longer), artifact.ErrMalformed, "tile/8/0/"},
		"tile cut":              {of("tile", cut), artifact.ErrMalformed, "tile/8/0/"},
		"tile in gzip":          {of("tile", zipped), artifact.ErrMalformed, "tile/8/0/"},
		"lookup in gzip":        {of("lookup", zipped), artifact.ErrMalformed, "lookup response"},
		"signature of a lookup": {of("lookup", signature), artifact.ErrRefused, "not signed by sum.example.com+"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, 3, nil)
			l.add(hello)
			l.src.Grow(300)
			src := &edited{Database: l.src}
			l.DB = l.reopen(t, func(c *Config) { c.Direct = src })
			if _, err := l.bootstrap(t.Context()); err != nil {
				t.Fatal(err)
			}
			src.edit = c.edit
			for range 2 {
				if r, err := l.Record(t.Context(), hello); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
					t.Fatalf("Record = %+v, %v, want %v with %q", r, err, c.want, c.text)
				}
			}
			if err := l.sources[0].lastErr; !errors.Is(err, c.want) {
				t.Errorf("the source is blamed for %v", err)
			}
			src.edit = nil
			want(t, l.DB, hello)
		})
	}
}

// One source lies or fails; the next one has the answer.
func TestNextSource(t *testing.T) {
	forged := sumdbtest.Text(hello, sumdbtest.Sum("x"), sumdbtest.Sum("y"))
	src := sumdbtest.New("sum.example.com")
	src.Grow(5)
	add(src, hello)
	src.Grow(300)
	path, data := src.ForgedTile(5, forged)
	for name, lies := range map[string]sumdbtest.Lies{
		"down":            {Down: true},
		"tiles down":      {TilesDown: true},
		"no tiles":        {TilesMissing: true},
		"unsupported":     {Unsupported: true, Missing: true},
		"forged record":   {Records: map[module.Version]string{hello: forged}},
		"forged tile":     {Tiles: map[string][]byte{path: data}},
		"short tile":      {Tiles: map[string][]byte{path: data[:32]}},
		"both":            {Records: map[module.Version]string{hello: forged}, Tiles: map[string][]byte{path: data}},
		"wrong key":       {WrongKey: true},
		"rubbish":         {NoHead: true},
		"everything huge": {HugeBody: true},
	} {
		t.Run(name, func(t *testing.T) {
			liar := src.Fork(src.Size())
			liar.Lie(lies)
			db := open(t, Config{Key: src.Key(), Catalog: sumdbtest.NewCatalog(src.Key()), Proxies: []Source{liar}, Direct: src})
			want(t, db, hello)
			s, err := db.Status(t.Context())
			if err != nil || name != "unsupported" && name != "no tiles" && s.Sources[0].LastError == nil {
				t.Errorf("Status = %+v, %v", s, err)
			}
		})
	}
}

// While a proxy speaks for the database, its 404 is final and nobody else is asked.
func TestProxyFirst(t *testing.T) {
	src := sumdbtest.New("sum.example.com")
	src.Grow(3)
	proxy := src.Fork(3)
	add(src, hello)
	db := open(t, Config{Key: src.Key(), Catalog: sumdbtest.NewCatalog(src.Key()), Proxies: []Source{proxy}, Direct: src})
	if r, err := db.Record(t.Context(), hello); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Record = %+v, %v", r, err)
	}
	if n := src.Count(""); n != 0 {
		t.Errorf("%d direct requests, want none", n)
	}
}

// Whether a proxy speaks for the database is asked again after a minute.
func TestSupportedIsNotSticky(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		proxy := sumdbtest.New("sum.example.com")
		add(proxy, hello)
		db := open(t, Config{Key: proxy.Key(), Catalog: sumdbtest.NewCatalog(proxy.Key()), Proxies: []Source{proxy}})
		proxy.Lie(sumdbtest.Lies{Unsupported: true})
		for range 2 {
			if _, err := db.Record(t.Context(), hello); !errors.Is(err, artifact.ErrUnavailable) {
				t.Fatalf("Record: %v", err)
			}
		}
		if n := proxy.Count(""); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
		proxy.Lie(sumdbtest.Lies{})
		time.Sleep(supportedFor + time.Second)
		want(t, db, hello)
	})
}

// An error is forgotten at once, a 404 after two seconds: a version that was just published is found without a restart.
func TestNothingIsRememberedFromAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 300, nil)
		l.add(hello)
		for _, lies := range []sumdbtest.Lies{{Down: true}, {TilesDown: true}, {TilesMissing: true}} {
			l.src.Lie(lies)
			if _, err := l.Record(t.Context(), hello); !errors.Is(err, artifact.ErrUnavailable) || errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%+v: %v", lies, err)
			}
		}
		l.src.Lie(sumdbtest.Lies{Missing: true})
		before := l.src.Count("lookup")
		for range 3 {
			if _, err := l.Record(t.Context(), hello); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("Record: %v", err)
			}
		}
		if n := l.src.Count("lookup") - before; n != 1 {
			t.Errorf("%d lookups for three questions at once, want 1", n)
		}
		l.src.Lie(sumdbtest.Lies{})
		time.Sleep(2 * time.Second) // what the package doc says
		want(t, l.DB, hello)
	})
}

// A source that hangs costs the budget and no more; a client that goes away is gone at once, and ends nothing for others.
func TestHangingSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, nil)
		l.add(hello)
		release := l.src.Hang()
		start := time.Now()
		if _, err := l.Record(t.Context(), hello); !errors.Is(err, context.DeadlineExceeded) || statusOf(err) != http.StatusGatewayTimeout {
			t.Fatalf("Record: %v", err)
		}
		if d := time.Since(start); d != l.LookupBudget {
			t.Errorf("it took %v", d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone, stays := make(chan error), make(chan error)
		go func() { _, err := l.Record(ctx, hello); gone <- err }()
		synctest.Wait()
		go func() { _, err := l.Record(t.Context(), hello); stays <- err }()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("client that went away: %v", err)
		}
		release()
		if err := <-stays; err != nil {
			t.Errorf("client that stayed: %v", err)
		}
		if n := l.src.Count("lookup"); n != 2 {
			t.Errorf("%d lookups, want 2", n)
		}
	})
}

// The first source hangs, the second has its share of the time.
func TestHangingProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := sumdbtest.New("sum.example.com")
		add(src, hello)
		proxy := src.Fork(1)
		db := open(t, Config{Key: src.Key(), Catalog: sumdbtest.NewCatalog(src.Key()), Proxies: []Source{proxy}, Direct: src})
		db.Record(t.Context(), mv("example.com/other@v1.0.0")) // learns that the proxy is supported
		release := proxy.Hang()
		defer release()
		want(t, db, hello)
	})
}

func TestEqualRequestsAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 300, nil)
		l.add(hello)
		release := l.src.Hang()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { want(t, l.DB, hello) })
		}
		synctest.Wait()
		release()
		wg.Wait()
		for _, class := range []string{"lookup", "latest"} {
			if n := l.src.Count(class); n != 1 {
				t.Errorf("%d requests for %s, want 1", n, class)
			}
		}
		if n := l.src.Count("tile"); n != 2 {
			t.Errorf("%d tiles, want 2", n)
		}
	})
}

// Close ends lookups under way, and nothing starts after it.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, nil)
		l.add(hello)
		defer l.src.Hang()()
		done := make(chan error)
		go func() { _, err := l.Record(t.Context(), hello); done <- err }()
		synctest.Wait()
		l.Close()
		if err := <-done; !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("lookup under way: %v", err)
		}
		if _, err := l.Record(t.Context(), hello); !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// The name of a private module goes nowhere, however it is spelt.
func TestPrivate(t *testing.T) {
	l := newLab(t, 3, func(c *Config) {
		c.Private = func(p string) bool { return module.MatchPrefixPatterns("github.com/MyCo/*", p) }
	})
	l.add(mv("github.com/MyCo/secret@v1.0.0"))
	for _, p := range []string{"/lookup/github.com/!my!co/secret@v1.0.0", "/lookup/github.com/%21my%21co/secret@v1.0.0", "/lookup/github.com/!my!co/secret/v2@v2.0.0"} {
		w := get(t, l, p)
		if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "private") {
			t.Errorf("%s: %d %s", p, w.Code, w.Body)
		}
	}
	if _, err := l.Record(t.Context(), mv("github.com/MyCo/secret@v1.0.0")); !errors.Is(err, artifact.ErrPolicy) {
		t.Errorf("Record: %v", err)
	}
	if n := l.src.Count(""); n != 0 {
		t.Errorf("%d requests, want none", n)
	}
}

// Without a source a record that is not stored does not exist only if the operator says so.
func TestOfflineUnknown(t *testing.T) {
	l := newLab(t, 3, nil)
	if _, err := l.bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, offline := range []bool{false, true} {
		db := l.reopen(t, func(c *Config) { c.Offline = offline })
		_, err := db.Record(t.Context(), hello)
		if errors.Is(err, fs.ErrNotExist) != offline || errors.Is(err, artifact.ErrUnavailable) == offline {
			t.Errorf("offline %v: %v", offline, err)
		}
	}
	db := l.reopen(t, func(c *Config) { c.Offline, c.Direct = true, l.src })
	before := l.src.Count("")
	db.Record(t.Context(), hello)
	get(t, db, "/tile/8/0/005")
	if l.src.Count("") != before {
		t.Error("a source was asked offline")
	}
}

// Names that no database can know are not asked for.
func TestRecordOfNonsense(t *testing.T) {
	l := newLab(t, 3, nil)
	for _, m := range []module.Version{{}, mv("x@v1.0.0"), mv("example.com/x@master"), mv("example.com/x@v1"), mv("example.com/x@v1.0.0+meta"),
		mv("example.com/x@v1.0.0/go.mod"), mv("example.com/x@v2.0.0"), mv("169.254.169.254/latest@v1.0.0"), mv("example.com/../x@v1.0.0"), mv("example.com/x\n@v1.0.0")} {
		if _, err := l.Record(t.Context(), m); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Record(%q): %v", m, err)
		}
	}
	if n := l.src.Count(""); n != 0 {
		t.Errorf("%d requests, want none", n)
	}
}

// Of several sources' errors the one counts that says most, in whatever order they are asked.
func TestWorstErrorCounts(t *testing.T) {
	errs := []error{fs.ErrNotExist, errors.New("other"), artifact.ErrUnavailable, context.DeadlineExceeded, artifact.ErrMalformed, artifact.ErrRefused}
	for i, a := range errs {
		if worse(nil, a) != a {
			t.Errorf("worse(nil, %v) = %v", a, worse(nil, a))
		}
		for _, b := range errs[i:] {
			if worse(a, b) != b || worse(b, a) != b {
				t.Errorf("worse(%v, %v) = %v, %v", a, b, worse(a, b), worse(b, a))
			}
		}
	}
	src := sumdbtest.New("sum.example.com")
	add(src, hello)
	liar, down := src.Fork(1), src.Fork(1)
	liar.Lie(sumdbtest.Lies{WrongKey: true})
	down.Lie(sumdbtest.Lies{Down: true})
	for _, c := range []Config{{Proxies: []Source{liar}, Direct: down}, {Direct: liar, Proxies: []Source{down}}} {
		c.Key, c.Catalog = src.Key(), sumdbtest.NewCatalog(src.Key())
		if _, err := open(t, c).Record(t.Context(), hello); statusOf(err) != http.StatusForbidden {
			t.Errorf("Record: %v", err)
		}
	}
}

// A failed check is no absence, whoever says "not found" after it; and nobody is told so from memory either.
func TestFailedCheckThenNotFound(t *testing.T) {
	src := sumdbtest.New("sum.example.com")
	src.Grow(3)
	for name, c := range map[string]struct {
		lies sumdbtest.Lies
		want int
	}{
		"refused":   {sumdbtest.Lies{WrongKey: true}, http.StatusForbidden},
		"malformed": {sumdbtest.Lies{NoHead: true}, http.StatusBadGateway},
		"down":      {sumdbtest.Lies{Down: true}, http.StatusNotFound}, // whoever does answer is believed
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				liar := src.Fork(3)
				add(liar, hello)
				db := open(t, Config{Key: src.Key(), Catalog: sumdbtest.NewCatalog(src.Key()), Proxies: []Source{liar}, Direct: src})
				if w := get(t, db, "/lookup/example.com/other@v1.0.0"); w.Code != http.StatusNotFound { // learns that the proxy is supported
					t.Fatalf("%d %s", w.Code, w.Body)
				}
				liar.Lie(c.lies)
				for range 2 {
					if w := get(t, db, "/lookup/example.com/hello@v1.0.0"); w.Code != c.want {
						t.Errorf("%d %s, want %d", w.Code, w.Body, c.want)
					}
				}
			})
		})
	}
}

// madSource and madCatalog panic while mad is set.
type madSource struct {
	Source
	mad *atomic.Bool
}

func (m madSource) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	if m.mad.Load() {
		panic("get " + path)
	}
	return m.Source.Get(ctx, path, limit)
}

type madCatalog struct {
	Catalog
	mad *atomic.Bool
}

func (m madCatalog) TreeHead(ctx context.Context, db string, below int64) ([]byte, error) {
	if m.mad.Load() {
		panic("tree head")
	}
	return m.Catalog.TreeHead(ctx, db, below)
}

// A panic in joined or background work is an error of that work, is logged with its stack, and is over the next time.
func TestPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := sumdbtest.New("sum.example.com")
		add(src, hello)
		var mad atomic.Bool
		mad.Store(true)
		var log lockedBuffer
		c := Config{Key: src.Key(), Catalog: sumdbtest.NewCatalog(src.Key()), Direct: madSource{src, &mad}, Log: slog.New(slog.NewTextHandler(&log, nil))}
		db := open(t, c)
		for range 2 {
			_, err := db.Record(t.Context(), hello)
			if err == nil || !strings.Contains(err.Error(), "panic: get /lookup/") || strings.Contains(err.Error(), "goroutine") || statusOf(err) != http.StatusInternalServerError {
				t.Errorf("Record: %v", err)
			}
		}
		if !strings.Contains(log.String(), "goroutine") || !strings.Contains(log.String(), "madSource") {
			t.Errorf("log: %s", log.String())
		}
		c.Catalog = madCatalog{c.Catalog, &mad}
		inTheBackground := open(t, c)
		h, err := db.openHead(src.Head(1))
		if err != nil {
			t.Fatal(err)
		}
		inTheBackground.witness(h)
		background(t, inTheBackground)
		synctest.Wait()
		for _, want := range []string{"refresh: panic: tree head", "check tree head: panic: tree head"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("no %q in the log: %s", want, log.String())
			}
		}
		mad.Store(false)
		want(t, db, hello)
		want(t, inTheBackground, hello)
	})
}

// rude is a source that has only full tiles, and does not keep to limits.
type rude struct{ *sumdbtest.Database }

func (r rude) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	if strings.Contains(path, "001.p/") {
		return nil, fs.ErrNotExist
	}
	b, err := r.Database.Get(ctx, path, 1<<30)
	if err == nil && strings.HasPrefix(path, "/lookup/example.com/other@") {
		b = append(b, make([]byte, maxLookup)...)
	}
	return b, err
}

// A partial tile is cut from the full one if a source has only that; a body that is too long is refused by whoever is first.
func TestRudeSource(t *testing.T) {
	l := newLab(t, 300, nil)
	l.add(hello)
	if _, err := l.bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.src.Grow(500)
	l.add(mv("example.com/other@v1.0.0"))
	db := open(t, Config{Key: l.Key, Catalog: l.cat, Direct: rude{l.src}})
	want(t, db, hello)
	if _, err := db.Record(t.Context(), mv("example.com/other@v1.0.0")); !errors.Is(err, artifact.ErrMalformed) {
		t.Errorf("Record: %v", err)
	}
}

// A tile in the store that is well-formed and wrong is passed over and replaced.
func TestWrongTileInStore(t *testing.T) {
	l := newLab(t, 3000, nil)
	kept := l.seed(t, "kept")
	if err := l.tiles.Put([]tlog.Tile{tileAt(0, 3)}, [][]byte{make([]byte, tileBytes)}); err != nil {
		t.Fatal(err)
	}
	h, _ := l.committed(t.Context())
	v := &view{db: l.DB, ctx: t.Context(), tree: h.Tree, online: true}
	if _, err := v.ReadHashes([]int64{tlog.StoredHashIndex(0, 3<<8)}); err != nil {
		t.Fatal(err)
	}
	if b, err := openTiles(t, l.tiles.root.Name()).Tile(tileAt(0, 3)); err != nil || bytes.Equal(b, make([]byte, tileBytes)) {
		t.Errorf("tile is not replaced, %v", err)
	}
	r, _ := l.Record(t.Context(), kept)
	if err := CheckOffline(l.tiles, h.Tree, r); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*artifact.Record){
		"proof": func(r *artifact.Record) { r.Proof = r.Proof[1:] },
		"text":  func(r *artifact.Record) { r.Text = append([]byte("x"), r.Text...) },
		"id":    func(r *artifact.Record) { r.ID-- },
		"range": func(r *artifact.Record) { r.ID = h.N },
	} {
		bad := r
		change(&bad)
		if err := CheckOffline(l.tiles, h.Tree, bad); err == nil {
			t.Errorf("CheckOffline with another %s: no error", what)
		}
	}
}
