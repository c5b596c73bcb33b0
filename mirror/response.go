package mirror

import (
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// Values of headers that every answer shares. Nobody may change them.
var (
	typeText      = []string{"text/plain; charset=utf-8"}
	typeJSON      = []string{"application/json"}
	typeZip       = []string{"application/zip"}
	nosniff       = []string{"nosniff"}
	immutable     = []string{"public, max-age=31536000, immutable"}
	shortCached   = []string{"public, max-age=60"} // lists, @latest and queries
	brieflyCached = []string{"public, max-age=30"} // what is known not to exist
	noStore       = []string{"no-store"}
	allowGet      = []string{"GET, HEAD"}
)

// response counts what is sent. It keeps the way open for sendfile: io.Copy finds ReadFrom here and, behind it, that of
// the connection.
type response struct {
	http.ResponseWriter
	status  int // 0: nothing sent yet
	sent    int64
	class   class
	outcome outcome
	err     error // why the request was not answered well, for the log
	hidden  bool  // the path names what must not be logged

	content bool // http.ServeContent is at work
	unmet   bool // it has found that a condition of the request is not met
}

// errUnmet is for a request with If-Match and another ETag. It has the status 412.
var errUnmet = errors.New("the bytes have another ETag than those that were asked for")

// serveContent answers with content, whose headers are set, or with a part of it. An error means that nothing is sent.
func (w *response) serveContent(r *http.Request, content io.ReadSeeker) error {
	w.content = true
	http.ServeContent(w, r, "", time.Time{}, content)
	w.content = false
	if w.unmet {
		w.Header().Del("Etag") // or caches keep the answer for the artifact; the error has its own Cache-Control
		return errUnmet
	}
	return nil
}

// short reports whether less of a body was sent than the header says.
func (w *response) short(r *http.Request) bool {
	if r.Method == http.MethodHead || w.status != http.StatusOK && w.status != http.StatusPartialContent {
		return false
	}
	n, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
	return err == nil && w.sent < n
}

func (w *response) WriteHeader(status int) {
	if w.content && status == http.StatusPreconditionFailed {
		w.unmet = true // it sends nothing else then
		return
	}
	if w.status == 0 && status >= http.StatusOK {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

// ReadFrom implements [io.ReaderFrom].
func (w *response) ReadFrom(src io.Reader) (n int64, err error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if to, ok := w.ResponseWriter.(io.ReaderFrom); ok {
		n, err = to.ReadFrom(src)
	} else {
		n, err = io.Copy(struct{ io.Writer }{w.ResponseWriter}, src)
	}
	w.sent += n
	return n, err
}

// Unwrap lets http.ResponseController find the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// answer is a small artifact, list or info, ready to be sent: one lookup, one write.
type answer struct {
	body        []byte
	contentType []string
	cacheFor    []string
	etag        []string // nil for what is not an artifact
	length      []string
}

func newAnswer(body []byte, contentType, cacheFor []string, etag string) *answer {
	a := &answer{body: body, contentType: contentType, cacheFor: cacheFor, length: []string{strconv.Itoa(len(body))}}
	if etag != "" {
		a.etag = []string{etag}
	}
	return a
}

// answerCost is about what an answer takes besides its body: itself, its length and its ETag.
const answerCost = 256

func (a *answer) cost() int64 { return int64(cap(a.body)) + answerCost }

// ids names requests: a random prefix for the process and a number.
type ids struct {
	prefix string
	next   atomic.Uint64
}

func newIDs() *ids { return &ids{prefix: rand.Text()[:10] + "-"} }

// of returns the id that r's sender chose, if it is fit for logs, or a new one.
func (s *ids) of(r *http.Request) string {
	if v := r.Header["X-Request-Id"]; len(v) == 1 && sane(v[0]) {
		return v[0]
	}
	var buf [32]byte
	b := append(buf[:0], s.prefix...)
	return string(strconv.AppendUint(b, s.next.Add(1), 10))
}

// sane reports whether s can be a request id: 1 to 64 letters, digits, dots, dashes and underscores.
func sane(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}
