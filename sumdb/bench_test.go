package sumdb

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// nowhere is a ResponseWriter that counts and forgets.
type nowhere struct {
	header http.Header
	status int
	n      int64
}

func (w *nowhere) Header() http.Header { return w.header }
func (w *nowhere) WriteHeader(s int)   { w.status = s }
func (w *nowhere) Write(b []byte) (int, error) {
	w.n += int64(len(b))
	return len(b), nil
}

func benchmarkServe(b *testing.B, db *DB, path string) {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		w := &nowhere{header: make(http.Header)}
		db.ServeHTTP(w, r)
		if w.n == 0 || w.status >= 300 {
			b.Fatalf("status %d, %d bytes", w.status, w.n)
		}
	}
}

func BenchmarkServeLookup(b *testing.B) {
	l, _ := newReal(b)
	publishReal(b, l, realModules...)
	benchmarkServe(b, l.DB, "/lookup/golang.org/x/mod@v0.42.0")
}

// An answer that is not in memory: composed, and verified as a client would.
func BenchmarkServeLookupCold(b *testing.B) {
	l, _ := newReal(b)
	publishReal(b, l, realModules...)
	r := httptest.NewRequest(http.MethodGet, "/lookup/golang.org/x/mod@v0.42.0", nil)
	b.ReportAllocs()
	for b.Loop() {
		l.composed = newCache[string, composed](composedBytes)
		l.ServeHTTP(&nowhere{header: make(http.Header)}, r)
	}
}

func BenchmarkServeTile(b *testing.B) {
	l, _ := newReal(b)
	publishReal(b, l, realModules[0])
	b.SetBytes(tileBytes)
	benchmarkServe(b, l.DB, "/tile/8/0/000")
}

func BenchmarkVerifyRecord(b *testing.B) {
	l, _ := newReal(b)
	publishReal(b, l, realModules...)
	msg, _ := realLookup(b, realModules[6])
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.verify(b.Context(), "test", realModules[6], msg); err != nil {
			b.Fatal(err)
		}
	}
}
