package mirror

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
)

// Of a client that asks for thousands of ranges at once, as many as a header can name, each answer is bounded by what there is
// and some bytes for each range, and takes no memory; the right bytes are served to others meanwhile and after.
func TestRangeStorm(t *testing.T) {
	g := newRig(t)
	var noise strings.Builder
	for r := rand.New(rand.NewPCG(1, 2)); noise.Len() < 8*maxHot; {
		fmt.Fprintf(&noise, "%x\n", r.Uint64())
	}
	g.add("example.com/large@v1.0.0\n-- go.mod --\nmodule example.com/large\n-- noise.txt --\n" + noise.String())
	many := func(next func(i int) string) string {
		var b strings.Builder
		b.WriteString("bytes=" + next(0))
		for i := 1; b.Len() < 30<<10; i++ {
			b.WriteString("," + next(i))
		}
		return b.String()
	}
	storm := map[string]string{
		"all of it":  many(func(int) string { return "0-" }),
		"single":     many(func(i int) string { return fmt.Sprintf("%d-%d", 2*i, 2*i) }),
		"last bytes": many(func(i int) string { return fmt.Sprintf("-%d", i+1) }),
		"outside":    many(func(i int) string { return fmt.Sprintf("%d-", 1<<40+i) }),
		"backwards":  many(func(i int) string { return fmt.Sprintf("%d-%d", 9000-i, 9001-i) }),
		"malformed":  many(func(int) string { return "x-" }),
	}
	for _, path := range []string{"/example.com/large/@v/v1.0.0.zip", "/example.com/large/@v/v1.0.0.mod"} {
		want := g.want(path, 200, "").body
		before := heap()
		group, ctx := errgroup.WithContext(t.Context())
		for name, ranges := range storm {
			for range 2 {
				group.Go(func() error {
					req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.srv.URL+path, nil)
					if err != nil {
						return err
					}
					req.Header.Set("Range", ranges)
					resp, err := http.DefaultClient.Do(req)
					if err != nil {
						return err
					}
					defer resp.Body.Close()
					n, err := io.Copy(io.Discard, resp.Body)
					if limit := int64(len(want) + 256*strings.Count(ranges, ",")); err != nil || n > limit || resp.StatusCode >= 500 {
						return fmt.Errorf("%s, %s: %s, %d bytes of at most %d, %w", path, name, resp.Status, n, limit, err)
					}
					return nil
				})
			}
		}
		if g.get(path).body != want {
			t.Errorf("%s: other bytes during the storm", path)
		}
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
		if g.get(path).body != want {
			t.Errorf("%s: other bytes after the storm", path)
		}
		if grown := heap() - before; grown > 16<<20 {
			t.Errorf("%s: %d bytes more are in use", path, grown)
		}
	}
}
