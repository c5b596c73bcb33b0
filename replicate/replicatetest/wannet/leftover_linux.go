package wannet

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// netnsDir is where ip has the namespaces that it knows by a name, prefix how ours begin.
const (
	netnsDir = "/run/netns"
	prefix   = "mmwan-"
)

// removeLeftovers removes the namespaces of processes that run no more.
func removeLeftovers() error {
	all, err := os.ReadDir(netnsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range all {
		rest, ours := strings.CutPrefix(e.Name(), prefix)
		owner, _, _ := strings.Cut(rest, "-")
		pid, err := strconv.Atoi(owner)
		if !ours || err != nil || pid <= 0 || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		if err := removeNamespace(e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) { // another one may be at it
			return err
		}
	}
	return nil
}

// removeNamespace kills the processes in a namespace, waits until they are gone, and removes it.
func removeNamespace(name string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		pids, err := processesIn(name)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return ip("netns", "del", name)
		}
		if time.Now().After(deadline) {
			return errors.New("processes in the network namespace " + name + " do not end")
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
		}
		time.Sleep(5 * time.Millisecond) // until the kernel has taken them away
	}
}

// processesIn returns the processes in a namespace. This one has no thread in any for longer than a call takes.
func processesIn(name string) (pids []int, err error) {
	if _, err := os.Stat(netnsDir + "/" + name); err != nil {
		return nil, err
	}
	out, err := exec.Command("ip", "netns", "pids", name).Output()
	if err != nil {
		return nil, err
	}
	for _, f := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(f); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
