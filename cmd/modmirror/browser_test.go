//go:build browser

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// browser is a real Chromium without a window. Whatever a page complains about in its console fails the test.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu    sync.Mutex
	fault []string // guarded by mu; what the pages said in their consoles
	fine  []string // guarded by mu; parts of what they may say
}

// browserPath returns the program. Where there is none the test cannot run, and says what to do.
func browserPath(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatal("there is no Chromium on this machine; make browser installs Debian's as root (apt-get install chromium)")
	return ""
}

// newBrowser starts a browser with its own profile, which the test's end kills.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(browserPath(t)), chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("no-proxy-server", true))
	if os.Getuid() == 0 { // Chromium's sandbox does not run as root
		opts = append(opts, chromedp.NoSandbox)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	ctx, cancelProcess := chromedp.NewExecAllocator(ctx, opts...)
	t.Cleanup(cancelProcess) // it kills the process that it started, and waits for it
	ctx, cancelTab := chromedp.NewContext(ctx, chromedp.WithErrorf(func(string, ...any) {}))
	t.Cleanup(cancelTab)
	b := &browser{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, b.hear); err != nil { // this starts it, too
		t.Fatalf("start Chromium: %v", err)
	}
	call(b, log.Enable, cdp.Empty{})
	t.Cleanup(b.quiet)
	return b
}

// hear notes what a page complains about: scripts that fail, what the policy (CSP) forbids, what cannot be loaded.
func (b *browser) hear(event any) {
	text := ""
	switch e := event.(type) {
	case *log.EventEntryAdded:
		text = fmt.Sprintf("%s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL)
	case *runtime.EventExceptionThrown:
		text = e.ExceptionDetails.Text
		if x := e.ExceptionDetails.Exception; x != nil {
			text += ": " + x.Description
		}
	case *runtime.EventConsoleAPICalled:
		text = fmt.Sprintf("console: %v", e.Args)
	default:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault = append(b.fault, text)
}

// may lets pages complain about something that a test causes.
func (b *browser) may(part string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fine = append(b.fine, part)
}

// quiet fails the test if a page complained.
func (b *browser) quiet() {
	b.mu.Lock()
	defer b.mu.Unlock()
next:
	for _, text := range b.fault {
		for _, part := range b.fine {
			if strings.Contains(text, part) {
				continue next
			}
		}
		b.t.Errorf("the page complains: %s", text)
	}
}

// call gives the browser a command.
func call[P, R any](b *browser, cmd cdp.Command[P, R], params P) R {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patient)
	defer cancel()
	r, err := chromedp.Call(ctx, cmd, params)
	if err != nil {
		b.t.Fatalf("browser: %s: %v", cmd.Method, err)
	}
	return r
}

// act runs an action.
func act[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patient)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		b.t.Fatalf("browser: %v", err)
	}
	return v
}

// patient is how long a browser may take for anything.
const patient = 30 * time.Second

// eval returns the value of a JavaScript expression.
func eval[T any](b *browser, expression string) T {
	b.t.Helper()
	return act(b, chromedp.Evaluate[T](expression))
}

// screen makes the window of that size, light or dark.
func (b *browser) screen(width, height int64, scheme string) {
	b.t.Helper()
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 600})
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
}

// open loads a page.
func (b *browser) open(url string) {
	b.t.Helper()
	act(b, chromedp.Navigate(url))
}

// text returns what stands in an element as it is shown.
func (b *browser) text(selector string) (s string) {
	b.t.Helper()
	return eval[string](b, fmt.Sprintf("(document.querySelector(%q) || {innerText: '(no element)'}).innerText", selector))
}

// awaits polls until an expression is true.
func (b *browser) awaits(what, expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patient)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !act(b, chromedp.Evaluate[bool]("(async () => Boolean(await ("+expression+")))()", chromedp.EvalAwaitPromise)) {
		select {
		case <-ctx.Done():
			b.t.Fatalf("no %s; the page is\n%s", what, b.text("body"))
		case <-tick.C:
		}
	}
}

// shot keeps a picture of the whole page in the directory MODMIRROR_SHOTS, for people to look at.
func (b *browser) shot(name string) {
	b.t.Helper()
	dir := os.Getenv("MODMIRROR_SHOTS")
	if dir == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), act(b, chromedp.FullScreenshot(100)), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// fits fails the test if the page is wider than the window.
func (b *browser) fits(what string) {
	b.t.Helper()
	if w := eval[[]int](b, "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"); w[0] > w[1] {
		b.t.Errorf("%s: the page is %d wide in a window of %d: %s", what, w[0], w[1], eval[string](b, `[...document.querySelectorAll("body *")].filter(e =>
			e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.tagName + "." + e.className).slice(0, 5).join(" ")`))
	}
}
