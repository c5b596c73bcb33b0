package upstream

import (
	"context"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"modmirror/mirror/artifact"
)

// dripping is a body whose bytes come one at a time, each after a while.
type dripping struct {
	ctx   context.Context
	n     int // bytes at a time
	pause time.Duration
	left  int
}

func (d *dripping) Read(p []byte) (int, error) {
	if d.left <= 0 {
		return 0, io.EOF
	}
	select {
	case <-time.After(d.pause):
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	}
	n := min(d.n, len(p), d.left)
	clear(p[:n])
	d.left -= n
	return n, nil
}
func (*dripping) Close() error { return nil }

// A body that drips is given up after a minute, one that is merely slow is not.
func TestSlowBody(t *testing.T) {
	for _, tt := range []struct {
		name  string
		n     int
		pause time.Duration
		fast  int // bytes that come at once
		took  time.Duration
		ok    bool
	}{
		{"a byte now and then", 1, 29 * time.Second, 0, 87 * time.Second, false},
		{"below the rate", 1000, time.Second, 0, time.Minute, false},
		{"above the rate", 1100, time.Second, 0, 272 * time.Second, true},
		{"slow after a good start", 1, 10 * time.Second, 200_000, 2 * time.Minute, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const size = 299_000
				l, err := Parse("https://a.example", Config{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					body := io.MultiReader(&dripping{r.Context(), 1 << 20, 0, tt.fast}, &dripping{r.Context(), tt.n, tt.pause, size - tt.fast})
					return &http.Response{StatusCode: 200, ContentLength: size, Body: io.NopCloser(body)}, nil
				})})
				if err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				err = l.Fetch(t.Context(), anyModule, artifact.Zip, func(body io.Reader, _ int64, _ string) error {
					_, err := io.Copy(io.Discard, body)
					return err
				})
				if took := time.Since(begin); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				if tt.ok && err != nil {
					t.Error(err)
				}
				if !tt.ok {
					checkMatches(t, tt.name, err, "unavailable", "deadline")
				}
			})
		})
	}
}
