package mirror

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

func TestProve(t *testing.T) {
	newRig(t).want("/prove/example.com/hello@v1.0.0", 404, "no proofs are served here")
	asked := 0
	g := newRig(t, func(c *Config) {
		c.Private = "corp.example.com"
		c.Prove = func(_ context.Context, m module.Version) (any, error) {
			asked++
			switch m.Path {
			case "example.com/Hello":
				return map[string]string{"module": m.String()}, nil
			case "example.com/broken":
				return nil, fmt.Errorf("its tree head is gone: %w", artifact.ErrDamaged)
			}
			return nil, fmt.Errorf("%s is not held: %w", m, fs.ErrNotExist)
		}
	})
	a := g.want("/prove/example.com/!hello@v1.0.0", 200, `"module": "example.com/Hello@v1.0.0"`)
	if a.header.Get("Content-Type") != "application/json" || a.header.Get("Cache-Control") != "no-store" || a.header.Get("X-Request-Id") == "" {
		t.Errorf("%v", a.header)
	}
	g.want("/prove/example.com/%21hello@v1.0.0", 200, "example.com/Hello")
	g.want("/prove/example.com/other@v1.0.0", 404, "not held")
	g.want("/prove/example.com/broken@v1.0.0", 503, "its tree head is gone")
	if asked != 4 {
		t.Errorf("asked %d times", asked)
	}
	for path, status := range map[string]int{
		"/prove/": 400, "/prove/@": 400, "/prove/example.com/hello": 400, "/prove/example.com/hello@": 400, "/prove/example.com/hello@master": 400,
		"/prove/example.com/hello@v1": 400, "/prove/example.com/hello@v2.0.0": 400, "/prove/example.com/../hello@v1.0.0": 400,
		"/prove/example.com//hello@v1.0.0": 400, "/prove/example.com%2fhello@v1.0.0": 400, "/prove/127.0.0.1/x@v1.0.0": 400,
		"/prove/corp.example.com/x@v1.0.0": 403, "/prove/corp.example.com/x@nonsense": 400,
	} {
		g.want(path, status, "")
	}
	if asked != 4 {
		t.Errorf("nonsense was asked for")
	}
	if logs := g.logs.String(); strings.Contains(logs, "corp.example.com") {
		t.Errorf("the log names a private module:\n%s", logs)
	}
}
