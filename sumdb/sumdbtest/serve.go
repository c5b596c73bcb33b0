package sumdbtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"modmirror/mirror/artifact"
)

// Lies says how a Database misbehaves. The zero value is honest.
type Lies struct {
	Down         bool   // every request fails with an error, over HTTP with 503
	Unsupported  bool   // /supported is 404
	NoLatest     bool   // /latest is 404
	Missing      bool   // every lookup is 404, as just after a version was published
	FrozenAt     int64  // if not 0: /latest is the tree of this many records
	RollBack     int64  // if not 0: the database behaves as if it had only this many records
	WrongKey     bool   // heads are signed by another key of the same name
	Silent       string // if not "": requests of this class ("latest", "lookup", "tile") wait until their context is done
	TilesDown    bool   // tiles fail like Down
	TilesMissing bool   // tiles are 404

	Records map[module.Version]string // lookups of these have this text, which is not in the tree
	IDs     map[module.Version]string // lookups of these have this instead of an id
	Tiles   map[string][]byte         // tiles of these paths ("tile/8/0/000") have these bytes

	HeadLines string // signed along with each tree head, behind it
	Between   string // stands in lookups between record and tree head
	Junk      string // stands behind every tree head, unsigned
	NoHead    bool   // lookups have no tree head
	HugeBody  bool   // every answer has 64 MiB
}

// Lie makes d misbehave as l says from now on, or behave with a zero l.
func (d *Database) Lie(l Lies) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lies = l
}

// Hang makes every request wait until its context is done or release is called. Release may be called twice.
func (d *Database) Hang() (release func()) {
	ch := make(chan struct{})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.release = ch
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.release == ch {
			d.release = nil
			close(ch)
		}
	}
}

// AnswerAs makes d answer with the history of other: see [Database.Fork]. Nil ends that.
func (d *Database) AnswerAs(other *Database) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.as = other
}

// ForgedTile returns the tile that holds the hash of record id in the tree of all records, and its bytes with the hash of
// the forged text in that place: the fixture of CVE-2026-56865. All the other tiles are genuine.
func (d *Database) ForgedTile(id int64, forged string) (path string, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := tlog.Tile{H: 8, L: 0, N: id >> 8, W: int(min(256, int64(len(d.records))-id>>8<<8))}
	data, err := tlog.ReadTileData(t, d.hashes)
	if err != nil {
		panic(err)
	}
	h := tlog.RecordHash([]byte(forged))
	copy(data[(id&255)*tlog.HashSize:], h[:])
	return t.Path(), data
}

// ForgedPair returns the tiles of level 0 and 1 above record id, by path, with the hash of the forged text in that place and
// the hash of the forged tile above it: the two agree with each other, and not with the genuine head. The tile of level 0
// must be full.
func (d *Database) ForgedPair(id int64, forged string) map[string][]byte {
	path, data := d.ForgedTile(id, forged)
	d.mu.Lock()
	defer d.mu.Unlock()
	t := tlog.Tile{H: 8, L: 1, N: id >> 16, W: int(min(256, int64(len(d.records))>>8-id>>16<<8))}
	parent, err := tlog.ReadTileData(t, d.hashes)
	if err != nil || len(data) != 256*tlog.HashSize {
		panic(fmt.Sprintf("tile above record %d: %v", id, err))
	}
	level := make([]tlog.Hash, 256)
	for i := range level {
		copy(level[i][:], data[i*tlog.HashSize:])
	}
	for ; len(level) > 1; level = level[:len(level)/2] {
		for i := range len(level) / 2 {
			level[i] = tlog.NodeHash(level[2*i], level[2*i+1])
		}
	}
	copy(parent[(id>>8&255)*tlog.HashSize:], level[0][:])
	return map[string][]byte{path: data, t.Path(): parent}
}

// Count returns how many requests of a class there were: supported, latest, lookup, tile, or "" for all.
func (d *Database) Count(class string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if class != "" {
		return d.counts[class]
	}
	n := 0
	for _, c := range d.counts {
		n += c
	}
	return n
}

// String names d.
func (d *Database) String() string { return "test database " + d.name }

// Get answers path as the Source of package sumdb does.
func (d *Database) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	b, err := d.answer(ctx, path)
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes: %w", path, limit, artifact.ErrMalformed)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d, err)
	}
	return b, nil
}

// ServeHTTP answers at / and below /sumdb/<name>/.
func (d *Database) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := d.answer(r.Context(), strings.TrimPrefix(r.URL.Path, "/sumdb/"+d.name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	default:
		w.Write(b)
	}
}

func (d *Database) answer(ctx context.Context, path string) ([]byte, error) {
	class, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	d.mu.Lock()
	d.counts[class]++
	release, as := d.release, d.as
	silent := d.lies.Silent == class && class != ""
	d.mu.Unlock()
	if silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if release != nil {
		select {
		case <-release:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if as != nil {
		return as.answer(ctx, path)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case d.lies.Down || d.lies.TilesDown && class == "tile":
		return nil, fmt.Errorf("%s: 503 Service Unavailable: %w", path, artifact.ErrUnavailable)
	case d.lies.HugeBody:
		return bytes.Repeat([]byte("a"), 64<<20), nil
	}
	switch class {
	case "supported":
		if d.lies.Unsupported {
			return nil, fs.ErrNotExist
		}
		return nil, nil
	case "latest":
		if d.lies.NoLatest {
			return nil, fs.ErrNotExist
		}
		return d.head(cut(d.size(), d.lies.FrozenAt)), nil
	case "lookup":
		return d.lookup(rest)
	case "tile":
		return d.tile(class + "/" + rest)
	}
	return nil, fs.ErrNotExist
}

// size returns the number of records that d admits to. The caller holds mu.
func (d *Database) size() int64 { return cut(int64(len(d.records)), d.lies.RollBack) }

func cut(n, to int64) int64 {
	if to > 0 {
		return min(n, to)
	}
	return n
}

// lookup answers a lookup. The caller holds mu.
func (d *Database) lookup(escaped string) ([]byte, error) {
	escPath, escVersion, _ := strings.Cut(escaped, "@")
	p, err := module.UnescapePath(escPath)
	if err != nil {
		return nil, err
	}
	v, err := module.UnescapeVersion(escVersion)
	if err != nil {
		return nil, err
	}
	m := module.Version{Path: p, Version: v}
	id, ok := d.ids[m]
	if !ok || id >= d.size() || d.lies.Missing {
		return nil, fmt.Errorf("not found: %s: %w", m, fs.ErrNotExist)
	}
	text := string(d.records[id])
	if forged, ok := d.lies.Records[m]; ok {
		text = forged
	}
	number := fmt.Sprint(id)
	if forged, ok := d.lies.IDs[m]; ok {
		number = forged
	}
	msg := []byte(number + "\n" + text + "\n" + d.lies.Between)
	if !d.lies.NoHead {
		msg = append(msg, d.head(d.size())...)
	}
	return msg, nil
}

// tile answers a tile. The caller holds mu.
func (d *Database) tile(path string) ([]byte, error) {
	if b, ok := d.lies.Tiles[path]; ok {
		return b, nil
	}
	t, err := tlog.ParseTilePath(path)
	if err != nil {
		return nil, err
	}
	if d.lies.TilesMissing || t.H != 8 || t.L < 0 || t.L > 7 || t.N<<8+int64(t.W) > d.size()>>uint(8*t.L) {
		return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	}
	return tlog.ReadTileData(t, d.hashes)
}
