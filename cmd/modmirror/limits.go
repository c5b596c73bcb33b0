package main

import (
	"time"

	"github.com/spf13/pflag"
)

// limits bound what clients and upstreams can cost. Each is a flag; the README has a table of these and of the limits that
// are fixed.
type limits struct {
	Connections int // of clients
	PerClient   int // of these, from one address
	Fetches     int // infos, go.mods, lists and queries at a time; as many zips
	Waiting     int // fetches under way or waiting for their turn
	PerHost     int // requests to one upstream host at a time
	CacheMiB    int // infos, go.mods and small zips in memory

	ClientWait time.Duration // for a fetch
	Fetch      time.Duration // for anything but a zip
	Zip        time.Duration
	Lookup     time.Duration // of a record
}

func (l *limits) flags(fs *pflag.FlagSet) {
	fs.IntVar(&l.Connections, "max-connections", 4096, "hold at most this `number` of client connections; idle ones are closed to make room")
	fs.IntVar(&l.PerClient, "max-connections-per-client", 1024, "of these, at most this `number` from one address")
	fs.IntVar(&l.Fetches, "max-fetches", 64, "fetch at most this `number` of small things at a time, and as many zips")
	fs.IntVar(&l.Waiting, "max-waiting", 1024, "let at most this `number` of fetches run or wait for their turn")
	fs.IntVar(&l.PerHost, "max-per-upstream", 64, "send at most this `number` of requests at a time to one upstream host")
	fs.IntVar(&l.CacheMiB, "cache-memory", 64, "keep infos, go.mods and small zips in this many `MiB` of memory")
	fs.DurationVar(&l.ClientWait, "client-wait", 5*time.Minute, "let a client wait this `long` for a fetch, which goes on without it")
	fs.DurationVar(&l.Fetch, "fetch-timeout", 150*time.Second, "give up fetching and checking anything but a zip after this `long`")
	fs.DurationVar(&l.Zip, "zip-timeout", 10*time.Minute, "give up fetching and checking a zip after this `long`")
	fs.DurationVar(&l.Lookup, "lookup-timeout", 2*time.Minute, "give up finding a record in the checksum database after this `long`")
}

// perAddress reports whether clients have addresses of their own, as far as this node sees them. Behind a balancer they have not,
// and one address may have all connections then.
func (l *limits) perAddress() bool { return l.PerClient < l.Connections }

func (l *limits) hotBytes() int64 { return int64(l.CacheMiB) << 20 }

// listBytes is what lists, @latest and queries may take, each.
func (l *limits) listBytes() int64 { return min(l.hotBytes()/2, 32<<20) }

func (l *limits) validate() error {
	for name, n := range map[string]int{
		"max-connections": l.Connections, "max-connections-per-client": l.PerClient, "max-fetches": l.Fetches, "max-waiting": l.Waiting,
		"max-per-upstream": l.PerHost, "cache-memory": l.CacheMiB,
	} {
		if n <= 0 || n > 1<<20 {
			return usageError("--%s: want a number from 1 to %d", name, 1<<20)
		}
	}
	for name, d := range map[string]time.Duration{
		"client-wait": l.ClientWait, "fetch-timeout": l.Fetch, "zip-timeout": l.Zip, "lookup-timeout": l.Lookup,
	} {
		if d <= 0 {
			return usageError("--%s: want a positive duration such as 90s", name)
		}
	}
	return nil
}
