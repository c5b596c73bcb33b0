package replicate

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"modmirror/mirror/artifact"
)

func someAudit() Audit {
	return Audit{Time: time.Unix(1_700_000_000, 7).UTC(), Actor: "root@host1", Action: "recover", Reason: "hosts 2 and 3 burned; Ü is fine"}
}

// What an operator did is kept once, in order, on every node, and what cannot be shown in a line is refused.
func TestAudit(t *testing.T) {
	m := newMachine(t)
	with := func(f func(a *Audit)) Audit {
		a := someAudit()
		f(&a)
		return a
	}
	for _, tt := range []struct {
		name string
		a    Audit
		rows int // there are after it
		want error
	}{
		{"first", someAudit(), 1, nil},
		{"repeated", someAudit(), 1, nil},
		{"later", with(func(a *Audit) { a.Time = a.Time.Add(1) }), 2, nil},
		{"repeated after another", someAudit(), 2, nil},
		{"without a reason", with(func(a *Audit) { a.Reason = "" }), 2, artifact.ErrRefused},
		{"without an actor", with(func(a *Audit) { a.Actor = "" }), 2, artifact.ErrRefused},
		{"without an action", with(func(a *Audit) { a.Action = "" }), 2, artifact.ErrRefused},
		{"two lines", with(func(a *Audit) { a.Reason = "a\nb" }), 2, artifact.ErrRefused},
		{"an escape", with(func(a *Audit) { a.Reason = "a\x1b[2J" }), 2, artifact.ErrRefused},
		{"text in the other direction", with(func(a *Audit) { a.Reason = "a\u202eb" }), 2, artifact.ErrRefused},
		{"no UTF-8", with(func(a *Audit) { a.Actor = "a\xff" }), 2, artifact.ErrRefused},
		{"long", with(func(a *Audit) { a.Reason = strings.Repeat("x", maxAuditReason+1) }), 2, artifact.ErrRefused},
		{"as long as may be", with(func(a *Audit) { a.Reason = strings.Repeat("x", maxAuditReason) }), 3, nil},
	} {
		err := m.one(auditCommand{tt.a})
		if !errors.Is(err, tt.want) || err == nil != (tt.want == nil) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		all, err := m.catalog.Audits(t.Context())
		if err != nil || len(all) != tt.rows {
			t.Fatalf("%s: there are %d rows (%v), want %d", tt.name, len(all), err, tt.rows)
		}
		for i, a := range all {
			if a.Number != int64(i+1) {
				t.Errorf("%s: row %d has the number %d", tt.name, i, a.Number)
			}
		}
		if err := m.catalog.view(func(s state) error { return s.checkConfig() }); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	want := someAudit()
	want.Number = 1
	if all, _ := m.catalog.Audits(t.Context()); all[0] != want {
		t.Errorf("the first row is %+v, want %+v", all[0], want)
	}
}

// The audit does not grow without bound, and tells that something is gone.
func TestAuditIsBounded(t *testing.T) {
	m := newMachine(t)
	const more = 3
	var cmds []command
	for i := range maxAudits + more {
		a := someAudit()
		a.Reason = fmt.Sprintf("act %d", i+1)
		cmds = append(cmds, auditCommand{a})
	}
	m.apply(cmds...)
	all, err := m.catalog.Audits(t.Context())
	if err != nil || len(all) != maxAudits {
		t.Fatalf("%d rows (%v), want %d", len(all), err, maxAudits)
	}
	first, last := all[0], all[len(all)-1]
	if first.Number != more+1 || first.Reason != fmt.Sprintf("act %d", more+1) || last.Number != maxAudits+more {
		t.Errorf("the rows are %d (%s) to %d, want %d to %d", first.Number, first.Reason, last.Number, more+1, maxAudits+more)
	}
}

func TestAuditRowRefused(t *testing.T) {
	key := auditKey(1)
	good, err := appendAudit(nil, someAudit())
	if err != nil {
		t.Fatal(err)
	}
	if a, err := parseAudit(key, good); err != nil || a.Reason != someAudit().Reason {
		t.Fatalf("parseAudit() = %+v, %v", a, err)
	}
	for name, tt := range map[string]struct{ k, v []byte }{
		"other format":    {key, append([]byte{rowFormat + 1}, good[1:]...)},
		"cut short":       {key, good[:len(good)-1]},
		"a byte too many": {key, append(good[:len(good):len(good)], 0)},
		"number zero":     {auditKey(0), good},
		"number below":    {auditKey(-1), good},
		"short number":    {[]byte(auditPrefix + "1"), good},
		"no number":       {[]byte(auditPrefix + "x"), good},
	} {
		if err := checkConfigRow(tt.k, tt.v); err == nil {
			t.Errorf("%s: the row %q = %q is accepted", name, tt.k, tt.v)
		}
	}
}

// Any node adds to the audit, and all have the same.
func TestAuditInCluster(t *testing.T) {
	c := newCluster(t, 3)
	for i := range 3 {
		a := someAudit()
		a.Actor = fmt.Sprintf("root@host%d", i)
		if err := c.nodes[i].Audit(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	bad := someAudit()
	bad.Reason = ""
	if err := c.nodes[0].Audit(t.Context(), bad); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("an audit without a reason: %v", err)
	}
	c.same()
	if all, err := c.nodes[2].Audits(t.Context()); err != nil || len(all) != 3 || all[0].Actor != "root@host0" {
		t.Errorf("Audits() = %+v, %v", all, err)
	}
}
