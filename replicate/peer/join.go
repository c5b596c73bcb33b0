package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net/http"
	"net/url"
	"time"
)

// Joiner adds nodes to the cluster.
type Joiner interface {
	// Join adds h, which receives everything and decides nothing until it is promoted. It returns when that is committed,
	// also for a node that is a member already. On a node that does not lead it returns a *NotLeader; a *Refusal ends the
	// attempt, with any other error the node asks again.
	Join(ctx context.Context, h Hello) error
}

// NotLeader says that another node has to be asked.
type NotLeader struct{ Leader Member } // zero: nobody leads now

// Error implements error.
func (e *NotLeader) Error() string {
	if e.Leader.ID == "" {
		return "no node leads the cluster now"
	}
	return "node " + short(e.Leader.ID) + " at " + e.Leader.Address + " leads the cluster"
}

// HandleJoin lets nodes without a cluster ask for membership: POST /v1/join?cluster=C.
func (l *Link) HandleJoin(j Joiner) {
	l.handleOpen("POST /v1/join", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.Self().Cluster == "" {
			http.Error(w, "this node has no cluster itself yet", http.StatusServiceUnavailable)
			return
		}
		h, want := From(r), r.FormValue("cluster")
		if want != l.Self().Cluster {
			h.Cluster = want
			ref := refuseForeign(h, l.Self())
			l.refused(r.RemoteAddr, ref)
			writeRefusal(w, ref)
			return
		}
		err := j.Join(r.Context(), h)
		switch e, ok := errors.AsType[*NotLeader](err); {
		case ok:
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusConflict)
			json.NewEncoder(w).Encode(e)
		case ClassOf(err) != "":
			ref := asRefusal(err)
			l.refused(r.RemoteAddr, ref)
			writeRefusal(w, ref)
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	}))
}

// Join asks for membership in a cluster, of its leader, who is found by asking any of ask. It tries until it is a member,
// it is refused for a reason that does not pass by itself, or ctx ends.
func (l *Link) Join(ctx context.Context, cluster string, ask []Member) error {
	if len(ask) == 0 {
		return errors.New("join a cluster: no member of it is known")
	}
	for i := 0; ; i++ {
		err := l.joinOnce(ctx, cluster, ask[i%len(ask)])
		if err == nil {
			return nil
		}
		if r, ok := errors.AsType[*Refusal](err); ok && r.Permanent() {
			return fmt.Errorf("join cluster %s: %w", short(cluster), err)
		}
		l.tell(err)
		if l.said.now("join "+ask[i%len(ask)].Address, time.Now()) {
			l.log.Warn("cannot join the cluster yet, trying again", "address", ask[i%len(ask)].Address, "err", err)
		}
		if !pause(ctx, l.config.pause/2+mrand.N(l.config.pause)) {
			return fmt.Errorf("join cluster %s: %w, last: %w", short(cluster), ctx.Err(), err)
		}
	}
}

// joinOnce asks m, and whom m names as leader.
func (l *Link) joinOnce(ctx context.Context, cluster string, m Member) error {
	for hop := 0; ; hop++ {
		next, err := l.askToJoin(ctx, cluster, m)
		if err == nil || next.ID == "" || next == m || hop == 2 {
			return err
		}
		m = next
	}
}

// askToJoin returns the leader if that is not m.
func (l *Link) askToJoin(ctx context.Context, cluster string, m Member) (leader Member, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	resp, err := l.Do(ctx, Request{Node: m.ID, Addr: m.Address, Method: "POST", Path: "/v1/join?cluster=" + url.QueryEscape(cluster)})
	if err != nil {
		return leader, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		return leader, nil
	}
	b := make([]byte, maxText)
	n, _ := resp.Body.Read(b)
	if resp.StatusCode == http.StatusConflict {
		var e NotLeader
		if json.Unmarshal(b[:n], &e) == nil && (e.Leader.ID == "" || e.Leader.check() == nil) {
			return e.Leader, &e
		}
	}
	return leader, &StatusError{resp.StatusCode, string(b[:n])}
}
