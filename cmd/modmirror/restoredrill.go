package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/mod/module"
	gosumdb "golang.org/x/mod/sumdb"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
)

// drill restores a backup into a temporary directory, and sees whether a mirror works on it that can ask nobody.
type drill struct {
	restore *restore
	sumdbs  []string
	report  drillReport
}

// drillReport says what was tried.
type drillReport struct {
	Restore   restoreReport `json:"restore"`
	Ready     float64       `json:"readySeconds"` // from the start of the mirror until it takes requests
	Asked     int           `json:"askedVersions"`
	Artifacts int           `json:"artifacts"`
	Lookups   int           `json:"lookups"`
	Bytes     int64         `json:"bytes"`
	Ask       float64       `json:"askSeconds"`
	Seconds   float64       `json:"seconds"` // until a client would have been served again
}

func (d drillReport) print(w io.Writer) error {
	d.Restore.printChecked(w)
	_, err := fmt.Fprintf(w, "checked: a mirror without network served %s of %s (%s), and %s that the go command's own code verified with nothing cached\n"+
		"the backup is good: restored in %s (copied in %s, checked in %s), ready after %s: a client would have been served again after %s\n",
		count(d.Artifacts, "artifact"), count(d.Asked, "module version"), size(d.Bytes), count(d.Lookups, "lookup"),
		seconds(d.Restore.Seconds), seconds(d.Restore.Copy), seconds(d.Restore.Verify), seconds(d.Ready), seconds(d.Seconds))
	return err
}

func (d *drill) run(ctx context.Context, src restoreSource, temp string) (err error) {
	dir, err := os.MkdirTemp(temp, "modmirror-drill-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d.restore.dir = filepath.Join(dir, "data")
	if err := d.restore.run(ctx, src); err != nil {
		return err
	}
	d.report.Restore = d.restore.report
	began := time.Now()
	m, err := startDrill(ctx, d.restore.dir, d.sumdbs)
	if err != nil {
		return fmt.Errorf("start a mirror on what was restored: %w", err)
	}
	d.report.Ready = time.Since(began).Seconds()
	d.report.Seconds = d.report.Restore.Seconds + d.report.Ready
	asked := time.Now()
	err = d.ask(ctx, m)
	d.report.Ask = time.Since(asked).Seconds()
	return errors.Join(err, m.stop())
}

// drillMirror is a mirror in this process, on loopback, that asks nobody.
type drillMirror struct {
	node   *node
	server *http.Server
	url    string
	client *http.Client
	cancel context.CancelFunc
	ended  chan error // of the node's background work
}

// startDrill starts a mirror on a data directory, and waits until it is ready.
func startDrill(ctx context.Context, dir string, sumdbs []string) (*drillMirror, error) {
	var c config
	c.flags(pflag.NewFlagSet("", pflag.ContinueOnError))
	c.DataDir, c.SumDB, c.Offline = dir, sumdbs, true
	c.Cluster.PeerListen = "127.0.0.1:0" // not the port of a mirror that runs here
	n, err := openNode(ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, n.close())
	}
	m := &drillMirror{node: n, url: "http://" + ln.Addr().String(), client: &http.Client{Timeout: time.Minute, Transport: &http.Transport{Proxy: nil}}, ended: make(chan error, 1)}
	m.server = &http.Server{Handler: &n.front, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = m.server.Serve(ln) }() // ends with stop
	var work context.Context
	work, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() { m.ended <- n.run(work) }()
	if _, err := m.get(ctx, "/readyz", 1<<20); err != nil {
		return nil, errors.Join(err, m.stop())
	}
	return m, nil
}

func (m *drillMirror) stop() error {
	m.client.CloseIdleConnections()
	err := m.server.Close()
	m.cancel()
	return errors.Join(err, <-m.ended, m.node.close())
}

// get asks for a path, and wants a 200 with no more than limit bytes.
func (m *drillMirror) get(ctx context.Context, path string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err == nil && (resp.StatusCode != http.StatusOK || int64(len(b)) > limit) {
		err = fmt.Errorf("%s: %s: %.300s", path, resp.Status, b)
	}
	return b, err
}

// drillVersions is how many module versions are asked for: all have been checked before, this is about whether they are served.
const drillVersions = 25

// ask asks for some module versions, from all over the catalog, as a client does that holds nothing.
func (d *drill) ask(ctx context.Context, m *drillMirror) error {
	ms, err := someManifests(ctx, m.node.replica, d.restore.report.Checked.Manifests)
	if err != nil {
		return err
	}
	clients := map[string]*drillClient{}
	for _, man := range ms {
		if err := d.askArtifacts(ctx, m, man); err != nil {
			return fmt.Errorf("ask the restored mirror for %s: %w", man.Module, err)
		}
		name := man.Record.Database
		if clients[name] == nil {
			key, err := m.node.replica.DatabaseKey(ctx, name)
			if err != nil {
				return err
			}
			clients[name] = newDrillClient(ctx, m, name, key)
		}
		if err := clients[name].check(man); err != nil {
			return fmt.Errorf("ask the restored mirror for the record of %s: %w", man.Module, err)
		}
		d.report.Asked++
		d.report.Lookups++
	}
	return nil
}

// someManifests returns drillVersions of a number of manifests.
func someManifests(ctx context.Context, c *replicate.Node, number int) (ms []artifact.Manifest, err error) {
	step, i := max(1, number/drillVersions), 0
	for m, err := range c.Manifests(ctx) {
		if err != nil {
			return nil, err
		}
		if i++; (i-1)%step == 0 && len(ms) < drillVersions {
			ms = append(ms, m)
		}
	}
	return ms, nil
}

func (d *drill) askArtifacts(ctx context.Context, m *drillMirror, man artifact.Manifest) error {
	path, errPath := module.EscapePath(man.Module.Path)
	version, errVersion := module.EscapeVersion(man.Module.Version)
	if err := errors.Join(errPath, errVersion); err != nil {
		return err
	}
	for _, kind := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		ref := man.Ref(kind)
		if ref.IsZero() {
			continue
		}
		b, err := m.get(ctx, "/"+path+"/@v/"+version+"."+kind.String(), ref.Size)
		if err != nil {
			return err
		}
		if got := artifact.RefOf(b); got != ref {
			return fmt.Errorf("the %s has %d bytes with the SHA-256 %s, committed are %d with %s", kind, got.Size, got.Digest, ref.Size, ref.Digest)
		}
		d.report.Artifacts++
		d.report.Bytes += ref.Size
	}
	return nil
}

// drillClient verifies as the go command does, with its own code and nothing cached.
type drillClient struct {
	ctx      context.Context
	mirror   *drillMirror
	name     string
	key      string
	client   *gosumdb.Client
	security string // the first security error
}

func newDrillClient(ctx context.Context, m *drillMirror, name, key string) *drillClient {
	c := &drillClient{ctx: ctx, mirror: m, name: name, key: key}
	c.client = gosumdb.NewClient(c)
	return c
}

// check looks the sums of man up.
func (c *drillClient) check(man artifact.Manifest) error {
	for _, want := range []struct{ version, sum string }{{man.Module.Version + "/go.mod", man.ModSum}, {man.Module.Version, man.ZipSum}} {
		if want.sum == "" {
			continue
		}
		lines, err := c.client.Lookup(man.Module.Path, want.version)
		if c.security != "" {
			err = errors.Join(errors.New(c.security), err)
		}
		if err != nil {
			return err
		}
		if line := man.Module.Path + " " + want.version + " " + want.sum; !slices.Contains(lines, line) {
			return fmt.Errorf("%s says %q, committed is %q", c.name, lines, line)
		}
	}
	return nil
}

// ReadRemote implements [gosumdb.ClientOps], as the methods below do.
func (c *drillClient) ReadRemote(path string) ([]byte, error) {
	return c.mirror.get(c.ctx, "/sumdb/"+c.name+path, 1<<20)
}

func (c *drillClient) ReadConfig(file string) ([]byte, error) {
	if file == "key" {
		return []byte(c.key), nil
	}
	return []byte{}, nil // no tree head was ever seen
}

func (c *drillClient) WriteConfig(string, []byte, []byte) error { return nil }
func (c *drillClient) ReadCache(string) ([]byte, error)         { return nil, fs.ErrNotExist }
func (c *drillClient) WriteCache(string, []byte)                {}
func (c *drillClient) Log(string)                               {}
func (c *drillClient) SecurityError(msg string)                 { c.security = strings.TrimSpace(msg) }
