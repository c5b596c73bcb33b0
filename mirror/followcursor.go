package mirror

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

// cursor is what follow.json has: {"next":123,"node":"…"}.
type cursor struct {
	Format int    `json:"format,omitempty"` // absent: 1
	Next   int64  `json:"next"`
	Node   string `json:"node,omitempty"` // whose it is
	Doubt  bool   `json:"doubt,omitempty"`
}

// load reads the cursor.
func (f *follower) load() {
	b, err := f.files.read(cursorFile, maxCursor)
	var c cursor
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err == nil && c.Format > 1 {
		err = fmt.Errorf("it has format %d, and this version knows format 1", c.Format)
	}
	if err == nil && c.Next < 0 {
		err = fmt.Errorf("next is %d", c.Next)
	}
	if err == nil && c.Node != f.m.config.Node {
		err = fmt.Errorf("it is of node %q", artifact.Truncate(c.Node, 100))
	}
	if err != nil {
		c.Next = 0
		c.Doubt = c.Doubt || c.Node != "" && c.Node != f.m.config.Node
		if !errors.Is(err, fs.ErrNotExist) {
			f.m.log.Warn("the cursor of the blob follower is of no use, all blobs are looked for again", "file", cursorFile, "err", err)
		}
	}
	f.next, f.saved, f.doubt = c.Next, c.Next, c.Doubt
	f.report()
}

// save keeps the watermark, if it moved: now and then, and at the end. It keeps no place behind a change of which a blob is unproven:
// a version that knows of no such blobs takes what is before the cursor for held, and would never look for them.
func (f *follower) save(now bool) {
	if f.watermark() == f.saved || !now && time.Now().Before(f.saveAt) {
		return
	}
	f.saveAt = time.Now().Add(followSave)
	w := f.watermark()
	if seq, ok := f.m.prover.first(); ok {
		w = min(w, seq)
	}
	if w == f.saved {
		return
	}
	b, err := json.Marshal(cursor{Next: w, Node: f.m.config.Node, Doubt: f.doubt})
	if err == nil {
		fault.Point(fault.CursorSave)
		err = f.files.write(cursorFile, b)
	}
	if err != nil {
		f.m.log.Warn("cannot keep the cursor of the blob follower", "err", err)
		return
	}
	fault.Point(fault.CursorSaved)
	f.saved = w
}
