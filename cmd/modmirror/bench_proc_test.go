//go:build bench && linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// statOf returns the fields of /proc/<pid>/stat that follow the name of the program: state, ppid, … (proc(5)).
func statOf(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	i := strings.LastIndexByte(string(b), ')') // the name may have anything in it
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 15 {
		return nil, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	return f, nil
}

// family returns pid and its children: the master of nginx and its workers.
func family(pid int) []int {
	out := []int{pid}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, dir := range dirs {
		child, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if f, err := statOf(child); err == nil && f[1] == strconv.Itoa(pid) {
			out = append(out, child)
		}
	}
	return out
}

// cpuOf returns the processor time that the processes have used.
func cpuOf(pids []int) (time.Duration, error) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on
	var sum time.Duration
	for _, pid := range pids {
		f, err := statOf(pid)
		if err != nil {
			return 0, err
		}
		for _, field := range f[11:13] { // utime and stime
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, err
			}
			sum += time.Duration(n) * tick
		}
	}
	return sum, nil
}

// busy returns which part of the processors, in percent, was not idle during d. While nothing of the benchmark runs, this is
// what others do to its results: under load the tail of the latencies is that of the queue for a processor.
func (b *bench) busy(d time.Duration) float64 {
	total, idle := ticks()
	b.idle(d)
	total2, idle2 := ticks()
	return 100 * (1 - (idle2-idle)/(total2-total))
}

// ticks returns the time of all processors, and how much of it was idle, from the first line of /proc/stat.
func ticks() (total, idle float64) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	for i, f := range strings.Fields(line)[1:] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil || i > 7 { // what follows is counted already
			break
		}
		if total += n; i == 3 || i == 4 { // idle and iowait
			idle += n
		}
	}
	return total, idle
}

// machine describes where this runs, in one line.
func machine() string {
	cpu, kernel := "unknown processor", ""
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(b), "model name"); ok {
			line, _, _ := strings.Cut(rest, "\n")
			cpu = strings.TrimLeft(line, "\t :")
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = ", Linux " + strings.TrimSpace(string(b))
	}
	return cpu + kernel
}
