package mirror

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"modmirror/mirror/artifact"
)

// scrubState is what scrub.json has. It is a few tens of kilobytes, however many blobs there are.
type scrubState struct {
	Node  string    `json:"node,omitempty"` // whose it is
	Began time.Time `json:"began"`          // of the first scrub: what was never looked at is due from then on
	Round time.Time `json:"round,omitzero"` // of this round: what was looked at since is done
	Asked bool      `json:"asked,omitempty"`
	Speed int64     `json:"speed,omitempty"` // bytes a second of a round that was asked for; 0: as fast as it can be
	Bad   int64     `json:"bad,omitempty"`   // found in this round
	Ended time.Time `json:"ended,omitzero"`  // of the last full round
	Done  time.Time `json:"done,omitzero"`   // Round of the last one that was asked for and ended
	Found int64     `json:"found,omitempty"` // Bad of that one
	Part  string    `json:"part,omitempty"`  // under way
	After string    `json:"after,omitempty"` // how far it is
	Since time.Time `json:"since,omitzero"`  // when it began

	Parts map[string]scrubPart `json:"parts"`
}

// scrubPart is a part as it was when it was looked at last.
type scrubPart struct {
	Checked time.Time `json:"checked,omitzero"` // when that began
	Blobs   int64     `json:"blobs,omitempty"`
	Bytes   int64     `json:"bytes,omitempty"`
}

// load reads scrub.json.
func (s *scrubber) load(now time.Time) {
	b, err := s.files.read(scrubFile, maxScrub)
	var st scrubState
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err == nil && st.Node != s.m.config.Node {
		err = fmt.Errorf("it is of node %q", artifact.Truncate(st.Node, 100))
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.m.log.Warn("what is known of earlier scrubs is of no use, everything is read again", "file", scrubFile, "err", err)
		}
		st = scrubState{}
	}
	parts := map[string]scrubPart{}
	for _, name := range s.parts {
		p := st.Parts[name]
		if p.Checked.After(now) { // the clock was wrong, then or now
			p.Checked = time.Time{}
		}
		parts[name] = p
	}
	st.Parts, st.Node = parts, s.m.config.Node
	if st.Began.IsZero() || st.Began.After(now) {
		st.Began = now
	}
	if st.Round.After(now) || st.Round.IsZero() && st.Ended.IsZero() {
		st.Round = now
	}
	if !slices.Contains(s.parts, st.Part) || st.Since.After(now) {
		st.Part, st.After, st.Since = "", "", time.Time{}
	}
	s.mu.Lock()
	if asked := s.state; asked.Asked { // before this was read
		st.Asked, st.Round, st.Speed, st.Bad = true, asked.Round, asked.Speed, 0
	}
	s.state = st
	s.mu.Unlock()
	s.saveAt, s.at = now.Add(scrubSave), now
}

// save keeps the state if it has changed: now and then, and at the end.
func (s *scrubber) save(now bool) {
	t := time.Now()
	s.mu.Lock()
	if !now && !s.hurry && t.Before(s.saveAt) {
		s.mu.Unlock()
		return
	}
	s.hurry = false
	b, err := json.Marshal(s.state)
	s.mu.Unlock()
	s.saveAt = t.Add(scrubSave)
	if err == nil && bytes.Equal(b, s.saved) {
		return
	}
	if err == nil {
		err = s.files.write(scrubFile, b)
	}
	if err != nil {
		s.m.log.Warn("cannot keep how far the scrub is", "err", err)
		return
	}
	s.saved = b
}

// begin notes that a part is under way, and returns how far an earlier look at it had come.
func (s *scrubber) begin(part string, now time.Time) (after string, was scrubPart) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &s.state
	if st.Part != part {
		st.Part, st.After, st.Since = part, "", now
	}
	return st.After, st.Parts[part]
}

// plan notes how much a part is.
func (s *scrubber) plan(part string, p scrubPart) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.Checked = s.state.Parts[part].Checked
	s.state.Parts[part] = p
}

// passed notes that a blob of the part under way was read.
func (s *scrubber) passed(ref artifact.Ref) {
	s.owed += float64(ref.Size + scrubSeek)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs++
	s.bytes += ref.Size
	s.state.After = ref.Digest.String()
}

func (s *scrubber) reached(after string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.After = after
}

// end notes that a part is done, and if it was the last one, the round.
func (s *scrubber) end(part string, p scrubPart) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &s.state
	p.Checked = st.Since
	st.Parts[part] = p
	st.Part, st.After, st.Since = "", "", time.Time{}
	delete(s.late, part)
	for _, name := range s.parts {
		if st.Parts[name].Checked.Before(st.Round) {
			return
		}
	}
	st.Ended = time.Now()
	if st.Asked {
		st.Done, st.Found = st.Round, st.Bad
	}
	s.hurry = st.Asked
	st.Asked, st.Speed, st.Bad, st.Round = false, 0, 0, time.Time{}
}

// next returns the part to be looked at next, and how long to wait before: the one that is under way, or the one that was looked
// at longest ago, of those that are not put off.
func (s *scrubber) next(now time.Time) (part string, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, every := &s.state, s.m.config.ScrubEvery
	if !st.Asked && every <= 0 {
		return "", time.Hour
	}
	if st.Part != "" && !(st.Asked && st.Since.Before(st.Round)) {
		return st.Part, 0
	}
	wait = time.Hour
	for _, name := range slices.Backward(s.parts) { // of those that are equal the last: what is quick comes first
		if left := s.late[name].until.Sub(now); left > 0 {
			wait = min(wait, left)
		} else if part == "" || st.Parts[name].Checked.Before(st.Parts[part].Checked) {
			part = name
		}
	}
	if part == "" {
		return "", wait
	}
	switch oldest := st.Parts[part].Checked; {
	case st.Asked && !oldest.Before(st.Round): // the rest is put off
		return "", wait
	case st.Asked:
		if st.Part == part {
			st.Part, st.After, st.Since = "", "", time.Time{} // it is begun anew
		}
		return part, 0
	case !oldest.IsZero() && now.Sub(oldest) < every/2: // there is little to read, and it was read soon
		return "", min(wait, every/2-now.Sub(oldest))
	}
	if st.Round.IsZero() {
		st.Round = now
	}
	return part, 0
}

// tenths of the period that a round is to take; the rest is for what holds it up.
const scrubTenths = 9

// needed returns the speed, in bytes a second, that lets every part be looked at in time: an opened file counts like some bytes.
// It is never beyond what is allowed, and never 0. late says that a blob will be older than the period all the same. The caller
// holds mu.
func (s *scrubber) needed(now time.Time) (speed float64, late bool) {
	st, most, every := &s.state, s.allowed(), s.m.config.ScrubEvery
	if every <= 0 {
		return most, false
	}
	all := s.due()
	speed, sum := 1.0, 0.0
	for _, d := range all {
		sum += d.bytes
		late = late || d.bytes > 0 && sum > most*d.at.Add(every).Sub(now).Seconds()
		switch left := d.at.Add(every / 10 * scrubTenths).Sub(now).Seconds(); {
		case left > 0:
			speed = max(speed, sum/left)
		case d.bytes > 0:
			speed = most
		}
	}
	if st.Asked {
		return most, late
	}
	return min(speed, most), late
}

// due is what is left to be read of a part, and when it was read last.
type due struct {
	at    time.Time
	bytes float64
}

// due returns all shards, the one that was looked at longest ago first. The caller holds mu.
func (s *scrubber) due() (all []due) {
	st, typical := &s.state, s.typical()
	for i, name := range s.parts[:artifact.Shards] {
		p := s.shardOf(i, typical)
		d := due{st.Parts[name].Checked, float64(p.Bytes + p.Blobs*scrubSeek)}
		if d.at.IsZero() {
			d.at = st.Began
		}
		if name == st.Part {
			d.bytes *= 1 - shardDone(st.After)
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b due) int { return a.at.Compare(b.at) })
	return all
}

// allowed returns the highest speed that is allowed. The caller holds mu.
func (s *scrubber) allowed() float64 {
	limit := s.m.config.ScrubLimit
	if s.state.Asked {
		limit = s.state.Speed
	}
	if limit <= 0 {
		return float64(rate.Inf)
	}
	return float64(limit)
}

// typical is a shard as the ones that were looked at are on the whole: digests are spread evenly. The caller holds mu.
func (s *scrubber) typical() (p scrubPart) {
	n := int64(0)
	for _, name := range s.parts[:artifact.Shards] {
		if q := s.state.Parts[name]; !q.Checked.IsZero() || name == s.state.Part {
			p.Blobs += q.Blobs
			p.Bytes += q.Bytes
			n++
		}
	}
	if n > 0 {
		p.Blobs, p.Bytes = (2*p.Blobs+n)/(2*n), (p.Bytes+n-1)/n
	}
	return p
}

// shardOf returns how much shard i is, as far as that is known. The caller holds mu.
func (s *scrubber) shardOf(i int, typical scrubPart) scrubPart {
	p := s.state.Parts[s.parts[i]]
	if p.Checked.IsZero() && s.parts[i] != s.state.Part {
		return typical
	}
	return p
}

// shardDone returns how much of a shard comes up to the digest after, as digests are spread evenly.
func shardDone(after string) float64 {
	d, err := artifact.ParseDigest(after)
	if err != nil {
		return 0
	}
	return float64(uint(d[1])<<8|uint(d[2])) / (1 << 16)
}

// began returns when the first scrub of this directory began; zero if none has.
func (s *scrubber) began() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Began
}

// ScrubStatus says how the scrub is.
type ScrubStatus struct {
	Every   time.Duration `json:"every"`            // 0: only on request
	Limit   int64         `json:"limit"`            // bytes a second; 0: none
	Asked   time.Time     `json:"asked,omitzero"`   // of the full scrub that was asked for and is under way
	Done    time.Time     `json:"done,omitzero"`    // Asked of the last one that ended
	Found   int64         `json:"found"`            // damaged blobs that this one found
	Part    string        `json:"part,omitempty"`   // under way
	Oldest  time.Time     `json:"oldest,omitzero"`  // every blob was read since; zero: some never were, but when they were written
	Ended   time.Time     `json:"ended,omitzero"`   // of the last round
	Blobs   int64         `json:"blobs"`            // stored, as far as the scrub knows
	Bytes   int64         `json:"bytes"`            // of them
	Left    int64         `json:"left"`             // blobs to be read in this round
	LeftFor int64         `json:"leftBytes"`        // bytes of them
	Read    int64         `json:"read"`             // blobs read since the start of the process
	ReadFor int64         `json:"readBytes"`        // bytes of them
	Speed   int64         `json:"speed"`            // bytes a second that it reads now, on the whole; 0: nothing
	ETA     time.Time     `json:"eta,omitzero"`     // when this round ends at that speed
	Late    bool          `json:"late"`             // the limit is too low, or the mirror was off too long, for the period
	Strays  int64         `json:"strays"`           // files in the store that are no blobs, since the start
	Stuck   time.Time     `json:"stuck,omitzero"`   // since when the disk does not answer
	Broken  string        `json:"broken,omitempty"` // a part that the scrub cannot look at for now, and why
	Health  Health        `json:"health"`
}

// ScrubStatus returns how the scrub is.
func (m *Mirror) ScrubStatus() ScrubStatus {
	out := m.scrub.status(time.Now())
	out.Health = m.Health()
	return out
}

func (s *scrubber) status(now time.Time) ScrubStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &s.state
	out := ScrubStatus{Every: s.m.config.ScrubEvery, Limit: s.m.config.ScrubLimit, Done: st.Done, Found: st.Found, Part: st.Part, Ended: st.Ended,
		Read: s.blobs, ReadFor: s.bytes, Strays: s.strays}
	if st.Asked {
		out.Asked = st.Round
	}
	for _, name := range s.parts {
		if l, ok := s.late[name]; ok && out.Broken == "" {
			out.Broken = artifact.Truncate(fmt.Sprintf("%s: %v", name, l.err), maxWhy)
		}
	}
	if s.stuck {
		out.Stuck = s.since
	}
	typical, never := s.typical(), false
	for i, name := range s.parts {
		p := st.Parts[name]
		never = never || p.Checked.IsZero()
		if out.Oldest.IsZero() || p.Checked.Before(out.Oldest) {
			out.Oldest = p.Checked
		}
		if i >= artifact.Shards {
			continue
		}
		p = s.shardOf(i, typical)
		out.Blobs += p.Blobs
		out.Bytes += p.Bytes
		if st.Round.IsZero() || !p.Checked.Before(st.Round) && p.Checked.After(time.Time{}) {
			continue
		}
		part := 1.0
		if name == st.Part {
			part -= shardDone(st.After)
		}
		out.Left += int64(math.Ceil(float64(p.Blobs) * part))
		out.LeftFor += int64(float64(p.Bytes) * part)
	}
	if never {
		out.Oldest = time.Time{}
	}
	s.forecast(now, &out)
	return out
}

// forecast says how fast the scrub is, and when the round ends. The caller holds mu.
func (s *scrubber) forecast(now time.Time, out *ScrubStatus) {
	var speed float64
	speed, out.Late = s.needed(now)
	if s.state.Round.IsZero() || !s.state.Asked && out.Every <= 0 {
		return
	}
	cost := float64(out.LeftFor + out.Left*scrubSeek)
	if s.state.Asked { // as it was so far
		done := float64(out.Bytes-out.LeftFor) + float64(out.Blobs-out.Left)*scrubSeek
		speed = min(speed, done/max(now.Sub(s.state.Round).Seconds(), 0.001))
	}
	took := cost / speed
	if speed < 1 || took > (100*365*24*time.Hour).Seconds() {
		return
	}
	out.Speed = int64(speed)
	out.ETA = now.Add(time.Duration(took * float64(time.Second))).UTC().Truncate(time.Second)
}

// ScrubNow begins a full scrub, at most at speed bytes a second, 0: as fast as it can be. It returns the time by which
// ScrubStatus knows it. One that is under way already goes on, at the new speed. It is kept over a restart.
func (m *Mirror) ScrubNow(speed int64) time.Time {
	s := m.scrub
	s.mu.Lock()
	st := &s.state
	if !st.Asked {
		st.Asked, st.Round, st.Bad = true, time.Now(), 0
	}
	st.Speed = speed
	s.hurry = true
	asked := st.Round
	s.mu.Unlock()
	s.poke()
	return asked
}

// StopScrub ends a full scrub that was asked for. What it has read is read; the rest is due when it was before.
func (m *Mirror) StopScrub() {
	s := m.scrub
	s.mu.Lock()
	s.state.Asked, s.state.Speed, s.hurry = false, 0, true
	s.mu.Unlock()
	s.poke()
}

func (s *scrubber) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
