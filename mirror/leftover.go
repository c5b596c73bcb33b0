package mirror

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"modmirror/mirror/artifact"
)

// leftovers is how long this node has known each blob that no manifest names, and how long each has been in the trash. In the
// data directory it is a file for each first byte of the digests, as far as there are any:
//
//	leftovers/ab.json  {"unnamed":{"ab01…":86400000000000},"trash":{"ab02…":0}}
//
// The numbers are nanoseconds of time in which a process ran on the directory, measured with a clock that nobody sets, and
// added up over its lives. No time of day and no time of a file is looked at: those can be wrong by years, and a blob must not be
// collected because of that. What the node was stopped for does not count.
//
// It is also how an ack outlives the process that gave it. The promise "not to collect it for 24 hours" needs no record of its
// own: a blob is collected only when it has stood in this file for 24 hours. One that is acked is taken out of the file, durably,
// before the ack is given (forget); most are not in it, and cost nothing. An ack that is given again for an old leftover therefore
// begins the 24 hours again, whatever happens to the process next. What is true if the process dies, or the power fails:
//
//	before a file is written  blobs are younger in it than they are: they are kept longer
//	in forget, before fsync   no ack was given
//	after it                  the blob is not in the file, and the next pass of the collector begins to count at 0
//
// A file that cannot be read counts as one that is not there.
type leftovers struct {
	files  *dataFiles
	shards [artifact.Shards]leftoverShard
}

type leftoverShard struct {
	mu      sync.Mutex // held while the file is written, too: who gives an ack waits for that
	unnamed ages
	trash   ages
	seen    time.Time // when observe was called last, or the process began
	unsaved bool      // the file may have a blob that was forgotten since
}

type ages map[artifact.Digest]time.Duration

// leftoverFile is the form of a shard in its file.
type leftoverFile struct {
	Format  int                      `json:"format,omitempty"` // absent: 1
	Unnamed map[string]time.Duration `json:"unnamed"`
	Trash   map[string]time.Duration `json:"trash"`
}

const (
	leftoverDir  = "leftovers"
	maxLeftovers = 1024    // blobs of one shard that are counted at a time, and as many in the trash: the others follow
	maxLeftFile  = 1 << 20 // bytes of a file
)

func openLeftovers(m *Mirror) (*leftovers, error) {
	files, err := openFiles(m.config.Dir, m.config.Store)
	if err != nil {
		return nil, err
	}
	l := &leftovers{files: files}
	now := time.Now()
	for i := range l.shards {
		s := &l.shards[i]
		s.seen = now
		var err error
		if s.unnamed, s.trash, err = l.read(byte(i)); err != nil {
			m.log.Warn("what is known of blobs that no manifest names is of no use, they are kept for longer", "file", leftoverName(byte(i)), "err", err)
		}
	}
	return l, nil
}

func leftoverName(shard byte) string {
	return leftoverDir + "/" + hex.EncodeToString([]byte{shard}) + ".json"
}

// read returns what the file of a shard says, nothing if there is none. It never returns nil maps.
func (l *leftovers) read(shard byte) (unnamed, trash ages, err error) {
	var f leftoverFile
	b, err := l.files.read(leftoverName(shard), maxLeftFile)
	if errors.Is(err, fs.ErrNotExist) {
		return ages{}, ages{}, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err == nil && f.Format > 1 {
		err = fmt.Errorf("it has format %d, and this version knows format 1", f.Format)
	}
	if err == nil {
		unnamed, err = parseAges(shard, f.Unnamed)
	}
	if err == nil {
		trash, err = parseAges(shard, f.Trash)
	}
	if err != nil {
		return ages{}, ages{}, err
	}
	return unnamed, trash, nil
}

func parseAges(shard byte, known map[string]time.Duration) (ages, error) {
	a := ages{}
	for text, age := range known {
		d, err := artifact.ParseDigest(text)
		if err != nil || d[0] != shard || age < 0 {
			return nil, fmt.Errorf("%.100q: %v: %v", text, age, err)
		}
		a[d] = age
	}
	return a, nil
}

func (a ages) strings() map[string]time.Duration {
	out := make(map[string]time.Duration, len(a))
	for d, age := range a {
		out[d.String()] = age
	}
	return out
}

// observe tells what of a shard no manifest names now, and what is in its trash: who was there before is older by the time
// since then, who was not is 0, who is not any more is forgotten. The file is written once.
func (l *leftovers) observe(shard byte, unnamed, trash []artifact.Digest) error {
	s := &l.shards[shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	passed := now.Sub(s.seen)
	before := len(s.unnamed) + len(s.trash)
	s.unnamed, s.trash, s.seen = s.unnamed.older(unnamed, passed), s.trash.older(trash, passed), now
	if before+len(s.unnamed)+len(s.trash) == 0 && !s.unsaved {
		return nil
	}
	return l.save(shard)
}

// older returns the ages of present after some time has passed.
func (a ages) older(present []artifact.Digest, passed time.Duration) ages {
	next := ages{}
	for _, d := range present {
		if age, ok := a[d]; ok {
			next[d] = age + passed
		}
	}
	for _, d := range present {
		if _, ok := next[d]; !ok && len(next) < maxLeftovers {
			next[d] = 0
		}
	}
	return next
}

// age returns for how long no manifest has named d, if none does now; ok is false if it was not a leftover when observe was
// called last.
func (l *leftovers) age(d artifact.Digest) (age time.Duration, ok bool) {
	s := &l.shards[d[0]]
	s.mu.Lock()
	defer s.mu.Unlock()
	age, ok = s.unnamed[d]
	return age + time.Since(s.seen), ok
}

// trashed returns for how long d has been in the trash, as age does.
func (l *leftovers) trashed(d artifact.Digest) (age time.Duration, ok bool) {
	s := &l.shards[d[0]]
	s.mu.Lock()
	defer s.mu.Unlock()
	age, ok = s.trash[d]
	return age + time.Since(s.seen), ok
}

// collected is called when d was moved to the trash, where its time begins; also at another place, should it come back. That
// need not be durable.
func (l *leftovers) collected(d artifact.Digest) {
	s := &l.shards[d[0]]
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.unnamed, d)
	if len(s.trash) < maxLeftovers {
		s.trash[d] = 0
	}
}

// forget begins the time of d again. When it returns nil that is durable. A nil leftovers knows of none.
func (l *leftovers) forget(d artifact.Digest) error {
	if l == nil {
		return nil
	}
	s := &l.shards[d[0]]
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.unnamed[d]; !ok && !s.unsaved {
		return nil
	}
	delete(s.unnamed, d)
	s.unsaved = true
	return l.save(d[0])
}

// save writes the file of a shard. The caller holds its mu. On a disk that is full the file is removed: what it says is not worth
// an artifact that cannot be taken.
func (l *leftovers) save(shard byte) error {
	s := &l.shards[shard]
	b, err := json.Marshal(leftoverFile{Unnamed: s.unnamed.strings(), Trash: s.trash.strings()})
	if err != nil {
		return err
	}
	name := leftoverName(shard)
	if err = l.files.mkdir(leftoverDir); err == nil {
		err = l.files.write(name, b)
	}
	if err != nil && l.files.store.Err() == nil {
		err = l.drop(shard)
	}
	s.unsaved = s.unsaved && err != nil
	return err
}

// drop removes the file of a shard, durably, if there is one.
func (l *leftovers) drop(shard byte) error {
	name := leftoverName(shard)
	if err := l.files.remove(name); err != nil {
		return err
	}
	return l.files.change("forget "+name, func() error {
		err := l.files.syncDir(leftoverDir)
		if errors.Is(err, fs.ErrNotExist) { // there was no room for it, so far
			return nil
		}
		return err
	})
}

// close ends the use of the files.
func (l *leftovers) close() {
	if l != nil {
		_ = l.files.root.Close() // nothing is written through it
	}
}
