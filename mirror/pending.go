package mirror

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"modmirror/mirror/artifact"
	"modmirror/mirror/artifact/fault"
)

// intent is a publication that has passed the gate here and waits for a quorum. In the data directory it is the file
//
//	pending/<SHA-256 of kind and module version>.json
//	{"kind":3,"manifest":"<encoding of package artifact, base64>","digest":"…","size":123,"small":"<base64>"}
//
// written after the blob is durable, if it has one. What is true if the process dies: before the file is there, the blob is one
// that no manifest names, and whoever asks again brings it in; after that, the next process goes on with it; after the commit
// and before the file is removed, the publication is repeated, which changes nothing. A file that does not parse, whose
// manifest is not valid or whose bytes are not here is removed when it is found: it is only work that would be repeated.
type intent struct {
	Kind     artifact.Kind
	Manifest artifact.Manifest // the record and its sums, no parts
	Ref      artifact.Ref
	Small    []byte // of what travels inline; nil for a blob
}

// intentFile is the form of an intent in its file.
type intentFile struct {
	Format   int           `json:"format,omitempty"` // absent: 1
	Kind     artifact.Kind `json:"kind"`
	Manifest []byte        `json:"manifest"`
	Digest   string        `json:"digest"`
	Size     int64         `json:"size"`
	Small    []byte        `json:"small"` // null for a blob
}

// What waits for a quorum at most. What does not find room is passed through and forgotten.
const (
	maxPending      = 1024
	maxPendingBytes = 64 << 20 // in memory
	maxIntent       = 1 << 20  // bytes of a file
	pendingDir      = "pending"

	firstCommitRetry, lastCommitRetry = time.Second, 30 * time.Second
)

func (it *intent) key() string { return flightKey(it.Kind, it.Manifest.Module) }

func (it *intent) name() string {
	sum := sha256.Sum256([]byte(it.key()))
	return pendingDir + "/" + hex.EncodeToString(sum[:]) + ".json"
}

func (it *intent) encode() ([]byte, error) {
	man, err := it.Manifest.AppendBinary(nil)
	if err != nil {
		return nil, err
	}
	return json.Marshal(intentFile{Kind: it.Kind, Manifest: man, Digest: it.Ref.Digest.String(), Size: it.Ref.Size, Small: it.Small})
}

func parseIntent(b []byte) (*intent, error) {
	var f intentFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, err
	}
	if f.Format > 1 {
		return nil, fmt.Errorf("it has format %d, and this version knows format 1", f.Format)
	}
	it := &intent{Kind: f.Kind, Small: f.Small, Ref: artifact.Ref{Size: f.Size}}
	var err error
	if it.Ref.Digest, err = artifact.ParseDigest(f.Digest); err != nil {
		return nil, err
	}
	if err := it.Manifest.UnmarshalBinary(f.Manifest); err != nil {
		return nil, err
	}
	blob := it.Kind == artifact.Zip || it.Kind == artifact.Mod && it.Ref.Size > artifact.MaxInline
	switch {
	case it.Kind.Limit() == 0 || it.Ref.Size < 0 || it.Ref.Size > it.Kind.Limit():
		return nil, fmt.Errorf("%s of %d bytes", it.Kind, it.Ref.Size)
	case blob != (it.Small == nil) || !blob && artifact.RefOf(it.Small) != it.Ref:
		return nil, errors.New("its bytes are others")
	}
	return it, it.Manifest.Validate()
}

// pending is what waits for a quorum. A nil pending holds nothing.
type pending struct {
	m     *Mirror
	files *dataFiles
	wake  chan struct{} // has room for one

	mu    sync.Mutex // guards all below
	items map[string]*intent
	order []*intent // oldest first
	bytes int64
}

// openPending reads what an earlier process left, whatever is to happen to what comes now.
func openPending(m *Mirror) (*pending, error) {
	if m.config.Dir == "" {
		return nil, nil
	}
	files, err := openFiles(m.config.Dir, m.config.Store)
	if err != nil {
		return nil, err
	}
	p := &pending{m: m, files: files, wake: make(chan struct{}, 1), items: map[string]*intent{}}
	if err := p.load(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *pending) load() error {
	entries, err := fs.ReadDir(p.files.root.FS(), pendingDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := pendingDir + "/" + e.Name()
		it, err := p.read(name)
		if err == nil && p.keep(it) {
			continue
		}
		if !strings.HasSuffix(name, tmpSuffix) {
			p.m.log.Warn("what waited for a quorum is forgotten, it will be brought in again when somebody asks", "file", name, "err", err)
		}
		if err := p.files.remove(name); err != nil {
			p.m.log.Warn("cannot remove what is of no use", "file", name, "err", err)
		}
	}
	return nil
}

func (p *pending) read(name string) (*intent, error) {
	if filepath.Ext(name) != ".json" {
		return nil, errors.New("another name than an intent has")
	}
	b, err := p.files.read(name, maxIntent)
	if err != nil {
		return nil, err
	}
	it, err := parseIntent(b)
	if err != nil {
		return nil, err
	}
	if it.name() != name {
		return nil, errors.New("another name than its own")
	}
	if it.Small == nil && !p.m.config.Store.Has(it.Ref) {
		return nil, fmt.Errorf("%v is not here", it.Ref)
	}
	return it, nil
}

// intentCost is about what an intent takes besides its bytes and its record's text.
const intentCost = 1 << 10

// keep puts it into memory, if there is room.
func (p *pending) keep(it *intent) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	key, size := it.key(), int64(len(it.Small)+len(it.Manifest.Record.Text)+intentCost)
	if p.items[key] != nil {
		return true
	}
	if len(p.items) >= maxPending || p.bytes+size > maxPendingBytes {
		return false
	}
	p.items[key] = it
	p.order = append(p.order, it)
	p.bytes += size
	return true
}

// add keeps it, in memory and on the disk.
func (p *pending) add(it *intent) {
	mv := it.Manifest.Module
	if p.get(it.key()) != nil {
		return
	}
	if p == nil || !p.keep(it) {
		p.unkept(it, "too much waits for a quorum already", nil)
		return
	}
	data, err := it.encode()
	if err == nil {
		err = p.files.mkdir(pendingDir)
	}
	if err == nil {
		fault.Point(fault.IntentWrite)
		err = p.files.write(it.name(), data)
	}
	if err != nil {
		p.unkept(it, "kept until the process ends only", err)
		return
	}
	fault.Point(fault.IntentWritten)
	p.retry()
	p.m.log.Info("verified, passed through and kept until there is a quorum", "module", mv.Path, "version", mv.Version, "kind", it.Kind, "digest", it.Ref.Digest)
}

func (p *pending) unkept(it *intent, why string, err error) {
	if p != nil {
		p.m.log.Warn("what was passed through without a quorum may be lost: "+why, "module", it.Manifest.Module.Path, "version", it.Manifest.Module.Version, "kind", it.Kind, "err", err)
	}
}

// get returns what waits under a key of flights.
func (p *pending) get(key string) *intent {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.items[key]
}

// names reports whether d is the blob of something that waits.
func (p *pending) names(d artifact.Digest) bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.order, func(it *intent) bool { return it.Small == nil && it.Ref.Digest == d })
}

// drop forgets it.
func (p *pending) drop(it *intent) {
	if p == nil {
		return
	}
	p.mu.Lock()
	if p.items[it.key()] == it {
		delete(p.items, it.key())
		p.bytes -= int64(len(it.Small) + len(it.Manifest.Record.Text) + intentCost)
		for i, other := range p.order {
			if other == it {
				p.order = append(p.order[:i:i], p.order[i+1:]...)
				break
			}
		}
	}
	p.mu.Unlock()
	if err := p.files.remove(it.name()); err != nil {
		p.m.log.Warn("cannot remove what is committed from what waits for it", "err", err)
	}
}

// close ends the use of the files. What waits is in them.
func (p *pending) close() {
	if p != nil {
		_ = p.files.root.Close() // nothing is written through it
	}
}

// all returns what waits, the oldest first.
func (p *pending) all() []*intent {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]*intent(nil), p.order...)
}

// retry has what waits tried now: something was just committed.
func (p *pending) retry() {
	if p != nil {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// CommitPending commits what was kept for want of a quorum, as soon as there is one, until ctx ends. What turns out to
// conflict with what others committed meanwhile raises the alarm and is forgotten.
func (m *Mirror) CommitPending(ctx context.Context) error {
	if m.pending == nil {
		<-ctx.Done()
		return nil
	}
	wait := firstCommitRetry
	for {
		var again <-chan time.Time // never, while nothing waits
		if m.commitAll(ctx) {
			wait = firstCommitRetry
		} else {
			again, wait = time.After(wait), min(2*wait, lastCommitRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.pending.wake:
		case <-again:
		}
	}
}

// commitAll tries everything that waits once, up to the first that finds no quorum, and reports whether nothing is left.
func (m *Mirror) commitAll(ctx context.Context) bool {
	left := false
	for _, it := range m.pending.all() {
		err := m.commitOne(ctx, it)
		if err == nil {
			fault.Point(fault.IntentCommitted)
		}
		if err == nil || isRefusal(err) || errors.Is(err, errLost) {
			m.pending.drop(it)
			continue
		}
		left = true
		if errors.Is(err, artifact.ErrNoQuorum) || ctx.Err() != nil {
			break
		}
		m.log.Info("cannot commit yet what was passed through", "module", it.Manifest.Module.Path, "version", it.Manifest.Module.Version, "kind", it.Kind, "err", err)
	}
	return !left
}

// errLost is for an intent whose bytes are gone.
var errLost = errors.New("its bytes are lost")

// commitOne is steps 5 and 6 of ingest for what has passed the others before.
func (m *Mirror) commitOne(ctx context.Context, it *intent) error {
	ctx, cancel := context.WithTimeout(ctx, m.budget(it.Kind))
	defer cancel()
	in := &intake{m: m, kind: it.Kind, man: it.Manifest, ref: it.Ref, small: it.Small, id: "pending"}
	defer in.endSpread()
	if it.Small == nil {
		release, err := m.hold(it.Ref.Digest)
		if err != nil {
			return err
		}
		defer release()
		f, err := m.config.Store.OpenContext(ctx, it.Ref)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, artifact.ErrDamaged) {
			return fmt.Errorf("%w: %v", errLost, err)
		}
		if err != nil {
			return err
		}
		if m.config.Peers != nil {
			in.spreadFile(ctx, it.Ref, f)
		} else {
			_ = f.Close()
		}
	}
	won, err := in.publish(ctx)
	if err != nil {
		return err
	}
	mv := it.Manifest.Module
	m.log.Info("committed what was passed through", "module", mv.Path, "version", mv.Version, "kind", it.Kind, "first", won.Ref(it.Kind) == it.Ref)
	m.list.published(ctx, mv.Path)
	m.latest.published(ctx, mv.Path)
	return nil
}
