package upstream

import (
	"context"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// silence is how long a connection lives on whose other end takes nothing of what it is sent (TCP_USER_TIMEOUT, RFC 5482). An
// upstream that thinks for long has taken the question; a network that swallows packets, as between datacenters that are cut off
// from each other, has not, and without this a request on a connection of before the cut waits for all of its budget.
const silence = 15 * time.Second

// endSilent has a dialer's connections end after silence, and calls control, if any, first.
func endSilent(control dialControl) dialControl {
	return func(ctx context.Context, network, address string, c syscall.RawConn) error {
		if control != nil {
			if err := control(ctx, network, address, c); err != nil {
				return err
			}
		}
		// A kernel that does not know it waits longer: no reason to connect to nobody.
		return c.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
		})
	}
}
