package replicate

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"modmirror/mirror/artifact"
)

// A cluster that is lost is founded anew from a copy of its catalog: all that is committed stays, under the same leaves and
// the same root; who the nodes were, and what they voted, does not. The new cluster has an id of its own, so that no node of
// the old one is taken for one of it, and begins with one voter. Others join it as empty nodes.
//
// If the process dies: [NoteRestore] puts a file into the directory first, which keeps every other use of the directory off,
// and Refound removes it last, when log, catalog and node.json are there, durably. In between the directory is no node's.

// RestoringName is the name of the file that says that a directory is being restored into.
const RestoringName = "restoring.json"

// ErrRestoring means that a restore into the data directory has not come to its end.
var ErrRestoring = errors.New("a restore into this directory was interrupted: run modmirror restore again, with the same arguments, or remove the directory")

// checkRestored reports whether dir may be used by a node.
func checkRestored(dir string) error {
	if have, err := exists(filepath.Join(dir, RestoringName)); err != nil {
		return err
	} else if have {
		return fmt.Errorf("%s: %w", dir, ErrRestoring)
	}
	return nil
}

// RestoreNote returns the note of a restore into dir that was begun and has not come to its end; nil if there is none.
func RestoreNote(dir string) (json.RawMessage, error) {
	b, err := os.ReadFile(filepath.Join(dir, RestoringName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// NoteRestore begins a restore into dir: nodes are kept from using it, durably, until [Refound] has come to its end. note is
// whatever the caller wants to find again. Of a restore that was begun it replaces the note.
func NoteRestore(dir string, note any) error {
	b, err := json.Marshal(note)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, RestoringName), func(tmp string) error { return os.WriteFile(tmp, append(b, '\n'), 0o600) })
}

// Refound makes dir, in which [NoteRestore] has begun, the data directory of the first node of a new cluster, with the catalog in
// the file at path, which is on the same file system, has been checked, and is gone afterwards. The audit says why. Log, catalog
// and node.json that are there are what an earlier Refound left, and go.
func Refound(dir, path string, audit ...Audit) (Identity, error) {
	if have, err := exists(filepath.Join(dir, RestoringName)); err != nil || !have {
		return Identity{}, errors.Join(err, fmt.Errorf("%s: no restore was begun", dir))
	}
	for _, name := range []string{"node.json", CatalogName, filepath.Dir(logPath(""))} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return Identity{}, err
		}
	}
	if err := syncDir(dir); err != nil {
		return Identity{}, err
	}
	id := identity{Node: rand.Text(), Cluster: rand.Text(), State: stateFounded}
	index, term, err := refoundCatalog(path, id, audit)
	if err != nil {
		return Identity{}, err
	}
	logDir := filepath.Dir(logPath(dir))
	if err := makeDir(logDir); err != nil {
		return Identity{}, err
	}
	if err := createFile(logPath(dir), func(tmp string) error { return refoundLog(tmp, id, index, term) }); err != nil {
		return Identity{}, err
	}
	if err := errors.Join(syncFile(path), os.Rename(path, catalogPath(dir))); err != nil {
		return Identity{}, err
	}
	if err := replaceFile(filepath.Join(dir, "node.json"), id.write); err != nil {
		return Identity{}, err
	}
	if err := giveTree(dir); err != nil {
		return Identity{}, err
	}
	if err := os.Remove(filepath.Join(dir, RestoringName)); err != nil {
		return Identity{}, err
	}
	return Identity{Node: id.Node, Cluster: id.Cluster}, syncDir(dir)
}

// refoundCatalog makes the catalog at path that of a cluster whose only member is id, and returns where it ends.
func refoundCatalog(path string, id identity, audit []Audit) (index, term uint64, err error) {
	db, err := openDB(path, false)
	if err != nil {
		return 0, 0, err
	}
	c := newCatalog(path)
	c.db = db
	err = c.update(func(s state) error {
		if index, term = s.applied(); index == 0 {
			return fmt.Errorf("nothing was ever committed to this catalog: %w", artifact.ErrRefused)
		}
		b := s.bucket(bucketConfig)
		if err := errors.Join(deleteAll(b, nodePrefix), deleteAll(b, gonePrefix), b.Delete(keyRebalance), b.Put(keyCluster, []byte(id.Cluster))); err != nil {
			return err
		}
		// The address is the one that a node without others has. Where it is, it registers when it starts.
		members := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(id.Node), Address: raft.ServerAddress(id.Node)}}}
		if err := s.setMembers(index, raft.EncodeConfiguration(members)); err != nil {
			return err
		}
		if len(audit) > 0 { // older nodes do not know its rows: none of them is to join
			if err := s.setLevel(max(s.level(), auditLevel)); err != nil {
				return err
			}
		}
		for _, a := range audit {
			if r, err := s.applyAudit(a); err != nil || r.err != nil {
				return errors.Join(err, r.err)
			}
		}
		return nil
	})
	return index, term, errors.Join(err, c.close())
}

// deleteAll deletes the rows of b whose keys begin with prefix.
func deleteAll(b *bbolt.Bucket, prefix string) error {
	var keys [][]byte
	c := b.Cursor()
	for k, _ := c.Seek([]byte(prefix)); bytes.HasPrefix(k, []byte(prefix)); k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// refoundLog makes a log that knows nothing but where the catalog ends, as after a leader's snapshot.
func refoundLog(path string, id identity, index, term uint64) error {
	store, err := newLog(path, false)
	if err != nil {
		return err
	}
	return errors.Join(store.Set(keyNode, []byte(id.Node)), store.SetUint64(keyCurrentTerm, term), store.SetUint64(keyInstalled, index), store.Close())
}
