package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"modmirror/mirror"
)

func TestBandwidthFlag(t *testing.T) {
	for text, want := range map[string]int64{
		"200mbit": 25e6, "200Mbit": 25e6, "1gbit": 125e6, "800 kbit": 1e5, "20MB": 20e6, "64KiB": 64 << 10, "1000000": 1e6, "0": 0, "0mbit": 0,
	} {
		if got, err := parseBandwidth(text); got != want || err != nil {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "-1mbit", "mbit", "1e3", "9999999999999gbit", "20mb", "100kbit", "1", "20MB/s"} {
		if got, err := parseBandwidth(text); err == nil {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
}

func TestWANSchedule(t *testing.T) {
	var s wanSchedule
	if err := s.Set("22:00-06:00@UTC=unlimited, 12:00-13:00@UTC=50mbit,20:00-24:00@Asia/Tokyo=1MB"); err != nil {
		t.Fatal(err)
	}
	const otherwise = 7
	for at, want := range map[string]int64{
		"22:00": 0, "23:59": 0, "00:00": 0, "05:59": 0, "06:00": otherwise, "10:59": otherwise,
		"11:00": 1e6, "12:00": 50e6 / 8, "12:59": 50e6 / 8, "13:00": 1e6, "14:59": 1e6, "15:00": otherwise, "21:59": otherwise,
	} {
		now, err := time.Parse("2006-01-02 15:04", "2024-03-01 "+at)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.at(now, otherwise); got != want {
			t.Errorf("at %s: %d, want %d", at, got, want)
		}
	}
	var none wanSchedule
	if err := none.Set(""); err != nil || none.at(time.Now(), otherwise) != otherwise {
		t.Errorf("no windows: %v", err)
	}
	for text, want := range map[string]string{
		"22:00-06:00":                                   "want a window and its limit",
		"22:00=1MB":                                     "want two times",
		"22-06=1MB":                                     "no time of day",
		"25:00-06:00=1MB":                               "no time of day",
		"6:00-07:00=1MB":                                "no time of day",
		"06:00-06:00=1MB":                               "ends when it begins",
		"06:00-07:00=fast":                              "want bytes a second",
		"06:00-07:00=1kbit":                             "too few",
		"06:00-07:00@Nowhere/City=1MB":                  "no time zone",
		"06:00-07:00@=1MB":                              "no time zone",
		"06:00-08:00=1MB,07:59-09:00=2MB":               "at 07:59 another window",
		"22:00-06:00=1MB,05:00-07:00=2MB":               "at 05:00 another window",
		"22:00-06:00=1MB,":                              "want a window",
		"22:00-24:00=1MB,23:00-23:30@Local=1MB":         "at 23:00 another window",
		"22:00-24:00=1MB,00:00-01:00=2MB,00:59-02:00=0": "at 00:59 another window",
	} {
		if err := s.Set(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if s.at(time.Date(2000, 1, 1, 23, 0, 0, 0, time.UTC), otherwise) != 0 {
		t.Error("what is refused has an effect")
	}
}

// pulling takes n bytes in steps, as somebody who waits for them or not, and returns how long that took.
func pulling(t *testing.T, l *wanLimit, b *mirror.Background, n int) time.Duration {
	t.Helper()
	begin := time.Now()
	body := l.body(strings.NewReader(""), b, nil).(mirror.Slowed)
	for ; n > 0; n -= 32 << 10 {
		if err := body.Pace(t.Context(), 32<<10); err != nil {
			t.Error(err)
		}
	}
	return time.Since(begin)
}

func wanLimited(rate int64, schedule string) *wanLimit {
	c := clusterConfig{WANLimit: bandwidth(rate)}
	if err := c.WANSchedule.Set(schedule); err != nil {
		panic(err)
	}
	return newWANLimit(c)
}

// The background is held to the limit, all pulls together; what somebody waits for is not, and the background makes room for it.
func TestWANLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1 << 20
		l := wanLimited(rate, "")
		var wg sync.WaitGroup
		begin := time.Now()
		for range 4 {
			wg.Go(func() { pulling(t, l, mirror.NewBackground(), 5*rate) })
		}
		wg.Wait()
		if took := time.Since(begin); took < 19*time.Second || took > 21*time.Second {
			t.Errorf("20 s worth of bytes took %v", took)
		}
		if took := pulling(t, l, nil, 5*rate); took != 0 {
			t.Errorf("a client is held up for %v", took)
		}
		if took := pulling(t, l, mirror.NewBackground(), rate); took < 5*time.Second || took > 7*time.Second {
			t.Errorf("the background makes room for 5 s worth in %v", took)
		}
		pulling(t, l, nil, 1000*rate)
		if took := pulling(t, l, mirror.NewBackground(), rate); took > wanDebt+2*time.Second {
			t.Errorf("the background stands still for %v after a client", took)
		}
		if took := pulling(t, wanLimited(0, ""), mirror.NewBackground(), 1000*rate); took != 0 {
			t.Errorf("without a limit it takes %v", took)
		}
	})
}

// The background has its part also while others take more than the limit for ever, and no more than that.
func TestWANLimitLeavesAFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1 << 20
		l := wanLimited(rate, "")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			for ctx.Err() == nil {
				l.note(time.Now(), rate/5)
				time.Sleep(100 * time.Millisecond)
			}
		})
		took := pulling(t, l, mirror.NewBackground(), 6*rate)
		cancel()
		wg.Wait()
		if took < 55*time.Second || took > 65*time.Second {
			t.Errorf("at twice the limit of clients, a tenth of it brings in 6 s worth of bytes in %v, want a minute", took)
		}
	})
}

// A pull that is held up goes on when somebody waits for it, and ends when it is not wanted any more.
func TestWANLimitHurried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := wanLimited(minBandwidth, "")
		pulling(t, l, nil, 100<<20) // the background has to wait
		b := mirror.NewBackground()
		body := l.body(strings.NewReader(""), b, nil).(mirror.Slowed)
		done := make(chan error)
		begin := time.Now()
		go func() { done <- body.Pace(t.Context(), 1<<20) }()
		time.Sleep(time.Second)
		b.Hurry()
		if err := <-done; err != nil || time.Since(begin) > time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		other := l.body(strings.NewReader(""), mirror.NewBackground(), nil).(mirror.Slowed)
		if err := other.Pace(ctx, 1<<20); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("not wanted any more: %v", err)
		}
	})
}

// A pull that is held up for longer goes on when a window begins that lets it.
func TestWANScheduleEndsAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := wanLimited(minBandwidth, "00:01-00:02@UTC=unlimited")
		time.Sleep(55 * time.Second)
		pulling(t, l, nil, 100<<20) // the background has to make room for ten seconds
		if took := pulling(t, l, mirror.NewBackground(), 32<<10); took < 5*time.Second || took > 5*time.Second+wanRecheck {
			t.Errorf("the window begins in 5 s, and the pull goes on after %v", took)
		}
	})
}

// A window begins and ends for pulls that are under way.
func TestWANScheduleTakesEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1 << 20
		l := wanLimited(rate, "00:01-00:02@UTC=unlimited,00:02-00:03@UTC=2MiB") // the bubble begins at midnight
		if took := pulling(t, l, mirror.NewBackground(), 120*rate); took < time.Minute || took > time.Minute+2*wanRecheck {
			t.Errorf("two minutes' worth, of which the second is not limited, takes %v", took)
		}
		time.Sleep(time.Until(time.Date(2000, 1, 1, 0, 2, 0, 0, time.UTC)))
		if took := pulling(t, l, mirror.NewBackground(), 60*rate); took < 29*time.Second || took > 31*time.Second {
			t.Errorf("at twice the speed a minute's worth takes %v", took)
		}
	})
}
