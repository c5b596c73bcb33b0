package replicate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// files checks what stands beside the catalog.
func (k *checker) files(c *Catalog) error {
	index, _ := k.applied()
	if _, at := k.members(); at == 0 && index > 0 {
		if err := k.bad("the catalog does not say who the members of its cluster are"); err != nil {
			return err
		}
	}
	key, _ := k.bucket(bucketKeys).Cursor().First()
	if k.cluster() == "" && key != nil {
		if err := k.bad("the catalog does not say of which cluster it is"); err != nil {
			return err
		}
	}
	if c.idErr != nil {
		if err := k.bad("%w", missing("node.json", c.idErr)); err != nil {
			return err
		}
	} else if begun, err := k.unfinished(c.id); begun && err == nil {
		return k.bad("a recovery of this node was begun and is not complete: modmirror cluster recover completes it, and so does the next start")
	} else if err := c.id.agree(k.cluster()); err != nil {
		if err := k.bad("%w", err); err != nil {
			return err
		}
	}
	if c.logErr != nil {
		return k.bad("%w", missing("raft log", c.logErr))
	}
	return k.log(c)
}

// log checks the raft log: its pages, that it belongs to the catalog, and every entry.
func (k *checker) log(c *Catalog) error {
	db := c.log
	if err := checkPages(db.Path()); err != nil {
		return k.bad("raft log: %w", err) // not safe to read
	}
	store, err := newLog(db.Path(), true)
	if err != nil {
		return k.bad("raft log: %w", err)
	}
	defer store.Close()
	err = safely(true, func() error {
		return db.View(func(tx *bbolt.Tx) error {
			logs := tx.Bucket([]byte("logs"))
			if logs == nil || tx.Bucket([]byte("conf")) == nil {
				return k.bad("raft log: it lacks a bucket")
			}
			for p := range tx.Check(bbolt.WithKVStringer(bbolt.HexKVStringer())) { // to the end
				if err == nil {
					err = k.bad("raft log: pages: %v", p)
				}
			}
			if err != nil {
				return err
			}
			index, term := k.applied()
			f, err := factsOf(store, index)
			if err == nil && c.idErr == nil {
				err = c.id.wrote(f)
			}
			if err == nil {
				err = f.agree(index, term)
			}
			if err != nil {
				if err := k.bad("%w", err); err != nil {
					return err
				}
			}
			e := entries{checker: k, store: store, facts: f}
			return logs.ForEach(e.entry)
		})
	})
	if err == nil || errors.Is(err, errEnough) || k.ctx.Err() != nil {
		return err
	}
	return k.bad("raft log: %w", err)
}

// entries checks the entries of a log, in their order.
type entries struct {
	*checker
	store *sealedLog
	facts facts
	index uint64 // of the entry before; 0: none
	term  uint64
}

func (e *entries) entry(key, _ []byte) error {
	if err := e.ctx.Err(); err != nil {
		return err
	}
	if len(key) != 8 {
		return e.bad("raft log: entry %x: malformed index", key)
	}
	index := binary.BigEndian.Uint64(key)
	// Behind a snapshot that was installed the log goes on, wherever it was before.
	if e.index > 0 && index != e.index+1 && (e.index >= e.facts.installed || index > e.facts.installed+1) {
		if err := e.bad("raft log: the entries between %d and %d are missing", e.index, index); err != nil {
			return err
		}
	}
	var l raft.Log
	if err := e.store.GetLog(index, &l); err != nil {
		e.index = index
		return e.bad("%w", err)
	}
	err := safely(true, func() error { return checkEntry(l) })
	if err == nil && (l.Term < e.term || l.Term > e.facts.term) {
		err = fmt.Errorf("it is of term %d, the one before of term %d, and the newest is %d", l.Term, e.term, e.facts.term)
	}
	e.index, e.term = index, max(l.Term, e.term)
	if err != nil {
		return e.bad("raft log: entry %d: %w", index, err)
	}
	return nil
}

// checkEntry reports whether l can be applied.
func checkEntry(l raft.Log) error {
	switch l.Type {
	case raft.LogCommand:
		_, err := parseEntry(l.Data)
		return err
	case raft.LogConfiguration:
		raft.DecodeConfiguration(l.Data) // panics
	case raft.LogNoop, raft.LogBarrier:
	default:
		return fmt.Errorf("unknown type %d", l.Type)
	}
	return nil
}

// quotedError is an error whose text is fit for a terminal and for a log.
type quotedError struct {
	error
	text string
}

func (e quotedError) Error() string { return e.text }
func (e quotedError) Unwrap() error { return e.error }

// printable returns err with a text in which everything that is not printable is escaped. Damaged rows are quoted in the
// texts of many packages.
func printable(err error) error {
	text := err.Error()
	var b strings.Builder
	for _, r := range text {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			b.Reset()
			break
		}
		b.WriteRune(r)
	}
	if b.Len() == len(text) {
		return err
	}
	q := strconv.Quote(text)
	return quotedError{err, strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)}
}
