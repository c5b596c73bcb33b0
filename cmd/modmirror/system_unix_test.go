//go:build linux || darwin

package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"modmirror/replicate/peer"
)

// ownedBy is a file of another user.
type ownedBy struct {
	fs.FileInfo
	uid uint32
}

func (o ownedBy) Sys() any { return &syscall.Stat_t{Uid: o.uid} }

// Who lets others read the secret hears of it; who can read it for no other reason is not told to end that.
func TestSecretThatOthersCanRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(peer.NewToken().String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o600, 0o640, 0o644} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		log, err := newLogger(&b, "text", "info")
		if err != nil {
			t.Fatal(err)
		}
		n := &node{config: config{Cluster: clusterConfig{TokenFile: file}}, log: log}
		if _, err := n.credentials("x"); err != nil {
			t.Fatal(err)
		}
		if warned := strings.Contains(b.String(), "every user of this machine can read"); warned != (mode == 0o644) {
			t.Errorf("mode %o: the log is %q", mode, b.String())
		}
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if !isOwn(info) || isOwn(ownedBy{info, uint32(os.Geteuid()) + 1}) {
		t.Errorf("isOwn(own file) = %v, isOwn(another's) = %v", isOwn(info), isOwn(ownedBy{info, uint32(os.Geteuid()) + 1}))
	}
}
