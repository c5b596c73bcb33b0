package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"modmirror/replicate"
)

// What was done in a data directory is shown while its node is stopped; nothing of it can write on the terminal but text.
func TestAuditOfStoppedNode(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	n, err := replicate.Open(t.Context(), replicate.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	audit := func() string {
		var out, errs bytes.Buffer
		if code := run([]string{"cluster", "audit", "--data-dir", dir}, &out, &errs); code != 0 {
			t.Fatalf("cluster audit ends with %d: %s", code, &errs)
		}
		return out.String()
	}
	act := auditNow("recover", "two of three disks are lost")
	if err := n.Audit(t.Context(), act); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if got := audit(); !strings.HasPrefix(got, "1  ") || !strings.Contains(got, act.Actor+"  recover: two of three disks are lost\n") || strings.Count(got, "\n") != 1 {
		t.Errorf("cluster audit says %q", got)
	}
	if !strings.Contains(act.Actor, "@") {
		t.Errorf("the actor is %q", act.Actor)
	}
}
