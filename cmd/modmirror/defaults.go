package main

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"time"
)

// upstreamOf returns the GOPROXY list to fetch from, and who said so: the setting, what make linked in (the go
// toolchain's own default), $GOPROXY, or the go command on this machine. No name of a proxy stands in the source.
func upstreamOf(ctx context.Context, setting string) (list, saidBy string, err error) {
	if setting != "" {
		return setting, "--upstream", nil
	}
	if defaultUpstream != "" {
		return defaultUpstream, "the go toolchain's default at build time", nil
	}
	if v := os.Getenv("GOPROXY"); v != "" {
		return v, "$GOPROXY", nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "go", "env", "GOPROXY").Output(); err == nil {
		if v := strings.TrimSpace(string(out)); v != "" {
			return v, "go env GOPROXY", nil
		}
	}
	return "", "", usageError("no upstream: this binary was built without make, $GOPROXY is empty and there is no go command to ask; set --upstream to a GOPROXY list, or --offline")
}
