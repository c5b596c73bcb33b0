package mirrortest

import (
	"net/http"
	"os"
	"path/filepath"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// WriteTree writes all that the upstream knows below dir, in the layout that a file:// GOPROXY has: the paths are those
// of the URLs. Faults are not written.
func (u *Upstream) WriteTree(dir string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for modPath, p := range u.projects {
		escaped, err := module.EscapePath(modPath)
		if err != nil {
			return err
		}
		files := map[string][]byte{"@v/list": p.list()}
		if r := p.releases[p.latest()]; r != nil {
			files["@latest"] = r.data(artifact.Info)
		}
		for query, v := range p.aliases {
			if r := p.releases[v]; r != nil && query != "latest" {
				files["@v/"+query+".info"] = r.data(artifact.Info)
			}
		}
		for v, r := range p.releases {
			ev, err := module.EscapeVersion(v)
			if err != nil {
				return err
			}
			for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
				files["@v/"+ev+"."+k.String()] = r.data(k)
			}
		}
		for name, b := range files {
			file := filepath.Join(dir, filepath.FromSlash(escaped), filepath.FromSlash(name))
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(file, b, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

var _ http.Handler = (*Upstream)(nil)
