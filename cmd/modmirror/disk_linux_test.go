package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"modmirror/mirror/artifact"
)

// smallDisk is a file system of its own for one test.
type smallDisk struct {
	t          *testing.T
	image, dir string
}

// newSmallDisk makes and mounts one with room for so many MiB. Where that cannot be done the test is skipped.
func newSmallDisk(t *testing.T, mib int64) *smallDisk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("this test mounts a small file system: run it as root")
	}
	dir := t.TempDir()
	d := &smallDisk{t: t, image: filepath.Join(dir, "image"), dir: filepath.Join(dir, "mnt")}
	if err := errors.Join(os.Mkdir(d.dir, 0o755), os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, mib<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", d.image).CombinedOutput(); err != nil {
		t.Skipf("this test needs a file system of its own, and mkfs.ext4 (Debian's package e2fsprogs) does not make one: %v %s", err, out)
	}
	if out, err := d.mount("-o", "loop"); err != nil {
		t.Skipf("this test needs a file system of its own, and must be allowed to mount one from a loop device: %v %s", err, out)
	}
	t.Cleanup(func() { _ = syscall.Unmount(d.dir, syscall.MNT_DETACH) }) // the test may have done it
	return d
}

func (d *smallDisk) mount(options ...string) (string, error) {
	out, err := exec.Command("mount", append(options, d.image, d.dir)...).CombinedOutput()
	return string(out), err
}

// fill leaves so many bytes free, and no more.
func (d *smallDisk) fill(free int64) {
	d.t.Helper()
	f, err := os.Create(filepath.Join(d.dir, "filler"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	var size int64
	for step := int64(16 << 20); step >= 1<<10; {
		err := syscall.Fallocate(int(f.Fd()), 0, size, step)
		switch {
		case errors.Is(err, syscall.ENOSPC):
			step /= 2
		case err != nil:
			d.t.Fatal(err)
		default:
			size += step
		}
	}
	if err := f.Truncate(max(size-free, 0)); err != nil {
		d.t.Fatal(err)
	}
}

// drain removes what fill has written.
func (d *smallDisk) drain() {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.dir, "filler")); err != nil {
		d.t.Fatal(err)
	}
}

// FAULTS 33: a node whose disk is full says so, serves what it holds, and takes new artifacts as soon as there is room,
// without a restart.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := newSmallDisk(t, 192)
	s := newSite(t)
	s.load()
	s.data = filepath.Join(disk.dir, "data")
	p := s.start("--not-found-ttl", "1ms", "--list-ttl", "1ms")
	const quote, hello, upper = "/example.com/quote/@v/v1.2.0.", "/example.com/hello/@v/v1.0.0.", "/example.com/!upper/!case/@v/v1.0.0."
	zip := s.says(p, quote+"zip", 200, "PK")
	mod := s.says(p, quote+"mod", 200, "module example.com/quote")
	s.says(p, "/readyz?writes", 200, "")

	disk.fill(0)
	s.becomes(p, "/readyz?writes", 503)
	s.says(p, "/readyz?writes", 503, "free on the disk")
	s.says(p, "/readyz", 200, "")
	for range 2 {
		for _, path := range []string{hello + "zip", hello + "mod", upper + "info"} {
			s.says(p, path, 503, "no space")
		}
		if got := s.says(p, quote+"zip", 200, ""); got != zip {
			t.Errorf("a stored zip has %d other bytes on a full disk", len(got))
		}
		if got := s.says(p, quote+"mod", 200, ""); got != mod {
			t.Errorf("a stored go.mod is %q on a full disk", got)
		}
		s.says(p, "/example.com/quote/@v/list", 200, "v1.2.0\n")
		s.says(p, "/sumdb/"+databaseName+"/lookup/example.com/quote@v1.2.0", 200, "example.com/quote v1.2.0 h1:")
	}

	disk.drain()

	// Nearly full, so that it is not the first write that finds no room.
	for i, path := range []string{"/example.com/old/@v/v1.0.0.", "/example.com/old/@v/v1.1.0.", "/example.com/old/@v/v1.2.0.", "/example.com/legacy/@v/v1.0.0."} {
		disk.fill(8 << (10 + i))
		for _, kind := range []string{"mod", "zip"} {
			if code, body := s.get(p, path+kind); code != 200 && (code != 503 || !strings.Contains(body, "no space")) {
				t.Errorf("GET %s: %d %s with %d KiB free", path+kind, code, body, 8<<i)
			}
		}
		disk.drain()
		s.becomes(p, path+"zip", 200)
	}

	s.says(p, "/readyz?writes", 200, "")
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		s.says(p, hello+k.String(), 200, "")
		s.says(p, upper+k.String(), 200, "")
	}
	s.end(p)
	s.wantClean()
	if log := p.output(); strings.Contains(log, "panic") || strings.Contains(log, "goroutine ") {
		t.Errorf("log:\n%s", log)
	}
}

// FAULTS 33 and 34, for a disk that becomes read-only, as ext4 does after an error: what is stored is served, nothing new is
// taken, also not later, and a start says in one line what is wrong. What was answered before is there when the disk is
// back: everything that was not yet on it is lost with the file system's memory, as in a power cut.
func TestReadOnlyDisk(t *testing.T) {
	t.Parallel()
	disk := newSmallDisk(t, 192)
	s := newSite(t)
	s.load()
	s.data = filepath.Join(disk.dir, "data")
	p := s.start("--not-found-ttl", "1ms", "--list-ttl", "1ms")
	const hello = "/example.com/hello/@v/v1.0.0."
	stored := make(map[string]string)
	for _, path := range []string{
		"/example.com/quote/@v/v1.2.0.info", "/example.com/quote/@v/v1.2.0.mod", "/example.com/quote/@v/v1.2.0.zip",
		"/example.com/old/@v/v1.2.0.zip", "/example.com/untagged/@v/v0.0.0-20240102030405-abcdef012345.zip",
	} {
		stored[path] = s.says(p, path, 200, "")
	}
	wantStored := func() {
		t.Helper()
		for path, want := range stored {
			if got := s.says(p, path, 200, ""); got != want {
				t.Errorf("GET %s: %d bytes, want the %d that were stored", path, len(got), len(want))
			}
		}
		s.says(p, "/sumdb/"+databaseName+"/lookup/example.com/quote@v1.2.0", 200, "example.com/quote v1.2.0 h1:")
	}

	if out, err := exec.Command("mount", "-o", "remount,abort", disk.dir).CombinedOutput(); err != nil {
		t.Skipf("ext4 does not let itself be aborted here: %v %s", err, out)
	}
	for _, path := range []string{hello + "mod", hello + "zip"} {
		s.says(p, path, 503, "")
	}
	s.says(p, "/readyz?writes", 503, "")
	s.says(p, "/readyz", 200, "")
	wantStored()
	p.kill()

	if text := s.refuses(); !strings.HasPrefix(text, "modmirror: --data-dir "+s.data) || !strings.Contains(text, "read-only file system") {
		t.Errorf("a start on a read-only disk says %q", text)
	}

	// The operator has the disk back.
	if err := syscall.Unmount(disk.dir, 0); err != nil {
		t.Fatal(err)
	}
	if out, err := disk.mount("-o", "loop"); err != nil {
		t.Fatalf("mount again: %v %s", err, out)
	}
	p = s.start()
	wantStored()
	s.says(p, hello+"zip", 200, "")
	s.says(p, "/readyz?writes", 200, "")
	s.end(p)
	s.wantClean()
}
