package sumdbtest

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"modmirror/mirror/artifact"
)

// Files is a source that serves recorded answers: the files of FS, by the protocol's own paths.
type Files struct {
	FS fs.FS

	mu       sync.Mutex
	replaced map[string][]byte // guarded by mu
	down     bool              // guarded by mu
	asked    []string          // guarded by mu
}

// Get answers path as the Source of package sumdb does.
func (f *Files) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	b, err := f.answer(ctx, path, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f, err)
	}
	return b, nil
}

func (f *Files) answer(ctx context.Context, path string, limit int64) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, path)
	if f.down {
		return nil, fmt.Errorf("%s: connection refused: %w", path, artifact.ErrUnavailable)
	}
	if path == "/supported" {
		return nil, nil
	}
	name := strings.TrimPrefix(path, "/")
	b, ok := f.replaced[name]
	if !ok {
		var err error
		if b, err = fs.ReadFile(f.FS, name); err != nil {
			return nil, err
		}
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes: %w", path, limit, artifact.ErrMalformed)
	}
	return b, ctx.Err()
}

// String names f.
func (f *Files) String() string { return "recorded answers" }

// Replace makes f answer name ("latest", "tile/8/0/000") with b from now on.
func (f *Files) Replace(name string, b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.replaced == nil {
		f.replaced = make(map[string][]byte)
	}
	f.replaced[name] = b
}

// SetDown makes every request fail, or not.
func (f *Files) SetDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

// Asked returns the paths asked for since the last call.
func (f *Files) Asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.asked
	f.asked = nil
	return out
}
