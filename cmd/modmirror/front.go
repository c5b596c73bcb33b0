package main

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"modmirror/mirror"
)

// patience is how long whoever connects while a node opens is left waiting. After that it is told to come back: a node that
// is looking for others, to form a cluster with, may look for long.
const patience = 2 * time.Second

// front answers on the public port: with the mirror once there is one, and before that with what this node is doing.
type front struct {
	mirror atomic.Pointer[mirror.Mirror]
	doing  atomic.Pointer[string]
	hurdle atomic.Pointer[string] // why it is not done yet; nil: nothing is known
}

// say tells what the node is doing.
func (f *front) say(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	f.doing.Store(&s)
	f.hurdle.Store(nil)
}

// blame tells why what the node is doing does not come to an end.
func (f *front) blame(err error) {
	s := err.Error()
	f.hurdle.Store(&s)
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if m := f.mirror.Load(); m != nil {
		m.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if r.URL.Path == "/healthz" { // the process lives, and must not be restarted for waiting
		fmt.Fprintln(w, "ok")
		return
	}
	doing := "opening its files"
	if s := f.doing.Load(); s != nil {
		doing = *s
	}
	w.Header().Set("Retry-After", "2")
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprintf(w, "this mirror is starting: %s\n", doing)
	if s := f.hurdle.Load(); s != nil {
		fmt.Fprintf(w, "last: %s\n", *s)
	}
}
