//go:build bench && linux

package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// list measures the list of a module with 10,000 versions, as one client sees it that asks again and again.
func (b *bench) list(t *testing.T) {
	tree := filepath.Join(b.work, "list-tree")
	var text strings.Builder
	for i := range manyVersions {
		text.WriteString(nth(i).Version + "\n")
	}
	file := filepath.Join(tree, many, "@v", "list")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	peer, err := startNginx(b.ctx, "static", filepath.Join(b.work, "list-static"), tree, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { report(t, peer.stop()) }()
	var first samples
	var median, p99 [2]samples // of the peer and of modmirror
	for round := range b.rounds {
		mirror, err := b.startMirror(filepath.Join(b.work, fmt.Sprint("list-data-", round)), peer.counted)
		if err != nil {
			t.Fatal(err)
		}
		first = append(first, b.listTimes(t, mirror, text.Len(), 1)[0])
		for i, s := range []*server{peer, mirror} {
			all := b.listTimes(t, s, text.Len(), 2000)
			median[i], p99[i] = append(median[i], all[len(all)/2]), append(p99[i], all[len(all)*99/100])
		}
		report(t, mirror.stop())
	}
	name := fmt.Sprintf("list of %d versions, 1 connection, ", manyVersions)
	b.add(row{name + "first answer (fetched), ms", nil, first, aim{}})
	b.add(row{name + "median ms", median[0], median[1], below(5)})
	b.add(row{name + "p99 ms", p99[0], p99[1], below(5)})
}

// listTimes asks s for the list n times, over one connection, and returns how long each took, sorted, in ms.
func (b *bench) listTimes(t *testing.T, s *server, size, n int) []float64 {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	defer client.CloseIdleConnections()
	var all []float64
	for range n {
		begin := time.Now()
		if err := swallow(b.ctx, client, s.url+"/"+many+"/@v/list", int64(size)); err != nil {
			t.Fatal(err)
		}
		all = append(all, time.Since(begin).Seconds()*1e3)
	}
	slices.Sort(all)
	return all
}
