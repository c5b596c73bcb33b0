package statuspage

import (
	"fmt"
	"time"
)

// sentence says how the mirror is, in one.
func (c Cluster) sentence() (State, string) {
	needed := c.Voters/2 + 1
	silent, ailing := c.unwell()
	switch {
	case c.Ready != "":
		return Bad, "This node should get no requests now: " + c.Ready + "."
	case c.Voters > 0 && c.Alive < needed:
		return Bad, fmt.Sprintf("Everything that is held is served, but nothing new is committed: %d of %s answer, and %d are needed.", c.Alive, count(c.Voters, "voter"), needed)
	case c.Leader == "":
		return Bad, "Everything that is held is served, but nothing new is committed: the nodes have no leader."
	case c.Writes != "":
		return Warn, "Everything that is held is served, but this node takes in nothing new: " + c.Writes + "."
	case silent > 0:
		return Warn, fmt.Sprintf("%d of %s %s not answer. Everything is served%s, and %s.", silent, count(c.nodes(), "node"), does(silent), c.takesIn(), c.spare())
	case ailing > 0:
		return Warn, fmt.Sprintf("%d of %s %s attention. Everything is served%s.", ailing, count(c.nodes(), "node"), plural(ailing, "needs", "need"), c.takesIn())
	case len(c.Problems) > 0:
		return Warn, "Everything is served" + c.takesIn() + ", and there is something to look at."
	case c.nodes() <= 1:
		return OK, "This mirror is healthy: everything that is held is served" + c.takesIn() + "."
	}
	return OK, fmt.Sprintf("All %s%s are healthy: everything is served%s, and %s.", count(c.nodes(), "node"), c.inZones(), c.takesIn(), c.spare())
}

// unwell counts the nodes that do not answer, and the others that are not well.
func (c Cluster) unwell() (silent, ailing int) {
	for _, z := range c.Zones {
		for _, n := range z.Nodes {
			if n.Silent {
				silent++
			} else if n.State != OK {
				ailing++
			}
		}
	}
	return silent, ailing
}

func (c Cluster) nodes() (n int) {
	for _, z := range c.Zones {
		n += len(z.Nodes)
	}
	return n
}

func (c Cluster) takesIn() string {
	if c.Offline {
		return ", nothing is fetched (it runs offline)"
	}
	return ", new modules are taken in"
}

// spare says how many more voters may fail.
func (c Cluster) spare() string {
	more := ""
	if c.Alive < c.Voters {
		more = "more "
	}
	switch spare := c.Alive - (c.Voters/2 + 1); spare {
	case 0:
		return "no " + more + "voter may fail"
	case 1:
		return "any one " + more + "voter may fail"
	default:
		return fmt.Sprintf("any %d %svoters may fail", spare, more)
	}
}

func (c Cluster) inZones() string {
	if len(c.Zones) < 2 {
		return ""
	}
	return fmt.Sprintf(" in %d zones", len(c.Zones))
}

// health says how the nodes of a zone are.
func (z Zone) health() (State, string) {
	well, silent := 0, 0
	worst := OK
	for _, n := range z.Nodes {
		worst = max(worst, n.State)
		switch {
		case n.Silent:
			silent++
		case n.State == OK:
			well++
		}
	}
	switch {
	case silent == len(z.Nodes):
		return Bad, "silent"
	case well == len(z.Nodes):
		return OK, "healthy"
	}
	return min(worst, Warn), fmt.Sprintf("%d of %d healthy", well, len(z.Nodes))
}

func does(n int) string { return plural(n, "does", "do") }

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func count(n int, what string) string { return fmt.Sprintf("%d %s", n, plural(n, what, what+"s")) }

// age is how long ago something was, for people. page.js says it in the same way.
func age(d time.Duration) string {
	switch s := int64(d / time.Second); {
	case s < 2:
		return "now"
	case s < 100:
		return fmt.Sprintf("%d s ago", s)
	case s < 100*60:
		return fmt.Sprintf("%d min ago", s/60)
	case s < 48*3600:
		return fmt.Sprintf("%d h ago", s/3600)
	default:
		return fmt.Sprintf("%d days ago", s/86400)
	}
}

// bytesOf prints a number of bytes for people.
func bytesOf(n uint64) string {
	const units = "KMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1000, 0
	for ; v >= 999.5 && i < len(units)-1; i++ {
		v /= 1000
	}
	if v < 10 {
		return fmt.Sprintf("%.1f %cB", v, units[i])
	}
	return fmt.Sprintf("%.0f %cB", v, units[i])
}

// grouped prints a number with a thin space between each three digits.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}
