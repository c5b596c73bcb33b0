package main

import (
	"errors"
	"fmt"
	"net/http"

	"modmirror/mirror/artifact"
)

// sendCatalog makes the handler that sends the catalog to a backup, to one at a time: as long as it is read, no page of it that
// is freed meanwhile is used again. What breaks off has no seal, and whoever receives it sees that.
func (n *node) sendCatalog() http.Handler {
	sending := make(chan struct{}, 1)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case sending <- struct{}{}:
			defer func() { <-sending }()
		default:
			sendError(w, fmt.Errorf("another backup receives the catalog of this node: ask again later, or another node: %w", artifact.ErrUnavailable))
			return
		}
		out := &counted{ResponseWriter: w}
		err := n.replica.Send(r.Context(), out)
		switch {
		case err == nil:
		case out.n == 0:
			sendError(w, err)
		default:
			if !errors.Is(err, r.Context().Err()) {
				n.log.Warn("the catalog is sent to a backup in part", "to", r.RemoteAddr, "bytes", out.n, "err", err)
			}
			panic(http.ErrAbortHandler)
		}
	})
}

// counted counts what is written.
type counted struct {
	http.ResponseWriter
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}
