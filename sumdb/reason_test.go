package sumdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"modmirror/mirror/artifact"
	"modmirror/sumdb/sumdbtest"
)

// broken is a source whose every answer is err. It names itself, as errors of a source do.
type broken struct{ err error }

func (b broken) Get(_ context.Context, path string, _ int64) ([]byte, error) {
	return nil, fmt.Errorf("%s%s: %w", b, path, b.err)
}

func (b broken) String() string { return "http://10.1.2.3:8080/inside" }

// What the inside looks like is for the log. Whoever asked reads what happened, what to do, and the id to ask about.
func TestReasons(t *testing.T) {
	const path = "/lookup/example.com/hello@v1.0.0"
	cause := errors.New("dial tcp 10.1.2.3:8080: connect: refused by db.internal.example:8080")
	const public = "the upstream: dial tcp (address): connect: refused by (address)"
	for name, c := range map[string]struct {
		err    error
		status int
		want   string // end of the first line
		logged bool
	}{
		"unavailable": {fmt.Errorf("%w: %w", cause, artifact.ErrUnavailable), 503, public + "; try again later", true},
		"time-out":    {fmt.Errorf("%w: %w", cause, context.DeadlineExceeded), 504, "; try again later", true},
		"malformed":   {fmt.Errorf("%w: %w", cause, artifact.ErrMalformed), 502, public + "; try again, or ask who runs this mirror", true},
		"refused":     {fmt.Errorf("%w: %w", cause, artifact.ErrRefused), 403, "; it is not served, ask who runs this mirror", true},
		"absent":      {fmt.Errorf("no such module: %w", fs.ErrNotExist), 404, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			src := sumdbtest.New("sum.example.com")
			db := open(t, Config{Key: src.Key(), Catalog: sumdbtest.NewCatalog(src.Key()), Direct: broken{c.err}, Log: slog.New(slog.NewTextHandler(&log, nil))})
			for _, id := range []string{"", "abc-1"} {
				w := httptest.NewRecorder()
				if id != "" {
					w.Header().Set("X-Request-Id", id)
				}
				db.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
				wantPlain(t, w)
				lines := strings.Split(w.Body.String(), "\n")
				if w.Code != c.status || !strings.HasSuffix(lines[0], c.want) || strings.Count(lines[0], "the upstream") > 1 {
					t.Errorf("%d %q, want %d …%q", w.Code, lines[0], c.status, c.want)
				}
				for _, secret := range []string{"10.1.2.3", "inside", "internal.example", "8080"} {
					if strings.Contains(w.Body.String(), secret) {
						t.Errorf("%q is public: %s", secret, w.Body)
					}
				}
				if id == "" && len(lines) != 2 || id != "" && (len(lines) != 3 || lines[1] != "request id: "+id) {
					t.Errorf("lines %q", lines)
				}
			}
			text := log.String()
			if got := strings.Contains(text, "10.1.2.3") && strings.Contains(text, "abc-1"); got != c.logged {
				t.Errorf("log: %s", text)
			}
			if strings.Contains(text, "inside: http") {
				t.Errorf("the source is named twice: %s", text)
			}
		})
	}
}

// The text of an error that nobody thought of stays inside, and the name of a private module out of the log.
func TestReasonsThatStayInside(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w := httptest.NewRecorder()
	writeError(w, logger, errors.New("secret"))
	wantPlain(t, w)
	if w.Code != http.StatusInternalServerError || w.Body.String() != "internal error; ask who runs this mirror\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), "secret") {
		t.Errorf("log: %s", log.String())
	}
	log.Reset()
	writeError(httptest.NewRecorder(), logger, fmt.Errorf("%s: %w", strings.Repeat("x", 1<<20), artifact.ErrUnavailable))
	if log.Len() > 3<<10 {
		t.Errorf("%d bytes logged", log.Len())
	}
	log.Reset()
	l := newLab(t, 3, func(c *Config) { c.Private, c.Log = func(string) bool { return true }, logger })
	if w := get(t, l, "/lookup/example.com/hello@v1.0.0"); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "example.com/hello is private") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if strings.Contains(log.String(), "hello") || log.Len() == 0 {
		t.Errorf("log: %s", log.String())
	}
}
