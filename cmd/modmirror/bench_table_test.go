//go:build bench && linux

package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// samples are the results of the rounds of one measurement.
type samples []float64

func (s samples) median() float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	v := slices.Sorted(slices.Values(s))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func (s samples) most() float64 { return slices.Max(s) }

// String is the median and, of several rounds, the least and the most.
func (s samples) String() string {
	switch len(s) {
	case 0:
		return "–"
	case 1:
		return number(s[0])
	}
	return fmt.Sprintf("%s (%s..%s)", number(s.median()), number(slices.Min(s)), number(slices.Max(s)))
}

// number writes f with about three digits, or all digits before the point.
func number(f float64) string {
	switch a := math.Abs(f); {
	case a >= 100 || f == math.Trunc(f):
		return fmt.Sprintf("%.0f", f)
	case a >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

// aim is what a row should reach. The zero aim is none.
type aim struct {
	text string
	met  func(value, ratio float64) bool
}

func ratioAtLeast(x float64) aim {
	return aim{"≥ " + number(x) + " ×", func(_, ratio float64) bool { return ratio >= x }}
}

func ratioAtMost(x float64) aim {
	return aim{"≤ " + number(x) + " ×", func(_, ratio float64) bool { return ratio <= x }}
}

func below(x float64) aim {
	return aim{"< " + number(x), func(value, _ float64) bool { return value < x }}
}

func exactly(x float64) aim {
	return aim{number(x), func(value, _ float64) bool { return value == x }}
}

// row is one line of the table: what is measured, in what unit, for the peer and for modmirror.
type row struct {
	what         string
	peer, mirror samples
	aim          aim
}

func (r row) ratio() float64 { return r.mirror.median() / r.peer.median() }

func (r row) verdict() string {
	switch {
	case r.aim.met == nil:
		return ""
	case r.aim.met(r.mirror.median(), r.ratio()):
		return "met"
	}
	return "**not met**"
}

// writeTable writes rows as a table in Markdown. peer and mirror head the two columns of results.
func writeTable(w io.Writer, peer, mirror string, rows []row) {
	fmt.Fprintf(w, "| | %s | %s | ratio | aim | |\n", peer, mirror)
	fmt.Fprintln(w, "|---|---:|---:|---:|---:|---|")
	for _, r := range rows {
		ratio := ""
		if len(r.peer) > 0 && len(r.mirror) > 0 {
			ratio = fmt.Sprintf("%.2f", r.ratio())
		}
		fmt.Fprintf(w, "| %s | %v | %v | %s | %s | %s |\n", strings.ReplaceAll(r.what, "|", "/"), r.peer, r.mirror, ratio, r.aim.text, r.verdict())
	}
}
