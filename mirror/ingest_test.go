package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
	"modmirror/mirror/mirrortest"
	"modmirror/mirror/upstream"
)

// PROTOCOL 13, FAULTS 1: other bytes than the checksum database vouches for are refused with both hashes, kept apart as
// evidence, and asked for elsewhere.
func TestTampered(t *testing.T) {
	change := func(b []byte) []byte {
		return bytes.Replace(b, []byte("example.com/hello"), []byte("example.com/he11o"), 1)
	}
	zipped := func([]byte) []byte {
		return mirrortest.Zip(helloV, map[string]string{"go.mod": "module example.com/hello\n", "hello.go": "package evil\n"})
	}
	for k, tamper := range map[artifact.Kind]func([]byte) []byte{artifact.Mod: change, artifact.Zip: zipped} {
		g := newRig(t)
		zip, mod := g.up.Sums(helloV)
		g.up.Tamper(helloV, k, tamper)
		got, want := artifact.ModSum(change(g.up.Artifact(helloV, artifact.Mod))), mod
		if k == artifact.Zip {
			got, want = mirrortest.ZipSum(zipped(nil)), zip
		}
		path := helloPath + "v1.0.0." + k.String()
		evidence := fmt.Sprintf("checksum mismatch: upstream %s, sumdb %s", got, want)
		g.want(path, 403, evidence)
		g.nothingStored()
		if q, err := g.store.Quarantined(); err != nil || len(q) != 1 || !strings.Contains(q[0].Reason, evidence) {
			t.Errorf("%s: quarantine = %+v, %v", k, q, err)
		}
		if n := g.metric("verification_failures_total", "checksum"); n != 1 {
			t.Errorf("%s: %v failures counted", k, n)
		}
		if logs := g.logs.String(); !strings.Contains(logs, "level=ERROR") || !strings.Contains(logs, got) || !strings.Contains(logs, want) {
			t.Errorf("%s: no evidence in the log:\n%s", k, logs)
		}
		// The next source has the right bytes.
		good := mirrortest.New()
		t.Cleanup(good.Close)
		good.Add(hello)
		g.start(func(c *Config) { c.Upstream = &proxies{urls: []string{g.up.URL(), good.URL()}} })
		g.want(path, 200, "")
		// And a healed one is believed again: nothing of the refusal is remembered.
		g = newRig(t)
		g.up.Tamper(helloV, k, tamper)
		g.want(path, 403, "")
		g.up.Heal()
		g.want(path, 200, "")
	}
}

// PROTOCOL 14, FAULTS 2: what was verified before stays when another part is wrong.
func TestOnePartWrong(t *testing.T) {
	g := newRig(t)
	g.want(helloPath+"v1.0.0.zip", 200, "")
	g.up.Tamper(helloV, artifact.Mod, func(b []byte) []byte { return append(b, '\n') })
	g.want(helloPath+"v1.0.0.mod", 403, "(go.mod)")
	g.want(helloPath+"v1.0.0.zip", 200, "")
	if man, _ := g.index.Manifest(t.Context(), helloV); !man.Mod.IsZero() || man.Zip.IsZero() {
		t.Errorf("manifest = %+v", man)
	}
	// A zip with the right hash whose go.mod is not the one that the record vouches for.
	g = newRig(t)
	zip, _ := g.up.Sums(helloV)
	g.sums.set(helloV, zip, artifact.ModSum([]byte("module example.com/other\n")))
	g.want(helloPath+"v1.0.0.zip", 403, "(go.mod in the zip)")
	g.nothingStored()
}

// No byte of a zip or go.mod can change without the h1 changing, the zip being refused, or the bytes being others that
// mean the same; what is served has the h1 of the record in every case.
func TestEveryByte(t *testing.T) {
	g := newRig(t)
	zipSum, modSum := g.up.Sums(helloV)
	accepted := 0
	for k, sum := range map[artifact.Kind]string{artifact.Zip: zipSum, artifact.Mod: modSum} {
		for i := 0; i < len(g.up.Artifact(helloV, k)); i += 3 { // all of them take a while
			g.up.Tamper(helloV, k, func(b []byte) []byte { b = bytes.Clone(b); b[i] ^= 0x20; return b })
			w := httptest.NewRecorder()
			g.ServeHTTP(w, httptest.NewRequest("GET", helloPath+"v1.0.0."+k.String(), nil))
			if w.Code == 403 {
				g.nothingStored()
				continue
			}
			got := artifact.ModSum(w.Body.Bytes())
			if k == artifact.Zip {
				got = mirrortest.ZipSum(w.Body.Bytes())
			}
			if w.Code != 200 || got != sum {
				t.Fatalf("%s with byte %d changed: %d, h1 %s", k, i, w.Code, got)
			}
			accepted++
			g.index.manifests, g.index.inline = map[module.Version]artifact.Manifest{}, map[artifact.Digest][]byte{}
			for ref := range g.store.All() {
				if err := g.store.Remove(ref.Digest); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	t.Logf("%d changes mean the same to h1 (times, modes)", accepted)
}

// PROTOCOL 10, FAULTS 15, 16: rubbish, truncation and endless bodies are refused and not stored.
func TestBrokenBodies(t *testing.T) {
	for name, c := range map[string]struct {
		fault  func(u *mirrortest.Upstream, k artifact.Kind)
		status []int
	}{
		"html":      {func(u *mirrortest.Upstream, k artifact.Kind) { u.HTML(helloV, k) }, []int{403, 502}},
		"gzip":      {func(u *mirrortest.Upstream, k artifact.Kind) { u.Gzip(helloV, k) }, []int{200, 403, 502}}, // a transport may undo it
		"cut":       {func(u *mirrortest.Upstream, k artifact.Kind) { u.Truncate(helloV, k, 7) }, []int{503}},
		"too short": {func(u *mirrortest.Upstream, k artifact.Kind) { u.WrongLength(helloV, k, 5) }, []int{503}},
		"too long":  {func(u *mirrortest.Upstream, k artifact.Kind) { u.WrongLength(helloV, k, -5) }, []int{403, 502}},
		"empty":     {func(u *mirrortest.Upstream, k artifact.Kind) { u.Tamper(helloV, k, func([]byte) []byte { return nil }) }, []int{403, 502}},
	} {
		for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
			g := newRig(t)
			c.fault(g.up, k)
			a := g.get(helloPath + "v1.0.0." + k.String())
			if !contains(c.status, a.status) {
				t.Errorf("%s %s = %d %q, want one of %d", name, k, a.status, a.body, c.status)
			}
			if a.status != 200 {
				g.nothingStored()
			}
			if a.status == 503 {
				g.nobodyAccused()
			}
			g.up.Heal()
			g.want(helloPath+"v1.0.0."+k.String(), 200, "")
		}
	}
	g := newRig(t)
	zip, _ := g.up.Sums(helloV)
	g.up.HTML(helloV, artifact.Zip) // what came and what should have come, also if there is no h1 to compare
	a := g.want(helloPath+"v1.0.0.zip", 403, "not a module zip: upstream sha256:")
	sent := regexp.MustCompile(`sha256:[0-9a-f]{64} \([1-9][0-9]* bytes\), sumdb ` + regexp.QuoteMeta(zip))
	if !sent.MatchString(a.body) || strings.Count(a.body, "example.com/hello@v1.0.0") != 1 {
		t.Errorf("evidence is %q", a.body)
	}
	g = newRig(t)
	g.up.Endless(helloV, artifact.Info)
	g.want(helloPath+"v1.0.0.info", 403, "limit of 1048576 bytes")
	g.nothingStored()
}

func contains(list []int, n int) bool {
	for _, i := range list {
		if i == n {
			return true
		}
	}
	return false
}

// source is an Upstream of one function.
type source struct {
	Upstream
	fetch func(ctx context.Context, m module.Version, k artifact.Kind, accept func(io.Reader, int64, string) error) error
}

func (s source) Fetch(ctx context.Context, m module.Version, k artifact.Kind, accept func(io.Reader, int64, string) error) error {
	return s.fetch(ctx, m, k, accept)
}

// FAULTS 12: a zip that declares too much is not read; PROTOCOL 33 is the business of artifact.CheckZip, whose no is 403.
func TestTooLarge(t *testing.T) {
	g := newRig(t, func(c *Config) {
		c.Upstream = source{fetch: func(_ context.Context, _ module.Version, k artifact.Kind, accept func(io.Reader, int64, string) error) error {
			return accept(readerFunc(func([]byte) (int, error) { t.Error("read"); return 0, io.EOF }), k.Limit()+1, "x")
		}}
	})
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		g.want(helloPath+"v1.0.0."+k.String(), 403, fmt.Sprintf("limit of %d", k.Limit()))
	}
}

// A body that ends early without an error is cut short, whatever the transport thinks of it.
func TestShorterThanDeclared(t *testing.T) {
	var g *rig
	g = newRig(t, func(c *Config) {
		c.Upstream = source{fetch: func(_ context.Context, m module.Version, k artifact.Kind, accept func(io.Reader, int64, string) error) error {
			b := g.up.Artifact(m, k)
			return accept(bytes.NewReader(b), int64(len(b))+1, "x")
		}}
	})
	for _, k := range []string{"info", "mod", "zip"} {
		g.want(helloPath+"v1.0.0."+k, 503, "cut short")
	}
	g.nothingStored()
	g.nobodyAccused()
}

// A body that breaks off is no forgery, as the upstream package tells of it: neither alarm nor quarantine.
func TestBrokenConnection(t *testing.T) {
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		for name, fault := range map[string]func(*mirrortest.Upstream){
			"cut":            func(u *mirrortest.Upstream) { u.Truncate(helloV, k, 7) },
			"cut, no length": func(u *mirrortest.Upstream) { u.Unsized(helloV, k); u.Truncate(helloV, k, 7) },
			"too short":      func(u *mirrortest.Upstream) { u.WrongLength(helloV, k, 5) },
		} {
			g := newRig(t)
			list, err := upstream.Parse(g.up.URL(), upstream.Config{})
			if err != nil {
				t.Fatal(err)
			}
			g.start(func(c *Config) { c.Upstream = list })
			fault(g.up)
			if a := g.get(helloPath + "v1.0.0." + k.String()); a.status != 503 {
				t.Errorf("%s %s = %d %q, want 503", name, k, a.status, a.body)
			}
			g.nothingStored()
			g.nobodyAccused()
		}
	}
}

// nobodyAccused fails the test if anything counts as a failed check.
func (g *rig) nobodyAccused() {
	g.t.Helper()
	q, err := g.store.Quarantined()
	if n := g.metric("verification_failures_total"); err != nil || len(q) != 0 || n != 0 || strings.Contains(g.logs.String(), "verification failed") {
		g.t.Errorf("%d in quarantine (%v), %v failures", len(q), err, n)
	}
}

// PROTOCOL 33, FAULTS 13, 14: a zip that no module may have is refused although the record vouches for its h1.
func TestHostileZips(t *testing.T) {
	g := newRig(t)
	list := mirrortest.HostileZips(helloV)
	for i, h := range list {
		g.up.AddZip(helloV, h.Zip, mirrortest.HonestMod(helloV), nil)
		g.sums.set(helloV, mirrortest.ZipSum(h.Zip), artifact.ModSum(mirrortest.HonestMod(helloV)))
		g.want(helloPath+"v1.0.0.zip", 403, "")
		g.nothingStored()
		if n := g.metric("verification_failures_total", "content"); n != float64(i+1) {
			t.Errorf("%s: %v failures counted", h.Name, n)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A source may misbehave in ways of its own: say yes without having called accept, or panic.
func TestBadSource(t *testing.T) {
	g := newRig(t, func(c *Config) {
		c.Upstream = source{fetch: func(_ context.Context, _ module.Version, k artifact.Kind, _ func(io.Reader, int64, string) error) error {
			if k == artifact.Zip {
				panic("at 127.0.0.1")
			}
			return nil
		}}
	})
	g.want(helloPath+"v1.0.0.mod", 503, "")
	g.want(helloPath+"v1.0.0.zip", 500, "internal error")
	if !strings.Contains(g.logs.String(), "panic: at 127.0.0.1") {
		t.Errorf("logged:\n%s", g.logs.String())
	}
	g.nothingStored()
}

// FAULTS 3: a record without the wanted lines is a failed check. No zip is fetched for it, and of an info or go.mod, which
// may be on its way by then (see early), nothing is kept.
func TestRecordLacksLine(t *testing.T) {
	g := newRig(t)
	r := g.sums.records[helloV]
	zipLine, _, _ := bytes.Cut(r.Text, []byte("\n"))
	r.Text = append(zipLine, '\n')
	g.sums.records[helloV] = r
	for _, k := range []string{"info", "mod", "zip"} {
		g.want(helloPath+"v1.0.0."+k, 403, "lacks the line")
	}
	g.nothingStored()
	for _, r := range g.up.Requests() {
		if strings.HasSuffix(r.Path, ".zip") {
			t.Errorf("%s went upstream", r.Path)
		}
	}
	if n := g.metric("verification_failures_total", "record"); n != 3 {
		t.Errorf("%v failures counted", n)
	}
}

// A go.mod that is too large for the catalog is a blob.
func TestLargeMod(t *testing.T) {
	g := newRig(t)
	mod := "module example.com/large\n" + strings.Repeat("// x\n", 20000)
	large := g.add("example.com/large@v1.0.0\n-- go.mod --\n" + mod)
	for range 2 {
		g.want("/example.com/large/@v/v1.0.0.mod", 200, mod)
		g.start()
	}
	man, err := g.index.Manifest(t.Context(), large)
	if err != nil || !g.store.Has(man.Mod) || len(g.index.inline) > 0 {
		t.Errorf("manifest = %+v, %v", man, err)
	}
}

// What the catalog has is served, also to the one who just brought other bytes.
func TestWinner(t *testing.T) {
	g := newRig(t)
	other := []byte(`{"Version":"v1.0.0","Time":"2001-01-01T00:00:00Z"}`)
	g.index.first = func(p *artifact.Publication) { p.Manifest.Info, p.Info = artifact.RefOf(other), other }
	g.want(helloPath+"v1.0.0.info", 200, string(other))
	g.want(helloPath+"v1.0.0.info", 200, string(other))

	// The same files, packed in another way, have the same h1.
	zip := mirrortest.Repack(g.up.Artifact(helloV, artifact.Zip))
	d, err := g.store.Create(artifact.MaxZip)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write(zip); err != nil {
		t.Fatal(err)
	}
	ref, err := d.Commit()
	if err != nil {
		t.Fatal(err)
	}
	g.index.first = func(p *artifact.Publication) { p.Manifest.Zip = ref }
	if a := g.want(helloPath+"v1.0.0.zip", 200, ""); a.body != string(zip) {
		t.Error("the loser's bytes were served")
	}
}

// A full disk is named first, and is nobody's fault but the mirror's.
func TestDiskFull(t *testing.T) {
	g := newRig(t)
	g.index.publish = &os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}
	if a := g.want(helloPath+"v1.0.0.mod", 503, ""); !strings.HasPrefix(a.body, "no space left on this mirror's disk: example.com/hello@v1.0.0 mod: ") {
		t.Errorf("%s", a.body)
	}
}

// A publication that is refused or not possible now is not served, and can be tried again.
func TestPublishFails(t *testing.T) {
	g := newRig(t)
	for want, err := range map[int]error{403: artifact.ErrConflict, 503: artifact.ErrUnavailable} {
		g.index.publish = err
		g.want(helloPath+"v1.0.0.zip", want, "")
	}
	g.index.publish = &os.PathError{Op: "open", Path: "/x", Err: os.ErrNotExist} // a fault of the catalog is not an absence
	g.want(helloPath+"v1.0.0.zip", 503, "")
	g.index.publish = nil
	g.want(helloPath+"v1.0.0.zip", 200, "")
	if n := g.metric("verification_failures_total", "conflict"); n != 1 {
		t.Errorf("%v conflicts counted", n)
	}
}

// Bytes that are lost or damaged here come back from upstream, if the upstream still has exactly these. If not, that is no refusal, and
// never an absence.
func TestRepair(t *testing.T) {
	for name, harm := range map[string]func(*rig, artifact.Ref) error{
		"lost": func(g *rig, r artifact.Ref) error { return g.store.Remove(r.Digest) },
		"damaged": func(g *rig, r artifact.Ref) error {
			path := filepath.Join(g.dir, "blobs/sha256", r.Digest.String()[:2], r.Digest.String())
			_ = os.Chmod(path, 0o600)
			return os.Truncate(path, 10)
		},
		"one bit, after a restart": func(g *rig, r artifact.Ref) error {
			path := filepath.Join(g.dir, "blobs/sha256", r.Digest.String()[:2], r.Digest.String())
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 1
			err = errors.Join(os.Remove(path), os.WriteFile(path, b, 0o600))
			g.start(func(c *Config) { c.HotBytes = 1 })
			return err
		},
	} {
		g := newRig(t, func(c *Config) { c.HotBytes = 1 }) // nothing is in memory, as after a restart
		a := g.want(helloPath+"v1.0.0.zip", 200, "")
		man, _ := g.index.Manifest(t.Context(), helloV)
		if err := harm(g, man.Zip); err != nil {
			t.Fatal(err)
		}
		g.want("/cached-only"+helloPath+"v1.0.0.zip", 503, "") // it exists, so this is no 404
		g.up.Down(true)
		g.want(helloPath+"v1.0.0.zip", 503, "")
		g.up.Down(false)
		g.up.Tamper(helloV, artifact.Zip, mirrortest.Repack) // another SHA-256, the same h1
		g.want(helloPath+"v1.0.0.zip", 503, "")              // somebody may still have the right ones
		g.up.Heal()
		g.up.Status(helloPath, 404, "gone")
		g.want(helloPath+"v1.0.0.zip", 503, "") // what is published exists, whatever the upstream says of it now
		g.up.Heal()
		if b := g.want(helloPath+"v1.0.0.zip", 200, ""); b.body != a.body {
			t.Errorf("%s: other bytes came back", name)
		}
		g.want("/cached-only"+helloPath+"v1.0.0.zip", 200, "")
	}
}

// What is published with its bytes makes no file on its way in; a zip makes one.
func TestSmallArtifactsMakeNoFile(t *testing.T) {
	for k, want := range map[artifact.Kind]int{artifact.Info: 0, artifact.Mod: 0, artifact.Zip: 1} {
		g := newRig(t)
		checked := 0
		g.step = func(s string) {
			if s != "check" {
				return
			}
			checked++
			if names, err := os.ReadDir(g.dir + "/tmp"); err != nil || len(names) != want {
				t.Errorf("%v: tmp has %v, %v, want %d files", k, names, err, want)
			}
		}
		g.want(helloPath+"v1.0.0."+k.String(), 200, "")
		if checked != 1 {
			t.Errorf("%v: checked %d times", k, checked)
		}
	}
}

// FAULTS 31: wherever the process dies, the artifact is complete or absent after the restart, and a retry works.
func TestKilled(t *testing.T) {
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		for _, step := range []string{"record", "download", "check", "store", "publish"} {
			t.Run(k.String()+" after "+step, func(t *testing.T) {
				g := newRig(t)
				path := helloPath + "v1.0.0." + k.String()
				dead, buried := make(chan struct{}), make(chan struct{})
				g.step = func(s string) {
					if s == step {
						close(dead)
						<-buried // the process stands still for ever, as far as the next one can tell
						panic("killed")
					}
				}
				victim := g.srv
				var wg sync.WaitGroup
				wg.Go(func() {
					if resp, err := http.Get(victim.URL + path); err == nil {
						resp.Body.Close()
					}
				})
				<-dead
				var held []artifact.Ref
				for ref := range g.store.All() {
					held = append(held, ref)
				}
				if man, err := g.index.Manifest(t.Context(), helloV); (err == nil && !man.Ref(k).IsZero()) != (step == "publish") {
					t.Errorf("manifest = %+v, %v", man, err)
				}
				if want := step == "store" || step == "publish"; k == artifact.Zip && (len(held) == 1) != want {
					t.Errorf("the store has %v", held)
				}

				g.start() // the store is opened again, which sweeps
				t.Cleanup(func() { close(buried); wg.Wait() })
				if names, err := os.ReadDir(g.dir + "/tmp"); err != nil || len(names) > 0 {
					t.Errorf("tmp has %v, %v", names, err)
				}
				status := 404
				if step == "publish" {
					status = 200
				}
				g.want("/cached-only"+path, status, "")
				g.want(path, 200, "")
				man, err := g.index.Manifest(t.Context(), helloV)
				if err != nil || man.Ref(k).IsZero() {
					t.Fatalf("manifest = %+v, %v", man, err)
				}
				if k == artifact.Zip {
					if err := g.store.Verify(t.Context(), man.Zip); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// FAULTS 30, PROTOCOL 39: many want the same cold zip, the first leaves; there is one fetch and all others get it.
func TestOneFetch(t *testing.T) {
	g := newRig(t)
	path := helloPath + "v1.0.0.zip"
	g.up.Stall(helloV, artifact.Zip, 10)
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		r, _ := http.NewRequestWithContext(ctx, "GET", g.srv.URL+path, nil)
		if resp, err := http.DefaultClient.Do(r); err == nil {
			resp.Body.Close()
			t.Error("the first client got an answer")
		}
	})
	if err := g.up.Await(t.Context(), path, 1); err != nil {
		t.Fatal(err)
	}
	want := string(g.up.Artifact(helloV, artifact.Zip))
	for range 49 {
		wg.Go(func() {
			if a := g.get(path); a.status != 200 || a.body != want {
				t.Errorf("%d, %d bytes", a.status, len(a.body))
			}
		})
	}
	eventually(t, func() bool { return g.gauge("requests_in_flight") == 50 })
	leave()
	eventually(t, func() bool { return g.metric("requests_total", "gone") == 1 })
	g.up.Release()
	wg.Wait()
	if n := g.up.Count(path); n != 1 {
		t.Errorf("%d fetches", n)
	}
	if n := g.metric("requests_total", "zip", "joined", "200"); n != 49 {
		t.Errorf("%v joined", n)
	}
}

func (g *rig) gauge(name string) (v float64) {
	families, _ := g.reg.Gather()
	for _, f := range families {
		if f.GetName() == "modmirror_mirror_"+name {
			v += f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return v
}

// FAULTS 16, PROTOCOL 39: a client's wait is bounded; what it waited for goes on, within a bound of its own.
func TestSlowUpstream(t *testing.T) {
	g := newRig(t, func(c *Config) { c.ClientWait = 50 * time.Millisecond })
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		path := helloPath + "v1.0.0." + k.String()
		g.up.Stall(helloV, k, 3)
		g.want(path, 504, "ask again")
		g.want(path, 504, "ask again") // joins
		if n := g.up.Count(path); n != 1 {
			t.Errorf("%s: %d fetches", k, n)
		}
		g.up.Heal()
		eventually(t, func() bool { return g.get(path).status == 200 })
		if n := g.up.Count(path); n != 1 {
			t.Errorf("%s: %d fetches", k, n)
		}
	}
	g = newRig(t, func(c *Config) { c.FetchBudget, c.ZipBudget = 50*time.Millisecond, 50*time.Millisecond })
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		g.up.Stall(helloV, k, 3)
		g.want(helloPath+"v1.0.0."+k.String(), 504, ": the upstream did not answer within 50ms\n")
	}
	g.nothingStored()
}

// What was published between a look and a fetch is not fetched again.
func TestPublishedMeanwhile(t *testing.T) {
	g := newRig(t)
	g.index.asked = func(string) {
		g.index.asked = nil
		g.index.commit(t, helloV.Path, helloV.Version)
	}
	g.want(helloPath+"v1.0.0.mod", 200, "module")
	if n := len(g.up.Requests()); n > 0 {
		t.Errorf("%d requests went upstream", n)
	}
}

// What somebody else publishes is served at once, although it was said not to exist.
func TestPublishedAfterMiss(t *testing.T) {
	g := newRig(t)
	m := module.Version{Path: helloV.Path, Version: "v1.5.0"}
	g.want(helloPath+"v1.5.0.mod", 404, "")
	g.index.commit(t, m.Path, m.Version)
	g.want(helloPath+"v1.5.0.mod", 200, "")
}

// Bytes of the catalog that are not those of the manifest are not served, and it is no 404.
func TestDamagedInline(t *testing.T) {
	g := newRig(t)
	g.index.commit(t, helloV.Path, helloV.Version)
	for d := range g.index.inline {
		g.index.inline[d] = []byte("module example.com/evil\n")
	}
	g.up.Down(true)
	g.want(helloPath+"v1.0.0.mod", 503, "")
	clear(g.index.inline)
	g.want(helloPath+"v1.0.0.mod", 503, "")
}

// No more than MaxChecks zips are checked at a time; one that waits for that waits no longer than its budget.
func TestChecksAreBounded(t *testing.T) {
	g := newRig(t, func(c *Config) { c.MaxChecks, c.ZipBudget = 1, 100*time.Millisecond })
	g.checks <- struct{}{}
	g.want(helloPath+"v1.0.0.zip", 504, "")
	g.nothingStored()
	g.start(func(c *Config) { c.MaxChecks = 1 })
	other := g.add("example.com/other@v1.0.0\n-- go.mod --\nmodule example.com/other\n")
	g.want(helloPath+"v1.0.0.zip", 200, "")
	g.want("/"+other.Path+"/@v/v1.0.0.zip", 200, "")
	g.nothingPending()
}

// forgetful is an Index that does not know what it has just taken.
type forgetful struct{ *memIndex }

func (x forgetful) Publish(_ context.Context, p artifact.Publication) (artifact.Manifest, error) {
	return artifact.Manifest{Module: p.Manifest.Module, Record: p.Manifest.Record}, nil
}

// What was fetched and cannot be found then is an outage, not a missing version.
func TestFetchedIsNeverAbsent(t *testing.T) {
	g := newRig(t, func(c *Config) { c.Index = forgetful{newMemIndex()} })
	for _, k := range []string{"info", "mod", "zip"} {
		g.want(helloPath+"v1.0.0."+k, 503, "not held")
	}
}
