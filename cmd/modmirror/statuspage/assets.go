package statuspage

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"

	"golang.org/x/mod/module"
)

//go:embed assets
var files embed.FS

const assetsPrefix = "/assets/"

// assets are the files that pages refer to. Each has the hash of its bytes in its name, so it never changes, and a page that a
// cache kept never meets the style of another version.
type assets struct {
	Style, Script, Icon asset
	byName              map[string]asset
}

// asset is one file.
type asset struct {
	Path      string // of its URL
	Integrity string // what the page expects (W3C Subresource Integrity)
	bytes     []byte
	mime      string
}

func loadAssets() (*assets, error) {
	a := &assets{byName: make(map[string]asset)}
	for _, f := range []struct {
		to         *asset
		file, mime string
	}{
		{&a.Style, "page.css", "text/css; charset=utf-8"},
		{&a.Script, "page.js", "text/javascript; charset=utf-8"},
		{&a.Icon, "icon.svg", "image/svg+xml"},
	} {
		b, err := fs.ReadFile(files, "assets/"+f.file)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(b)
		ext := path.Ext(f.file)
		name := strings.TrimSuffix(f.file, ext) + "." + hex.EncodeToString(sum[:8]) + ext
		*f.to = asset{assetsPrefix + name, "sha256-" + base64.StdEncoding.EncodeToString(sum[:]), b, f.mime}
		a.byName[name] = *f.to
	}
	return a, nil
}

func (p *Page) serveAsset(w http.ResponseWriter, r *http.Request, name string) error {
	a, ok := p.assets.byName[name]
	if !ok {
		return notFound("there is no such file; reload the page that refers to it")
	}
	h := w.Header()
	h.Set("Content-Type", a.mime)
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Content-Security-Policy", "default-src 'none'") // an SVG is a document, too
	reply(w, r, http.StatusOK, a.bytes)
	return nil
}

// parseTemplates reads the pages.
func parseTemplates() (*template.Template, error) {
	return template.New("").Funcs(template.FuncMap{
		"at":       at,
		"bytes":    bytesOf,
		"size":     func(n int64) string { return bytesOf(uint64(max(n, 0))) },
		"grouped":  grouped,
		"count":    count,
		"count64":  func(n int64, what string) string { return grouped(n) + " " + plural(int(min(n, 2)), what, what+"s") },
		"node":     func(now time.Time, n Node) nodeCard { return nodeCard{now, n} },
		"state":    func(s State, says string) saying { return saying{s, says} },
		"sentence": func(c Cluster) saying { s, text := c.sentence(); return saying{s, text} },
		"health":   func(z Zone) saying { s, text := z.health(); return saying{s, text} },
		"used":     used,
		"millis":   func(d time.Duration) string { return fmt.Sprintf("%d ms", max(d.Milliseconds(), 1)) },
		"page":     modulePage,
		"proof":    func(m module.Version) string { return "/prove/" + escaped(m) },
		"file":     fileOf,
	}).ParseFS(files, "assets/*.html")
}

// nodeCard is the data of a node's card.
type nodeCard struct {
	Now time.Time
	Node
}

// saying is a state in words.
type saying struct {
	State State
	Text  string
}

// Sign is the state as a sign, beside its colour and its words.
func (s saying) Sign() string { return [...]string{"✓", "!", "✕", "·"}[s.State] }

// moment is a time as a page has it: how long ago it was, which page.js keeps true, and when.
type moment struct{ Stamp, Full, Text string }

func at(now, t time.Time) moment {
	t = t.UTC()
	return moment{t.Format(time.RFC3339), t.Format("2006-01-02 15:04:05 UTC"), age(now.Sub(t))}
}

// used is how much of a disk is, in parts of a hundred.
func used(n Node) uint64 {
	if n.Total == 0 || n.Free > n.Total {
		return 0
	}
	return uint64(float64(n.Total-n.Free) / float64(n.Total) * 100)
}
