package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Resolver looks names up; *net.Resolver is one.
type Resolver interface {
	LookupHost(ctx context.Context, host string) ([]string, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

// Seeds are where other nodes may be found: the entries of --join.
type Seeds struct{ list []seed }

type seed struct {
	kind string // "host", "dns" or "srv"
	name string // host, or the full name of SRV records
	port string // of host and dns
}

const maxSeeds = 256 // addresses in all

// ParseSeeds parses entries of the form host:port (the host may be an address), dns:name or dns:name:port for all
// addresses of a name, and srv:_service._tcp.name for SRV records. A port that is not named is DefaultPort.
func ParseSeeds(entries []string) (*Seeds, error) {
	s := &Seeds{}
	for _, e := range entries {
		seed, err := parseSeed(e)
		if err != nil {
			return nil, fmt.Errorf("%.300q in --join: %w", e, err)
		}
		s.list = append(s.list, seed)
	}
	if len(s.list) > maxSeeds {
		return nil, fmt.Errorf("--join has %d entries, more than %d", len(s.list), maxSeeds)
	}
	return s, nil
}

func parseSeed(e string) (seed, error) {
	if name, ok := strings.CutPrefix(e, "srv:"); ok {
		if !isHost(name) {
			return seed{}, errors.New("after srv: stands the name of SRV records, as in srv:_modmirror._tcp.example.com")
		}
		return seed{kind: "srv", name: name}, nil
	}
	kind := "host"
	name, ok := strings.CutPrefix(e, "dns:")
	if ok {
		kind = "dns"
	}
	host, port := name, DefaultPort
	if h, p, err := net.SplitHostPort(name); err == nil {
		host, port = h, p
	} else if strings.HasPrefix(host, "[") {
		return seed{}, errors.New("it has the form host:port, dns:name or srv:name")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || !isHost(host) || kind == "host" && (host == "dns" || host == "srv") {
		return seed{}, errors.New("it has the form host:port, dns:name or srv:name, with a port from 1 to 65535")
	}
	return seed{kind, host, port}, nil
}

func isHost(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`/\@"'[]?#`, c) >= 0 {
			return false
		}
	}
	if strings.Contains(s, ":") {
		_, err := netip.ParseAddr(s)
		return err == nil
	}
	return 0 < len(s) && len(s) <= 255
}

// String returns the entry.
func (s seed) String() string {
	switch s.kind {
	case "srv":
		return "srv:" + s.name
	case "dns":
		return "dns:" + net.JoinHostPort(s.name, s.port)
	}
	return net.JoinHostPort(s.name, s.port)
}

// Resolve looks all entries up and returns the addresses, sorted. An entry that cannot be looked up now is in the error;
// the addresses of the others are good.
func (s *Seeds) Resolve(ctx context.Context, r Resolver) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var out []string
	var errs []error
	for _, e := range s.list {
		found, err := e.resolve(ctx, r)
		out = append(out, found...)
		if err != nil {
			errs = append(errs, fmt.Errorf("look up %v: %w", e, err))
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if len(out) > maxSeeds {
		errs = append(errs, fmt.Errorf("there are %d addresses, only the first %d are used", len(out), maxSeeds))
		out = out[:maxSeeds]
	}
	return out, errors.Join(errs...)
}

func (s seed) resolve(ctx context.Context, r Resolver) (out []string, err error) {
	switch s.kind {
	case "host":
		return []string{net.JoinHostPort(s.name, s.port)}, nil
	case "dns":
		hosts, err := r.LookupHost(ctx, s.name)
		for _, h := range hosts {
			out = append(out, net.JoinHostPort(h, s.port))
		}
		return out, err
	}
	_, records, err := r.LookupSRV(ctx, "", "", s.name)
	for _, rec := range records {
		out = append(out, net.JoinHostPort(strings.TrimSuffix(rec.Target, "."), strconv.Itoa(int(rec.Port))))
	}
	return out, err
}
