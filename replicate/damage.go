package replicate

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"modmirror/mirror/artifact"
)

// errRotten is an [artifact.ErrDamaged] about inline bytes, which their digest names: the right ones can be had elsewhere
// and take their place (see heal).
var errRotten = fmt.Errorf("%w", artifact.ErrDamaged)

// rotten says that inline bytes are lost, and why.
func rotten(d artifact.Digest, format string, args ...any) error {
	return fmt.Errorf("inline bytes %v: %s: %w", d, fmt.Sprintf(format, args...), errRotten)
}

// damageLog is told of everything that is found damaged. What cannot heal it remembers as long as the process runs.
type damageLog struct {
	log *slog.Logger // nil: nothing is logged

	mu    sync.Mutex
	first error     // guarded by mu; nil: nothing is damaged for good
	told  time.Time // guarded by mu; of the last line in the log
}

// tellAgain is how often damage that many requests meet is logged.
const tellAgain = 10 * time.Second

func (d *damageLog) found(err error) {
	if d.note(err) && d.log != nil {
		d.log.Error("the catalog is damaged: look at the disk, then run modmirror fsck", "err", printable(err))
	}
}

// note remembers err and reports whether it should be told.
func (d *damageLog) note(err error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	isNew := d.first == nil && !errors.Is(err, errRotten)
	if isNew {
		d.first = err
	}
	if !isNew && time.Since(d.told) < tellAgain {
		return false
	}
	d.told = time.Now()
	return true
}

// err returns the first damage that does not heal.
func (d *damageLog) err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.first
}
