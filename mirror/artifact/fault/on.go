//go:build faults

package fault

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Enabled reports whether this is a build with -tags faults.
const Enabled = true

// Point is where the process can be made to die, to stop or to wait.
func Point(n Name) {
	if err := hit(n); err != nil {
		die(fmt.Sprintf("a rule makes %s fail, at which no operation of the disk begins", n))
	}
}

// Error is Point before an operation of the disk. If it returns an error, the operation is not tried and has failed with it.
func Error(n Name) error { return hit(n) }

// Limit returns a bound that tests make smaller, so that what takes a day on a real mirror happens in seconds: n, unless the
// environment has another number for name.
func Limit(name string, n int64) int64 {
	for _, set := range strings.Split(os.Getenv("MODMIRROR_FAULTS_LIMITS"), ",") {
		if key, value, _ := strings.Cut(set, "="); key == name {
			less, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				die(fmt.Sprintf("limit %s: %v", name, err))
			}
			return less
		}
	}
	return n
}

// rule is one line of the control file.
type rule struct {
	name  Name
	first int  // the hit that is meant
	on    bool // and those after it
	do    string
	delay time.Duration
	err   error
}

var control struct {
	mu    sync.Mutex
	text  string       // guarded by mu; what the file had at the last hit
	rules []rule       // guarded by mu; of text
	hits  map[Name]int // guarded by mu; since the file has had this text
}

// hit notes that the process is at n, and does what the control file says.
func hit(n Name) error {
	file := os.Getenv("MODMIRROR_FAULTS")
	if file == "" {
		return nil
	}
	r, count := due(file, n)
	if r == nil {
		return nil
	}
	fmt.Fprintf(os.Stderr, "fault: %s hit %d: %s\n", n, count, r.do)
	switch {
	case r.err != nil:
		return r.err
	case r.delay > 0:
		time.Sleep(r.delay)
	case r.do == "stop":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP) // a process may stop itself
	default:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	}
	return nil
}

// due returns the rule that says what is to happen at this hit of n, if there is one, and which hit it is.
func due(file string, n Name) (*rule, int) {
	c := &control
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		die(err.Error())
	}
	if text := string(b); text != c.text || c.hits == nil {
		if c.rules, err = parseRules(text); err != nil {
			die(fmt.Sprintf("%s: %v", file, err))
		}
		c.text, c.hits = text, make(map[Name]int)
	}
	c.hits[n]++
	for i := range c.rules {
		if r := &c.rules[i]; r.name == n && (c.hits[n] == r.first || r.on && c.hits[n] > r.first) {
			return r, c.hits[n]
		}
	}
	return nil, 0
}

func parseRules(text string) (rules []rule, err error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		r, err := parseRule(f)
		if err != nil {
			return nil, fmt.Errorf("rule %q: %w", strings.TrimSpace(line), err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func parseRule(f []string) (r rule, err error) {
	if len(f) < 3 {
		return r, errors.New("it is point, hit, and what happens")
	}
	r.name, r.do = Name(f[0]), strings.Join(f[2:], " ")
	errs := false
	if known := func() bool {
		for _, p := range Points {
			if p.Name == r.name {
				errs = p.Errors
				return true
			}
		}
		return false
	}(); !known {
		return r, errors.New("there is no such point")
	}
	r.on = strings.HasSuffix(f[1], "+")
	if r.first, err = strconv.Atoi(strings.TrimSuffix(f[1], "+")); err != nil || r.first < 1 {
		return r, fmt.Errorf("%q is no number of a hit", f[1])
	}
	switch {
	case len(f) == 3 && (f[2] == "kill" || f[2] == "stop"):
		return r, nil
	case len(f) == 4 && f[2] == "delay":
		if r.delay, err = time.ParseDuration(f[3]); err == nil && r.delay <= 0 {
			err = errors.New("a delay has a length")
		}
		return r, err
	case len(f) == 4 && f[2] == "error" && errs:
		if r.err = errnos[f[3]]; r.err == nil {
			return r, fmt.Errorf("%q is none of EIO, ENOSPC, EDQUOT", f[3])
		}
		return r, nil
	}
	return r, errors.New("this cannot happen there")
}

var errnos = map[string]error{"EIO": syscall.EIO, "ENOSPC": syscall.ENOSPC, "EDQUOT": syscall.EDQUOT}

// die ends the process: what was meant to happen is not known.
func die(why string) {
	fmt.Fprintf(os.Stderr, "fault: %s\n", why)
	os.Exit(97)
}
