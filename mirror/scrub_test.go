package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
)

// shelf is a store with a mirror that has nothing to do but to scrub it, for tests in a bubble, where there is no network.
type shelf struct {
	*Mirror
	t     *testing.T
	dir   string
	every time.Duration
	limit int64
	refs  []artifact.Ref
	logs  *lockedBuffer

	mu   sync.Mutex
	read []reading // guarded by mu; what was read, in order
}

type reading struct {
	digest artifact.Digest
	at     time.Time
}

func newShelf(t *testing.T, blobs, size int, every time.Duration, limit int64) *shelf {
	s := &shelf{t: t, dir: t.TempDir(), every: every, limit: limit, logs: new(lockedBuffer)}
	store, err := artifact.OpenStore(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	r := rand.New(rand.NewPCG(1, uint64(blobs)))
	for i := range blobs {
		head := zipHead(shelfVersion(i))
		b := make([]byte, max(size/2+r.IntN(size), len(head)+4))
		for k := range b {
			b[k] = byte(r.Uint32())
		}
		copy(b, head)
		d, err := store.Create(artifact.MaxZip)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = d.Write(b)
		ref, err := d.Commit()
		if err != nil {
			t.Fatal(err)
		}
		s.refs = append(s.refs, ref)
	}
	return s
}

// shelfVersion is what a blob of a shelf is of.
func shelfVersion(i int) module.Version {
	return module.Version{Path: fmt.Sprint("example.com/m", i), Version: "v1.0.0"}
}

// Changes names every blob of the shelf.
func (s *shelf) Changes(_ context.Context, from int64) iter.Seq2[artifact.Change, error] {
	return func(yield func(artifact.Change, error) bool) {
		for i, ref := range s.refs {
			man := artifact.Manifest{Module: shelfVersion(i), Zip: ref}
			if int64(i) >= from && !yield(artifact.Change{Seq: int64(i), Manifest: man}, nil) {
				return
			}
		}
	}
}

func (s *shelf) Place(context.Context, module.Version) (int64, error) { return 0, fs.ErrNotExist }

func (s *shelf) Wake() <-chan struct{} { return nil }

// open starts the mirror on what is there, as after a restart.
func (s *shelf) open(options ...func(*Config)) {
	s.t.Helper()
	store, err := artifact.OpenStore(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	c := Config{Index: newMemIndex(), Store: store, Changes: s, Dir: s.dir, ScrubEvery: s.every, ScrubLimit: s.limit,
		Log: slog.New(slog.NewTextHandler(s.logs, nil))}
	for _, o := range options {
		o(&c)
	}
	if s.Mirror, err = New(c); err != nil {
		s.t.Fatal(err)
	}
	s.step = func(step string) {
		if hex, ok := strings.CutPrefix(step, "scrub "); ok {
			d, _ := artifact.ParseDigest(hex)
			s.mu.Lock()
			s.read = append(s.read, reading{d, time.Now()})
			s.mu.Unlock()
		}
	}
}

// run scrubs in the background; what it returns ends it as the end of the process does.
func (s *shelf) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	m := s.Mirror
	go func() { done <- m.Scrub(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
		closing, cancel := context.WithCancel(context.Background())
		cancel()
		_ = m.Close(closing)
		m.config.Store.Close()
	}
}

// readings returns what was read since the last call.
func (s *shelf) readings() []reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.read
	s.read = nil
	return out
}

// Every blob is read again within the period, round after round, and the reading is spread over it; at no time is it faster than the
// limit. So it is also after the mirror was off for longer than the period: then the limit alone counts.
func TestScrubKeepsItsPromise(t *testing.T) {
	const every, blobs, limit = 720 * time.Hour, 120, 20 << 10
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, blobs, 8<<10, every, limit)
		last := map[artifact.Digest]time.Time{}
		for _, ref := range s.refs {
			last[ref.Digest] = time.Now()
		}
		check := func(got []reading, most time.Duration) {
			t.Helper()
			for _, r := range got {
				if age := r.at.Sub(last[r.digest]); age > most {
					t.Errorf("a blob was not read for %v, longer than %v", age, most)
				}
				last[r.digest] = r.at
			}
			for _, at := range last {
				if age := time.Since(at); age > most {
					t.Errorf("a blob is not read for %v, longer than %v", age, most)
				}
			}
		}
		s.open()
		stop := s.run()
		busy := map[int64]bool{}
		for range 4 {
			time.Sleep(every)
			got := s.readings()
			if len(got) < blobs || len(got) > 2*blobs {
				t.Errorf("%d blobs read in a period, of %d", len(got), blobs)
			}
			check(got, every)
			clear(busy)
			for _, r := range got {
				busy[r.at.Unix()/int64(every/16/time.Second)] = true
			}
			if len(busy) < 12 {
				t.Errorf("the reading is not spread: it is in %d of 16 parts of the period", len(busy))
			}
		}
		if st := s.ScrubStatus(); st.Late || st.Oldest.IsZero() || time.Since(st.Oldest) > every || st.Blobs != blobs || st.Read < 4*blobs {
			t.Errorf("status: %+v", st)
		}
		stop()
		s.readings()

		time.Sleep(3 * every)
		s.open()
		stop = s.run()
		begin := time.Now()
		total, late := int64(0), s.refs
		for len(late) > 0 {
			time.Sleep(time.Minute)
			for _, r := range s.readings() {
				i := slices.IndexFunc(late, func(ref artifact.Ref) bool { return ref.Digest == r.digest })
				if i >= 0 {
					total += late[i].Size
					late = slices.Delete(slices.Clone(late), i, i+1)
				}
			}
			if took := time.Since(begin); total > limit*int64(took.Seconds())+scrubPiece || took > time.Hour {
				t.Fatalf("%d bytes in %v, %d blobs are left; the limit is %d bytes a second", total, took, len(late), limit)
			}
		}
		stop()
	})
}

// A limit that is too low for the period is kept, and said to be.
func TestScrubLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, 100, 8<<10, time.Hour, 100)
		s.open()
		defer s.run()()
		time.Sleep(2 * time.Hour)
		size := map[artifact.Digest]int64{}
		for _, ref := range s.refs {
			size[ref.Digest] = ref.Size
		}
		total := int64(0)
		for _, r := range s.readings() {
			total += size[r.digest]
		}
		st := s.ScrubStatus()
		if total > 100*7200+scrubPiece || total == 0 || !st.Late || st.ETA.Before(time.Now().Add(time.Hour)) {
			t.Errorf("%d bytes in two hours; %+v", total, st)
		}
	})
}

// Of what is stored, what was read longest ago comes first, whatever the order of the names.
func TestScrubOldestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, 150, 64, 100*time.Hour, 0)
		s.open()
		files, err := openFiles(s.dir, s.config.Store)
		if err != nil {
			t.Fatal(err)
		}
		s.scrub.files = files
		s.scrub.load(time.Now())
		s.scrub.state.Round, s.scrub.state.Ended = time.Time{}, time.Now()
		order := rand.Perm(len(s.scrub.parts))
		for i, name := range s.scrub.parts {
			s.scrub.state.Parts[name] = scrubPart{Checked: time.Now().Add(time.Duration(order[i]-1000) * time.Second)}
		}
		s.scrub.save(true)
		files.root.Close()
		time.Sleep(200 * time.Hour)
		stop := s.run()
		time.Sleep(time.Minute)
		stop()
		got := s.readings()
		if len(got) != len(s.refs) {
			t.Fatalf("%d blobs read, want %d", len(got), len(s.refs))
		}
		before := -1
		for _, r := range got {
			if now := order[r.digest[0]]; now < before {
				t.Fatalf("shard %x, which was read as number %d, comes after number %d", r.digest[0], now, before)
			} else {
				before = now
			}
		}
	})
}

// A process that dies goes on where it was, but for what it had not saved; nothing is left out.
func TestScrubResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const blobs = 100
		s := newShelf(t, blobs, 1<<10, 0, 0)
		file := filepath.Join(s.dir, scrubFile)
		for _, at := range []int{1, 7, 50, blobs - 1} {
			s.open()
			stop := s.run()
			asked := s.ScrubNow(10 << 10) // half a minute in all
			var disk []byte
			for n := 0; n < at; {
				time.Sleep(10 * time.Millisecond)
				s.mu.Lock()
				n = len(s.read)
				s.mu.Unlock()
			}
			disk, _ = os.ReadFile(file) // what there is if the process is killed now
			stop()
			first := s.readings()
			if err := os.WriteFile(file, disk, 0o600); err != nil {
				t.Fatal(err)
			}
			s.open()
			stop = s.run()
			if len(disk) == 0 { // nobody knows of it
				asked = s.ScrubNow(0)
			}
			for s.ScrubStatus().Done.Before(asked) {
				time.Sleep(time.Second)
			}
			stop()
			second := s.readings()
			all := map[artifact.Digest]bool{}
			for _, r := range slices.Concat(first, second) {
				all[r.digest] = true
			}
			again := len(first) + len(second) - blobs
			if len(all) != blobs || again > 0 && first[len(first)-again].at.Before(first[len(first)-1].at.Add(-scrubSave-2*time.Second)) {
				t.Errorf("killed after %d: %d of %d blobs read, %d twice", at, len(all), blobs, again)
			}
		}
	})
}

// Whatever scrub.json holds, every blob is read.
func TestScrubStateOfNoUse(t *testing.T) {
	future := time.Now().Add(1e6 * time.Hour).Format(time.RFC3339)
	for _, content := range []string{"", "{", "null", `{"parts":3}`, strings.Repeat("9", maxScrub+1), `{"node":"another","parts":{"00":{"checked":"` + future + `"}}}`,
		`{"began":"` + future + `","round":"` + future + `","ended":"` + future + `","part":"7f","after":"7fff","since":"` + future + `","parts":{"00":{"checked":"` + future + `"}}}`,
		`{"part":"no such","after":"7fff","parts":{"no such":{"checked":"` + future + `"}}}`} {
		synctest.Test(t, func(t *testing.T) {
			s := newShelf(t, 30, 64, time.Hour, 0)
			if err := os.WriteFile(filepath.Join(s.dir, scrubFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			s.open()
			stop := s.run()
			time.Sleep(time.Hour)
			stop()
			all := map[artifact.Digest]bool{}
			for _, r := range s.readings() {
				all[r.digest] = true
			}
			if len(all) != len(s.refs) {
				t.Errorf("%.60q: %d of %d blobs read", content, len(all), len(s.refs))
			}
		})
	}
}

// While requests are being answered the scrub waits before each piece, and not for ever.
func TestScrubYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, 1, 64, 0, 0)
		s.open()
		took := func() time.Duration {
			start := time.Now()
			for range 10 {
				if err := s.scrub.pace(t.Context(), scrubPiece); err != nil {
					t.Error(err)
				}
			}
			return time.Since(start)
		}
		if d := took(); d != 0 {
			t.Errorf("waits %v for nothing", d)
		}
		s.serving.Add(1)
		if d := took(); d != 10*scrubYield {
			t.Errorf("waits %v for a request that does not end, want %v", d, 10*scrubYield)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.scrub.pace(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("pace = %v", err)
		}
		s.serving.Add(-1)
		s.run()()
	})
}

// A disk that hangs holds up the scrub and nothing else: it is said, reads go on, and the process can end.
func TestScrubOfHungDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, 3, 64, 0, 0)
		s.open()
		var gate atomic.Pointer[chan struct{}]
		hang := func() (back func()) { ch := make(chan struct{}); gate.Store(&ch); return func() { close(ch) } }
		back := hang()
		read := s.scrub.read
		s.scrub.read = func(ctx context.Context, ref artifact.Ref, piece int, pace func(context.Context, int) error) error {
			<-*gate.Load()
			return read(ctx, ref, piece, pace)
		}
		stop := s.run()
		s.ScrubNow(0)
		time.Sleep(2 * scrubStuck)
		if st := s.ScrubStatus(); st.Stuck.IsZero() || !strings.Contains(s.logs.String(), "the disk does not answer") {
			t.Errorf("status: %+v\n%s", st, s.logs)
		}
		for _, ref := range s.refs {
			f, err := s.config.Store.OpenContext(t.Context(), ref)
			if err != nil {
				t.Errorf("a read: %v", err)
				continue
			}
			f.Close()
		}
		back()
		time.Sleep(time.Minute)
		if st := s.ScrubStatus(); !st.Stuck.IsZero() || st.Done.IsZero() {
			t.Errorf("after the disk came back: %+v", st)
		}
		back = hang()
		s.ScrubNow(0)
		time.Sleep(2 * scrubStuck)
		stop()
		back()
	})
}

// What cannot be looked at is tried again, and the other checks of a round are made in their turn.
func TestScrubChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, 0, 64, 100*time.Hour, 0)
		var runs atomic.Int64
		s.open(func(c *Config) {
			c.ScrubChecks = []ScrubCheck{{"catalog", func(context.Context) error {
				switch runs.Add(1) {
				case 1:
					return errors.New("not now")
				case 3:
					panic("a bug")
				}
				return nil
			}}}
		})
		stop := s.run()
		time.Sleep(scrubRetry / 2)
		if st := s.ScrubStatus(); st.Broken != "catalog: not now" || !st.Ended.IsZero() {
			t.Errorf("status: %+v", st)
		}
		time.Sleep(time.Hour)
		if st := s.ScrubStatus(); runs.Load() != 2 || st.Broken != "" || st.Ended.IsZero() {
			t.Errorf("%d runs; status: %+v", runs.Load(), st)
		}
		time.Sleep(100 * time.Hour)
		if runs.Load() != 5 { // at 0 h and soon after, at 50 h and soon after, at 100 h
			t.Errorf("%d runs, want 5: the first fails, the third panics", runs.Load())
		}
		stop()
	})
}

// A blob that cannot be told how it is keeps neither the others of its directory nor the rest from being read; a scrub that was asked
// for does not end before it is.
func TestScrubPutsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, 60, 64, 0, 0)
		s.open()
		first := slices.MinFunc(s.refs, func(a, b artifact.Ref) int { return bytes.Compare(a.Digest[:], b.Digest[:]) })
		var ok atomic.Bool
		read := s.scrub.read
		s.scrub.read = func(ctx context.Context, ref artifact.Ref, piece int, pace func(context.Context, int) error) error {
			if ref == first && !ok.Load() {
				return artifact.ErrUnavailable
			}
			return read(ctx, ref, piece, pace)
		}
		stop := s.run()
		asked := s.ScrubNow(0)
		time.Sleep(time.Minute)
		st := s.ScrubStatus()
		if !st.Asked.Equal(asked) || st.Part != "" || !strings.Contains(st.Broken, "unavailable") || len(s.readings()) != 60 {
			t.Errorf("status: %+v", st)
		}
		ok.Store(true)
		time.Sleep(2 * scrubRetry)
		if st := s.ScrubStatus(); !st.Done.Equal(asked) || st.Broken != "" {
			t.Errorf("status: %+v", st)
		}
		stop()
	})
}

// A file of which the disk does not even say how large it is keeps the scrub from none of the others in its directory.
func TestScrubOfLostInode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, 60, 64, 0, 0)
		s.open()
		var ok atomic.Bool
		list := s.scrub.list
		s.scrub.list = func(shard byte) iter.Seq2[artifact.Ref, error] {
			return func(yield func(artifact.Ref, error) bool) {
				if !ok.Load() && !yield(artifact.Ref{}, artifact.ErrUnavailable) {
					return
				}
				list(shard)(yield)
			}
		}
		stop := s.run()
		asked := s.ScrubNow(0)
		time.Sleep(time.Minute)
		if st := s.ScrubStatus(); !st.Asked.Equal(asked) || !strings.Contains(st.Broken, "unavailable") || len(s.readings()) != 60 {
			t.Errorf("status: %+v", st)
		}
		ok.Store(true)
		time.Sleep(2 * scrubRetry)
		if st := s.ScrubStatus(); !st.Done.Equal(asked) || st.Broken != "" {
			t.Errorf("status: %+v", st)
		}
		stop()
	})
}

// A scrub on request has a speed of its own, is known until it ends, and can be ended; without a period nothing else is read.
func TestScrubNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, 80, 1<<10, 0, 50)
		s.open()
		defer s.run()()
		time.Sleep(1e4 * time.Hour)
		if got := s.readings(); len(got) > 0 {
			t.Fatalf("%d blobs read without being asked to", len(got))
		}
		begin := time.Now()
		asked := s.ScrubNow(10 << 10)
		time.Sleep(10 * time.Second)
		st := s.ScrubStatus()
		if !st.Asked.Equal(asked) || st.Left == 0 || st.ETA.IsZero() || st.Speed == 0 {
			t.Errorf("status: %+v", st)
		}
		if got := s.ScrubNow(0); !got.Equal(asked) {
			t.Error("another scrub begins while one is under way")
		}
		time.Sleep(2 * time.Minute)
		if st := s.ScrubStatus(); !st.Asked.IsZero() || !st.Done.Equal(asked) || st.Found != 0 || len(s.readings()) != 80 {
			t.Errorf("status: %+v after %v", st, time.Since(begin))
		}
		s.ScrubNow(1)
		time.Sleep(time.Minute)
		s.StopScrub()
		s.readings()
		time.Sleep(1e3 * time.Hour)
		if n := len(s.readings()); n > 10 || !s.ScrubStatus().Asked.IsZero() {
			t.Errorf("%d blobs are read after the end; %+v", n, s.ScrubStatus())
		}
	})
}

// spoil damages a blob on a node's disk in the way of a disk: nobody has written the file.
func (n *node) spoil(how string, ref artifact.Ref) {
	n.t.Helper()
	name := filepath.Join(n.dir, "blobs", "sha256", ref.Digest.String()[:2], ref.Digest.String())
	fi, err := os.Stat(name)
	if err != nil {
		n.t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		n.t.Fatal(err)
	}
	switch how {
	case "flip":
		b = bytes.Clone(b)
		b[len(b)/2] ^= 1
		err = errors.Join(os.WriteFile(name, b, 0o600), os.Chtimes(name, time.Time{}, fi.ModTime()))
	case "truncate":
		err = errors.Join(os.Truncate(name, fi.Size()-1), os.Chtimes(name, time.Time{}, fi.ModTime()))
	case "remove":
		err = os.Remove(name)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// scrubAll has the node scrub everything, and waits until that is done and everything that it found was tried.
func (n *node) scrubAll() ScrubStatus {
	n.t.Helper()
	asked := n.ScrubNow(0)
	deadline := time.Now().Add(20 * time.Second)
	for {
		st := n.ScrubStatus()
		if st.Done.Equal(asked) && st.Health.Untried == 0 {
			return st
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("the scrub does not end: %+v\n%s", st, n.logs)
		}
		select {
		case <-n.moved:
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// scrubbing runs Follow and Scrub.
func (n *node) scrubbing() (stop func()) {
	unfollow := n.follow()
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan error, 1)
	m := n.Mirror
	go func() { done <- m.Scrub(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
		unfollow()
	}
}

func (n *node) blob(ref artifact.Ref) error { return n.store.Verify(n.t.Context(), ref) }

// FAULTS 35, a blob of a cluster: whatever the disk did to it, a scrub finds it, and the right bytes come from another node; the
// upstream is gone. What the disk made of it is in quarantine.
func TestScrubHealsFromPeer(t *testing.T) {
	for _, how := range []string{"flip", "truncate", "remove"} {
		t.Run(how, func(t *testing.T) {
			c := newCluster(t, 3)
			refs := c.fill(12)
			n := c.nodes[2]
			defer n.scrubbing()()
			n.until(func(p Progress) bool { return p.Watermark == 12 && p.Missing == 0 })
			c.up.Down(true)
			n.spoil(how, refs[5])
			n.spoil(how, refs[7])
			st := n.scrubAll()
			if st.Found != 2 || st.Health.Bad != 2 {
				t.Errorf("status: %+v", st)
			}
			n.until(func(p Progress) bool { return p.Watermark == 12 && p.Missing == 0 && n.Health().Unhealed == 0 })
			for _, ref := range refs {
				if err := n.blob(ref); err != nil {
					t.Error(err)
				}
			}
			damage := map[string]string{"flip": "bytes", "truncate": "bytes", "remove": "missing"}[how]
			if bad, healed := n.metric("bad_blobs_total", damage, "scrub"), n.metric("healed_blobs_total", "peer"); bad != 2 || healed != 2 {
				t.Errorf("counted: %v bad, %v healed", bad, healed)
			}
			list, err := n.store.Damaged()
			if want := map[bool]int{true: 0, false: 2}[how == "remove"]; err != nil || len(list) != want {
				t.Errorf("in quarantine: %+v, %v, want %d", list, err, want)
			}
			if got := strings.Count(n.logs.String(), "a stored blob is damaged"); got != 2 {
				t.Errorf("%d alarms in the log", got)
			}
		})
	}
}

// As long as a damaged blob is not back the node does not count as one that holds it; a node that was started anew knows that too.
func TestDamagedBlobIsNotHeld(t *testing.T) {
	c := newCluster(t, 3)
	refs := c.fill(8)
	n := c.nodes[2]
	stop := n.scrubbing()
	n.until(func(p Progress) bool { return p.Watermark == 8 && p.Missing == 0 })
	c.up.Down(true)
	c.set(func() { c.down[0], c.down[1] = true, true })
	n.spoil("flip", refs[4])
	st := n.scrubAll()
	lacks := func(p Progress) bool { return p.Watermark == 4 && p.Missing == 1 }
	n.until(lacks)
	if h := st.Health; h.Unhealed != 1 || h.List[0].Digest != refs[4].Digest.String() || h.List[0].Module != "example.com/m4" || h.List[0].Tries == 0 || h.List[0].Error == "" {
		t.Errorf("health: %+v", h)
	}
	n.want("/example.com/m4/@v/v1.0.0.zip", 503, "")
	n.want("/example.com/m5/@v/v1.0.0.zip", 200, "PK")
	stop()
	n.boot()
	stop = n.scrubbing()
	n.until(func(p Progress) bool { return lacks(p) && n.Health().Unhealed == 1 })
	// An ack is given for the bytes when they are here again, and not before: those that are offered are read.
	mv := module.Version{Path: "example.com/m4", Version: "v1.0.0"}
	zip := c.up.Artifact(mv, artifact.Zip)
	if err := n.Admit(t.Context(), c.manifestOf(mv), artifact.Zip, refs[4], strings.NewReader("x"), "node9"); err == nil {
		t.Error("an ack is given for bytes that are not here")
	}
	if err := n.Admit(t.Context(), c.manifestOf(mv), artifact.Zip, refs[4], bytes.NewReader(zip), "node9"); err != nil {
		t.Fatal(err)
	}
	n.until(func(p Progress) bool { return p.Watermark == 8 && p.Missing == 0 && n.Health().Unhealed == 0 })
	stop()
	n.boot()
	if list, err := n.store.Damaged(); err != nil || len(list) != 1 || !list[0].Replaced {
		t.Errorf("in quarantine: %+v, %v", list, err)
	}
}

// solo is a node without others: as one of a cluster, or without any.
func solo(t *testing.T, peers bool) (*cluster, *node) {
	c := newCluster(t, 1, func(cf *Config) {
		if !peers {
			cf.Peers, cf.Proofs = nil, nil
		}
	})
	return c, c.nodes[0]
}

// A single node heals from the upstream; also what is found when it starts.
func TestScrubHealsFromUpstream(t *testing.T) {
	for _, peers := range []bool{true, false} {
		c, n := solo(t, peers)
		refs := c.fill(6)
		stop := n.scrubbing()
		n.until(func(p Progress) bool { return p.Watermark == 6 })
		n.spoil("flip", refs[1])
		n.spoil("remove", refs[2])
		st := n.scrubAll()
		if st.Found != 2 {
			t.Errorf("status: %+v", st)
		}
		n.until(func(p Progress) bool { return p.Missing == 0 && n.Health().Unhealed == 0 })
		if healed := n.metric("healed_blobs_total", "upstream"); healed != 2 {
			t.Errorf("%v healed", healed)
		}
		for _, ref := range refs {
			if err := n.blob(ref); err != nil {
				t.Error(err)
			}
		}
		// The process dies after the quarantine, and before the right bytes are back.
		stop()
		n.spoil("flip", refs[3])
		if d, err := n.store.Condemn(t.Context(), refs[3].Digest, "test"); d != artifact.WrongBytes || err != nil {
			t.Fatal(d, err)
		}
		n.boot()
		stop = n.scrubbing()
		n.until(func(p Progress) bool { return n.blob(refs[3]) == nil })
		stop()
	}
}

// A disk that spoils more blobs at once than can wait to be found in the catalog: none of them is left until the next scrub, as the
// node would count as one that holds it.
func TestManyLossesAreLocated(t *testing.T) {
	s := newShelf(t, 1100, 10, 0, 0)
	s.open()
	for _, ref := range s.refs {
		s.lost(ref.Digest, &loss{damage: artifact.WrongBytes, by: byScrub, reason: "test"})
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Follow(ctx) }()
	defer func() { cancel(); <-done }()
	for deadline := time.Now().Add(2 * time.Minute); s.Health().Unhealed > 0; { // they are here, as the follower finds
		if time.Now().After(deadline) {
			t.Fatalf("%d are still not looked for", s.Health().Unhealed)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// A node that lacks thousands of blobs which nobody gives does not fill the log with them: each is counted, few have lines.
func TestUnhealedFillNoLog(t *testing.T) {
	s := newShelf(t, 200, 10, 0, 0)
	s.open(func(c *Config) {
		index := newMemIndex()
		for change := range s.Changes(t.Context(), 0) {
			index.manifests[change.Manifest.Module] = change.Manifest
		}
		c.Index = index
	})
	for i, ref := range s.refs {
		if err := s.config.Store.Remove(ref.Digest); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			s.losses.add(ref.Digest, &loss{damage: artifact.Missing, by: byScrub, reason: "test"})
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Follow(ctx) }()
	begin := time.Now()
	for s.Health().Untried > 0 {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("%d are still not tried", s.Health().Untried)
		}
		<-time.After(time.Millisecond)
	}
	cancel()
	<-done
	lines := strings.Count(s.logs.String(), "is not healed") + strings.Count(s.logs.String(), "could not be pulled")
	if most := lossLines + int(time.Since(begin)/time.Second) + 1; lines == 0 || lines > most {
		t.Errorf("%d lines for %d blobs, want at most %d", lines, len(s.refs), most)
	}
}

// An upstream that has packed the zip again, with the same go.sum hash, has other bytes than those that were published. They are not
// taken in place of the damaged ones, and it is said why. When the right ones are there again, they are.
func TestScrubHealsWithTheSameBytesOnly(t *testing.T) {
	c, n := solo(t, false)
	refs := c.fill(2)
	defer n.scrubbing()()
	n.until(func(p Progress) bool { return p.Watermark == 2 })
	mv := module.Version{Path: "example.com/m1", Version: "v1.0.0"}
	c.up.Tamper(mv, artifact.Zip, mirrortest.Repack)
	n.spoil("flip", refs[1])
	st := n.scrubAll()
	if h := st.Health; h.Unhealed != 1 || !strings.Contains(h.List[0].Error, "the upstream now has other bytes than those that were published") || !strings.Contains(h.List[0].Error, "does not change") {
		t.Fatalf("health: %+v", h)
	}
	n.hot.drop("/example.com/m1/@v/v1.0.0.zip")
	n.want("/example.com/m1/@v/v1.0.0.zip", 503, "other bytes than those that were published")
	if err := n.blob(refs[1]); err == nil {
		t.Error("the node holds it")
	}
	if !strings.Contains(n.logs.String(), "a damaged blob is not healed") || n.gauge("unhealed_blobs") != 1 {
		t.Errorf("no alarm: %v\n%s", n.gauge("unhealed_blobs"), n.logs)
	}
	c.up.Heal()
	n.until(func(p Progress) bool { return n.Health().Unhealed == 0 }) // without anybody asking
	if err := n.blob(refs[1]); err != nil {
		t.Error(err)
	}
	if q, err := n.store.Quarantined(); err != nil || len(q) != 1 {
		t.Errorf("what the upstream sent: %v, %v", q, err)
	}
}

// FAULTS 35, a blob that a read meets: the client gets the right bytes at once, by GET, HEAD and Range, of a node alone and of one
// of three without an upstream. What the disk made of it is in quarantine, and counted.
func TestReadHeals(t *testing.T) {
	for _, alone := range []bool{true, false} {
		for _, how := range []string{"flip", "truncate", "remove"} {
			for _, method := range []string{"GET", "HEAD", "Range"} {
				t.Run(fmt.Sprint(map[bool]string{true: "alone", false: "cluster"}[alone], " ", how, " ", method), func(t *testing.T) {
					c, n := solo(t, false)
					if !alone {
						c = newCluster(t, 3)
						n = c.nodes[1]
					}
					refs := c.fill(3)
					defer n.follow()()
					n.until(func(p Progress) bool { return p.Watermark == 3 && p.Missing == 0 })
					if !alone {
						c.up.Down(true)
					}
					zip := string(c.up.Artifact(module.Version{Path: "example.com/m1", Version: "v1.0.0"}, artifact.Zip))
					n.spoil(how, refs[1])
					n.store.Doubt(refs[1].Digest) // as after a restart
					n.hot.drop("/example.com/m1/@v/v1.0.0.zip")
					n.readAs(method, "/example.com/m1/@v/v1.0.0.zip", zip)
					if err := n.blob(refs[1]); err != nil {
						t.Error(err)
					}
					n.until(func(p Progress) bool {
						return p.Watermark == 3 && p.Missing == 0 && n.Health().Unhealed == 0 && n.Health().Healed == 1
					})
					from := map[bool]string{true: "upstream", false: "peer"}[alone]
					if bad, healed := n.metric("bad_blobs_total", "read"), n.metric("healed_blobs_total", from); bad != 1 || healed != 1 {
						t.Errorf("counted: %v bad, %v healed", bad, healed)
					}
					list, err := n.store.Damaged()
					if want := map[bool]int{true: 0, false: 1}[how == "remove"]; err != nil || len(list) != want {
						t.Errorf("in quarantine: %+v, %v, want %d", list, err, want)
					}
				})
			}
		}
	}
}

// A blob that has not come here yet is no loss, whoever asks for it and whenever the scrub comes by.
func TestLateIsNotLost(t *testing.T) {
	c := newCluster(t, 3)
	n := c.nodes[2]
	defer n.scrubbing()()
	c.set(func() { c.down[2] = true }) // it gets no copies
	c.set(func() { c.tamper = func(int, io.Reader) io.Reader { return iotest.ErrReader(artifact.ErrUnavailable) } })
	c.fill(12)
	n.until(func(p Progress) bool { return p.Missing == 12 })
	n.scrubAll() // nothing can be pulled
	c.set(func() { c.tamper = nil })
	for range 3 {
		for i := range 12 {
			n.want(fmt.Sprintf("/example.com/m%d/@v/v1.0.0.zip", i), 200, "PK")
		}
		n.scrubAll()
	}
	// Which of the two a blob that is missing is follows from its place, and how far this node had looked.
	if _, err := n.Place(t.Context(), helloV); err == nil {
		t.Fatal("hello is published")
	}
	mv := module.Version{Path: "example.com/m7", Version: "v1.0.0"}
	seq, err := n.Place(t.Context(), mv)
	if err != nil {
		t.Fatal(err)
	}
	for before, want := range map[int64]bool{0: false, seq: false, seq + 1: true} {
		if got := n.wasHere(t.Context(), mv, artifact.Digest{}, before); got != want {
			t.Errorf("missing at place %d, looked at before %d: lost is %v", seq, before, got)
		}
	}
	if n.wasHere(t.Context(), helloV, artifact.Digest{}, 1e6) {
		t.Error("what is not published counts as lost")
	}
	if bad := n.metric("bad_blobs_total"); bad != 0 {
		t.Errorf("%v blobs count as damaged\n%s", bad, n.logs)
	}
}

// readAs reads a zip in one of the ways in which clients do.
func (n *node) readAs(how, path, zip string) {
	n.t.Helper()
	switch how {
	case "HEAD":
		if a := n.want(path, 200, "", func(r *http.Request) { r.Method = "HEAD" }); a.header.Get("Content-Length") != fmt.Sprint(len(zip)) {
			n.t.Errorf("HEAD: %v", a.header)
		}
	case "Range":
		if a := n.want(path, 206, "", func(r *http.Request) { r.Header.Set("Range", "bytes=10-99") }); a.body != zip[10:100] {
			n.t.Errorf("Range: %d bytes, not the right ones", len(a.body))
		}
	default:
		if a := n.want(path, 200, ""); a.body != zip {
			n.t.Errorf("GET: %d bytes, not the right ones", len(a.body))
		}
	}
}

// A disk that gives less of a large zip than it should cuts one answer short; the blob is looked at then, and the next answer is whole.
// What is small is read before the answer begins, and is healed within it.
func TestReadOfShrinkingFile(t *testing.T) {
	for _, size := range []int{1 << 10, 24 << 20} { // the connection holds less than that
		c, n := solo(t, false)
		body := make([]byte, size)
		for i := range body {
			body[i] = byte('a' + rand.IntN(26))
		}
		mv := c.up.Add("example.com/big@v1.0.0\n-- go.mod --\nmodule example.com/big\n-- a.go --\npackage a\n// " + string(body) + "\n")
		zipSum, mod := c.up.Sums(mv)
		c.sums.set(mv, zipSum, mod)
		const path = "/example.com/big/@v/v1.0.0.zip"
		zip := string(c.up.Artifact(mv, artifact.Zip))
		n.want(path, 200, "PK")
		var armed atomic.Bool
		step, once := n.step, sync.OnceFunc(func() { n.spoil("truncate", artifact.RefOf([]byte(zip))) })
		n.step = func(s string) {
			if step(s); s == "open" && size < maxHot && armed.Load() {
				once()
			}
		}
		stop := n.follow()
		n.until(func(p Progress) bool { return p.Watermark == 1 })
		n.hot.drop(path)
		armed.Store(true)
		if size < maxHot {
			n.readAs("GET", path, zip)
		} else {
			resp, err := http.Get(n.srv.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			once()
			if b, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("%d bytes come of a file that is shorter than that", len(b))
			}
			resp.Body.Close()
			n.until(func(Progress) bool { return n.metric("bad_blobs_total", "read") == 1 })
			n.until(func(p Progress) bool { return p.Watermark == 1 && n.Health().Unhealed == 0 })
			n.readAs("GET", path, zip)
		}
		stop()
	}
}
