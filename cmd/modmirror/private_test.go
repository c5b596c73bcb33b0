package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"modmirror/sumdb/sumdbtest"
)

// PROTOCOL 31, FAULTS 22: a request for a private module costs no question to any name server, neither for the module's
// host nor for that of an upstream or a database. The script private.txtar looks at what upstream and database are asked.
func TestPrivateIsNotResolved(t *testing.T) {
	var asked atomic.Int64
	resolver := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = resolver })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		asked.Add(1)
		return nil, errors.New("there are no name servers in this test")
	}}

	db := sumdbtest.New(databaseName)
	n, err := openNode(t.Context(), config{
		DataDir: t.TempDir(), Listen: "localhost:0", Upstream: "https://proxy.example.com,https://other.example.com",
		SumDB: []string{db.Key()}, Private: []string{"corp.example.com/Secret", "github.com/MyCo/*"}, ListTTL: time.Minute, NotFoundTTL: time.Second,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	srv := httptest.NewServer(n.mirror)
	defer srv.Close()

	const private = "corp.example.com/!secret/plans"
	before := asked.Load()
	const glob = "github.com/!my!co/plans/v2"
	for _, path := range []string{
		"/" + private + "/@v/list", "/" + private + "/@latest", "/" + private + "/@v/v1.0.0.info", "/" + private + "/@v/v1.0.0.mod",
		"/" + private + "/@v/v1.0.0.zip", "/" + private + "/@v/main.info", "/cached-only/" + private + "/@v/v1.0.0.zip",
		"/prove/" + private + "@v1.0.0", "/sumdb/" + databaseName + "/lookup/" + private + "@v1.0.0",
		"/sumdb/" + databaseName + "/lookup/" + private + "@v1.0.0/go.mod", "/cached-only/sumdb/" + databaseName + "/lookup/" + private + "@v1.0.0",
		strings.ReplaceAll("/"+private+"/@v/list", "!", "%21"),
		"/" + glob + "/@v/v2.0.0.zip", "/sumdb/" + databaseName + "/lookup/" + glob + "@v2.0.0",
		strings.ReplaceAll("/sumdb/"+databaseName+"/lookup/"+glob+"@v2.0.0", "!", "%21"),
	} {
		code, body, err := fetch(srv.URL + path)
		if err != nil || code != http.StatusForbidden || !strings.Contains(string(body), "private") {
			t.Errorf("GET %s: %d %q, %v; want 403 that says private", path, code, body, err)
		}
	}
	if got := asked.Load() - before; got != 0 {
		t.Errorf("name servers were asked %d times about private modules", got)
	}
	// What is not private shows that the name servers of this test would have been.
	if code, body, err := fetch(srv.URL + "/corp.example.com/public/@v/list"); err != nil || code != http.StatusServiceUnavailable {
		t.Errorf("GET of a public list: %d %q, %v; want 503", code, body, err)
	}
	if asked.Load() == before {
		t.Error("no name server was asked about what is not private")
	}
}
