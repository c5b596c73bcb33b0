package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"modmirror/mirror/artifact"
)

// room is how much of a file system this process can still take.
type room struct {
	Free, Total      uint64 // bytes
	FreeFiles, Files uint64 // blobs are files; Files is 0 where there can be any number of them
}

// What is left of a disk for the log and the catalog. A node with less room than that is full: it fetches nothing new and keeps
// no copies for others, so that it goes on to learn what the others commit, and can be asked for what it holds.
const (
	mostReserve  = 100 << 20
	reservePart  = 50    // of a disk that is too small for mostReserve
	reserveFiles = 1_000 // likewise
)

// reserve returns how many bytes and files that is of this disk.
func (r room) reserve() (bytes, files uint64) {
	return min(mostReserve, r.Total/reservePart), min(reserveFiles, r.Files/reservePart)
}

// below reports whether there is less room than so many bytes and files.
func (r room) below(bytes, files uint64) bool {
	return r.Free < bytes || r.Files > 0 && r.FreeFiles < files
}

// threshold is a part of a disk, or a number of bytes: the value of --low-disk.
type threshold struct {
	percent float64
	bytes   byteRate
}

// defaultThreshold is the value of --low-disk.
var defaultThreshold = threshold{percent: 5}

func (t *threshold) Set(s string) error {
	if digits, ok := strings.CutSuffix(s, "%"); ok {
		p, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		if err != nil || !(p >= 0 && p <= 100) {
			return fmt.Errorf("want 0%% to 100%%")
		}
		*t = threshold{percent: p}
		return nil
	}
	var b byteRate
	if err := b.Set(s); err != nil {
		return fmt.Errorf("want a part of the disk, such as 5%%, or a number of bytes, such as 20GB")
	}
	*t = threshold{bytes: b}
	return nil
}

func (t *threshold) Type() string { return "size" }

func (t *threshold) String() string {
	if t.percent > 0 {
		return strconv.FormatFloat(t.percent, 'g', -1, 64) + "%"
	}
	return t.bytes.String()
}

// of returns how many bytes and files that is of a disk. Of files it is always a part.
func (t threshold) of(r room) (bytes, files uint64) {
	files = uint64(float64(r.Files) * t.percent / 100)
	if t.percent > 0 {
		return uint64(float64(r.Total) * t.percent / 100), files
	}
	if r.Total > 0 {
		files = uint64(float64(r.Files) * (float64(t.bytes) / float64(r.Total)))
	}
	return uint64(t.bytes), files
}

// disk watches the room on the disk of the data directory.
type disk struct {
	dir  string
	low  threshold
	log  *slog.Logger
	look func(dir string) (room, bool) // lookAtDisk, but for tests
	met  func() time.Time              // when a write last found no room, as with a quota, which shows nowhere else; nil: nobody knows

	mu      sync.Mutex
	room    room          // guarded by mu, as the rest
	known   bool          // room was found out
	at      time.Time     // when
	looking chan struct{} // closed when the look that is under way is over; nil: none is
	isLow   bool
	isFull  bool
}

const (
	diskEvery  = 2 * time.Second        // between two looks, if nobody asks
	diskFresh  = 100 * time.Millisecond // how old an answer may be
	diskWait   = time.Second            // for a look: a disk that hangs may not even say how large it is
	diskForget = 10 * time.Second       // for how long it counts that a write has found no room
	easing     = 4                      // a state ends with a quarter more room than it begins with, not at the same byte
)

func newDisk(dir string, low threshold, log *slog.Logger) *disk {
	return &disk{dir: dir, low: low, log: log, look: lookAtDisk}
}

// run looks again and again until ctx ends.
func (d *disk) run(ctx context.Context) {
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	for {
		d.now()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// now returns how much room there is, as of a moment ago; of longer ago if the disk does not answer. known is false if that
// cannot be told on this system.
func (d *disk) now() (r room, known bool) {
	d.mu.Lock()
	if d.known && time.Since(d.at) < diskFresh {
		defer d.mu.Unlock()
		return d.room, true
	}
	done := d.looking
	if done == nil {
		done = make(chan struct{})
		d.looking = done
		go func() {
			r, ok := d.look(d.dir)
			d.found(r, ok)
			close(done)
		}()
	}
	d.mu.Unlock()
	timer := time.NewTimer(diskWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.room, d.known
}

// found takes the outcome of a look, and logs what has changed.
func (d *disk) found(r room, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looking = nil
	if !ok {
		return
	}
	d.room, d.known, d.at = r, true, time.Now()
	eased := func(bytes, files uint64, is bool) bool {
		if is {
			bytes, files = bytes+bytes/easing, files+files/easing
		}
		return r.below(bytes, files)
	}
	bytes, files := r.reserve()
	full := eased(bytes, files, d.isFull)
	bytes, files = d.low.of(r)
	low := full || eased(bytes, files, d.isLow)
	attrs := []any{"dir", d.dir, "free", size(int64(r.Free)), "of", size(int64(r.Total)), "files", r.FreeFiles}
	switch {
	case full && !d.isFull:
		d.log.Error("the disk is full: nothing new is taken until there is room; what is stored is served", attrs...)
	case !full && d.isFull:
		d.log.Info("there is room on the disk again", attrs...)
	case low && !d.isLow:
		d.log.Warn("the disk runs low: make room, or new artifacts will not be taken", append(attrs, "threshold", d.low.String())...)
	case !low && d.isLow:
		d.log.Info("the disk is not low any more", attrs...)
	}
	d.isLow, d.isFull = low, full
}

// state says what is the matter with the disk: "full", "low", or "".
func (d *disk) state() string {
	d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.isFull || d.refused():
		return "full"
	case d.isLow:
		return "low"
	}
	return ""
}

// refused reports whether a write has found no room just now. d.mu is held.
func (d *disk) refused() bool {
	return d.met != nil && time.Since(d.met()) < diskForget
}

// status is what the node says of it.
func (d *disk) status() diskStatus {
	r, _ := d.now()
	return diskStatus{Directory: d.dir, Free: r.Free, Total: r.Total, FreeFiles: r.FreeFiles, Files: r.Files, State: d.state()}
}

// err says why there is no room for need bytes more; with 0, whether there is any. The error matches artifact.ErrNoSpace.
func (d *disk) err(need int64) error {
	r, known := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refused() {
		return fmt.Errorf("%w: a write has just found none, and there are %s free on the disk of %s", artifact.ErrNoSpace, size(int64(r.Free)), d.dir)
	}
	reserve, files := r.reserve()
	have := fmt.Sprintf("have %s and %d files free on the disk of %s", size(int64(r.Free)), r.FreeFiles, d.dir)
	switch {
	case !known:
		return nil
	case need > 0 && r.Free < uint64(need)+reserve:
		return fmt.Errorf("%w: need %s, and %s for the log and the catalog, %s", artifact.ErrNoSpace, size(need), size(int64(reserve)), have)
	case d.isFull && r.Free < reserve+reserve/easing:
		return fmt.Errorf("%w: need more than %s for the log and the catalog, %s", artifact.ErrNoSpace, size(int64(reserve)), have)
	case d.isFull:
		return fmt.Errorf("%w: need more than %d files, %s", artifact.ErrNoSpace, files, have)
	}
	return nil
}

var (
	descDiskFree  = prometheus.NewDesc("modmirror_disk_free_bytes", "Bytes free for this process on the disk of the data directory.", nil, nil)
	descDiskTotal = prometheus.NewDesc("modmirror_disk_total_bytes", "Size of that disk.", nil, nil)
	descDiskFiles = prometheus.NewDesc("modmirror_disk_free_files", "Files (inodes) that can still be made on it; not there if their number is not limited.", nil, nil)
	descDiskLow   = prometheus.NewDesc("modmirror_disk_low", "1 if there is less room than --low-disk says.", nil, nil)
	descDiskFull  = prometheus.NewDesc("modmirror_disk_full", "1 as long as this node takes no new artifacts for want of room on its disk.", nil, nil)
)

// Describe implements prometheus.Collector.
func (d *disk) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{descDiskFree, descDiskTotal, descDiskFiles, descDiskLow, descDiskFull} {
		to <- desc
	}
}

// Collect implements prometheus.Collector.
func (d *disk) Collect(to chan<- prometheus.Metric) {
	r, known := d.now()
	state := d.state()
	if !known {
		return
	}
	gauge := func(desc *prometheus.Desc, v float64) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v)
	}
	is := map[bool]float64{true: 1}
	gauge(descDiskFree, float64(r.Free))
	gauge(descDiskTotal, float64(r.Total))
	if r.Files > 0 {
		gauge(descDiskFiles, float64(r.FreeFiles))
	}
	gauge(descDiskLow, is[state != ""])
	gauge(descDiskFull, is[state == "full"])
}

// keeps says why this node takes no new blobs, whoever brings them; nil: it does.
func (n *node) keeps() error {
	if err := n.fault(); err != nil {
		return err
	}
	return cmp.Or(n.store.Err(), n.disk.err(0))
}

// giveWay hands the leadership to a voter that takes new artifacts, as long as this node takes none and there is such a one.
// Otherwise it stays: somebody has to lead, and refuse what cannot be kept.
func (n *node) giveWay(ctx context.Context) {
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		why := n.keeps()
		if why == nil || n.isLeader() != nil {
			continue
		}
		to, ok := n.roomier()
		if !ok {
			continue
		}
		n.log.Warn("this node leads and cannot take new artifacts: it hands the leadership over", "to", to.Name, "err", why)
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := n.replica.TransferLeadershipTo(ctx, to.ID)
		cancel()
		if err != nil {
			n.log.Warn("the leadership is not handed over", "to", to.Name, "err", err)
		}
	}
}
