package mirror

import (
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// What says what happened.
type What string

// What happens to artifacts.
const (
	Stored  What = "stored"  // it has passed the gate and is kept: from an upstream it is committed, too
	Refused What = "refused" // it failed a check
	Damaged What = "damaged" // a blob that was here is not what it was
	Healed  What = "healed"  // its right bytes are back
)

// Event is something that happened to an artifact on this node, for people who watch. What cannot be said is zero.
type Event struct {
	What   What
	Module module.Version // without a version: all of the path; zero also for a private module, whose names are for nobody to see
	Kind   artifact.Kind
	Bytes  int64
	Took   time.Duration
	Source string // who sent it: an upstream, or a node
	Reason string // why it was refused, or is damaged
}

// attrs returns what stands in the log of e.
func (e Event) attrs() (out []any) {
	out = append(out, "module", e.Module.Path)
	if e.Module.Version != "" {
		out = append(out, "version", e.Module.Version)
	}
	if e.Kind != 0 {
		out = append(out, "kind", e.Kind)
	}
	if e.Source != "" {
		out = append(out, "source", e.Source)
	}
	return out
}

// happened tells whoever watches. err is the reason, if there is one; it may name the module, so a private one has none.
func (m *Mirror) happened(e Event, err error) {
	if m.config.OnEvent == nil {
		return
	}
	if err != nil {
		e.Reason = artifact.PublicText(err, maxReason)
	}
	if m.config.Private != "" && module.MatchPrefixPatterns(m.config.Private, e.Module.Path) {
		e.Module, e.Reason = module.Version{}, ""
	}
	e.Source = artifact.Truncate(e.Source, maxReason)
	m.config.OnEvent(e)
}
