//go:build bench && linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// toolchain is the large module of the corpus, as the go command asks for it.
const toolchain = "golang.org/toolchain/@v/v0.0.1-go1.25.0.linux-amd64"

// corpus is a tree of files that answers, when served as it is, all that the benchmark asks: the modules that this
// project depends on, a toolchain, and what the checksum database says of them. A modmirror with default settings fetched
// it, so all of it is verified. It is kept between runs.
type corpus struct {
	tree   string
	mirror func() (string, error) // starts, at most once, a modmirror on the real upstream; returns its URL
}

// ServeHTTP answers from the tree, and adds to it what is missing there.
func (c *corpus) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := filepath.Join(c.tree, filepath.FromSlash(path.Clean("/"+r.URL.Path)))
	if st, err := os.Stat(name); err == nil && st.Mode().IsRegular() {
		http.ServeFile(w, r, name)
		return
	}
	if err := c.record(r.Context(), name, r.URL.EscapedPath()); errors.Is(err, fs.ErrNotExist) {
		http.Error(w, "not found", http.StatusNotFound)
	} else if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	} else {
		http.ServeFile(w, r, name)
	}
}

// record fetches what belongs at name.
func (c *corpus) record(ctx context.Context, name, escaped string) error {
	base, err := c.mirror()
	if err != nil {
		return err
	}
	body, status, err := fetchBody(ctx, base+escaped)
	if err != nil {
		return err
	}
	if status == http.StatusNotFound {
		return fs.ErrNotExist
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s: status %d: %.300s", escaped, status, body)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(c.tree, ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	return errors.Join(err, f.Chmod(0o644), f.Close(), os.Rename(f.Name(), name))
}

func fetchBody(ctx context.Context, url string) (body []byte, status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return body, resp.StatusCode, err
}

// openCorpus makes sure that the tree has everything, by rehearsing what the benchmark does: a client and a mirror, both
// with nothing cached. It leaves behind a data directory that holds all of it.
func (b *bench) openCorpus() error {
	b.tree = filepath.Join(b.dir, "tree")
	b.stocked = filepath.Join(b.work, "stocked")
	if err := os.MkdirAll(b.tree, 0o755); err != nil {
		return err
	}
	var online *process
	c := &corpus{tree: b.tree, mirror: sync.OnceValues(func() (string, error) {
		b.t.Log("the corpus lacks something: asking the real upstream")
		var err error
		online, err = startProcess(b.bin, b.dir, filepath.Join(b.work, "online.log"), os.Environ(), []string{"--data-dir", filepath.Join(b.dir, "online")})
		if err != nil {
			return "", err
		}
		return online.url, nil
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: c}
	var g errgroup.Group
	g.Go(func() error { return srv.Serve(ln) })
	err = b.rehearse("http://" + ln.Addr().String())
	_ = srv.Close() // ends Serve, whose error is known
	_ = g.Wait()
	if online != nil {
		err = errors.Join(err, online.stop(time.Minute))
	}
	return err
}

// rehearse has the corpus, served at recorder, filled.
func (b *bench) rehearse(recorder string) error {
	if _, err := b.goDownload(recorder); err != nil {
		return err
	}
	rest := []string{"/sumdb/" + database + "/supported", "/sumdb/" + database + "/latest",
		"/" + toolchain + ".info", "/" + toolchain + ".mod", "/" + toolchain + ".zip",
		"/sumdb/" + database + "/lookup/" + strings.Replace(toolchain, "/@v/", "@", 1)}
	mods, err := b.paths("", ".mod")
	if err != nil {
		return err
	}
	for _, p := range mods {
		dir, _, _ := strings.Cut(p, "/@v/")
		rest = append(rest, dir+"/@v/list")
	}
	slices.Sort(rest)
	if err := getAll(b.ctx, recorder, slices.Compact(rest)); err != nil {
		return err
	}
	s, err := b.startMirror(b.stocked, recorder)
	if err != nil {
		return err
	}
	defer s.stop()
	if _, err := b.goDownload(s.url); err != nil {
		return fmt.Errorf("rehearsal: %w", err)
	}
	all, err := b.paths("", "")
	if err != nil {
		return err
	}
	return getAll(b.ctx, s.url, all)
}

// getAll asks for paths, a few at a time, and wants to have them all.
func getAll(ctx context.Context, base string, paths []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, p := range paths {
		g.Go(func() error {
			body, status, err := fetchBody(ctx, base+p)
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("%s: status %d: %s", p, status, bytes.TrimSpace(body[:min(len(body), 300)]))
			}
			return err
		})
	}
	return g.Wait()
}

// paths returns the paths, as the go command writes them, of the files of the tree below dir that end in suffix.
func (b *bench) paths(dir, suffix string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(filepath.Join(b.tree, filepath.FromSlash(dir)), func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.HasSuffix(name, suffix) || strings.HasPrefix(d.Name(), ".") {
			return err
		}
		rel, err := filepath.Rel(b.tree, name)
		u := url.URL{Path: "/" + filepath.ToSlash(rel)}
		out = append(out, strings.ReplaceAll(u.EscapedPath(), "!", "%21"))
		return err
	})
	return out, err
}

// nearest returns the path of the zip in the tree whose size is nearest to size, and its size in bytes.
func (b *bench) nearest(size int64) (p string, n int64, err error) {
	zips, err := b.paths("", ".zip")
	if err != nil {
		return "", 0, err
	}
	for _, z := range zips {
		name, err := url.PathUnescape(z)
		if err != nil {
			return "", 0, err
		}
		st, err := os.Stat(filepath.Join(b.tree, filepath.FromSlash(name)))
		if err != nil {
			return "", 0, err
		}
		if p == "" || abs(st.Size()-size) < abs(n-size) {
			p, n = z, st.Size()
		}
	}
	return p, n, nil
}

func abs(n int64) int64 { return max(n, -n) }

// listFile writes paths into a file for wrk.
func (b *bench) listFile(name string, paths []string) (string, error) {
	if len(paths) == 0 {
		return "", fmt.Errorf("the corpus has nothing for %s", name)
	}
	file := filepath.Join(b.work, "paths-"+name)
	return file, os.WriteFile(file, []byte(strings.Join(paths, "\n")+"\n"), 0o600)
}
