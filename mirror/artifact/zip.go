package artifact

import (
	"archive/zip"
	"bufio"
	"cmp"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"
)

// What a module zip may have, besides the limits of golang.org/x/mod/zip (500 MiB packed, 500 MiB unpacked, 16 MiB for
// go.mod and LICENSE). The largest toolchains have 12,000 entries and a directory of 2 MB. The limits bound the memory
// and the time that a zip can cost before its first byte is inflated.
const (
	MaxZipEntries   = 200_000
	maxZipDirectory = 32 << 20 // bytes of the central directory
	maxZipName      = 4096     // bytes of an entry's name: PATH_MAX of the systems that unpack it
	maxZipNames     = 1 << 28  // sum over all entries of length times depth of the name: what x/mod's collision check costs
)

// ZipFile is a zip to check: an [os.File] or a [Draft]. Its bytes are read through ReadAt, by several goroutines, and
// also from the file Name, because that is how golang.org/x/mod/zip wants to have it.
type ZipFile interface {
	io.ReaderAt
	Name() string
}

// ZipSums is what CheckZip found in a module zip.
type ZipSums struct {
	H1    string // the go.sum hash, "h1:…", equal to dirhash.HashZip
	GoMod []byte // the go.mod file at the module's root; nil if there is none
	Files int    // number of entries
	Raw   int64  // bytes of all entries, unpacked
}

// CheckZip checks that f, of size bytes, is a module zip of m, and returns its sums. It is one gate in four steps, from
// cheap to dear, so that a hostile zip costs little:
//
//  1. the shape of the file: number of entries, length and depth of names, the size of the whole, and that every byte
//     belongs to an entry or to the directory: no script in front, nothing behind, no comment, no gaps, no overlaps
//  2. the rules of golang.org/x/mod/zip.CheckZip, which the go command applies when it unpacks: prefix, clean and
//     portable names, no duplicates or case collisions, no nested go.mod, limits on the sizes that are declared
//  3. local headers, extra fields and data descriptors that agree with the directory, no links or devices, no file that only looks like a go.mod ("go.mod ")
//  4. the h1 of all entries, each inflated no further than it declares, with its CRC, from all of its compressed bytes
//
// The rules of step 2 and the headers of step 3 are looked at side by side; if both say no, it is the rules that are quoted.
//
// A zip that does not pass matches [ErrRefused], and the first offender is quoted in the error. If f cannot be read, the
// error matches [ErrUnavailable]; if ctx ends, it is that of ctx.
//
// Errors do not name m; the caller does.
//
// CheckZip uses all processors and, for each of them, about 140 KB; a go.mod is held as a whole. How many checks run at
// a time is the caller's business.
func CheckZip(ctx context.Context, f ZipFile, size int64, m module.Version) (ZipSums, error) {
	src := &source{r: f}
	sums, err := recovered(func() (ZipSums, error) { return checkZip(ctx, src, size, f.Name(), m) })
	switch fault := src.fault.Load(); {
	case err == nil:
		return sums, nil
	case ctx.Err() != nil:
		return ZipSums{}, fmt.Errorf("check the zip: %w", context.Cause(ctx))
	case fault != nil:
		return ZipSums{}, fmt.Errorf("check the zip: %v: %w", *fault, ErrUnavailable)
	case errors.Is(err, ErrUnavailable):
		return ZipSums{}, fmt.Errorf("check the zip: %w", err)
	}
	return ZipSums{}, fmt.Errorf("%s: %w", clip(err.Error(), 1000), ErrRefused)
}

func checkZip(ctx context.Context, r *source, size int64, path string, m module.Version) (ZipSums, error) {
	if size > MaxZip {
		return ZipSums{}, fmt.Errorf("%d bytes, more than the limit of %d", size, MaxZip)
	}
	dir, err := readDirectory(r, size)
	if err != nil {
		return ZipSums{}, err
	}
	if err := ctx.Err(); err != nil {
		return ZipSums{}, err
	}
	var rules struct { // what the other goroutine finds, for which this one waits below
		names []string
		err   error
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		rules.names, rules.err = recovered(func() ([]string, error) { return checkModuleZip(m, path) })
	})
	z, err := recovered(func() (*zip.Reader, error) { return openEntries(ctx, r, size, dir) })
	wg.Wait()
	if err := cmp.Or(rules.err, err); err != nil {
		return ZipSums{}, err
	}
	raw, err := checkEntries(z.File)
	if err != nil {
		return ZipSums{}, err
	}
	if !slices.Equal(rules.names, fileNames(z.File)) {
		return ZipSums{}, fmt.Errorf("the file %s has other entries: %w", path, ErrUnavailable)
	}
	h := hasher{files: z.File, goMod: m.Path + "@" + m.Version + "/go.mod", sums: make([][sha256.Size]byte, len(z.File))}
	if err := h.run(ctx); err != nil {
		return ZipSums{}, err
	}
	return ZipSums{H1: h.h1(), GoMod: h.mod, Files: len(z.File), Raw: raw}, nil
}

// openEntries opens the zip and holds its entries to what its directory says.
func openEntries(ctx context.Context, r *source, size int64, dir directory) (*zip.Reader, error) {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil, err
	}
	return z, dir.check(ctx, r, z.File)
}

// checkModuleZip applies x/mod's rules to the file of this name, and returns the names of its files. It quotes the first
// offender only: there may be 200,000.
func checkModuleZip(m module.Version, path string) (files []string, err error) {
	cf, err := modzip.CheckZip(m, path)
	var perr *fs.PathError
	switch {
	case err == nil:
		return cf.Valid, nil
	case errors.As(err, &perr): // must not be wrapped: a missing file would look like a missing version
		return nil, fmt.Errorf("%v: %w", err, ErrUnavailable)
	case cf.SizeError != nil:
		return nil, cf.SizeError
	case len(cf.Invalid) > 0:
		return nil, fmt.Errorf("entry %s: %s", quote(cf.Invalid[0].Path), clip(cf.Invalid[0].Err.Error(), 500))
	}
	return nil, err
}

// fileNames returns the names of the entries that are no directories.
func fileNames(files []*zip.File) []string {
	names := make([]string, 0, len(files))
	for _, f := range files {
		if !strings.HasSuffix(f.Name, "/") {
			names = append(names, f.Name)
		}
	}
	return names
}

// checkEntries holds the directory to what h1 and x/mod's rules leave open.
func checkEntries(files []*zip.File) (raw int64, err error) {
	names := make(map[string]bool, len(files))
	for _, f := range files {
		// An h1 line ends at a newline, and dirhash hashes the last of two equal names twice.
		if strings.Contains(f.Name, "\n") {
			return 0, fmt.Errorf("entry %s: newline in the name", quote(f.Name))
		}
		if names[f.Name] {
			return 0, fmt.Errorf("entry %s: there are two of this name", quote(f.Name))
		}
		names[f.Name] = true
		if t := f.Mode().Type(); t != 0 && t != fs.ModeDir {
			return 0, fmt.Errorf("entry %s: not a regular file", quote(f.Name)) // another unzip may follow a link
		}
		for elem := range strings.SplitSeq(f.Name, "/") {
			if s := strings.TrimSpace(elem); s != elem && strings.EqualFold(s, "go.mod") {
				return 0, fmt.Errorf("entry %s: looks like a go.mod and is none", quote(f.Name))
			}
		}
		if f.UncompressedSize64 > uint64(modzip.MaxZipFile-raw) {
			return 0, fmt.Errorf("entries of more than the limit of %d bytes, unpacked", modzip.MaxZipFile)
		}
		raw += int64(f.UncompressedSize64)
	}
	return raw, nil
}

// hasher computes the h1 of a zip's entries, in parallel: inflating takes most of the time.
type hasher struct {
	files []*zip.File
	goMod string // name of the entry to keep
	mod   []byte // written by the worker that has this entry
	sums  [][sha256.Size]byte

	next  atomic.Int64
	mu    sync.Mutex
	first error // guarded by mu
}

func (h *hasher) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Largest first, or the last worker is alone with the largest for half of the time.
	order := make([]int, len(h.files))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(h.files[b].UncompressedSize64, h.files[a].UncompressedSize64)
	})
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(order)) {
		wg.Go(func() {
			if _, err := recovered(func() (any, error) { return nil, h.work(ctx, order) }); err != nil {
				h.mu.Lock()
				defer h.mu.Unlock()
				if h.first == nil {
					h.first = err
				}
				cancel()
			}
		})
	}
	wg.Wait()
	return h.first
}

func (h *hasher) work(ctx context.Context, order []int) error {
	in := inflaters.Get().(*inflater)
	defer inflaters.Put(in)
	state := sha256.New()
	for {
		n := int(h.next.Add(1)) - 1
		if n >= len(order) {
			return nil
		}
		f := h.files[order[n]]
		state.Reset()
		var keep []byte
		err := in.inflate(ctx, f, func(p []byte) {
			state.Write(p)
			if f.Name == h.goMod {
				keep = append(keep, p...)
			}
		})
		if err != nil {
			return fmt.Errorf("entry %s: %w", quote(f.Name), err)
		}
		if f.Name == h.goMod {
			h.mod = append([]byte{}, keep...) // not nil if it is empty
		}
		state.Sum(h.sums[order[n]][:0])
	}
}

// inflater reads the contents of one entry after the other. The one of archive/zip does not tell where the compressed
// data end, and who reads the file from the front goes on there.
type inflater struct {
	packed *bufio.Reader // flate takes no byte too many from one
	flate  io.ReadCloser
	buf    [64 << 10]byte
}

var inflaters = sync.Pool{New: func() any {
	packed := bufio.NewReaderSize(nil, 32<<10)
	return &inflater{packed: packed, flate: flate.NewReader(packed)}
}}

// inflate passes the contents of f on, and checks that they and their checksum are what f declares, and that nothing is
// left of the compressed data. It fails as soon as there is more than f declares.
func (in *inflater) inflate(ctx context.Context, f *zip.File, to func([]byte)) error {
	raw, err := f.OpenRaw()
	if err != nil {
		return err
	}
	in.packed.Reset(raw)
	defer in.packed.Reset(nil) // f may be large, and the pool lives on
	contents := io.Reader(in.packed)
	if f.Method == zip.Deflate && f.CompressedSize64 > 0 {
		if err := in.flate.(flate.Resetter).Reset(in.packed, nil); err != nil {
			return err
		}
		contents = in.flate
	}
	crc, n, err := in.copy(ctx, contents, f.UncompressedSize64, to)
	switch {
	case err != nil:
		return err
	case n != f.UncompressedSize64:
		return fmt.Errorf("not the %d bytes that it declares", f.UncompressedSize64)
	case crc != f.CRC32:
		return zip.ErrChecksum
	}
	switch _, err := in.packed.ReadByte(); err {
	case io.EOF:
		return nil
	case nil:
		return errors.New("bytes behind the end of its compressed data")
	default:
		return err
	}
}

// copy passes what r has on until its end, or until there are more than most bytes, and returns the checksum.
func (in *inflater) copy(ctx context.Context, r io.Reader, most uint64, to func([]byte)) (crc uint32, n uint64, err error) {
	for n <= most {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		k, err := r.Read(in.buf[:])
		to(in.buf[:k])
		crc = crc32.Update(crc, crc32.IEEETable, in.buf[:k])
		n += uint64(k)
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, 0, err
		}
	}
	return crc, n, nil
}

// h1 returns the hash over the lines "<sum>  <name>\n" in the order of names (golang.org/x/mod/sumdb/dirhash.Hash1).
func (h *hasher) h1() string {
	order := make([]int, len(h.files))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return strings.Compare(h.files[a].Name, h.files[b].Name) })
	all := sha256.New()
	for _, i := range order {
		fmt.Fprintf(all, "%x  %s\n", h.sums[i], h.files[i].Name)
	}
	return "h1:" + base64.StdEncoding.EncodeToString(all.Sum(nil))
}

// source remembers when the bytes could not be read, which is no fault of theirs.
type source struct {
	r     io.ReaderAt
	fault atomic.Pointer[error]
}

func (s *source) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.r.ReadAt(p, off)
	if err != nil && err != io.EOF {
		s.fault.CompareAndSwap(nil, &err)
	}
	return n, err
}

// recovered calls f and turns a panic into an error: archive/zip has had some that a file could cause.
func recovered[T any](f func() (T, error)) (out T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("archive/zip panics: %v", p)
		}
	}()
	return f()
}

// quote returns an untrusted name for a message: quoted, and short.
func quote(s string) string {
	if len(s) > 200 {
		return fmt.Sprintf("%+q…", s[:200])
	}
	return fmt.Sprintf("%+q", s)
}

// clip returns an untrusted text for a message, on one line and of at most n bytes.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
