package feed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/mod/module"
)

// StateName is the file in the data directory that says how far a feed was followed.
const StateName = "feed.json"

const (
	stateFormat = 1
	maxState    = 64 << 20 // bytes of it
	tempSuffix  = ".tmp"
)

// state is what [StateName] has:
//
//	{"format":1,"source":"https://mirror.example","feed":"C…","cluster":"D…","since":"2026-01-02T03:04:05.000006Z","owed":[…]}
//
// Everything that the feed had before since is here, or owed. It is true for ever of the two clusters that it names, whatever
// became of the node that wrote it: so any node of the cluster may go on from it, and from an old copy. What it does not
// know is looked at again, which costs no more than a look for what is here.
type state struct {
	Format  int       `json:"format"`
	Source  string    `json:"source"`            // the URL of the source
	Feed    string    `json:"feed"`              // the cluster whose feed it is; "": it does not say
	Cluster string    `json:"cluster"`           // this cluster, which has what was read
	Since   time.Time `json:"since,omitzero"`    // the first time that is to be asked for
	Owed    []Owed    `json:"owed,omitempty"`    // what was passed over
	Through time.Time `json:"through,omitzero"`  // up to when it was complete, but for what is owed
	Changed string    `json:"changed,omitempty"` // what happened to the source, if it is not what it was
}

// Owed is an entry that was passed over: what it says is published could not be had. It is tried again for as long as it takes.
type Owed struct {
	Path    string    `json:"path"`
	Version string    `json:"version"`
	At      time.Time `json:"at"` // of the entry
	Parts   []string  `json:"parts,omitempty"`
	Refused bool      `json:"refused"` // it did not pass the gate; else it could not be had
	Reason  string    `json:"reason"`
	First   time.Time `json:"first"` // when it was tried first
	Tries   int       `json:"tries"`

	next   time.Time // not to be tried before
	trying bool
	run    int // tries of this process
}

func (o *Owed) entry() Entry {
	return Entry{Path: o.Path, Version: o.Version, Timestamp: o.At, Parts: o.Parts}
}

func (o *Owed) module() module.Version { return module.Version{Path: o.Path, Version: o.Version} }

// load returns the state in a directory. What was written of another source, or for another cluster, is none.
func load(root *os.Root, source, cluster string) (s state, err error) {
	none := state{Format: stateFormat, Source: source, Cluster: cluster}
	f, err := root.Open(StateName)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	switch {
	case err != nil:
	case s.Format != stateFormat:
		err = fmt.Errorf("it has format %d, and this version knows format %d", s.Format, stateFormat)
	case s.Source != source && s.Feed == "":
		err = fmt.Errorf("it is of another source, %s", s.Source)
	case s.Cluster != cluster:
		err = fmt.Errorf("it is of cluster %q, and this one is %q", s.Cluster, cluster)
	}
	if err != nil {
		return none, err
	}
	s.Source = source
	return s, nil
}

// save makes s what the directory has, durably.
func (s state) save(root *os.Root) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f, err := root.OpenFile(StateName+tempSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := root.Rename(StateName+tempSuffix, StateName); err != nil {
		return err
	}
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
