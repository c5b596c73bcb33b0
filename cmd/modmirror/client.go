package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// serverFlag declares the address of the running mirror that a command asks.
func serverFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("server", "http://localhost:3000", "ask the mirror that serves at this `URL`")
}

// ask fetches a small document from a running mirror.
func ask(ctx context.Context, server, path string) ([]byte, error) {
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(server, "/")+path, nil)
	if err != nil {
		return nil, usageError("--server: %v", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no mirror answers at %s (is `modmirror serve` running there? see --server): %w", server, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", server, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s: %s", server, resp.Status, strings.TrimSpace(string(body[:min(len(body), 600)])))
	}
	return body, nil
}
