package replicate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Stream carries raft's connections. Whoever implements it sees to it that both ends are who they say they are.
type Stream interface {
	// Accept returns connections of other members. Addr is where it listens; it is the node's address if Config.Self has
	// none.
	net.Listener

	// Dial connects to the node id, which is thought to be at addr, and fails if another one answers there.
	Dial(ctx context.Context, id, addr string) (net.Conn, error)
}

const (
	wireTimeout = 10 * time.Second // of one message, whatever its size
	wirePool    = 3                // idle connections kept to each node
)

// newTransport returns what carries raft's messages.
func (n *Node) newTransport() raft.Transport {
	if n.config.Stream == nil {
		_, t := raft.NewInmemTransport(raft.ServerAddress(n.id.Node))
		return t
	}
	w := wire{n.config.Stream, n, &n.conns}
	return newPipelined(raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: w, ServerAddressProvider: w, MaxPool: wirePool, Timeout: wireTimeout, Logger: newRaftLog(n.log),
	}))
}

// wire is a Stream as raft wants it. raft dials addresses; ours begin with the id of the node that is meant, "id@address",
// so that nobody else is taken for it.
type wire struct {
	Stream
	node *Node
	open *openConns
}

// Accept implements net.Listener.
func (w wire) Accept() (net.Conn, error) {
	c, err := w.Stream.Accept()
	if err != nil {
		return nil, err
	}
	return w.open.add(c)
}

// Dial implements raft.StreamLayer.
func (w wire) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, addr, ok := strings.Cut(string(to), "@")
	if !ok {
		return nil, fmt.Errorf("it is not known yet which node is meant by %s", to)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := w.Stream.Dial(ctx, id, addr)
	if err != nil {
		return nil, err
	}
	return w.open.add(c)
}

// openConns are the connections of raft, so that they can be ended without it. The heartbeats of a leader whose main goroutine
// hangs in its disk go on until the connections are gone, whatever raft has been told: the others would follow it for ever.
type openConns struct {
	mu    sync.Mutex
	conns map[*openConn]bool // guarded by mu
	ended bool               // guarded by mu; there will be no others
}

type openConn struct {
	net.Conn
	in *openConns
}

func (o *openConns) add(c net.Conn) (net.Conn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		_ = c.Close() // nothing was sent yet
		return nil, net.ErrClosed
	}
	if o.conns == nil {
		o.conns = make(map[*openConn]bool)
	}
	out := &openConn{c, o}
	o.conns[out] = true
	return out, nil
}

// Close implements net.Conn.
func (c *openConn) Close() error {
	c.in.mu.Lock()
	delete(c.in.conns, c)
	c.in.mu.Unlock()
	return c.Conn.Close()
}

// hangUp ends all connections, for good.
func (o *openConns) hangUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	for c := range o.conns {
		_ = c.Conn.Close() // nobody waits for what is under way
	}
	o.conns = nil
}

// Addr returns the address by which the others know this node.
func (w wire) Addr() net.Addr {
	if a := w.node.config.Self.Address; a != "" {
		return address(a)
	}
	return w.Stream.Addr()
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// ServerAddr implements raft.ServerAddressProvider. raft also tells others its own address by it.
func (w wire) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if string(id) == w.node.id.Node {
		return raft.ServerAddress(w.Addr().String()), nil
	}
	addr := w.node.addressOf(string(id))
	if addr == "" {
		return "", errors.New("the address of the node is not known")
	}
	return raft.ServerAddress(string(id) + "@" + addr), nil
}

// addressBook is where nodes are, by id, as the node table says.
type addressBook map[string]string

// addressOf returns where a node is: as the node table says, which each node's last registration has written, or as the
// members' configuration says. It is "" if neither knows.
func (n *Node) addressOf(id string) string {
	if book := n.book.Load(); book != nil && (*book)[id] != "" {
		return (*book)[id]
	}
	r := n.raftRef.Load()
	if r == nil {
		return ""
	}
	for _, s := range r.GetConfiguration().Configuration().Servers {
		if string(s.ID) == id {
			return string(s.Address)
		}
	}
	return ""
}

// readBook copies the addresses out of the node table.
func (n *Node) readBook() error {
	book := addressBook{}
	err := n.view(func(s state) error {
		all, err := s.peers()
		for _, p := range all {
			book[p.ID] = p.Address
		}
		return err
	})
	if err == nil {
		n.book.Store(&book)
	}
	return err
}
