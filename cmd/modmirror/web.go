package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"strings"

	"golang.org/x/mod/module"
)

// ServeHTTP answers the paths that need more than one part of the node, and gives the rest to the mirror. The first
// element of a module path has a dot, so none of these can be a module.
func (n *node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		// No request of the protocol has a body, and reading one could take for ever.
		w.Header().Set("Connection", "close")
		http.Error(w, "this server takes no request bodies", http.StatusBadRequest)
		return
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/prove/"); ok && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		n.serveProof(w, r, rest)
		return
	}
	n.mirror.ServeHTTP(w, r)
}

// serveProof answers /prove/<escaped module>@<escaped version> with a proof as JSON.
func (n *node) serveProof(w http.ResponseWriter, r *http.Request, escaped string) {
	escPath, escVersion, _ := strings.Cut(escaped, "@")
	path, err := module.UnescapePath(escPath)
	if err == nil {
		escVersion, err = module.UnescapeVersion(escVersion)
	}
	if err == nil {
		err = module.Check(path, escVersion)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	m := module.Version{Path: path, Version: escVersion}
	if n.private(path) {
		http.Error(w, path+" is private here and not served; put it in the client's GOPRIVATE", http.StatusForbidden)
		return
	}
	p, err := proofFrom(r.Context(), n.replica, m)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		http.Error(w, m.String()+" is not held by this mirror", http.StatusNotFound)
	case err != nil:
		n.log.Error("proof", "module", m.Path, "version", m.Version, "err", err)
		http.Error(w, "the catalog cannot be read: see the mirror's log", http.StatusInternalServerError)
	default:
		writeJSON(w, p)
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the client may be gone
}
