package artifact

import (
	"errors"
	"io/fs"
	"sync"

	"modmirror/mirror/artifact/fault"
)

// Keep is Commit for many drafts at once, whose go.sum hashes have not been compared: their bytes become durable, and unproven.
// It ends all of them, and returns an error for each, nil if its bytes are durable.
func (s *Store) Keep(drafts []*Draft) []error {
	errs := make([]error, len(drafts))
	if err := s.makeUnproven(); err != nil {
		for i, d := range drafts {
			d.Discard()
			errs[i] = err
		}
		return errs
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, keepSyncs)
	for i, d := range drafts {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = d.ready()
		})
	}
	wg.Wait()
	s.shelve(drafts, errs)
	for _, d := range drafts {
		d.Discard()
	}
	return errs
}

// shelve gives those drafts that are ready their names, and makes these durable.
func (s *Store) shelve(drafts []*Draft, errs []error) {
	named := false
	for i, d := range drafts {
		if errs[i] == nil {
			errs[i] = d.shelve()
		}
		named = named || errs[i] == nil
	}
	if !named {
		return
	}
	err := s.syncUnproven()
	for i, d := range drafts {
		if errs[i] != nil {
			continue
		}
		if errs[i] = err; err == nil {
			s.unproven.add(d.Ref())
		}
	}
	if err == nil {
		fault.Point(fault.UnprovenKept)
	}
}

// syncUnproven makes the names of what is unproven durable.
func (s *Store) syncUnproven() error {
	err := s.watch("fsync a directory", func() error {
		if err := fault.Error(fault.UnprovenDirSync); err != nil {
			return err
		}
		return s.disk.SyncDir(unprovenDir)
	})
	if err != nil {
		return s.latch("fsync the directory of unproven blobs", err)
	}
	return nil
}

// nameUnproven gives a draft or a pack its name among what is unproven.
func (s *Store) nameUnproven(from, to string) error {
	err := s.watch("rename a file", func() error {
		if err := fault.Error(fault.UnprovenRename); err != nil {
			return err
		}
		return s.disk.Rename(from, to)
	})
	if err != nil {
		return s.fault("rename a draft", err)
	}
	return nil
}

// ready makes the draft's bytes durable, and compares them with what was written.
func (d *Draft) ready() error {
	if d.f == nil {
		return d.closed("keep")
	}
	if d.err != nil {
		return d.err
	}
	if err := d.s.Err(); err != nil {
		return err
	}
	if err := d.spill(); err != nil {
		return err
	}
	if err := d.sync(); err != nil {
		return err
	}
	return d.readBack()
}

// shelve gives the draft its name among what is unproven.
func (d *Draft) shelve() error {
	if err := d.s.nameUnproven(d.name, unprovenName(d.Ref().Digest)); err != nil {
		return err
	}
	d.name = ""
	return nil
}

// makeUnproven makes the directory, durably, when it is needed first.
func (s *Store) makeUnproven() error {
	if err := s.Err(); err != nil {
		return err
	}
	u := &s.unproven
	u.making.Lock()
	defer u.making.Unlock()
	if u.made {
		return nil
	}
	if err := s.disk.Mkdir(unprovenDir); err != nil && !errors.Is(err, fs.ErrExist) {
		return s.fault("make the directory of unproven blobs", err)
	}
	if err := s.disk.SyncDir("."); err != nil {
		return s.latch("fsync the data directory", err)
	}
	u.made = true
	return nil
}
