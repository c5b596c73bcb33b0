package mirrortest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"modmirror/mirror/artifact"
)

const zipPath = "/example.com/!hello/@v/v1.0.0.zip"

// fetch returns the answer to a GET of the zip of hello, as far as it came.
func fetch(t *testing.T, ctx context.Context, u *Upstream) (int, http.Header, []byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, "GET", u.URL()+zipPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, b, err
}

func TestFaults(t *testing.T) {
	u := start(t)
	m := u.Add(hello)
	size := len(u.Artifact(m, artifact.Zip))
	for _, tt := range []struct {
		name string
		set  func()
		ok   func(code int, h http.Header, b []byte, err error) bool
	}{
		{"tamper", func() { u.Tamper(m, artifact.Zip, func(b []byte) []byte { b[0] ^= 1; return b }) },
			func(code int, _ http.Header, b []byte, err error) bool {
				return err == nil && len(b) == size && b[0] == 'P'^1
			}},
		{"status", func() { u.Status("/example.com/", 503, "down", "Retry-After", "7") },
			func(code int, h http.Header, b []byte, _ error) bool {
				return code == 503 && string(b) == "down" && h.Get("Retry-After") == "7"
			}},
		{"down", func() { u.Down(true) },
			func(_ int, _ http.Header, _ []byte, err error) bool { return errors.Is(err, io.EOF) }},
		{"truncate", func() { u.Truncate(m, artifact.Zip, 10) },
			func(_ int, _ http.Header, b []byte, err error) bool {
				return len(b) == 10 && errors.Is(err, io.ErrUnexpectedEOF)
			}},
		{"length too large", func() { u.WrongLength(m, artifact.Zip, 5) },
			func(_ int, _ http.Header, b []byte, err error) bool {
				return len(b) == size && errors.Is(err, io.ErrUnexpectedEOF)
			}},
		{"length too small", func() { u.WrongLength(m, artifact.Zip, -5) },
			func(_ int, _ http.Header, b []byte, err error) bool { return len(b) == size-5 && err == nil }},
		{"gzip", func() { u.Gzip(m, artifact.Zip) },
			func(_ int, h http.Header, _ []byte, err error) bool {
				return err == nil && h.Get("Content-Encoding") == "gzip"
			}},
		{"html", func() { u.HTML(m, artifact.Zip) },
			func(code int, h http.Header, b []byte, _ error) bool {
				return code == 200 && h.Get("Content-Type") == "text/html; charset=utf-8" && b[0] == '<'
			}},
		{"unsized", func() { u.Unsized(m, artifact.Zip) },
			func(_ int, h http.Header, b []byte, err error) bool {
				return err == nil && len(b) == size && h.Get("Content-Length") == ""
			}},
		{"redirect loop", func() { u.Redirect("/", u.URL()) },
			func(_ int, _ http.Header, _ []byte, err error) bool { return err != nil }},
		{"drip", func() { u.Drip(m, artifact.Zip, 100, time.Microsecond) },
			func(_ int, _ http.Header, b []byte, err error) bool { return len(b) == size && err == nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.set()
			if code, h, b, err := fetch(t, t.Context(), u); !tt.ok(code, h, b, err) {
				t.Errorf("got %d, %v, %d bytes, %v", code, h, len(b), err)
			}
			u.Heal()
			if code, _, b, err := fetch(t, t.Context(), u); code != 200 || len(b) != size || err != nil {
				t.Errorf("healed: got %d, %d bytes, %v", code, len(b), err)
			}
		})
	}
}

func TestStallEndsByReleaseOrClient(t *testing.T) {
	u := start(t)
	m := u.Add(hello)
	size := len(u.Artifact(m, artifact.Zip))
	for _, after := range []int{-1, 0, 10} {
		u.Stall(m, artifact.Zip, after)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		_, _, b, err := fetch(t, ctx, u)
		cancel()
		if len(b) != max(after, 0) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stall after %d: %d bytes, %v", after, len(b), err)
		}
		done := make(chan error, 1)
		u.Reset()
		go func() {
			_, _, b, err := fetch(t, t.Context(), u)
			if err == nil && len(b) != size {
				err = io.ErrShortBuffer
			}
			done <- err
		}()
		if err := u.Await(t.Context(), zipPath, 1); err != nil {
			t.Fatal(err)
		}
		u.Release()
		if err := <-done; err != nil {
			t.Errorf("released after %d: %v", after, err)
		}
	}
}

// Close does not wait for what is stalled or endless.
func TestCloseEndsEverything(t *testing.T) {
	u := New()
	m := u.Add(hello)
	u.Endless(m, artifact.Zip)
	started := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		resp, err := http.Get(u.URL() + zipPath)
		close(started)
		if err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}()
	<-started
	u.Close()
	<-done
}
