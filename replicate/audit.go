package replicate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"modmirror/mirror/artifact"
)

// Audit is one act of an operator that the cluster keeps in mind: who did what, when and why. It is for acts that bend a
// promise, such as bringing one survivor of a lost majority up, or going back to an older tree head.
type Audit struct {
	Number int64     `json:"number"` // of the row, from 1 on; 0 for one that is not in the catalog yet
	Time   time.Time `json:"time"`   // as the clock of whoever did it said
	Actor  string    `json:"actor"`  // such as root@host1
	Action string    `json:"action"` // such as recover
	Reason string    `json:"reason"` // in the words of the actor; what the act was about may follow
}

// Bounds of the audit. Of more rows than maxAudits the oldest go; the numbers of the others tell how many did.
const (
	maxAudits      = 1000
	maxAuditField  = 255 // bytes of actor and of action
	maxAuditReason = 2 << 10
)

// Rows of the audit in bucket cfg, in the order of the log:
//
//	audit/<number, 20 digits>  byte 1, uvarint nanoseconds since 1970, strings actor, action, reason
const auditPrefix = "audit/"

func auditKey(number int64) []byte { return fmt.Appendf(nil, "%s%020d", auditPrefix, number) }

func appendAudit(b []byte, a Audit) ([]byte, error) {
	if a.Time.Before(time.Unix(0, 1)) || !a.Time.Equal(time.Unix(0, a.Time.UnixNano())) {
		return nil, fmt.Errorf("audit of %q at %v: time out of range", a.Action, a.Time)
	}
	b = binary.AppendUvarint(append(b, rowFormat), uint64(a.Time.UnixNano()))
	for _, f := range []string{a.Actor, a.Action, a.Reason} {
		b = appendString(b, f)
	}
	return b, nil
}

func decodeAudit(d *decoder) (a Audit) {
	if f := d.byte(); f != rowFormat {
		d.fail("format %d of an audit is not known to this version of modmirror", f)
	}
	a.Time = time.Unix(0, d.int()).UTC()
	a.Actor, a.Action, a.Reason = d.string(), d.string(), d.string()
	return a
}

// Check holds a to its documented form. What it says is printed on terminals.
func (a Audit) Check() error {
	for _, f := range []struct {
		name, text string
		most       int
	}{{"actor", a.Actor, maxAuditField}, {"action", a.Action, maxAuditField}, {"reason", a.Reason, maxAuditReason}} {
		if f.text == "" || len(f.text) > f.most || !isPlain(f.text) {
			return fmt.Errorf("the %s %.100q of an audit is empty, has more than %d bytes, or what cannot be printed in a line: %w", f.name, f.text, f.most, artifact.ErrRefused)
		}
	}
	return nil
}

// isPlain reports whether s is text of one line in UTF-8, without what controls a terminal or the order of what is shown. It
// names the characters itself, as the tables of package unicode grow with Go releases, and nodes of two of them must agree.
func isPlain(s string) bool {
	for _, r := range s {
		switch {
		case r == utf8.RuneError, r < ' ', r >= 0x7f && r < 0xa0, // controls
			r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2060 && r <= 0x206f, r == 0x061c, r == 0xfeff,
			r >= 0xe0000 && r <= 0xe007f:
			return false
		}
	}
	return true
}

func parseAudit(k, v []byte) (Audit, error) {
	number, err := strconv.ParseInt(string(bytes.TrimPrefix(k, []byte(auditPrefix))), 10, 64)
	if err != nil || number < 1 || !bytes.Equal(auditKey(number), k) {
		return Audit{}, errors.New("malformed number")
	}
	d := decoder{b: v}
	a := decodeAudit(&d)
	if err := d.end(); err != nil {
		return Audit{}, err
	}
	a.Number = number
	again, err := appendAudit(nil, a)
	if err != nil || !bytes.Equal(again, v) {
		return Audit{}, fmt.Errorf("not in canonical form (%v)", err)
	}
	return a, a.Check()
}

// checkAuditRow reports whether a row is one of the audit, and well-formed.
func checkAuditRow(k, v []byte) (known bool, err error) {
	if !bytes.HasPrefix(k, []byte(auditPrefix)) {
		return false, nil
	}
	_, err = parseAudit(k, v)
	return true, err
}

// audits returns the audit, oldest first.
func (s state) audits() (all []Audit, err error) {
	prefix := []byte(auditPrefix)
	c := s.bucket(bucketConfig).Cursor()
	for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		a, err := parseAudit(k, v)
		if err != nil {
			return nil, damaged(err, "catalog row cfg %q", k)
		}
		all = append(all, a)
	}
	return all, nil
}

// applyAudit adds a row, unless the very same is there: a command may be repeated.
func (s state) applyAudit(a Audit) (result, error) {
	a.Number = 0
	if err := a.Check(); err != nil {
		return result{err: err}, nil
	}
	v, err := appendAudit(nil, a)
	if err != nil {
		return result{err: fmt.Errorf("%w: %w", err, artifact.ErrRefused)}, nil
	}
	all, err := s.audits()
	if err != nil {
		return result{}, err
	}
	b, last := s.bucket(bucketConfig), int64(0)
	for _, have := range all {
		last = have.Number
		if bytes.Equal(b.Get(auditKey(last)), v) {
			return result{}, nil
		}
	}
	for i := 0; len(all)-i >= maxAudits; i++ {
		if err := b.Delete(auditKey(all[i].Number)); err != nil {
			return result{}, err
		}
	}
	return result{}, b.Put(auditKey(last+1), v)
}

// auditCommand adds to the audit. Its time is that of the proposer, as Apply reads no clock.
type auditCommand struct{ Audit }

func (auditCommand) kind() byte { return kindAudit }

func (c auditCommand) encode(b []byte) ([]byte, error) { return appendAudit(b, c.Audit) }

// Audit adds a row to the audit of the cluster. An error matches [artifact.ErrRefused] if a field is empty, too long or
// not printable, and [artifact.ErrUnavailable] if the log cannot take it now.
func (n *Node) Audit(ctx context.Context, a Audit) error {
	a.Number, a.Time = 0, a.Time.UTC().Round(0)
	if err := a.Check(); err != nil {
		return err
	}
	_, err := n.propose(ctx, auditCommand{a})
	return err
}

// Audits returns the audit of the cluster as far as this node knows it, oldest first: the last 1000 acts.
func (c *catalog) Audits(ctx context.Context) (all []Audit, err error) {
	err = c.read(ctx, func(s state) error { all, err = s.audits(); return err })
	return all, err
}
