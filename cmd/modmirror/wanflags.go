package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // an image that holds nothing but the program has no time zones
)

// bandwidth is a number of bytes a second, as a flag: what byteRate takes, or bits: 200mbit. 0 is no limit.
type bandwidth int64

// minBandwidth is what a limit must let through at least: with less, a large zip would not come within the time of a pull.
const minBandwidth = 64 << 10

var bitUnits = []struct {
	suffix string
	factor int64
}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}}

// Set implements pflag.Value.
func (b *bandwidth) Set(s string) error {
	n, err := parseBandwidth(s)
	if err == nil {
		*b = bandwidth(n)
	}
	return err
}

// Type implements pflag.Value.
func (b *bandwidth) Type() string { return "bandwidth" }

// String implements pflag.Value.
func (b *bandwidth) String() string {
	r := byteRate(*b)
	return r.String()
}

func parseBandwidth(s string) (int64, error) {
	var n int64
	bits := slices.IndexFunc(bitUnits, func(u struct {
		suffix string
		factor int64
	}) bool {
		return strings.HasSuffix(strings.ToLower(s), u.suffix)
	})
	if bits >= 0 {
		u := bitUnits[bits]
		v, err := strconv.ParseInt(strings.TrimSpace(s[:len(s)-len(u.suffix)]), 10, 64)
		if err != nil || v < 0 || v > (1<<62)/u.factor {
			return 0, errBandwidth
		}
		n = v * u.factor / 8
	} else {
		var r byteRate
		if r.Set(s) != nil {
			return 0, errBandwidth
		}
		n = int64(r)
	}
	if n != 0 && n < minBandwidth {
		return 0, fmt.Errorf("%d bytes a second are too few: want %d, which is 64KiB, or more, or 0 for no limit", n, minBandwidth)
	}
	return n, nil
}

var errBandwidth = fmt.Errorf("want bytes a second, such as 20MB, or bits, such as 200mbit")

// wanSchedule is when another limit holds than --wan-limit: 22:00-06:00=unlimited,12:00-13:00@Europe/Berlin=50mbit. A window
// that ends before it begins goes over midnight. The first that a moment is in counts; none of a place overlap.
type wanSchedule struct {
	text    string
	windows []wanWindow
}

// wanWindow is one of its windows.
type wanWindow struct {
	from, to int // minutes of the day
	place    *time.Location
	rate     int64 // bytes a second; 0: no limit
}

const minutesADay = 24 * 60

// Set implements pflag.Value.
func (s *wanSchedule) Set(text string) error {
	var next wanSchedule
	next.text = text
	taken := map[string]*[minutesADay]bool{}
	for entry := range strings.SplitSeq(text, ",") {
		if entry = strings.TrimSpace(entry); entry == "" && text == "" {
			continue
		}
		w, err := parseWindow(entry)
		if err != nil {
			return fmt.Errorf("%q: %w", entry, err)
		}
		if taken[w.place.String()] == nil {
			taken[w.place.String()] = new([minutesADay]bool)
		}
		for m := w.from; m != w.to; m = (m + 1) % minutesADay {
			if taken[w.place.String()][m] {
				return fmt.Errorf("%q: at %02d:%02d another window holds already", entry, m/60, m%60)
			}
			taken[w.place.String()][m] = true
		}
		next.windows = append(next.windows, w)
	}
	*s = next
	return nil
}

// Type implements pflag.Value.
func (s *wanSchedule) Type() string { return "windows" }

// String implements pflag.Value.
func (s *wanSchedule) String() string { return s.text }

// parseWindow parses 22:00-06:00=unlimited, with a place after an @ or without one.
func parseWindow(s string) (w wanWindow, err error) {
	when, rate, ok := strings.Cut(s, "=")
	if !ok {
		return w, fmt.Errorf("want a window and its limit, such as 22:00-06:00=unlimited or 12:00-13:00=50mbit")
	}
	when, place, hasPlace := strings.Cut(strings.TrimSpace(when), "@")
	w.place = time.Local
	if hasPlace {
		if w.place, err = time.LoadLocation(place); err != nil || place == "" {
			return w, fmt.Errorf("%q is no time zone such as UTC or Europe/Berlin: %v", place, err)
		}
	}
	from, to, ok := strings.Cut(when, "-")
	if !ok {
		return w, fmt.Errorf("%q: want two times, such as 22:00-06:00", when)
	}
	if w.from, err = parseMinute(from); err != nil {
		return w, err
	}
	if w.to, err = parseMinute(to); err != nil {
		return w, err
	}
	if w.from == w.to {
		return w, fmt.Errorf("it ends when it begins; a whole day is what --wan-limit is for")
	}
	if rate = strings.TrimSpace(rate); rate != "unlimited" {
		if w.rate, err = parseBandwidth(rate); err != nil {
			return w, err
		}
	}
	return w, nil
}

// parseMinute parses 22:00; 24:00 is 00:00.
func parseMinute(s string) (int, error) {
	s = strings.TrimSpace(s)
	t, err := time.Parse("15:04", s)
	if s == "24:00" {
		return 0, nil
	}
	if err != nil || len(s) != len("15:04") {
		return 0, fmt.Errorf("%q is no time of day, such as 06:00", s)
	}
	return t.Hour()*60 + t.Minute(), nil
}

// at returns the limit at a moment; otherwise, if no window holds then.
func (s *wanSchedule) at(now time.Time, otherwise int64) int64 {
	for _, w := range s.windows {
		t := now.In(w.place)
		m := t.Hour()*60 + t.Minute()
		if w.from < w.to && m >= w.from && m < w.to || w.from > w.to && (m >= w.from || m < w.to) {
			return w.rate
		}
	}
	return otherwise
}
