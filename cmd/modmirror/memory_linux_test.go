package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// memoryOf returns the sum of a field of /proc/<pid>/status, in MB: VmRSS now, or VmHWM, the most there was.
func memoryOf(pids []int, field string) (float64, error) {
	var sum float64
	for _, pid := range pids {
		kb, err := statusField(pid, field)
		if err != nil {
			return 0, err
		}
		sum += kb * 1024 / 1e6
	}
	return sum, nil
}

func statusField(pid int, field string) (float64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), field+":"); ok {
			return strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 64)
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, field)
}
