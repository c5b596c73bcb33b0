package main

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"modmirror/replicate"
	"modmirror/replicate/peer"
)

// What a node is started for.
const (
	roleVoter   = "voter"   // it may be given a vote
	roleReplica = "replica" // it receives everything and never votes
)

// What becomes of an artifact that is verified while nothing can be committed.
const (
	lossPassThrough = "passthrough" // it is sent to the client that asked, marked as uncommitted, and committed later
	lossFail        = "fail"        // 503
)

// clusterConfig is what `modmirror serve` can be told about the cluster. The same command line is meant for all nodes of a
// zone, for their first start and for all later ones.
type clusterConfig struct {
	Expect     int      // 0: this node founds a cluster alone, unless Join says otherwise
	Join       []string // host:port, dns:host:port, srv:name
	TokenFile  string
	NodeName   string // "": the beginning of the node's id
	PeerListen string // "": defaultPeerListen, unless anything else is set
	Advertise  string // "": found out
	Zone       string
	Role       string
	Voters     int
	Profile    string // how patient Raft is
	Priority   int    // a voter of a higher one is handed the leadership
	TLS        tlsFiles
	OnLoss     string
	PullLimit  byteRate
	NoUpstream bool

	WANLimit    bandwidth
	WANSchedule wanSchedule
}

const maxPriority = 1000

// tlsFiles is an operator's own certificate for the internal port.
type tlsFiles struct{ CA, Cert, Key string }

func (t tlsFiles) isZero() bool { return t == tlsFiles{} }

// Where the internal port listens. A node that is told nothing about a cluster can be joined from this machine.
const (
	alonePeerListen   = "localhost:3001"
	clusterPeerListen = ":3001"
)

func (c *clusterConfig) flags(fs *pflag.FlagSet) {
	fs.IntVar(&c.Expect, "bootstrap-expect", 0, "found a cluster once this `many` new nodes, 1, 3 or 5, have found each other; no effect on a node that has a cluster")
	fs.StringSliceVar(&c.Join, "join", nil, "find the other nodes at these `addresses`: host:port, dns:name:port, srv:name; tried for ever")
	fs.StringVar(&c.TokenFile, "cluster-token-file", "", "the `file` with the secret that all nodes share; see modmirror cluster token")
	fs.StringVar(&c.NodeName, "node-id", "", "this node's `name` in the cluster (default: the beginning of its random id)")
	fs.StringVar(&c.PeerListen, "peer-listen", "", "speak with other nodes on this `address` (default "+alonePeerListen+", in a cluster "+clusterPeerListen+")")
	fs.StringVar(&c.Advertise, "advertise", "", "the `address` at which other nodes reach --peer-listen (default: found out)")
	fs.StringVar(&c.Zone, "zone", "", "the datacenter or failure `zone` of this node")
	fs.StringVar(&c.Role, "role", roleVoter, "`voter`: may vote; replica: receives everything, never votes")
	fs.IntVar(&c.Voters, "voters", 3, "how many `voters`, 3 or 5, the cluster grows to")
	fs.IntVar(&c.Priority, "leader-priority", 0, "a voter with a higher `number` that keeps up is handed the leadership; the same for all nodes of a zone")
	fs.StringVar(&c.Profile, "raft-profile", replicate.ProfileAuto, "how patient Raft is: lan, wan (voters far from each other), or what the round trips say (`auto`)")
	fs.StringVar(&c.TLS.CA, "tls-ca", "", "certificates of your own for --peer-listen: the `file` with the authorities that nodes are trusted by")
	fs.StringVar(&c.TLS.Cert, "tls-cert", "", "the `file` with this node's certificate; it is read again when it changes")
	fs.StringVar(&c.TLS.Key, "tls-key", "", "the `file` with its key")
	fs.StringVar(&c.OnLoss, "on-quorum-loss", lossPassThrough, "without a quorum, new artifacts are verified and sent, marked as uncommitted (`passthrough`), or refused (fail)")
	fs.BoolVar(&c.NoUpstream, "no-upstream", false, "ask no upstream and no checksum database from this node, and have other nodes of the cluster do it: for zones without a way out")
	fs.Var(&c.PullLimit, "pull-limit", "how many `bytes` a second this node copies from others in the background, for example 20MB; 0: no limit")
	fs.Var(&c.WANLimit, "wan-limit", "how much a second this node takes out of other zones in the background, as `bandwidth`: 20MB or 200mbit; 0: no limit")
	fs.Var(&c.WANSchedule, "wan-schedule", "other limits at times of the day, as `windows`: 22:00-06:00=unlimited,12:00-13:00@Europe/Berlin=50mbit")
}

// clustered reports whether the operator says anything of other nodes.
func (c *clusterConfig) clustered() bool {
	return c.Expect > 0 || len(c.Join) > 0 || c.TokenFile != "" || !c.TLS.isZero() || c.PeerListen != "" || c.Advertise != ""
}

// peerListen is where the internal port listens.
func (c *clusterConfig) peerListen() string {
	switch {
	case c.PeerListen != "":
		return c.PeerListen
	case c.clustered():
		return clusterPeerListen
	}
	return alonePeerListen
}

var validName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// validate finds what is wrong before anything is opened.
func (c *clusterConfig) validate() error {
	for flag, name := range map[string]string{"--node-id": c.NodeName, "--zone": c.Zone} {
		if name != "" && !validName.MatchString(name) {
			return usageError("%s %q: want at most 63 letters, digits, dots, dashes and underscores", flag, name)
		}
	}
	switch {
	case c.Expect != 0 && c.Expect != 1 && c.Expect != 3 && c.Expect != 5:
		return usageError("--bootstrap-expect %d: want 1, 3 or 5: an even number survives no more failures than one fewer", c.Expect)
	case c.Expect > 1 && len(c.Join) == 0:
		return usageError("--bootstrap-expect %d: --join must say where the other nodes are", c.Expect)
	case c.Voters != 1 && c.Voters != 3 && c.Voters != 5:
		return usageError("--voters %d: want 3 or 5", c.Voters)
	case c.Priority < -maxPriority || c.Priority > maxPriority:
		return usageError("--leader-priority %d: want a number from %d to %d", c.Priority, -maxPriority, maxPriority)
	case !slices.Contains(raftProfiles, c.Profile):
		return usageError("--raft-profile %q: want %s", c.Profile, strings.Join(raftProfiles, ", "))
	case c.Role != roleVoter && c.Role != roleReplica:
		return usageError("--role %q: want %s or %s", c.Role, roleVoter, roleReplica)
	case c.Role == roleReplica && c.Expect > 0:
		return usageError("--role replica: a node that never votes cannot found a cluster; leave --bootstrap-expect out")
	case c.NoUpstream && !c.clustered():
		return usageError("--no-upstream: a node that is alone has no other node ask the upstream for it; give --join, or --offline to serve what is held")
	case c.OnLoss != lossPassThrough && c.OnLoss != lossFail:
		return usageError("--on-quorum-loss %q: want %s or %s", c.OnLoss, lossPassThrough, lossFail)
	}
	if _, err := peer.ParseSeeds(c.Join); err != nil {
		return usageError("%v", err)
	}
	if _, port, err := net.SplitHostPort(c.peerListen()); err != nil {
		return usageError("--peer-listen: %v; want host:port", err)
	} else if _, err := net.LookupPort("tcp", port); err != nil {
		return usageError("--peer-listen %s: %q is not a port", c.peerListen(), port)
	}
	if err := c.validateTrust(); err != nil {
		return err
	}
	if c.Advertise == "" {
		return nil
	}
	if host, _, err := net.SplitHostPort(c.Advertise); err != nil || host == "" {
		return usageError("--advertise %q: want host:port, as other nodes can reach it", c.Advertise)
	}
	return nil
}

// validateTrust: whoever can reach the internal port must show that it belongs to the cluster.
func (c *clusterConfig) validateTrust() error {
	t := c.TLS
	if !t.isZero() && (t.CA == "" || t.Cert == "" || t.Key == "") {
		return usageError("--tls-ca, --tls-cert and --tls-key belong together")
	}
	if !t.isZero() && c.TokenFile != "" {
		return usageError("--cluster-token-file and --tls-cert: nodes trust each other by one or the other; leave one out")
	}
	if c.TokenFile != "" || !t.isZero() {
		return nil
	}
	if len(c.Join) > 0 {
		return usageError("--join: nodes must be able to prove that they belong together: give the cluster's secret as --cluster-token-file (on a node that runs, `modmirror cluster token` prints it)")
	}
	if !isLoopback(c.peerListen()) {
		return usageError("--peer-listen %s: other machines can reach it, so nodes must be able to prove that they belong together: make a secret with `modmirror cluster token --new > cluster-token`, copy it to every node, and give it as --cluster-token-file (or give certificates of your own with --tls-ca, --tls-cert and --tls-key)", c.peerListen())
	}
	return nil
}

// isLoopback reports whether only this machine can reach addr.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// byteRate is a number of bytes a second, as a flag: 20MB, 512KiB, 1000000.
type byteRate int64

var rateUnits = []struct {
	suffix string
	factor int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"KB", 1e3}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}, {"", 1}}

func (r *byteRate) Set(s string) error {
	for _, u := range rateUnits {
		digits, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > (1<<62)/u.factor {
			break
		}
		*r = byteRate(n * u.factor)
		return nil
	}
	return fmt.Errorf("want a number of bytes a second, such as 20MB")
}

func (r *byteRate) Type() string { return "bytes" }

func (r *byteRate) String() string {
	n := int64(*r)
	for _, u := range rateUnits[:3] {
		if v := n / u.factor; n != 0 && n%u.factor == 0 && v > 0 && v < 1024 {
			return fmt.Sprintf("%d%s", v, u.suffix)
		}
	}
	return strconv.FormatInt(n, 10)
}
