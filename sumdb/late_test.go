package sumdb

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A question that was asked before the call does not answer it; one that is asked after it answers all who wait.
func TestRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 10, nil)
		runs := 0
		ask := func() {
			if err := l.round(t.Context(), "question", time.Minute, func(context.Context) error {
				runs++
				time.Sleep(time.Second)
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
		done := make(chan bool)
		for range 5 {
			go func() { ask(); done <- true }()
		}
		time.Sleep(100 * time.Millisecond)
		for range 5 {
			go func() { ask(); done <- true }()
		}
		for range 10 {
			<-done
		}
		if runs != 2 {
			t.Errorf("asked %d times, want twice", runs)
		}
	})
}
