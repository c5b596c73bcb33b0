package replicate

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// identity is node.json. The node's id is born with its data directory: a wiped disk means a new id, so that no vote or
// promise of the old one is ever taken for one of the new (REPLICATION §4.9, amnesia guard).
type identity struct {
	Node    string `json:"node"`              // this node, for ever
	Cluster string `json:"cluster,omitempty"` // the cluster that this node founded; empty: it joined one, and the catalog says which
}

// loadIdentity reads node.json, and creates it first if there is none.
func loadIdentity(dir string, join bool) (id identity, err error) {
	path := filepath.Join(dir, "node.json")
	err = createFile(path, func(tmp string) error {
		id := identity{Node: rand.Text()}
		if !join {
			id.Cluster = rand.Text()
		}
		b, err := json.Marshal(id)
		if err != nil {
			return err
		}
		return os.WriteFile(tmp, append(b, '\n'), 0o600)
	})
	if err != nil {
		return id, err
	}
	return readIdentity(path)
}

func readIdentity(path string) (id identity, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return id, err
	}
	if err := json.Unmarshal(b, &id); err != nil || id.Node == "" {
		return id, fmt.Errorf("%s does not say which node this is: %q", path, b)
	}
	return id, nil
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
