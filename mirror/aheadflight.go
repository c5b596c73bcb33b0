package mirror

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// aheadFlight is one fetch of look-ahead that is on its way.
type aheadFlight struct {
	cancel context.CancelCauseFunc
	idle   *time.Timer // runs out when no client may have asked for a while
	wanted bool        // a client asks for the same: the fetch is the client's now
}

// errIdle ends a fetch that was to spare clients a wait when there are none.
var errIdle = fmt.Errorf("no client has asked for a go.mod for %v: %w", aheadIdle, context.Canceled)

// fly fetches a go.mod ahead of clients, or joins whoever does it for one.
func (a *lookAhead) fly(ctx context.Context, mv module.Version) (landed[bringing], error) {
	key, budget := a.key(mv), a.m.config.FetchBudget
	if a.m.config.Peers != nil {
		budget = a.m.askBudget(artifact.Mod)
	}
	return fly(ctx, a.m.flights, key, a.m.config.ClientWait, budget, a.places, func(ctx context.Context) (bringing, error) {
		ctx, land := a.launch(ctx, key, mv)
		defer land()
		b, err := a.askOrOwn(ctx, mv)
		if why := context.Cause(ctx); err != nil && (why == errIdle || why == errClosing) {
			err = why
		}
		return b, err
	})
}

// key joins a flight with those of clients for the same go.mod.
func (a *lookAhead) key(mv module.Version) string {
	key := flightKey(artifact.Mod, mv)
	if a.m.config.Peers != nil {
		key = askKey(key)
	}
	return key
}

// askOrOwn asks the node whose turn it is, or the upstream.
func (a *lookAhead) askOrOwn(ctx context.Context, mv module.Version) (bringing, error) {
	key := flightKey(artifact.Mod, mv)
	if a.m.config.Peers == nil {
		return a.m.bringHere(ctx, mv, artifact.Mod, key, "look-ahead")
	}
	return a.m.askOrOwn(ctx, mv, artifact.Mod, key, "look-ahead", a.m.small)
}

// launch returns a context that ends with ctx, and when no client has asked for a go.mod for aheadIdle, unless one has
// asked for this one. land must be called when the fetch is over.
func (a *lookAhead) launch(ctx context.Context, key string, mv module.Version) (flight context.Context, land func()) {
	flight, cancel := context.WithCancelCause(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	_, wanted := a.clients.get(mv.String())
	f := &aheadFlight{cancel: cancel, wanted: wanted}
	f.idle = time.AfterFunc(a.idleIn(), func() { a.tire(key, f) })
	a.aloft[key] = f
	if a.closed {
		a.giveUp(key, f, errClosing)
	}
	return flight, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		f.idle.Stop()
		cancel(nil)
		if a.aloft[key] == f {
			delete(a.aloft, key)
		}
	}
}

// idleIn returns in what time there will have been no client for aheadIdle, if none comes.
func (a *lookAhead) idleIn() time.Duration { return time.Until(a.asked.Add(aheadIdle)) }

// tire gives f up, or waits for another while if a client has asked for something.
func (a *lookAhead) tire(key string, f *aheadFlight) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.aloft[key] != f {
		return // it is over
	}
	if left := a.idleIn(); left > 0 {
		f.idle.Reset(left)
		return
	}
	a.giveUp(key, f, errIdle)
}

// giveUp cancels f, unless a client wants it. Who asks for the same from now on does not join it but begins anew: every
// client calls wanted before it looks for a fetch to join, and wanted waits for the lock that the caller of giveUp holds.
func (a *lookAhead) giveUp(key string, f *aheadFlight, why error) {
	if f.wanted {
		return
	}
	delete(a.aloft, key)
	a.m.flights.group.Forget(key)
	f.cancel(why)
}
