package mirror

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// A node that passes questions on says by itself what it knows, asks nobody for it, and remembers what it was told.
func TestPassOn(t *testing.T) {
	c := newCluster(t, 2, func(cf *Config) { cf.Private = "private.example.com" })
	n := c.nodes[1]
	if _, ok, err := n.Held(t.Context(), helloV, artifact.Zip); ok || err != nil {
		t.Errorf("what is nowhere: %v, %v", ok, err)
	}
	c.nodes[0].want(zipPath, 200, "PK")
	c.up.Reset()
	if man, ok, err := n.Held(t.Context(), helloV, artifact.Zip); !ok || err != nil || man.Zip.IsZero() {
		t.Errorf("what is committed: %+v, %v, %v", man, ok, err)
	}
	private := module.Version{Path: "private.example.com/m", Version: "v1.0.0"}
	if _, ok, err := n.Held(t.Context(), private, artifact.Zip); !ok || !errors.Is(err, artifact.ErrPolicy) {
		t.Errorf("what is private: %v, %v", ok, err)
	}
	if _, ok, err := n.Recall(OpList, private.Path, ""); !ok || !errors.Is(err, artifact.ErrPolicy) {
		t.Errorf("the list of what is private: %v, %v", ok, err)
	}
	for _, q := range []struct {
		op          Op
		query, body string
	}{
		{OpList, "", "v1.0.0\nv1.1.0\n"},
		{OpLatest, "", `{"Version":"v1.1.0","Time":"2024-01-02T03:04:05Z"}`},
		{OpQuery, "main", `{"Version":"v1.1.0","Time":"2024-01-02T03:04:05Z"}`},
	} {
		if _, ok, err := n.Recall(q.op, helloV.Path, q.query); ok || err != nil {
			t.Errorf("op %v is remembered before it was told: %v, %v", q.op, ok, err)
		}
		if err := n.Learn(t.Context(), q.op, helloV.Path, q.query, Told{Body: []byte("<html>"), From: "x"}); err == nil {
			t.Errorf("op %v: rubbish is learned", q.op)
		}
		if err := n.Learn(t.Context(), q.op, helloV.Path, q.query, Told{Body: []byte(q.body)}); err != nil {
			t.Errorf("op %v: %v", q.op, err)
		}
		told, ok, err := n.Recall(q.op, helloV.Path, q.query)
		if !ok || err != nil || strings.TrimSpace(string(told.Body)) != strings.TrimSpace(q.body) {
			t.Errorf("op %v: remembers %q, %v, %v", q.op, told.Body, ok, err)
		}
		old := Told{Body: []byte(q.body), Age: n.config.ListTTL}
		if err := n.Learn(t.Context(), q.op, helloV.Path, q.query, old); err != nil {
			t.Errorf("op %v, old: %v", q.op, err)
		}
		if _, ok, _ := n.Recall(q.op, helloV.Path, q.query); ok && q.op != OpQuery {
			t.Errorf("op %v: what is as old as may be is passed on", q.op)
		}
	}
	if all := c.up.Requests(); len(all) != 0 {
		t.Errorf("the upstream is asked %v", all)
	}
	if _, ok, err := n.Held(t.Context(), module.Version{Path: "not a path", Version: "v1.0.0"}, artifact.Zip); !ok || errors.Is(err, fs.ErrNotExist) || err == nil {
		t.Errorf("rubbish: %v, %v", ok, err)
	}
}
