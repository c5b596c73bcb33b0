package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// advertised returns the host:port at which other nodes reach this one. What the operator says is taken as it is. A listen
// address with a host needs nothing more; "" stands for where it listens in the end. Else it is the entry of --join that means this machine, which is a name that stays;
// else the address from which this machine would reach the first of the others; else its only one.
func advertised(ctx context.Context, c clusterConfig) (string, error) {
	if c.Advertise != "" {
		return c.Advertise, nil
	}
	host, port, err := net.SplitHostPort(c.peerListen())
	if err != nil {
		return "", err
	}
	if addr, err := netip.ParseAddr(host); host != "" && (err != nil || !addr.IsUnspecified()) {
		if port == "0" {
			return "", nil // the port that the system gives
		}
		return c.peerListen(), nil
	}
	own, err := ownAddresses()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var from netip.Addr
	for _, entry := range c.Join {
		h, p, err := net.SplitHostPort(entry)
		if err != nil {
			continue
		}
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", strings.TrimPrefix(h, "dns:"))
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if own[a.Unmap()] && p == port && !strings.HasPrefix(h, "dns:") {
				return net.JoinHostPort(h, port), nil
			}
			if !from.IsValid() && !own[a.Unmap()] {
				from = outbound(a)
			}
		}
	}
	if !from.IsValid() {
		from = onlyOne(own)
	}
	if !from.IsValid() {
		return "", fmt.Errorf("--peer-listen %s: at which address other nodes reach this one is not clear; say so with --advertise host:port", c.peerListen())
	}
	return net.JoinHostPort(from.String(), port), nil
}

// ownAddresses returns the addresses of this machine.
func ownAddresses() (map[netip.Addr]bool, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of this machine: %w", err)
	}
	own := make(map[netip.Addr]bool)
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own[p.Addr().Unmap()] = true
		}
	}
	return own, nil
}

// outbound returns the address that this machine has on the way to another. Nothing is sent.
func outbound(to netip.Addr) netip.Addr {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}

// onlyOne returns the one address that others can reach, if there is exactly one.
func onlyOne(own map[netip.Addr]bool) (only netip.Addr) {
	for a := range own {
		if a.IsLoopback() || a.IsLinkLocalUnicast() || !a.Is4() {
			continue
		}
		if only.IsValid() {
			return netip.Addr{}
		}
		only = a
	}
	return only
}
