package artifact

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A change of the disk that hangs ends writing after half a minute, for everybody and for good; reads wait for nothing of it.
func TestHungDisk(t *testing.T) {
	for _, op := range []string{"create", "write", "fsync", "rename", "mkdir", "syncdir", "remove"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testHung(t, op) })
		})
	}
}

func testHung(t *testing.T, op string) {
	s, d := openUnsafe(t, t.TempDir())
	held := put(t, s, []byte("held"))
	faults := make(chan error, 9)
	s.OnFault(func(err error) { faults <- err })
	gate := make(chan bool)
	d.slow = op
	d.hang.Store(&gate)
	over := make(chan error, 1)
	go func() {
		if op == "remove" {
			over <- s.Remove(held.Digest)
			return
		}
		_, err := tryPut(s, []byte("new"))
		over <- err
	}()
	time.Sleep(Hung - time.Second)
	if err := s.Err(); err != nil || s.Writing().Err() != nil {
		t.Errorf("writing ends too early: %v, %v", err, s.Writing().Err())
	}
	time.Sleep(2 * time.Second)
	if err := s.Err(); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "hanging for 30s") || context.Cause(s.Writing()) != err {
		t.Errorf("Err() = %v, Writing ends with %v", err, context.Cause(s.Writing()))
	}
	if op != "remove" {
		if got, err := get(s, held); err != nil || string(got) != "held" {
			t.Errorf("what is stored is %q, %v", got, err)
		}
	}
	if _, err := s.Create(9); err != s.Err() {
		t.Errorf("Create on a disk that hangs: %v", err)
	}
	close(gate) // it comes back, too late
	if err := <-over; err != s.Err() {
		t.Errorf("what hung ends with %v", err)
	}
	synctest.Wait()
	if len(faults) != 1 {
		t.Errorf("OnFault is called %d times", len(faults))
	}
}
