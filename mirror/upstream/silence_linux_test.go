package upstream

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A connection on which nothing is acknowledged ends before a request's budget does. Packets are lost on the way for real in the
// tests of several datacenters; here the kernel is asked what it will do.
func TestSilentConnectionsEnd(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	for name, control := range map[string]dialControl{"": nil, "below a ceiling": within(loopback)} {
		tr := newTransport(Config{MaxPerHost: 1}, nil, control)
		defer tr.CloseIdleConnections()
		var got int
		trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { got = userTimeout(t, i.Conn) }}
		req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got != int(silence.Milliseconds()) {
			t.Errorf("%s: it lives for %d ms of silence", name, got)
		}
	}
}

func userTimeout(t *testing.T, c net.Conn) (ms int) {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { ms, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); err != nil {
		t.Fatal(err)
	}
	return ms
}
