package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"modmirror/mirror/artifact"
)

// fakeDisk is a disk whose room a test says.
func fakeDisk(low threshold, r *room) (*disk, *bytes.Buffer) {
	logs := new(bytes.Buffer)
	d := newDisk("/data", low, slog.New(slog.NewTextHandler(logs, nil)))
	d.look = func(string) (room, bool) { return *r, true }
	return d, logs
}

// FAULTS 33: a disk is said to be low before it is full, once, with what there is; a state ends only with clearly more room than
// it began with, so that a disk at the border fills no log.
func TestDiskStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const gb = 1e9
		sound := room{Free: 60 * gb, Total: 100 * gb, FreeFiles: 50_000, Files: 100_000}
		r := sound
		d, logs := fakeDisk(defaultThreshold, &r)
		for _, step := range []struct {
			name  string
			set   func()
			state string
			log   string // "": nothing
			err   string
		}{
			{"room", func() {}, "", "", ""},
			{"just low", func() { r.Free = 5*gb - 1 }, "low", "level=WARN msg=\"the disk runs low", ""},
			{"at the border", func() { r.Free = 5*gb + 1 }, "low", "", ""},
			{"lower", func() { r.Free = gb }, "low", "", ""},
			{"full", func() { r.Free = mostReserve - 1 }, "full", "level=ERROR msg=\"the disk is full", "no space: need more than 104.9 MB for the log and the catalog, have 104.9 MB and 50000 files free"},
			{"at that border", func() { r.Free = mostReserve + 1 }, "full", "", "no space"},
			{"not full", func() { r.Free = mostReserve * 3 / 2 }, "low", "level=INFO msg=\"there is room on the disk again", ""},
			{"not low", func() { r.Free = 7 * gb }, "", "level=INFO msg=\"the disk is not low", ""},
			{"few files", func() { r.FreeFiles = 4_999 }, "low", "level=WARN msg=\"the disk runs low", ""},
			{"no files", func() { r.FreeFiles = 0 }, "full", "level=ERROR msg=\"the disk is full", "need more than 1000 files, have 7.0 GB and 0 files free"},
			{"files again", func() { r = sound }, "", "level=INFO msg=\"there is room on the disk again", ""},
			{"any number of files", func() { r.Files, r.FreeFiles = 0, 0 }, "", "", ""},
			{"full at once", func() { r.Free = 0 }, "full", "level=ERROR msg=\"the disk is full", "have 0 B"},
		} {
			step.set()
			time.Sleep(diskEvery)
			logs.Reset()
			if got := d.state(); got != step.state {
				t.Errorf("%s: the state is %q, want %q", step.name, got, step.state)
			}
			if got := logs.String(); !strings.Contains(got, step.log) || strings.Count(got, "\n") > 1 || (step.log == "") != (got == "") {
				t.Errorf("%s: the log is %q, want %q", step.name, got, step.log)
			}
			err := d.err(0)
			if (err == nil) != (step.err == "") || err != nil && (!strings.Contains(err.Error(), step.err) || !errors.Is(err, artifact.ErrNoSpace)) {
				t.Errorf("%s: err(0) = %v, want %q", step.name, err, step.err)
			}
			time.Sleep(diskEvery) // and it is said once
			logs.Reset()
			if d.state(); logs.Len() > 0 {
				t.Errorf("%s: the log says again %q", step.name, logs)
			}
		}
	})
}

// What is known to be too large is refused before it is fetched, with what it needs and what there is.
func TestDiskNeed(t *testing.T) {
	r := room{Free: 300e6, Total: 1e9, FreeFiles: 9e6, Files: 1e7} // of which 20 MB are kept
	d, _ := fakeDisk(defaultThreshold, &r)
	if err := d.err(279e6); err != nil {
		t.Error(err)
	}
	err := d.err(281e6)
	if !errors.Is(err, artifact.ErrNoSpace) || !strings.Contains(err.Error(), "no space: need 281.0 MB, and 20.0 MB for the log and the catalog, have 300.0 MB") {
		t.Errorf("err(281 MB) = %v", err)
	}
}

// A quota shows in no size of a disk: a write that found no room counts for a while, and then it is tried again.
func TestDiskQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := room{Free: 60e9, Total: 100e9}
		d, _ := fakeDisk(defaultThreshold, &r)
		var last time.Time
		d.met = func() time.Time { return last }
		if err := d.err(0); err != nil {
			t.Error(err)
		}
		last = time.Now()
		if err := d.err(0); !errors.Is(err, artifact.ErrNoSpace) || d.state() != "full" {
			t.Errorf("after a write without room: %v, %q", err, d.state())
		}
		time.Sleep(diskForget)
		if err := d.err(0); err != nil || d.state() != "" {
			t.Errorf("later: %v, %q", err, d.state())
		}
	})
}

// A disk that does not even say how large it is keeps nobody waiting for more than a moment, and is asked by one at a time.
func TestDiskThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := room{Free: 60e9, Total: 100e9}
		d, _ := fakeDisk(defaultThreshold, &r)
		d.now()
		gate := make(chan bool)
		asked := 0
		d.look = func(string) (room, bool) { asked++; <-gate; return room{Free: 1e9, Total: 100e9}, true }
		for range 5 {
			time.Sleep(diskEvery)
			begin := time.Now()
			if got, known := d.now(); !known || got != r {
				t.Errorf("now = %+v, %v; want what was known before", got, known)
			}
			if took := time.Since(begin); took > diskWait {
				t.Errorf("it took %v", took)
			}
		}
		close(gate)
		synctest.Wait()
		if got, _ := d.now(); got.Free != 1e9 || asked != 1 {
			t.Errorf("now = %+v after the disk answered; it was asked %d times", got, asked)
		}
	})
}

func TestThreshold(t *testing.T) {
	r := room{Total: 1000, Files: 500}
	for _, tt := range []struct {
		in, out      string
		bytes, files uint64
	}{
		{"5%", "5%", 50, 25}, {"0.5%", "0.5%", 5, 2}, {"100", "100", 100, 50}, {"0", "0", 0, 0}, {"0%", "0", 0, 0}, {"1KB", "1000", 1000, 500},
	} {
		var got threshold
		err := got.Set(tt.in)
		bytes, files := got.of(r)
		if err != nil || got.String() != tt.out || bytes != tt.bytes || files != tt.files {
			t.Errorf("%q = %v, %d bytes and %d files, %v; want %q, %d and %d", tt.in, got.String(), bytes, files, err, tt.out, tt.bytes, tt.files)
		}
	}
	for _, bad := range []string{"", "%", "-1%", "101%", "NaN%", "5 percent", "-3", "5%%"} {
		if err := new(threshold).Set(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
