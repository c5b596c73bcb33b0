package mirror

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
)

// discard is a ResponseWriter that costs nothing.
type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

func benchmarkServe(b *testing.B, path string, more ...string) {
	up := mirrortest.New()
	b.Cleanup(up.Close)
	m := up.Add(hello + strings.Join(more, ""))
	zip, mod := up.Sums(m)
	sums := &checksums{records: map[module.Version]artifact.Record{}}
	sums.set(m, zip, mod)
	store, err := artifact.OpenStore(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	mir, err := New(Config{Index: newMemIndex(), Upstream: &proxies{urls: []string{up.URL()}}, Checksums: sums, Store: store})
	if err != nil {
		b.Fatal(err)
	}
	r := httptest.NewRequest("GET", path, nil)
	b.ReportAllocs()
	for b.Loop() {
		mir.ServeHTTP(&discard{make(http.Header, 8)}, r)
	}
	w := httptest.NewRecorder()
	if mir.ServeHTTP(w, r); w.Code != 200 {
		b.Fatal(w.Code)
	}
}

func BenchmarkServeMod(b *testing.B)  { benchmarkServe(b, helloPath+"v1.0.0.mod") }
func BenchmarkServeInfo(b *testing.B) { benchmarkServe(b, helloPath+"v1.0.0.info") }
func BenchmarkServeList(b *testing.B) { benchmarkServe(b, helloPath+"list") }
func BenchmarkServeZip(b *testing.B)  { benchmarkServe(b, helloPath+"v1.0.0.zip") }

// BenchmarkServeZipFile is for a zip that is not kept in memory.
func BenchmarkServeZipFile(b *testing.B) { benchmarkServe(b, helloPath+"v1.0.0.zip", noise()) }

// noise is a file that does not get small.
func noise() string {
	var b strings.Builder
	b.WriteString("-- noise.txt --\n")
	for r := rand.New(rand.NewPCG(1, 2)); b.Len() < 2*maxHot; {
		fmt.Fprintf(&b, "%x\n", r.Uint64())
	}
	return b.String()
}

func BenchmarkParseRequest(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseRequest("/github.com/%21burnt%21sushi/toml/@v/v0.3.1.zip"); err != nil {
			b.Fatal(err)
		}
	}
}

// readerFrom is a connection that can send files by itself.
type readerFrom struct {
	discard
	src io.Reader
}

func (r *readerFrom) ReadFrom(src io.Reader) (int64, error) {
	r.src = src
	return io.Copy(io.Discard, src)
}

// A zip that is not small reaches the connection as a file: what stands in between must not take sendfile away. A small one is
// answered from memory.
func TestSendfile(t *testing.T) {
	g := newRig(t)
	g.add("example.com/large@v1.0.0\n" + noise())
	const large = "/example.com/large/@v/v1.0.0.zip"
	want := g.get(large).body
	if len(want) <= maxHot {
		t.Fatalf("the zip has %d bytes", len(want))
	}
	w := &readerFrom{discard: discard{make(http.Header)}}
	g.ServeHTTP(w, httptest.NewRequest("GET", large, nil))
	l, ok := w.src.(*io.LimitedReader)
	if !ok {
		t.Fatalf("the connection got %T", w.src)
	}
	if _, ok := l.R.(*os.File); !ok {
		t.Fatalf("the connection got %T", l.R)
	}
	plain := httptest.NewRecorder()
	g.ServeHTTP(struct{ http.ResponseWriter }{plain}, httptest.NewRequest("GET", large, nil))
	if !bytes.Equal(plain.Body.Bytes(), []byte(want)) {
		t.Error("a connection that cannot got other bytes")
	}
	small := g.want(helloPath+"v1.0.0.zip", 200, "")
	man, err := g.index.Manifest(t.Context(), helloV)
	if err == nil {
		err = g.store.Remove(man.Zip.Digest)
	}
	if err != nil {
		t.Fatal(err)
	}
	if again := g.want(helloPath+"v1.0.0.zip", 200, ""); again.body != small.body || again.header.Get("Etag") != small.header.Get("Etag") {
		t.Errorf("a small zip from memory: %+v, before %+v", again.header, small.header)
	}
}
