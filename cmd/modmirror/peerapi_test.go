package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"modmirror/mirror"
	"modmirror/mirror/artifact"
)

// Whatever a member sends to the internal port, without meaning well: it is refused with the right class, nothing is asked of
// the upstream, and the node goes on.
func TestInternalPort(t *testing.T) {
	t.Parallel()
	s := newClusterSite(t, 1)
	s.load()
	n := s.nodes[0]
	n.extra = []string{"--private", "example.com/secret"}
	s.launchWith(n, s.ownArgs(n, append(n.extra, "--cluster-token-file", s.token), "")...)
	if err := n.waitReady(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := &control{peer: n.peer, tokenFile: s.token}
	ask := func(q request) string {
		b, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	digest := strings.Repeat("0", 64)
	for _, test := range []struct {
		method, path, body string
		want               error // nil: any
	}{
		{"POST", "/v1/ask", strings.Repeat("x", 65<<10), artifact.ErrMalformed},
		{"POST", "/v1/resolve", strings.Repeat("[", 65<<10), artifact.ErrMalformed},
		{"POST", "/v1/members", strings.Repeat("x", 5<<10), artifact.ErrMalformed},
		{"POST", "/v1/hold", strings.Repeat("x", maxManifest+1), artifact.ErrMalformed},
		{"POST", "/v1/propose", strings.Repeat("x", maxProposal+1), artifact.ErrMalformed},
		{"POST", "/v1/ask", "{", artifact.ErrMalformed},
		{"POST", "/v1/resolve", "null", mirror.ErrBadRequest},
		{"POST", "/v1/members", `{"verb":"crown","id":"x"}`, artifact.ErrMalformed},
		{"POST", "/v1/members", `{"verb":"remove","id":"x"}`, fs.ErrNotExist},
		{"POST", "/v1/hold", "rubbish", artifact.ErrMalformed},
		{"POST", "/v1/propose", "rubbish", artifact.ErrMalformed},
		{"POST", "/v1/resolve", ask(request{Module: "../../etc/passwd", Version: "v1.0.0", Kind: uint8(artifact.Zip)}), mirror.ErrBadRequest},
		{"POST", "/v1/resolve", ask(request{Module: "example.com/hello", Version: "../v1.0.0", Kind: uint8(artifact.Zip)}), mirror.ErrBadRequest},
		{"POST", "/v1/resolve", ask(request{Module: "example.com/hello", Version: "master", Kind: uint8(artifact.Zip)}), mirror.ErrBadRequest},
		{"POST", "/v1/resolve", ask(request{Module: "example.com/hello", Version: "v1.0.0", Kind: 77}), mirror.ErrBadRequest},
		{"POST", "/v1/ask", ask(request{Module: "example.com/hello", Op: 77}), mirror.ErrBadRequest},
		{"POST", "/v1/ask", ask(request{Module: "example.com/hello", Op: uint8(mirror.OpQuery), Query: "../x"}), mirror.ErrBadRequest},
		{"POST", "/v1/resolve", ask(request{Module: "example.com/secret/x", Version: "v1.0.0", Kind: uint8(artifact.Zip)}), nil},
		{"POST", "/v1/ask", ask(request{Module: "example.com/secret/x", Op: uint8(mirror.OpList)}), nil},
		{"GET", "/v1/blob/" + digest + "?size=-1", "", artifact.ErrMalformed},
		{"GET", "/v1/blob/" + digest + "?size=999999999999", "", artifact.ErrMalformed},
		{"GET", "/v1/blob/" + digest, "", artifact.ErrMalformed},
		{"GET", "/v1/blob/" + strings.ToUpper("ab") + digest[2:] + "?size=1", "", nil},
		{"GET", "/v1/blob/..%2f..%2fnode.json?size=1", "", artifact.ErrMalformed},
		{"GET", "/v1/blob/" + digest + "?size=1", "", fs.ErrNotExist},
		{"GET", "/sumdb/" + databaseName + "/../../node.json", "", nil},
		{"GET", "/sumdb/" + databaseName + "/lookup/example.com/secret/x@v1.0.0", "", nil},
		{"GET", "/v1/nothing", "", nil},
		{"DELETE", "/v1/status", "", nil},
	} {
		answer, err := c.call(ctx, test.method, test.path, []byte(test.body))
		if err == nil || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s %s %.80s: %.100q, %v; want %v", test.method, test.path, test.body, answer, err, test.want)
		}
	}
	if _, err := c.call(ctx, "PUT", "/v1/blob/"+digest+"?size=1", []byte("x")); err == nil || !strings.Contains(err.Error(), "over HTTP/1.1") {
		t.Errorf("a blob over h2: %v", err)
	}
	if asked := s.asked("@v"); asked != 0 {
		t.Errorf("the upstream was asked %d times: %v", asked, s.up.Requests())
	}
	if _, err := s.download(n.url, app); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// What a body may have is read, one byte more is refused, and no more than that is read.
func TestReadBody(t *testing.T) {
	for size, ok := range map[int]bool{0: true, 9: true, 10: true, 11: false, 1 << 20: false} {
		body := strings.NewReader(strings.Repeat("x", size))
		b, err := readBody(httptest.NewRequest("POST", "/", body), 10)
		if (err == nil) != ok || ok && len(b) != size || err != nil && !errors.Is(err, artifact.ErrMalformed) {
			t.Errorf("%d bytes: %d, %v", size, len(b), err)
		}
		if size > 1<<16 && body.Len() < size-1<<16 {
			t.Errorf("of %d bytes %d were read", size, size-body.Len())
		}
	}
	broken := io.MultiReader(strings.NewReader("x"), &failing{})
	if _, err := readBody(httptest.NewRequest("POST", "/", broken), 10); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("a body that breaks off: %v", err)
	}
}

type failing struct{}

func (*failing) Read([]byte) (int, error) { return 0, fmt.Errorf("cut: %w", io.ErrUnexpectedEOF) }
