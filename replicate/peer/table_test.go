package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

func TestOwner(t *testing.T) {
	var all []Member
	for i := range 5 {
		all = append(all, Member{ID: fmt.Sprint("node", i), Address: "h:1"})
	}
	first := map[string]int{}
	moved := 0
	for i := range 1000 {
		key := fmt.Sprint("key", i)
		order := Owner(key, all)
		first[order[0].ID]++
		shuffled := slices.Clone(all)
		slices.Reverse(shuffled)
		if !slices.Equal(Owner(key, shuffled), order) {
			t.Fatal("the order depends on the order of the candidates")
		}
		// Without one node the others stay in their order.
		rest := slices.DeleteFunc(slices.Clone(order), func(m Member) bool { return m.ID == "node2" })
		got := Owner(key, slices.DeleteFunc(slices.Clone(all), func(m Member) bool { return m.ID == "node2" }))
		if !slices.Equal(got, rest) {
			moved++
		}
	}
	if moved > 0 {
		t.Errorf("%d keys moved between nodes that stayed", moved)
	}
	for id, n := range first {
		if n < 140 || n > 260 {
			t.Errorf("%s owns %d of 1000 keys", id, n)
		}
	}
	var ids string // nodes of two versions must agree
	for _, m := range Owner("example.com/m@v1.0.0", all) {
		ids += m.ID[4:]
	}
	if want := "14230"; ids != want {
		t.Errorf("the order is %s, want %s as ever", ids, want)
	}
	if got := Owner("k", nil); len(got) != 0 {
		t.Errorf("Owner of nothing = %v", got)
	}
}

func TestTable(t *testing.T) {
	a := start(t, "a", nil)
	var fail atomic.Bool
	var asked atomic.Int64
	status := func(n *testNode) {
		n.Handle("GET /v1/status", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			if fail.Load() {
				http.Error(w, "ill", 500)
				return
			}
			fmt.Fprintf(w, `{"node":%q}`, n.Self().Node)
		}))
	}
	b, c, hung := start(t, "b", nil), start(t, "c", nil), start(t, "hung", nil)
	status(b)
	c.Handle("GET /v1/status", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "no json") }))
	hung.Handle("GET /v1/status", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	other := b.Self().Member() // an address that was given to another node
	other.ID = "gone"
	var members atomic.Pointer[[]Member]
	members.Store(&[]Member{a.Self().Member(), b.Self().Member(), c.Self().Member(), hung.Self().Member(), other})
	tab := NewTable(TableConfig{Link: a.Link, Interval: 16 * time.Millisecond, Members: func() []Member { return *members.Load() },
		Parse: func(b json.RawMessage) any { return len(b) }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tab.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
	}()
	row := func(id string) (s Seen) {
		for _, r := range tab.All() {
			if r.ID == id {
				s = r
			}
		}
		return s
	}
	until(t, "b is healthy, beside one that hangs", func() bool { return row("b").Healthy && asked.Load() > 5 })
	if s := row("b"); string(s.Status) != `{"node":"b"}` || s.Parsed != len(s.Status) || s.RTT <= 0 || s.Sent.IsZero() || s.At.Before(s.Sent) || s.Zone != "z1" || s.Err != nil {
		t.Errorf("b: %+v", s)
	}
	until(t, "c has an error", func() bool {
		return ClassOf(row("gone").Err) == OtherNode && row("c").Err.Error() == "its status is not JSON"
	})
	if h := tab.Healthy(); len(h) != 1 || h[0].ID != "b" {
		t.Errorf("Healthy = %v", h)
	}
	if len(tab.All()) != 4 {
		t.Errorf("All = %v, want all but the node itself", tab.All())
	}
	fail.Store(true)
	until(t, "b is ill", func() bool { return !row("b").Healthy })
	if s := row("b"); s.Err == nil || string(s.Status) != `{"node":"b"}` {
		t.Errorf("b when ill: %+v", s)
	}
	fail.Store(false)
	until(t, "b is well again", func() bool { return row("b").Healthy })
	tab.Missed("b", errors.New("it did not answer"))
	until(t, "b is well again after it was missed", func() bool { return row("b").Healthy })
	members.Store(&[]Member{b.Self().Member()})
	until(t, "the others are forgotten", func() bool { return len(tab.All()) == 1 })
}

// A far node is asked half as often, unless there is a doubt whether it answers.
func TestTableInterval(t *testing.T) {
	tab := NewTable(TableConfig{})
	far, near := 2*farTrip, farTrip/2
	for _, tt := range []struct {
		name string
		row  row
		want time.Duration
	}{
		{"near", row{Seen: Seen{Healthy: true, Trip: near}}, tableEvery},
		{"far", row{Seen: Seen{Healthy: true, Trip: far}}, 2 * tableEvery},
		{"far, and ill", row{Seen: Seen{Trip: far}}, tableEvery},
		{"far, and did not answer once", row{Seen: Seen{Healthy: true, Trip: far}, misses: 1}, tableEvery},
		{"not asked yet", row{}, tableEvery},
	} {
		if got := tab.interval(&tt.row); got != tt.want {
			t.Errorf("%s: every %v, want %v", tt.name, got, tt.want)
		}
	}
}

// More members that hang than are asked at once, and then one that answers: its turn comes.
func TestTableIsBounded(t *testing.T) {
	a, hung := start(t, "a", nil), start(t, "hung", nil)
	var now, most atomic.Int64
	hung.Handle("GET /v1/status", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-r.Context().Done()
		now.Add(-1)
	}))
	good := start(t, "good", nil)
	good.Handle("GET /v1/status", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") }))
	var members []Member
	for i := range 3 * tableAtOnce {
		members = append(members, Member{ID: fmt.Sprint("hung", i), Address: "127.0.0.1:1"})
	}
	members = append(members, hung.Self().Member(), good.Self().Member())
	tab := NewTable(TableConfig{Link: a.Link, Interval: 16 * time.Millisecond, Members: func() []Member { return members }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tab.Run(ctx) }()
	until(t, "the good one is seen", func() bool { return len(tab.Healthy()) == 1 })
	cancel()
	<-done
	if most.Load() > 1 {
		t.Errorf("one member was asked %d times at once", most.Load())
	}
}

// The round trip is the shortest of the last answers, so that a node that is busy is not taken for one that is far, and of
// a node that is far an answer may take longer.
func TestTrip(t *testing.T) {
	const ms = time.Millisecond
	r := &row{}
	table := &Table{rows: map[string]*row{"a": r}}
	if got := table.timeout("a"); got != tableTimeout || table.timeout("nobody") != tableTimeout {
		t.Errorf("an answer of a node of which nothing is known may take %v", got)
	}
	r.took(200 * ms) // it had to connect first
	if r.Trip != 200*ms || r.RTT != 200*ms {
		t.Errorf("after one answer: %v, smoothed %v", r.Trip, r.RTT)
	}
	r.took(1 * ms)
	for range tripOf - 1 {
		r.took(300 * ms)
		if r.Trip != 1*ms || table.timeout("a") != tableTimeout {
			t.Fatalf("the round trip is %v", r.Trip)
		}
	}
	r.took(80 * ms)
	if r.Trip != 80*ms || table.timeout("a") != tableFar {
		t.Errorf("the round trip is %v, an answer may take %v", r.Trip, table.timeout("a"))
	}
	var quick row
	quick.took(0)
	if quick.Trip == 0 {
		t.Error("an answer that took no time counts as none")
	}
}
