package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
)

// DefaultPort is the port of an address that names none.
const DefaultPort = "3001"

// Config says how a node speaks with the others.
type Config struct {
	Listen      string      // host:port
	Advertise   string      // host:port that others are told; empty: where it listens, which then must not be every address
	Credentials Credentials // required
	// Self returns who this node is now: Node and Boot are required, an empty Address is filled in. It is called for each
	// handshake, and from then on that it is in a cluster it must say so. Required.
	Self func() Hello
	// Check returns what the catalog has against a node, best a *Refusal. It is called for each stream and each request
	// and must be fast. nil: nothing.
	Check func(Hello) error
	// Was reports whether the cluster of this node was recovered from the one with that id, and when: nodes of that one are
	// told so. nil: it was not.
	Was func(cluster string) (at time.Time, ok bool)
	// Leader returns the member that leads, if that is known. Nodes that want to join are told. nil: unknown.
	Leader func() (Member, bool)
	// Refused is told, each time, why a node that this one found with --join, or asks to join, does not speak with it.
	// nil: nobody is told.
	Refused func(*Refusal)
	// Network is what connects this node with the others. nil: TCP.
	Network Network
	Log     *slog.Logger          // nil: nothing is logged
	Metrics prometheus.Registerer // nil: nothing is measured

	now       func() time.Time
	handshake time.Duration
	pause     time.Duration      // between two rounds of forming
	step      func(string) error // called after each durable step of forming
}

// What a link holds at most. A node needs a handful of connections to each other one.
const (
	maxHandshakes = 64   // in flight; one more ends the oldest
	maxPerPeer    = 64   // connections of one certificate from one host
	maxConns      = 1024 // in all
	maxKnown      = 4096 // nodes that are remembered
	maxParsed     = 256  // hellos whose text is remembered
	handshakeTime = 5 * time.Second
	maxRequests   = 4096             // under way, of all nodes
	slowest       = 1 << 10          // bytes a second
	stallTime     = 30 * time.Second // without a byte going through, a bulk transfer is dead
	callTime      = 30 * time.Second // of a request whose context has no deadline
	idleTime      = 2 * time.Minute
)

// Link is a node's end of the connections to the others. Close it.
type Link struct {
	config  Config
	log     *slog.Logger
	metrics *metrics
	ln      net.Listener
	address string // advertised
	raft    *handoff
	web     *handoff
	server  *http.Server
	mux     *http.ServeMux
	control *http.Transport
	bulk    *http.Transport
	probes  singleflight.Group
	said    sayOnce
	wan     wan

	inFlight atomic.Int64 // requests of other nodes

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool               // guarded by mu, as all that follows
	conns   map[*conn]struct{} // both accepted and dialed
	pending []*conn            // accepted and not through the handshake, oldest first
	perPeer map[string]int
	known   map[string]Hello // by node: the last that was let in
	parsed  map[string]Hello // by text
	open    map[string]bool  // patterns that a node without a cluster may use
	forming *forming         // nil until Form has read its file
}

// Listen opens the port and serves it until Close.
func Listen(c Config) (*Link, error) {
	if c.Credentials == nil || c.Self == nil {
		return nil, errors.New("a link needs credentials and a self")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.handshake == 0 {
		c.handshake = handshakeTime
	}
	if c.pause == 0 {
		c.pause = time.Second
	}
	if c.Network == nil {
		c.Network = tcp{}
	}
	ln, err := c.Network.Listen(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for other nodes: %w", err)
	}
	l := &Link{
		config: c, log: c.Log, ln: ln, address: c.Advertise, mux: http.NewServeMux(),
		raft: newHandoff(ln.Addr()), web: newHandoff(ln.Addr()),
		conns: map[*conn]struct{}{}, perPeer: map[string]int{}, known: map[string]Hello{}, parsed: map[string]Hello{}, open: map[string]bool{},
	}
	if err := l.start(); err != nil {
		ln.Close()
		return nil, err
	}
	return l, nil
}

func (l *Link) start() error {
	if l.address == "" {
		if a, ok := l.ln.Addr().(*net.TCPAddr); ok && a.IP.IsUnspecified() {
			return fmt.Errorf("other nodes cannot connect to %v: say with --advertise host:port where they reach this node", a)
		}
		l.address = l.ln.Addr().String()
	}
	if !isAddress(l.address) {
		return fmt.Errorf("%.100q is not an address of the form host:port that other nodes could connect to", l.address)
	}
	if err := l.Self().check(); err != nil {
		return fmt.Errorf("this node cannot introduce itself: %w", err)
	}
	var err error
	if l.metrics, err = newMetrics(l); err != nil {
		return err
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.control, l.bulk = l.newTransports()
	l.server = l.newServer()
	l.handleOpen("GET /v1/hello", http.HandlerFunc(l.serveHello))
	l.handleForming()
	l.wg.Go(func() { l.server.Serve(l.web) })
	l.wg.Go(l.acceptAll)
	return nil
}

// Addr returns where the link listens.
func (l *Link) Addr() net.Addr { return l.ln.Addr() }

// Self returns how this node introduces itself now.
func (l *Link) Self() Hello {
	h := l.config.Self()
	if h.Address == "" {
		h.Address = l.address
	}
	return h
}

// tell reports whether err is a refusal, and passes it on.
func (l *Link) tell(err error) bool {
	r, ok := errors.AsType[*Refusal](err)
	if ok && l.config.Refused != nil {
		l.config.Refused(r)
	}
	return ok
}

// Shutdown takes no new connections and waits until the requests in flight are answered or ctx ends. Close has still to be
// called.
func (l *Link) Shutdown(ctx context.Context) error {
	l.ln.Close()
	return l.server.Shutdown(ctx)
}

// Close closes the port and every connection, and waits for the handshakes in flight to notice.
func (l *Link) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	var conns []*conn
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	l.cancel()
	l.ln.Close()
	l.raft.Close()
	l.web.Close()
	for _, c := range conns {
		c.Close()
	}
	l.server.Close()
	l.control.CloseIdleConnections()
	l.bulk.CloseIdleConnections()
	l.wg.Wait()
	l.metrics.close()
	return nil
}

// Drop closes all streams and connections on which node has spoken, for one that was removed.
func (l *Link) Drop(node string) {
	l.mu.Lock()
	var conns []*conn
	for c := range l.conns {
		if c.node == node {
			conns = append(conns, c)
		}
	}
	delete(l.known, node)
	l.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// serverTLS returns the settings for one handshake. They are made anew each time because credentials change, and because a
// says what the other end offers also when the handshake fails.
func (l *Link) serverTLS(a *attempt) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{protoRaft, protoH2, protoHTTP},
		Time:                   l.config.now,
		ClientCAs:              l.config.Credentials.Roots(),
		SessionTicketsDisabled: true, // each connection is checked in full
		// A certificate that is shown is verified by crypto/tls, which tells the other end what is wrong with it;
		// VerifyConnection refuses those who show none.
		ClientAuth: tls.VerifyClientCertIfGiven,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.VerifiedChains) == 0 {
				return judge(nil, l.config.Credentials, l.config.now(), 0)
			}
			return nil
		},
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			*a = l.offered(h)
			return nil, nil
		},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return l.config.Credentials.Certificate() },
	}
}
