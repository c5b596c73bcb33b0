package faultproxy

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestMain is also a process that connects to the address that it is given, and waits to be killed.
func TestMain(m *testing.M) {
	addr := os.Getenv("FAULTPROXY_TEST_DIAL")
	if addr == "" {
		os.Exit(m.Run())
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		os.Exit(1)
	}
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	_ = c.Close()
}

func TestWhose(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "FAULTPROXY_TEST_DIAL="+ln.Addr().String())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	own, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	ours, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	self, child := os.Getpid(), cmd.Process.Pid
	for _, test := range []struct {
		name string
		c    net.Conn
		pids []int
		want int
	}{
		{"the child's", theirs, []int{self, child}, child},
		{"ours", ours, []int{child, self}, self},
		{"nobody's", theirs, []int{self}, 0},
	} {
		if got, err := Whose(test.c, test.pids); err != nil || got != test.want {
			t.Errorf("%s: %d, %v, want %d", test.name, got, err, test.want)
		}
	}
	if in.Close() != nil || cmd.Wait() != nil || !strings.Contains(cmd.ProcessState.String(), "exit status 0") {
		t.Errorf("the child: %v", cmd.ProcessState)
	}
}
