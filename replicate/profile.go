package replicate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// How patient raft is.
const (
	ProfileAuto = "auto" // one of the others, by what the round trips to the other voters take
	ProfileLAN  = "lan"  // a lost leader is noticed in 1 to 2 s
	ProfileWAN  = "wan"  // wanFactor times as patient, for voters that are far from each other
)

// wanFactor is by how much raft is more patient between datacenters: a heartbeat that is lost there costs a round trip or
// more until it is sent again, and an election at each of those would cost more than it brings.
const wanFactor = 5

// When auto takes which. Between the two bounds, and until a time has passed, it stays as it is. It becomes patient soon,
// as an impatient follower disturbs, and impatient late, as a patient one only needs longer to notice a loss.
const (
	farFrom   = 30 * time.Millisecond // a round trip to any voter that takes longer is far
	nearUpTo  = 15 * time.Millisecond // all voters must be as near as this
	farAfter  = 5 * time.Second
	nearAfter = time.Minute
)

// far reports whether a profile is that of voters that are far from each other.
func far(profile string) bool { return profile == ProfileWAN }

func profileOf(far bool) string {
	if far {
		return ProfileWAN
	}
	return ProfileLAN
}

// chooser chooses between the profiles, from one look to the next.
type chooser struct {
	far   bool
	since time.Time // since when the other one fits; zero: it does not
}

// trip is the round trip to another voter; 0: it is not known.
type trip = time.Duration

// look looks at the round trips to all other voters, and reports whether the choice changed. Of a voter that does not answer
// nothing is known, so a node that is cut off stays as it is.
func (c *chooser) look(now time.Time, trips []trip) (changed bool) {
	anyFar, allNear := false, len(trips) > 0
	for _, t := range trips {
		anyFar = anyFar || t > farFrom
		allNear = allNear && t > 0 && t <= nearUpTo
	}
	other, after := anyFar, farAfter
	if c.far {
		other, after = allNear, nearAfter
	}
	if !other {
		c.since = time.Time{}
		return false
	}
	if c.since.IsZero() {
		c.since = now
	}
	if now.Sub(c.since) < after {
		return false
	}
	c.far, c.since = !c.far, time.Time{}
	return true
}

// profileFile is the last choice of auto, as JSON: {"format":1,"profile":"wan"}. A start begins with it. It only saves finding
// out again: a file that is lost, damaged, or of a later version counts as absent.
const profileFile = "profile.json"

type profileRecord struct {
	Format  int    `json:"format"`
	Profile string `json:"profile"`
}

// readProfile returns the last choice in dir; "": there is none.
func readProfile(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, profileFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	var r profileRecord
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err == nil && (r.Format != 1 || r.Profile != ProfileLAN && r.Profile != ProfileWAN) {
		err = fmt.Errorf("format %d, profile %.20q", r.Format, r.Profile)
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", profileFile, err)
	}
	return r.Profile, nil
}

// writeProfile keeps a choice.
func writeProfile(dir, profile string) error {
	b, err := json.Marshal(profileRecord{1, profile})
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, profileFile), func(tmp string) error { return os.WriteFile(tmp, append(b, '\n'), 0o600) })
}

// initialProfile is what a start begins with: what is configured, or the choice before, or what was measured before raft
// starts.
func (c *Config) initialProfile() string {
	switch c.Profile {
	case ProfileWAN:
		return ProfileWAN
	case ProfileAuto:
	default:
		return ProfileLAN
	}
	last, err := readProfile(c.Dir)
	if err != nil {
		c.Log.Warn("the last choice of auto is not known; it is made anew", "err", err)
	}
	if last != "" {
		return last
	}
	return profileOf(c.FirstTrip > farFrom)
}

// heartbeatOf returns how long a follower that hears nothing waits under a profile.
func (c *Config) heartbeatOf(profile string) time.Duration {
	if far(profile) {
		return wanFactor * c.HeartbeatTimeout
	}
	return c.HeartbeatTimeout
}

// leaseOf returns how long a leader that hears no majority goes on, for a node that starts with a profile. raft cannot
// change it later. Half the heartbeat timeout leaves room for the heartbeats, which are sent every tenth to fifth of it. Where
// the profile may change from lan to wan in this life it is the whole of it, the most that raft allows: with that a leader
// keeps its office also over round trips of half a second (see pace), and a leader that is cut off goes on no longer than
// the others need to elect one.
func (c *Config) leaseOf(profile string) time.Duration {
	lease := c.heartbeatOf(profile)
	if c.Profile == ProfileAuto && !far(profile) {
		return lease
	}
	return lease / 2
}
