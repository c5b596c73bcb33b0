package mirror

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// Acks are the word of whoever proposes a manifest. A member that makes them up can have the cluster commit, for one version, the
// digest of another one's zip: bytes that every node holds, and has proven, as what they are. So who looks a blob up by the digest
// that is committed for a version also looks whether it is of that version (artifact.CheckOf), each time anew: nothing has to be
// remembered that a restart could lose, and what was committed before this program knew of it is found as well. What is none is
//
//	not served   as that version: 403 with the reason, here and by every node that finds the same; as what it is, it is, and stays
//	told         once in the life of the process, as a failed verification
//	not held     for that version: this node's watermark stays behind the change, as if the bytes were lost
//
// and looked at again once a day. No other node is asked for what is here, and no upstream: no other bytes have that digest.

// forged is why what the cluster has committed for a version will never be served as that.
type forged struct {
	ref artifact.Ref
	why error
}

func (e *forged) Error() string {
	return fmt.Sprintf("the cluster has committed %v for it, which is not what its record says: %v", e.ref, e.why)
}
func (e *forged) Unwrap() error { return artifact.ErrRefused }

// isForged reports whether err says that no right bytes can ever come.
func isForged(err error) bool {
	var f *forged
	return errors.As(err, &f)
}

// forgeries are those that this process has met. Each was found by comparing bytes that have the digest that is committed, so
// that it holds for ever.
type forgeries struct {
	mu  sync.RWMutex
	all map[forgery]error // guarded by mu; *forged
}

type forgery struct {
	module module.Version
	kind   artifact.Kind
	digest artifact.Digest
}

// maxForgeries bounds what is remembered: of more, the bytes are read again each time.
const maxForgeries = 1 << 12

func (fs *forgeries) of(man artifact.Manifest, k artifact.Kind) error {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	if len(fs.all) == 0 {
		return nil
	}
	return fs.all[forgery{man.Module, k, man.Ref(k).Digest}]
}

// add reports whether it is new.
func (fs *forgeries) add(man artifact.Manifest, k artifact.Kind, err error) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	key := forgery{man.Module, k, man.Ref(k).Digest}
	if fs.all[key] != nil || len(fs.all) >= maxForgeries {
		return false
	}
	if fs.all == nil {
		fs.all = map[forgery]error{}
	}
	fs.all[key] = err
	return true
}

// genuine returns nil if the blob of kind k of man, which is here, is of man's version. It is a *forged if it is not, and never will
// be, which is told then. It matches artifact.ErrDamaged if the bytes are not what they were.
func (m *Mirror) genuine(ctx context.Context, man artifact.Manifest, k artifact.Kind) error {
	if err := m.forgeries.of(man, k); err != nil {
		return err
	}
	why := m.config.Store.CheckOf(ctx, man, k)
	if !errors.Is(why, artifact.ErrRefused) {
		return why
	}
	return m.foundForged(man, k, why)
}

// foundForged notes that bytes with the digest of the blob of kind k of man are not of man's version, because of why, and returns what
// that is.
func (m *Mirror) foundForged(man artifact.Manifest, k artifact.Kind, why error) error {
	err := &forged{man.Ref(k), why}
	if m.forgeries.add(man, k, err) {
		m.alarm("committed", reasonOf(why), err, Event{Module: man.Module, Kind: k, Bytes: man.Ref(k).Size}, "digest", man.Ref(k).Digest)
		m.missForged(man, k)
	}
	return err
}

// openGenuine is open for the blob of kind k of man, if it is of man's version.
func (m *Mirror) openGenuine(ctx context.Context, man artifact.Manifest, k artifact.Kind) (*os.File, error) {
	if err := m.forgeries.of(man, k); err != nil {
		return nil, err
	}
	f, err := m.open(ctx, man.Ref(k), func() error {
		if err := m.genuine(ctx, man, k); err != nil { // else what it is of would lose it
			return err
		}
		return m.prove(ctx, man, k)
	})
	if err != nil || artifact.CheckOf(ctx, f, man, k) == nil {
		return f, err
	}
	_ = f.Close() // it was only read
	if err := notAbsent(m.genuine(ctx, man, k)); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%v was not what it is now: %w", man.Ref(k), artifact.ErrDamaged)
}

// missForged has this node's watermark stay behind what is not held for its version, if the follower has passed it by.
func (m *Mirror) missForged(man artifact.Manifest, k artifact.Kind) {
	if m.followed.seen() == 0 { // it will see
		return
	}
	background(m.flights, "forged "+flightKey(k, man.Module), m.config.FetchBudget, m.condemns, func(ctx context.Context) (any, error) {
		seq, err := m.config.Changes.Place(ctx, man.Module)
		if err == nil {
			m.followed.want(ctx, &missing{seq: seq, module: man.Module, kind: k, ref: man.Ref(k), since: time.Now()})
		}
		return nil, err
	})
}
