package wannet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// device is the name of each host's only way out.
const device = "wan0"

// openTUN makes a TUN device in the namespace of this thread, and returns its other end, which the runtime can poll.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI) // packets as they are, with nothing in front of them
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the TUN device %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

// Check returns what this machine lacks to have such a network, and what to do about it.
func Check() error {
	var missing []error
	if os.Geteuid() != 0 {
		missing = append(missing, errors.New("not root: network namespaces can be made by root only, or in a container that runs with --privileged"))
	}
	if _, err := exec.LookPath("ip"); err != nil {
		missing = append(missing, errors.New("no program ip: install iproute2"))
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		missing = append(missing, fmt.Errorf("no TUN devices: %w; load the module tun, or give the container --device /dev/net/tun", err))
	}
	if _, err := os.Stat("/proc/self/ns/net"); err != nil {
		missing = append(missing, fmt.Errorf("the kernel has no network namespaces: %w", err))
	}
	return errors.Join(missing...)
}
