package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// Raft returns the listener of the Raft streams: each is through the handshake, and comes from a node of this cluster.
func (l *Link) Raft() net.Listener { return l.raft }

// acceptRaft makes the second part of the handshake, in frames.
func (l *Link) acceptRaft(ctx context.Context, c *conn, tc *tls.Conn, busy bool) {
	deadline, _ := ctx.Deadline()
	tc.SetDeadline(deadline)
	f, err := readFrame(tc)
	var r *Refusal
	switch _, isNet := errors.AsType[net.Error](err); {
	case isNet, err != nil && l.ctx.Err() != nil:
		tc.Close() // cut off, nobody listens any more
		return
	case err != nil:
		r = Refuse(WrongProtocol, "%v: the two nodes run versions that are too different", err)
	case busy:
		r = refuseBusy()
	default:
		r = l.admit(ctx, f.Hello, f.To, asMember)
	}
	if r != nil {
		l.refused(c.RemoteAddr().String(), r)
	}
	err = writeFrame(tc, frame{Hello: l.Self(), Refused: r})
	if r != nil || err != nil {
		tc.CloseWrite()
		l.linger(ctx, c)
		return
	}
	tc.SetDeadline(time.Time{})
	l.mu.Lock()
	l.settle(c)
	c.node = f.Hello.Node
	l.mu.Unlock()
	c.from(f.Hello, kindRaft)
	if !l.raft.give(ctx, tc) {
		tc.Close()
	}
}

// DialRaft opens a Raft stream to a node, which is at addr. It is refused if another node answers there.
func (l *Link) DialRaft(ctx context.Context, node, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.handshake)
	defer cancel()
	tc, err := l.dialTLS(ctx, addr, protoRaft, 0)
	if err != nil {
		return nil, fmt.Errorf("raft stream to node %s at %s: %w", short(node), addr, err)
	}
	stop := context.AfterFunc(ctx, func() { tc.NetConn().SetDeadline(time.Unix(1, 0)) })
	err = l.greet(tc, node, addr)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		tc.NetConn().Close() // not tc.Close: that waits to say goodbye
		if ctx.Err() != nil && ClassOf(err) == "" {
			err = context.Cause(ctx)
		}
		l.metrics.dialRefused(ClassOf(err))
		return nil, fmt.Errorf("raft stream to node %s at %s: %w", short(node), addr, err)
	}
	tc.SetDeadline(time.Time{})
	return tc, nil
}

func (l *Link) greet(tc *tls.Conn, node, addr string) error {
	werr := writeFrame(tc, frame{To: node, Hello: l.Self()})
	f, err := readFrame(tc) // also when nothing could be written: the other end may have said why
	switch {
	case err != nil && werr != nil && isAlert(werr, alertBadCertificate, alertExpired, alertUnknown, alertUnknownCA):
		return l.refusedDial(werr, addr)
	case err != nil:
		return l.refusedDial(err, addr)
	case f.Refused != nil:
		f.Refused.By = addr
		return f.Refused
	case werr != nil:
		return werr
	}
	if r := l.answers(f.Hello, node, addr, asMember); r != nil {
		return r
	}
	if l.config.Check != nil {
		if err := l.config.Check(f.Hello); err != nil {
			return asRefusal(err)
		}
	}
	c := tc.NetConn().(*conn)
	l.mu.Lock()
	c.node = node
	l.mu.Unlock()
	c.from(f.Hello, kindRaft)
	return nil
}
