//go:build faults

package fault

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain is also the process that meets the faults: it passes three points for each line of its standard input.
func TestMain(m *testing.M) {
	if os.Getenv("FAULT_TEST_CHILD") == "" {
		os.Exit(m.Run())
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		Point(RecordKnown)
		fmt.Println("known")
		fmt.Println("fsync", Error(BlobFsync), errors.Is(Error(BlobFsync), syscall.EIO))
	}
}

// child is such a process.
type child struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	err strings.Builder
}

func newChild(t *testing.T, file string) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.CommandContext(t.Context(), os.Args[0])}
	c.cmd.Env = append(os.Environ(), "FAULT_TEST_CHILD=1", "MODMIRROR_FAULTS="+file)
	c.cmd.Stderr = &c.err
	in, err1 := c.cmd.StdinPipe()
	out, err2 := c.cmd.StdoutPipe()
	if err := errors.Join(err1, err2, c.cmd.Start()); err != nil {
		t.Fatal(err)
	}
	c.in, c.out = in, bufio.NewScanner(out)
	t.Cleanup(func() { _ = c.cmd.Process.Kill() })
	return c
}

// pass has it pass the points once more, and returns what it says, which is less if it ends.
func (c *child) pass() string {
	c.t.Helper()
	if _, err := io.WriteString(c.in, "\n"); err != nil {
		c.t.Fatal(err)
	}
	var lines []string
	for range 2 {
		if c.out.Scan() {
			lines = append(lines, c.out.Text())
		}
	}
	return strings.Join(lines, ", ")
}

const calm = "known, fsync <nil> false"

func arm(t *testing.T, file, rules string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A running process does what the file says, at the hit that it says, since it says so.
func TestRunningProcessIsTold(t *testing.T) {
	file := filepath.Join(t.TempDir(), "faults")
	c := newChild(t, file)
	if got := c.pass(); got != calm {
		t.Errorf("without a file: %s", got)
	}
	arm(t, file, "blob.fsync 2 error EIO\n")
	if got, want := c.pass(), "known, fsync <nil> true"; got != want {
		t.Errorf("told of the second hit: %s, want %s", got, want)
	}
	if got := c.pass(); got != calm {
		t.Errorf("after it: %s", got)
	}
	arm(t, file, "blob.fsync 2+ error EIO\n")
	_ = c.pass()
	if got, want := c.pass(), "known, fsync input/output error true"; got != want {
		t.Errorf("told of the second hit and all after: %s, want %s", got, want)
	}
	arm(t, file, "\nrecord.known 2 kill\n")
	if got := c.pass(); got != calm {
		t.Errorf("told of the second hit: %s", got)
	}
	if got := c.pass(); got != "" {
		t.Errorf("what it says although it is dead: %s", got)
	}
	_ = c.cmd.Wait()
	if ws := c.cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", c.cmd.ProcessState)
	}
	if !strings.HasSuffix(c.err.String(), "fault: record.known hit 2: kill\n") {
		t.Errorf("its last words: %q", c.err.String())
	}
}

func TestStopAndDelay(t *testing.T) {
	file := filepath.Join(t.TempDir(), "faults")
	arm(t, file, "record.known 1 delay 50ms\nrecord.known 2 stop\n")
	c := newChild(t, file)
	begin := time.Now()
	if got := c.pass(); got != calm || time.Since(begin) < 50*time.Millisecond {
		t.Errorf("%s after %v", got, time.Since(begin))
	}
	if _, err := io.WriteString(c.in, "\n"); err != nil {
		t.Fatal(err)
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(c.cmd.Process.Pid, &ws, syscall.WUNTRACED, nil); err != nil || !ws.Stopped() || ws.StopSignal() != syscall.SIGSTOP {
		t.Fatalf("%v, %v; want it to be stopped", ws, err)
	}
	if err := c.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if !c.out.Scan() || c.out.Text() != "known" {
		t.Errorf("it does not go on: %q", c.out.Text())
	}
}

// A rule that cannot be obeyed ends the process.
func TestBadRules(t *testing.T) {
	for _, text := range []string{
		"blob.fsync", "blob.fsync 1", "blob.fsync 1 explode", "blob.fsync 0 kill", "blob.fsync x kill", "blob.fsync 1 kill now", "no.such.point 1 kill",
		"blob.fsync 1 error", "blob.fsync 1 error EPERM", "record.known 1 error EIO", "blob.fsync 1 delay", "blob.fsync 1 delay -1s", "blob.fsync 1 delay soon",
	} {
		if rules, err := parseRules(text + "\n"); err == nil {
			t.Errorf("%q is taken for %v", text, rules)
		}
	}
	for _, file := range []string{t.TempDir(), filepath.Join(t.TempDir(), "faults")} {
		if filepath.Base(file) == "faults" {
			arm(t, file, "blob.fsync 1 explode\n")
		}
		c := newChild(t, file)
		if got := c.pass(); got != "" {
			t.Errorf("it goes on: %s", got)
		}
		_ = c.cmd.Wait()
		if code := c.cmd.ProcessState.ExitCode(); code != 97 {
			t.Errorf("it ended with %v\n%s", c.cmd.ProcessState, c.err.String())
		}
	}
}

func TestLimit(t *testing.T) {
	t.Setenv("MODMIRROR_FAULTS_LIMITS", "a=1,b=-2")
	if a, b, c := Limit("a", 9), Limit("b", 9), Limit("c", 9); a != 1 || b != -2 || c != 9 {
		t.Errorf("%d, %d, %d, want 1, -2, 9", a, b, c)
	}
}
