package peer

import (
	"context"
	"net"
)

// Network makes connections, on which a Link does the rest. Addresses are host:port, also those of the connections.
type Network interface {
	// Listen returns a listener whose Accept fails with [net.ErrClosed] once it is closed.
	Listen(addr string) (net.Listener, error)
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// tcp is the real network.
type tcp struct{}

func (tcp) Listen(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }

func (tcp) Dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}
