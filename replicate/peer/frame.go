package peer

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// frame is what each end of a Raft stream says first: four bytes with the length, then JSON.
type frame struct {
	To      string   `json:"to,omitempty"` // whom the dialer wants to speak to
	Hello   Hello    `json:"hello"`
	Refused *Refusal `json:"refused,omitempty"` // only in an answer: why not
}

const maxFrame = 8 << 10

func (f frame) encode() ([]byte, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	if len(b) > maxFrame {
		return nil, fmt.Errorf("a handshake has %d bytes, more than %d", len(b), maxFrame)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...), nil
}

// readFrame reads one frame from r, and no byte after it.
func readFrame(r io.Reader) (frame, error) {
	var head [4]byte
	var f frame
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return f, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return f, fmt.Errorf("malformed handshake: it has %d bytes, more than %d", n, maxFrame)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return f, err
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return frame{}, fmt.Errorf("malformed handshake: %w", err)
	}
	return f, f.check()
}

func (f frame) check() error {
	if f.To != "" && !isID(f.To) {
		return fmt.Errorf("malformed handshake: %.80q is not the id of a node", f.To)
	}
	if f.Refused != nil {
		if err := f.Refused.check(); err != nil {
			return fmt.Errorf("malformed handshake: %w", err)
		}
	}
	if err := f.Hello.check(); err != nil {
		return fmt.Errorf("malformed handshake: %w", err)
	}
	return nil
}

func writeFrame(w io.Writer, f frame) error {
	b, err := f.encode()
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}
