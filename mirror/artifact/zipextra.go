package artifact

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Extra fields that say what the header in front of them says, too (APPNOTE.TXT, 4.5.3 and 4.6.9). Programs differ in
// which of the two they believe: Info-ZIP's unzip shows and writes the name of the second one, archive/zip never reads it.
// The go command writes neither.
const (
	zip64Field       = 0x0001
	unicodePathField = 0x7075 // a version (byte), the CRC-32 of the header's name (4 bytes), and a name
)

// checkExtra checks the extra fields b of an entry: that they are whole, that none gives another name, and that no more
// than one has zip64 sizes. It returns these, or nil.
func checkExtra(b []byte, name string) (sizes []byte, err error) {
	for le := binary.LittleEndian; len(b) > 0; {
		if len(b) < 4 || int(le.Uint16(b[2:])) > len(b)-4 {
			return nil, errors.New("its extra fields are cut short")
		}
		id, field := le.Uint16(b), b[4:4+le.Uint16(b[2:])]
		b = b[4+len(field):]
		switch {
		case id == unicodePathField && (len(field) < 5 || string(field[5:]) != name):
			return nil, fmt.Errorf("an extra field gives it another name, %s", quote(string(field[min(5, len(field)):])))
		case id == zip64Field && sizes != nil:
			return nil, errors.New("two extra fields with zip64 sizes")
		case id == zip64Field:
			sizes = field
		}
	}
	return sizes, nil
}

// checkDirectoryExtra checks the extra fields of an entry in the directory. No zip that may be stored is large enough to
// need zip64 sizes there, and what is not needed some believe and others do not.
func checkDirectoryExtra(b []byte, name string) error {
	sizes, err := checkExtra(b, name)
	if err == nil && sizes != nil {
		err = errors.New("zip64 sizes in the directory, which needs none")
	}
	return err
}

// checkLocalExtra checks the extra fields between two offsets, which are those of an entry's local header, and returns the
// zip64 sizes. They must be there if the header announces them, and else must not.
func checkLocalExtra(r io.ReaderAt, from, to int64, name string, announced bool) (packed, raw uint64, err error) {
	b := make([]byte, to-from)
	if err := readFull(r, b, from); err != nil {
		return 0, 0, err
	}
	sizes, err := checkExtra(b, name)
	switch {
	case err != nil:
		return 0, 0, err
	case !announced && sizes == nil:
		return 0, 0, nil
	case !announced:
		return 0, 0, errors.New("its local header has zip64 sizes that it does not announce")
	case len(sizes) != 16:
		return 0, 0, errors.New("its local header lacks the zip64 sizes that it announces")
	}
	return binary.LittleEndian.Uint64(sizes[8:]), binary.LittleEndian.Uint64(sizes), nil
}
