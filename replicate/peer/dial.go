package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"time"
)

// serverSuffix ends the server name (SNI) that a dialer asks for. Before it stands the name of its credentials: so the
// other end can say what is wrong also to a node that hangs up on it.
const serverSuffix = ".modmirror.internal"

// dialTLS connects to addr and makes a handshake for one protocol.
func (l *Link) dialTLS(ctx context.Context, addr, proto string, stall time.Duration) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.handshake)
	defer cancel()
	nc, err := l.config.Network.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	c := l.track(nc, false)
	if c == nil {
		nc.Close()
		return nil, net.ErrClosed
	}
	tc := tls.Client(c, l.clientTLS(proto))
	if err := tc.HandshakeContext(ctx); err != nil {
		c.Close()
		err = l.refusedDial(err, addr)
		l.metrics.dialRefused(ClassOf(err))
		return nil, err
	}
	c.stall = stall
	return tc, nil
}

func (l *Link) clientTLS(proto string) *tls.Config {
	creds := l.config.Credentials
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{proto},
		ServerName: creds.Name() + serverSuffix,
		Time:       l.config.now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return creds.Certificate()
		},
		// Certificates have no names to compare, so VerifyConnection does it all: the chain, the dates, the use.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if r := judge(s.PeerCertificates, creds, l.config.now(), x509.ExtKeyUsageServerAuth); r != nil {
				return r
			}
			if s.NegotiatedProtocol != proto {
				return Refuse(WrongProtocol, "the node there does not speak %s: it runs a version that is too different", proto)
			}
			return nil
		},
	}
}

func (l *Link) refusedDial(err error, addr string) error {
	var leaf *x509.Certificate
	if cert, err := l.config.Credentials.Certificate(); err == nil {
		leaf = cert.Leaf
	}
	return refusedDial(err, addr, leaf, l.config.now())
}
