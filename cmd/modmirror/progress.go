package main

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows how far a long command is: a bar on a terminal, nothing elsewhere.
type progress struct {
	w   io.Writer // nil: not a terminal
	bar *progressbar.ProgressBar
}

func newProgress(w io.Writer) *progress {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &progress{w: f}
	}
	return &progress{}
}

// stage starts a new bar of total steps; -1 if nobody knows.
func (p *progress) stage(name string, total int) {
	if p.w == nil {
		return
	}
	p.done()
	p.bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(p.w), progressbar.OptionSetDescription(name),
		progressbar.OptionShowCount(), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
}

func (p *progress) set(n int) {
	if p.bar != nil {
		_ = p.bar.Set(n) // the terminal may be gone; the check goes on
	}
}

func (p *progress) done() {
	if p.bar != nil {
		_ = p.bar.Finish()
		p.bar = nil
	}
}
