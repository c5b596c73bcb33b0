package sumdb

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"sync"
	"time"
)

// class is a kind of request. A source may answer one and hang at another.
type class string

const (
	classLatest class = "latest"
	classLookup class = "lookup"
	classTile   class = "tile"
)

// classOf returns the class of the request for path.
func classOf(path string) class {
	c, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return class(c)
}

// How long a source may say nothing before the next one is asked as well. A lookup of a version that nobody asked for
// before takes a database a while; a tile or a head does not.
const (
	lookupPatience = 10 * time.Second
	fetchPatience  = 3 * time.Second
)

func (c class) patience() time.Duration {
	if c == classLookup {
		return lookupPatience
	}
	return fetchPatience
}

// result is what came of asking one source.
type result[T any] struct {
	source *source
	val    T
	err    error
	mute   bool // a proxy that does not speak for the database: there is nothing else in here
}

// ask asks the sources with f, which begins with a request of class c, best first. The next one is asked when the last one
// has failed, and also when it has said nothing for c's patience (less if ctx ends soon): one that hangs then costs no more
// than that, and one that is merely slow is not given up. Results come as they are there. Who has seen enough breaks off,
// which ends the questions that are still open.
//
// Whether a proxy speaks for the database is found out only when its turn comes; one that does not yields nothing. If
// nothing is yielded there is nobody to ask, or ctx is done.
func ask[T any](ctx context.Context, db *DB, c class, f func(context.Context, *source) (T, error)) iter.Seq[result[T]] {
	return func(yield func(result[T]) bool) {
		var wg sync.WaitGroup
		defer wg.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		order := db.order(c)
		results := make(chan result[T], len(order))
		var newest *source
		var silence <-chan time.Time // of newest, if there is another one to ask
		open := 0
		next := func() {
			silence = nil
			if len(order) == 0 || ctx.Err() != nil {
				return
			}
			s := order[0]
			order, newest = order[1:], s
			if len(order) > 0 {
				silence = time.After(share(ctx, s.patience(c), len(order)+1))
			}
			open++
			wg.Go(func() { results <- askOne(ctx, db, s, f) })
		}
		for next(); open > 0; {
			select {
			case r := <-results:
				open--
				if !r.mute && !yield(r) {
					return
				}
				if r.source == newest {
					next()
				}
			case <-silence:
				newest.hang(c, newest.patience(c))
				next()
			}
		}
	}
}

func askOne[T any](ctx context.Context, db *DB, s *source, f func(context.Context, *source) (T, error)) result[T] {
	r := result[T]{source: s}
	if r.mute = !db.supported(ctx, s); r.mute {
		return r
	}
	r.err = db.guard(fmt.Sprintf("ask %s", s), func() (err error) {
		r.val, err = f(ctx, s)
		return err
	})
	return r
}

// share returns how long the first of n sources may take: at most limit, and no more than its share of the time that ctx
// leaves.
func share(ctx context.Context, limit time.Duration, n int) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(limit, time.Until(deadline)/time.Duration(n))
	}
	return limit
}
