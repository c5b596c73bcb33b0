package replicate

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// identity is node.json. The node's id is born with its data directory: a wiped disk means a new id, so that no vote or
// promise of the old one is ever taken for one of the new (REPLICATION §4.9, amnesia guard).
type identity struct {
	Node    string `json:"node"`              // this node, for ever
	Cluster string `json:"cluster,omitempty"` // the cluster that this node founded, or is known to have joined
	State   string `json:"state,omitempty"`   // stateNew until log and catalog are there for good; from then on they must be
}

const (
	stateNew     = "new"
	stateFounded = "founded"
)

// restore is what an operator can do about files that are lost or do not belong together. Only some of them from a backup
// is what brings about such a state, and would let the node forget what it voted for and promised.
const restore = "restore node.json, raft and catalog.db together from one backup, or move all three away and start as a new node"

// advised adds what an operator can do about err, which came of opening a file that is there. What the system refused says
// nothing about the file, and must not be answered by giving up data.
func advised(err error) error {
	var errno syscall.Errno
	switch {
	case errors.Is(err, ErrLocked):
		return err
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w; the files must be readable and writable for the user that runs modmirror: see their owner and mode, and how the disk is mounted", err)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("%w; too many files are open: raise the limit (ulimit -n), and start again", err)
	case errors.Is(err, syscall.ENOMEM):
		return fmt.Errorf("%w; the file is mapped into memory: raise the limit of address space (ulimit -v), and start again", err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w; make room on the disk, and start again", err)
	case errors.Is(err, syscall.EIO):
		return fmt.Errorf("%w; the disk cannot read it: see the kernel's log, and on a sound disk %s", err, restore)
	case errors.As(err, &errno):
		return fmt.Errorf("%w; the data is not known to be damaged: mend the cause, and start again", err)
	}
	return fmt.Errorf("%w; %s", err, restore)
}

// loadIdentity reads node.json, and creates it first for a node that has nothing yet.
func loadIdentity(dir string, join bool) (id identity, err error) {
	path := filepath.Join(dir, "node.json")
	if have, err := exists(path); err != nil {
		return id, err
	} else if !have {
		for _, other := range []string{logPath(dir), filepath.Join(dir, "catalog.db")} {
			if have, err := exists(other); err != nil {
				return id, err
			} else if have {
				return id, fmt.Errorf("there is no node.json, but there is %s: %s", other, restore)
			}
		}
	}
	err = createFile(path, func(tmp string) error {
		id := identity{Node: rand.Text(), State: stateNew}
		if !join {
			id.Cluster = rand.Text()
		}
		return id.write(tmp)
	})
	if err != nil {
		return id, err
	}
	return readIdentity(path)
}

func (id identity) write(path string) error {
	b, err := json.Marshal(id)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o600)
}

func readIdentity(path string) (id identity, err error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return id, advised(err)
	}
	if err != nil {
		return id, err
	}
	if err := json.Unmarshal(b, &id); err != nil || id.Node == "" || id.State != stateNew && id.State != stateFounded && id.State != "" {
		return identity{}, fmt.Errorf("%s does not say which node this is: %.200q; %s", path, b, restore)
	}
	if id.State == "" { // what says nothing was not made by loadIdentity, or long ago
		id.State = stateFounded
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
