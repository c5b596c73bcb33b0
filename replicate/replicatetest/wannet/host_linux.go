package wannet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is a machine of the network: an address, and a loopback of its own.
type Host struct {
	name, zone string
	addr       netip.Addr
	ns         *os.File // its namespace; nil before it is made
	tun        *os.File // the other end of its device

	to map[netip.Addr]*flow // guarded by the Net's mu
}

// The MTU of the path to hosts of the same zone, and to all others.
const (
	zoneMTU = 65000
	wanMTU  = 1500
)

// Name returns the name.
func (h *Host) Name() string { return h.name }

// Zone returns the zone's name.
func (h *Host) Zone() string { return h.zone }

// Addr returns the address.
func (h *Host) Addr() netip.Addr { return h.addr }

func (h *Host) namespace() string { return fmt.Sprintf("%s%d-%s", prefix, os.Getpid(), h.name) }

// open makes the namespace and its device.
func (h *Host) open() (err error) {
	name := h.namespace()
	if err := ip("netns", "add", name); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	if h.ns, err = os.Open(netnsDir + "/" + name); err != nil {
		return err
	}
	if err = h.inside(func() (err error) { h.tun, err = openTUN(device); return err }); err != nil {
		return err
	}
	near, err := h.addr.Prefix(24)
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "add", h.addr.String() + "/32", "dev", device},
		{"link", "set", device, "mtu", fmt.Sprint(zoneMTU), "up"},
		{"route", "add", near.String(), "dev", device},
		{"route", "add", "default", "dev", device, "mtu", "lock", fmt.Sprint(wanMTU)},
	} {
		if err := ip(append([]string{"-n", name}, args...)...); err != nil {
			return err
		}
	}
	return nil
}

// close ends what runs on the host, and removes it.
func (h *Host) close() error {
	if h.tun != nil {
		_ = h.tun.Close() // with it the device is gone, and the goroutine that reads from it ends
	}
	if h.ns != nil {
		_ = h.ns.Close() // it was only read
	}
	return removeNamespace(h.namespace())
}

// hand has the host receive a packet.
func (h *Host) hand(b []byte) error {
	_, err := h.tun.Write(b)
	return err
}

// inside runs f in a thread that is on the host: the sockets that it opens are.
func (h *Host) inside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with this goroutine, and is in no other's way
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network namespace of host %q: %w", h.name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Dial connects from the host to an address, which must be an IP address and a port.
func (h *Host) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, err // names are looked up in goroutines of their own, which are not on the host
	}
	err = h.inside(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens on the host.
func (h *Host) Listen(network, address string) (ln net.Listener, err error) {
	err = h.inside(func() (err error) {
		ln, err = net.Listen(network, address)
		return err
	})
	return ln, err
}

// Client returns an HTTP client on the host. Its idle connections are the caller's to close.
func (h *Host) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: h.Dial, MaxIdleConnsPerHost: 16}}
}

// Command returns a command to run on the host. The process that is started is that of the command itself.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", h.namespace(), name}, args...)...)
}

// ip runs the tool of that name.
func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
