package mirror

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// FAULTS 40: a client that announces a body and never sends it is answered, and loses its connection.
func TestAnnouncedBodies(t *testing.T) {
	g := newRig(t)
	for header, status := range map[string]int{
		"POST /example.com/hello/@v/list HTTP/1.1\r\nContent-Length: 1000":         405,
		"POST / HTTP/1.1\r\nTransfer-Encoding: chunked":                            405,
		"GET /example.com/hello/@v/list HTTP/1.1\r\nContent-Length: 1000":          400,
		"GET /healthz HTTP/1.1\r\nTransfer-Encoding: chunked":                      400,
		"GET /healthz HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue":       400,
		"HEAD /example.com/hello/@v/v1.0.0.mod HTTP/1.1\r\nContent-Length: 999999": 400,
	} {
		conn, err := net.Dial("tcp", g.srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "%s\r\nHost: mirror\r\n\r\n", header)
		conn.SetReadDeadline(time.Now().Add(20 * time.Second)) // the test's patience, far beyond the second that it takes
		r := bufio.NewReader(conn)
		method, _, _ := strings.Cut(header, " ")
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			t.Errorf("%q: %v", header, err)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != status || !resp.Close {
			t.Errorf("%q: %s, close %v, %q, %v; want %d and close", header, resp.Status, resp.Close, body, err, status)
		}
		checkErrorBody(t, header, resp, string(body), method)
		if _, err := r.ReadByte(); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("%q: the connection stays open: %v", header, err)
		}
	}
}
