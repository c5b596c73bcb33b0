package mirrortest

import (
	"archive/zip"
	"bytes"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"
)

// Zip returns the module zip that the go command would make of these files. Equal files give equal bytes.
// It panics on files that no module may have; see [RawZip] for those.
func Zip(m module.Version, files map[string]string) []byte {
	b, err := makeZip(m, files)
	if err != nil {
		panic(err)
	}
	return b
}

func makeZip(m module.Version, files map[string]string) ([]byte, error) {
	var list []modzip.File
	for _, name := range slices.Sorted(maps.Keys(files)) {
		list = append(list, memFile{name, files[name]})
	}
	var b bytes.Buffer
	err := modzip.Create(&b, m, list)
	return b.Bytes(), err
}

// ZipSum returns the go.sum hash of a zip: of its file names and contents, not of its bytes.
// If the zip cannot be read that is the hash of no files, which is well-formed and fits to nothing.
func ZipSum(b []byte) string {
	if h, err := hashZip(b); err == nil {
		return h
	}
	h, err := dirhash.Hash1(nil, nil)
	if err != nil {
		panic(err) // nothing here can fail
	}
	return h
}

// hashZip is dirhash.HashZip for bytes in memory, with that one's treatment of duplicate names: the last one counts twice.
func hashZip(b []byte) (string, error) {
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return "", err
	}
	var names []string
	files := make(map[string]*zip.File)
	for _, f := range z.File {
		names = append(names, f.Name)
		files[f.Name] = f
	}
	return dirhash.Hash1(names, func(name string) (io.ReadCloser, error) { return files[name].Open() })
}

// memFile is a file for modzip.Create.
type memFile struct{ name, data string }

func (f memFile) Path() string                 { return f.name }
func (f memFile) Lstat() (fs.FileInfo, error)  { return memInfo{f}, nil }
func (f memFile) Open() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(f.data)), nil }

type memInfo struct{ f memFile }

func (i memInfo) Name() string     { return i.f.name[strings.LastIndexByte(i.f.name, '/')+1:] }
func (i memInfo) Size() int64      { return int64(len(i.f.data)) }
func (memInfo) Mode() fs.FileMode  { return 0o444 }
func (memInfo) ModTime() time.Time { return time.Time{} }
func (memInfo) IsDir() bool        { return false }
func (memInfo) Sys() any           { return nil }
