package sumdb

import (
	"errors"
	"testing"

	"modmirror/mirror/artifact"
)

// A node that is told to hold a record can answer for it alone afterwards: the node that looked it up, the sources and all
// other tiles may be gone.
func TestHold(t *testing.T) {
	c := pair(t, 2, nil)
	first, second := c.nodes[0], c.nodes[1]
	r, err := first.Record(t.Context(), mv("example.com/kept@v1.0.0"))
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Hold(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	wrong := r
	wrong.Text = append([]byte("x"), r.Text...)
	if err := second.Hold(t.Context(), wrong); !errors.Is(err, artifact.ErrRefused) {
		t.Errorf("Hold of a record with another text: %v, want a refusal", err)
	}
	beyond := r
	beyond.ID = 1 << 40
	if err := second.Hold(t.Context(), beyond); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Hold of a record beyond the tree: %v, want unavailable", err)
	}
	now, err := second.committed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.prove(t.Context(), now, r, false); err != nil { // asks nobody
		t.Errorf("after Hold, alone: %v", err)
	}
}
