package replicate

import (
	"cmp"
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
	Format  int    `json:"format,omitempty"`  // absent: 1
	Node    string `json:"node"`              // this node, for ever
	Cluster string `json:"cluster,omitempty"` // the cluster that this node founded, or is known to have joined
	State   string `json:"state,omitempty"`   // stateNew until log and catalog are there for good; from then on they must be
	Starts  uint64 `json:"starts,omitempty"`  // how often the directory was opened; 0: by versions that did not count
}

const (
	stateNew     = "new"
	stateFounded = "founded"
)

// restore is what an operator can do about files that are lost or do not belong together. Only some of them from a backup
// is what brings about such a state, and would let the node forget what it voted for and promised.
const restore = "restore node.json, raft and catalog.db together from one backup, or, if other nodes of its cluster are alive, make a new node of it: modmirror cluster reset --keep-blobs, with the same --data-dir, which says how to go on"

// advised adds what an operator can do about err, which came of opening a file that is there. What the system refused says
// nothing about the file, and must not be answered by giving up data.
func advised(err error) error {
	var errno syscall.Errno
	switch {
	case errors.Is(err, ErrLocked), errors.Is(err, errNewer):
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

// Identity is who the node in a data directory is.
type Identity struct {
	Node    string
	Cluster string // "" as long as it is not known
	Fresh   bool   // it has no log yet: it may found a cluster, or join one
}

// Identify says who the node in dir is before it is opened, for whoever forms a cluster of several. An empty directory, or
// none, becomes the one of a new node.
func Identify(dir string) (Identity, error) {
	if err := makeDir(dir); err != nil {
		return Identity{}, err
	}
	id, err := loadIdentity(dir)
	if err != nil {
		return Identity{}, err
	}
	hadLog, err := exists(logPath(dir))
	return Identity{id.Node, id.Cluster, id.State == stateNew && !hadLog}, err
}

// loadIdentity reads node.json, and creates it first for a node that has nothing yet.
func loadIdentity(dir string) (id identity, err error) {
	if err := checkRestored(dir); err != nil {
		return id, err
	}
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
	err = createFile(path, identity{Node: rand.Text(), State: stateNew}.write)
	if err != nil {
		return id, err
	}
	return readIdentity(path)
}

// choose decides of which cluster a new node is, durably, before its log is made: one that it founds, alone or with
// others, or one that it is to join and does not know yet. What an earlier start had decided counts only with a log.
func (n *Node) choose() error {
	want := ""
	switch c := &n.config; {
	case c.Found != nil:
		want = c.Found.Cluster
	case !c.Join:
		want = cmp.Or(n.id.Cluster, rand.Text())
	}
	if want == n.id.Cluster {
		return nil
	}
	n.id.Cluster = want
	return replaceFile(n.identityPath(), n.id.write)
}

func (n *Node) identityPath() string { return filepath.Join(n.config.Dir, "node.json") }

// raise counts this start, durably. From then on an image of the directory that was taken before is known as an old one.
func (n *Node) raise(id identity) error {
	id.Starts++
	if err := replaceFile(n.identityPath(), id.write); err != nil {
		return err
	}
	n.starts.Store(id.Starts)
	return nil
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
	err = json.Unmarshal(b, &id)
	if err == nil && id.Format > 1 {
		return identity{}, newer(path+" has format", uint64(id.Format), 1)
	}
	if err != nil || id.Format < 0 || id.Node == "" || id.State != stateNew && id.State != stateFounded && id.State != "" {
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
