package mirror

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// bulkNet is how nodes of a cluster hand each other blobs in bulk.
type bulkNet struct {
	mu      sync.Mutex
	tamper  func(refs []artifact.Ref, answer []byte) []byte // guarded by mu; nil: none
	unknown bool                                            // guarded by mu; the peer runs an earlier version
	asked   int                                             // guarded by mu; requests
}

// bulkPeers is a fakePeers that hands over blobs in bulk: those of node 0.
type bulkPeers struct {
	*fakePeers
	net *bulkNet
}

func (p *bulkPeers) FetchBulk(ctx context.Context, refs []artifact.Ref, take func([]int, io.Reader, string) BulkTaken) error {
	p.net.mu.Lock()
	tamper, unknown := p.net.tamper, p.net.unknown
	p.net.asked++
	p.net.mu.Unlock()
	if unknown {
		return errors.ErrUnsupported
	}
	again, err := ParseBulk(AppendBulk(nil, refs))
	if err != nil {
		return err
	}
	var answer bytes.Buffer
	if err := p.c.nodes[0].GiveBulk(ctx, again, &answer); err != nil {
		return err
	}
	b := answer.Bytes()
	if tamper != nil {
		b = tamper(refs, b)
	}
	asked := make([]int, len(refs))
	for i := range asked {
		asked[i] = i
	}
	take(asked, bytes.NewReader(b), name(0))
	return nil
}

// newBulkCluster is a cluster of three that hand over in bulk, with count zips that node 2 lacks.
func newBulkCluster(t *testing.T, count int, options ...func(*Config)) (*cluster, *bulkNet, []artifact.Ref) {
	t.Helper()
	net := &bulkNet{}
	c := newCluster(t, 3, append(options, func(cf *Config) { cf.Peers = &bulkPeers{cf.Peers.(*fakePeers), net} })...)
	c.set(func() { c.down[2] = true })
	refs := c.fill(count)
	c.set(func() { c.down[2] = false })
	return c, net, refs
}

// noChecks keeps anything from being proven on a node, until the function that it returns is called.
func (n *node) noChecks() (release func()) {
	for range cap(n.checks) {
		n.checks <- struct{}{}
	}
	return sync.OnceFunc(func() {
		for range cap(n.checks) {
			<-n.checks
		}
	})
}

func (n *node) whole(refs []artifact.Ref) {
	n.t.Helper()
	for i, ref := range refs {
		if err := n.store.Verify(n.t.Context(), ref); err != nil {
			n.t.Errorf("blob %d: %v", i, err)
		}
	}
}

// A node that lacks much has all of it in few requests, and gives none of it away before it has compared the go.sum hash itself.
func TestBulk(t *testing.T) {
	c, net, refs := newBulkCluster(t, 40)
	n := c.nodes[2]
	release := n.noChecks()
	defer release()
	stop := n.follow()
	n.until(func(p Progress) bool { return p.Watermark == 40 && p.Missing == 0 && p.Unproven == 40 })
	if net.asked == 0 || net.asked > 3 || c.fetches(2, 0)+c.fetches(2, 1) > 0 {
		t.Errorf("%d requests in bulk, %d others", net.asked, c.fetches(2, 0)+c.fetches(2, 1))
	}
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	man, err := n.index.Manifest(t.Context(), module.Version{Path: "example.com/m3", Version: "v1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	if _, f, err := n.load(soon, man, artifact.Zip); f != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a client gets what is unproven: %v, %v", f != nil, err)
	}
	if f, err := n.Hand(soon, refs[4]); f != nil || err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another node gets what is unproven: %v, %v", f != nil, err)
	}
	for _, ref := range refs {
		if n.store.Has(ref) {
			t.Error("what is unproven is among the blobs")
		}
	}
	release()
	n.want("/example.com/m39/@v/v1.0.0.zip", 200, "PK") // before its turn, perhaps
	f, err := n.Hand(t.Context(), refs[38])
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	n.until(func(p Progress) bool { return p.Unproven == 0 })
	n.whole(refs)
	stop()
	if got := n.cursor(); got != `{"next":40}` {
		t.Errorf("%s: %s", cursorFile, got)
	}
}

// What comes in while a node is up to date is proven at once.
func TestBulkIsForMuch(t *testing.T) {
	c, net, refs := newBulkCluster(t, bulkLeast()-1)
	n := c.nodes[2]
	defer n.noChecksButOne()()
	defer n.follow()()
	n.until(func(p Progress) bool { return p.Watermark == int64(len(refs)) && p.Unproven == 0 })
	if net.asked != 0 {
		t.Errorf("%d requests in bulk", net.asked)
	}
}

// noChecksButOne has a node check one zip at a time.
func (n *node) noChecksButOne() (release func()) {
	for range cap(n.checks) - 1 {
		n.checks <- struct{}{}
	}
	return func() {
		for range cap(n.checks) - 1 {
			<-n.checks
		}
	}
}

// A process that ends with unproven blobs is followed by one that proves them, and pulls none again.
func TestBulkRestart(t *testing.T) {
	c, net, refs := newBulkCluster(t, 30)
	n := c.nodes[2]
	release := n.noChecks()
	stop := n.follow()
	n.until(func(p Progress) bool { return p.Watermark == 30 && p.Unproven == 30 })
	stop()
	if got := n.cursor(); got != "" && got != `{"next":0}` {
		t.Errorf("an earlier version would take the blobs for held: %s", got)
	}
	release()
	before := net.asked
	n.boot()
	if got := n.Progress().Unproven; got != 30 {
		t.Fatalf("the next process knows of %d that are unproven", got)
	}
	stray := bytes.Repeat([]byte("nothing names this "), 10)
	d, err := n.store.Create(1000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write(stray); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.store.Keep([]*artifact.Draft{d})...); err != nil {
		t.Fatal(err)
	}
	defer n.follow()()
	n.until(func(p Progress) bool { return p.Watermark == 30 && p.Unproven == 0 })
	n.whole(refs)
	if n.store.Has(artifact.RefOf(stray)) {
		t.Error("what nothing names is proven")
	}
	if net.asked != before || c.fetches(2, 0)+c.fetches(2, 1) > 0 {
		t.Errorf("%d requests in bulk after the restart, %d others", net.asked-before, c.fetches(2, 0)+c.fetches(2, 1))
	}
}

// Bytes that rot before they are proven are pulled again, and not served.
func TestBulkRots(t *testing.T) {
	c, _, refs := newBulkCluster(t, 20)
	n := c.nodes[2]
	release := n.noChecks()
	defer n.follow()()
	n.until(func(p Progress) bool { return p.Unproven == 20 })
	n.rotUnproven(c.up.Artifact(module.Version{Path: "example.com/m7", Version: "v1.0.0"}, artifact.Zip))
	release()
	n.until(func(p Progress) bool { return p.Watermark == 20 && p.Unproven == 0 && n.store.Has(refs[7]) })
	n.whole(refs)
	n.want("/example.com/m7/@v/v1.0.0.zip", 200, "PK")
}

// rotUnproven flips a bit of these bytes where they wait to be proven.
func (n *node) rotUnproven(data []byte) {
	n.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.dir, "unproven", "*"))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			n.t.Fatal(err)
		}
		at := bytes.Index(b, data)
		if at < 0 {
			continue
		}
		b[at+len(data)/2] ^= 1
		if err := os.WriteFile(file, b, 0o600); err != nil {
			n.t.Fatal(err)
		}
		return
	}
	n.t.Fatalf("no file of %q has them", files)
}

// lie has the first two nodes hold, and the cluster commit, a zip that is not the one of the record.
func (c *cluster) lie() artifact.Manifest {
	const honest = "example.com/lie@v1.0.0\n-- go.mod --\nmodule example.com/lie\n"
	lie := c.up.Artifact(c.up.Add(honest+"-- evil.go --\npackage evil\n"), artifact.Zip) // in all but its sum a zip of this version
	mv := c.up.Add(honest)
	zip, mod := c.up.Sums(mv)
	c.sums.set(mv, zip, mod)
	man, err := artifact.NewManifest(mv, c.sums.records[mv])
	if err != nil {
		c.t.Fatal(err)
	}
	man.Zip = artifact.RefOf(lie)
	for _, liar := range c.nodes[:2] {
		d, err := liar.store.Create(int64(len(lie)))
		if err != nil {
			c.t.Fatal(err)
		}
		if _, err := d.Write(lie); err != nil {
			c.t.Fatal(err)
		}
		if _, err := d.Commit(); err != nil {
			c.t.Fatal(err)
		}
	}
	c.set(func() {
		p := artifact.Publication{Manifest: man}
		if err := c.agreed.merge(p); err != nil {
			c.t.Error(err)
		}
		c.commit(c.nodes[0], entry{manifest: &p})
	})
	return man
}

// A zip whose digest is committed and whose go.sum hash is not that of the record is a lie of the cluster: it is told, put into
// quarantine, counts as missing, and is never served.
func TestBulkLieOfTheCluster(t *testing.T) {
	c, _, refs := newBulkCluster(t, 20)
	n := c.nodes[2]
	n.Mirror.config.Upstream = nil
	man := c.lie()
	release := n.noChecks()
	defer n.follow()()
	n.until(func(p Progress) bool { return p.Unproven == 21 && p.Watermark == 21 })
	n.bulks.Add(1) // so that a client comes first
	release()
	if _, f, err := n.load(t.Context(), man, artifact.Zip); f != nil || err == nil {
		t.Errorf("the lie is served: %v", err)
	}
	n.bulks.Add(-1)
	n.until(func(p Progress) bool { return p.Unproven == 0 && p.Missing == 1 && p.Watermark == 20 })
	if got := n.metric("verification_failures_total", "content") + n.metric("verification_failures_total", "checksum"); got != 1 {
		t.Errorf("%v alarms", got)
	}
	q, err := n.store.Quarantined()
	if err != nil || len(q) != 1 || q[0].Digest != man.Zip.Digest.String() || !strings.Contains(q[0].Reason, "example.com/lie@v1.0.0") {
		t.Errorf("in quarantine: %+v, %v", q, err)
	}
	if _, f, err := n.load(t.Context(), man, artifact.Zip); f != nil || err == nil {
		t.Errorf("the lie is served: %v", err)
	}
	if n.store.Has(man.Zip) {
		t.Error("the lie is among the blobs")
	}
	n.whole(refs)
}

// parts splits an answer that has all of refs.
func parts(refs []artifact.Ref, answer []byte) (all [][]byte) {
	for _, ref := range refs {
		n := 9 + int(ref.Size)
		all, answer = append(all, answer[:n:n]), answer[n:]
	}
	return all
}

// Whatever a peer answers, a node ends up with the right bytes, and says who lies.
func TestBulkLiesOfAPeer(t *testing.T) {
	for where, most := range map[string]int64{"into a pack": artifact.MaxPacked, "into files": 0} {
		t.Run(where, func(t *testing.T) { liesInBulk(t, most) })
	}
}

func liesInBulk(t *testing.T, packMost int64) {
	for _, test := range []struct {
		name   string
		tamper func(refs []artifact.Ref, answer []byte) []byte
		alarms bool
	}{
		{"a wrong byte in the middle", func(refs []artifact.Ref, b []byte) []byte {
			p := parts(refs, b)
			p[len(p)/2][20] ^= 1
			return bytes.Join(p, nil)
		}, true},
		{"another order", func(refs []artifact.Ref, b []byte) []byte {
			p := parts(refs, b)
			p[1], p[2] = p[2], p[1]
			return bytes.Join(p, nil)
		}, true},
		{"a size that is huge", func(refs []artifact.Ref, b []byte) []byte {
			p := parts(refs, b)
			binary.BigEndian.PutUint64(p[3][1:], 1<<63)
			return bytes.Join(p, nil)
		}, true},
		{"a byte less than it says", func(refs []artifact.Ref, b []byte) []byte {
			p := parts(refs, b)
			p[4] = p[4][:len(p[4])-1]
			return bytes.Join(p, nil)
		}, true},
		{"a part that is no part", func(refs []artifact.Ref, b []byte) []byte {
			p := parts(refs, b)
			p[5][0] = 9
			return bytes.Join(p, nil)
		}, true},
		{"more than was asked for", func(refs []artifact.Ref, b []byte) []byte { return append(b, b...) }, true},
		{"the first half", func(refs []artifact.Ref, b []byte) []byte { return b[:len(b)/2] }, false},
		{"nothing at all", func(refs []artifact.Ref, b []byte) []byte { return nil }, false},
		{"that it has nothing", func(refs []artifact.Ref, b []byte) []byte { return make([]byte, len(refs)) }, false},
		{"not now", func(refs []artifact.Ref, b []byte) []byte { return bytes.Repeat([]byte{bulkLater}, len(refs)) }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, net, refs := newBulkCluster(t, 24)
			net.tamper = test.tamper
			n := c.nodes[2]
			n.packMost = packMost
			defer n.follow()()
			n.until(func(p Progress) bool { return p.Watermark == 24 && p.Missing == 0 && p.Unproven == 0 })
			n.whole(refs)
			if got := n.metric("verification_failures_total", "peer"); (got > 0) != test.alarms {
				t.Errorf("%v alarms", got)
			}
		})
	}
}

// Beside nodes of an earlier version each blob is pulled by itself.
func TestBulkOfAnEarlierVersion(t *testing.T) {
	c, net, refs := newBulkCluster(t, 40)
	net.unknown = true
	n := c.nodes[2]
	defer n.follow()()
	n.until(func(p Progress) bool { return p.Watermark == 40 && p.Missing == 0 })
	n.whole(refs)
	if got := c.fetches(2, 0) + c.fetches(2, 1); got != 40 || net.asked > bulkPulls {
		t.Errorf("%d pulls, and %d requests in bulk", got, net.asked)
	}
}

// Pulls in bulk keep to the limit.
func TestBulkKeepsToTheLimit(t *testing.T) {
	c, _, _ := newBulkCluster(t, 0, func(cf *Config) { cf.PullLimit = 1 << 20 })
	c.set(func() { c.down[2] = true })
	r := rand.NewChaCha8([32]byte{1})
	total := 0
	for i := range bulkLeast() {
		noise := make([]byte, 96<<10)
		_, _ = r.Read(noise) // never fails
		mv := c.up.Add(fmt.Sprintf("example.com/n%d@v1.0.0\n-- go.mod --\nmodule example.com/n%d\n-- a.go --\n%x\n", i, i, noise))
		zip, mod := c.up.Sums(mv)
		c.sums.set(mv, zip, mod)
		c.nodes[0].want("/"+mv.Path+"/@v/v1.0.0.zip", 200, "PK")
		total += len(c.up.Artifact(mv, artifact.Zip))
	}
	c.set(func() { c.down[2] = false })
	n := c.nodes[2]
	begin := time.Now()
	defer n.follow()()
	n.until(func(p Progress) bool { return p.Watermark == int64(bulkLeast()) })
	if took, least := time.Since(begin), time.Duration(float64(total-followBurst)/(1<<20)*float64(time.Second)); took < least {
		t.Errorf("%d bytes took %v at 1 MiB a second, want %v at least", total, took, least)
	}
}

// Answers to other nodes are bounded, and give way to clients.
func TestGiveBulk(t *testing.T) {
	c, _, refs := newBulkCluster(t, 3)
	n := c.nodes[0]
	missing := artifact.RefOf([]byte("not here"))
	var b bytes.Buffer
	if err := n.GiveBulk(t.Context(), []artifact.Ref{refs[0], missing, refs[1]}, &b); err != nil {
		t.Fatal(err)
	}
	want := int64(9 + 1 + 9)
	if got := int64(b.Len()); got != want+refs[0].Size+refs[1].Size {
		t.Errorf("%d bytes", got)
	}
	for range cap(n.gives) {
		n.gives <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.GiveBulk(ctx, refs, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("one answer too many: %v", err)
	}
	n.serving.Add(1)
	defer n.serving.Add(-1)
	begin := time.Now()
	y := &yielding{t.Context(), n.Mirror, io.Discard}
	for range 3 {
		if _, err := y.Write([]byte("x")); err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(begin); took < 3*giveYield {
		t.Errorf("gives way for %v", took)
	}
}

// FuzzBulk reads requests and answers of anybody.
func FuzzBulk(f *testing.F) {
	one, two := []byte("one"), []byte("twotwo")
	refs := []artifact.Ref{artifact.RefOf(one), artifact.RefOf(two)}
	f.Add(AppendBulk(nil, refs), append(append(append(appendPart(nil, refs[0]), one...), appendPart(nil, refs[1])...), two...))
	f.Add([]byte{}, []byte{bulkAbsent, bulkLater})
	f.Add(make([]byte, bulkRef), []byte{bulkHere, 0, 0, 0, 0, 0, 0, 0, 3, 'a'})
	f.Fuzz(func(t *testing.T, request, answer []byte) {
		if got, err := ParseBulk(request); err == nil {
			if !bytes.Equal(AppendBulk(nil, got), request) || len(got) > MaxBulk {
				t.Errorf("ParseBulk(%x) = %v", request, got)
			}
		} else if !errors.Is(err, artifact.ErrMalformed) {
			t.Error(err)
		}
		next := 0
		err := readBulk(iotest.OneByteReader(bytes.NewReader(answer)), refs, func(i int, body io.Reader, absent error) error {
			if i != next || (body == nil) == (absent == nil) {
				t.Errorf("part %d after %d, %v", i, next, absent)
			}
			next++
			if body != nil && i == 0 { // of the other one nothing is read
				if b, err := io.ReadAll(body); err != nil || int64(len(b)) > refs[i].Size {
					t.Errorf("part %d has %d bytes, %v", i, len(b), err)
				}
			}
			return nil
		})
		if err == nil && next != len(refs) || err != nil && !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("%d parts, %v", next, err)
		}
	})
}

// A disk that is not written to any more, or is full, gives what came in bulk all the same, once it is proven.
func TestBulkOnABrokenDisk(t *testing.T) {
	c, _, refs := newBulkCluster(t, 20)
	n := c.nodes[2]
	release := n.noChecks()
	defer n.follow()()
	n.until(func(p Progress) bool { return p.Watermark == 20 && p.Unproven == 20 })
	n.store.StopWrites(errors.New("broken"))
	release()
	for i, ref := range refs {
		n.want(fmt.Sprintf("/example.com/m%d/@v/v1.0.0.zip", i), 200, "PK")
		f, err := n.Hand(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}

// A lie of the cluster is not here any more, even if the disk does not let go of it.
func TestBulkLieOnABrokenDisk(t *testing.T) {
	c, _, _ := newBulkCluster(t, 20)
	n := c.nodes[2]
	n.Mirror.config.Upstream = nil
	man := c.lie()
	release := n.noChecks()
	defer n.follow()()
	n.until(func(p Progress) bool { return p.Unproven == 21 && p.Watermark == 21 })
	n.store.StopWrites(errors.New("broken"))
	release()
	n.until(func(p Progress) bool { return p.Missing == 1 && p.Watermark == 20 })
	for range 2 {
		if _, f, err := n.load(t.Context(), man, artifact.Zip); f != nil || err == nil {
			t.Errorf("the lie is served: %v", err)
		}
	}
	if got := n.metric("verification_failures_total", "content") + n.metric("verification_failures_total", "checksum"); got != 1 {
		t.Errorf("%v alarms", got)
	}
}

// A node whose catalog is not there yet keeps what an earlier one left unproven, and proves it when the catalog names it.
func TestBulkAwaitsTheCatalog(t *testing.T) {
	c := newCluster(t, 3)
	n := c.nodes[2]
	c.set(func() { c.down[2], n.paused = true, true })
	refs := c.fill(5)
	for i, ref := range refs {
		d, err := n.store.Create(ref.Size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Write(c.up.Artifact(module.Version{Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0"}, artifact.Zip)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(n.store.Keep([]*artifact.Draft{d})...); err != nil {
			t.Fatal(err)
		}
	}
	c.set(func() { c.quorum = false }) // so that nobody can say whether the catalog is whole
	looked := make(chan struct{})
	done, step := sync.OnceFunc(func() { close(looked) }), n.step
	n.step = func(s string) {
		step(s)
		if s == "unproven" {
			done()
		}
	}
	defer n.follow()()
	<-looked
	if got := n.Progress().Unproven; got != len(refs) {
		t.Errorf("%d of %d are left", got, len(refs))
	}
	n.resume()
	n.until(func(p Progress) bool { return p.Watermark == 5 && p.Unproven == 0 })
	n.whole(refs)
	if got := c.fetches(2, 0) + c.fetches(2, 1); got != 0 {
		t.Errorf("%d are pulled again", got)
	}
}

// A blob that gets its place between two looks is not taken for missing.
func TestBulkProvenMeanwhile(t *testing.T) {
	c, _, refs := newBulkCluster(t, 20)
	n := c.nodes[2]
	release := n.noChecks()
	defer release()
	stop := n.follow()
	n.until(func(p Progress) bool { return p.Watermark == 20 && p.Unproven == 20 })
	stop()
	next := 0
	n.step = func(s string) {
		if s == "absent" { // somebody else has compared it
			if err := n.store.Prove(refs[next : next+1]); err != nil {
				t.Error(err)
			}
		}
	}
	f, err := n.Hand(t.Context(), refs[0])
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	next++
	man, err := n.index.Manifest(t.Context(), module.Version{Path: "example.com/m1", Version: "v1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	_, f, err = n.load(t.Context(), man, artifact.Zip)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	next++
	if man, err = n.index.Manifest(t.Context(), module.Version{Path: "example.com/m2", Version: "v1.0.0"}); err == nil {
		err = n.intact(t.Context(), man, artifact.Zip)
	}
	if err != nil {
		t.Error(err)
	}
}

// A blob is proven also when the change that named it was followed by a later one of the same version meanwhile.
func TestBulkOfAChangeThatIsOver(t *testing.T) {
	c, _, refs := newBulkCluster(t, 20)
	n := c.nodes[2]
	release := n.noChecks()
	stop := n.follow()
	n.until(func(p Progress) bool { return p.Watermark == 20 && p.Unproven == 20 })
	stop()
	release()
	c.nodes[0].want("/example.com/m3/@v/v1.0.0.mod", 200, "module")
	if at, err := n.Place(t.Context(), module.Version{Path: "example.com/m3", Version: "v1.0.0"}); err != nil || at < 20 {
		t.Fatalf("the newest change of m3 is at %d: %v", at, err)
	}
	if ref, err := n.proveNext(t.Context(), refs[3].Digest); err != nil || ref != refs[3] {
		t.Errorf("proveNext() = %v, %v; not %v", ref, err, refs[3])
	}
}
