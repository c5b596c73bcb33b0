package upstream

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

var anyModule = module.Version{Path: "example.com/Hello", Version: "v1.0.0"}

// Exactly this goes out, whatever comes in.
func TestRequestsAreBuiltFromNothing(t *testing.T) {
	u, m := start(t)
	l := parse(t, u.URL(), Config{UserAgent: "modmirror/test (admin@example.com)"})
	for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
		if _, err := fetch(t, l, m, k); err != nil {
			t.Fatal(err)
		}
	}
	l.Versions(t.Context(), m.Path)
	l.Entries()[0].Get(t.Context(), "/sumdb/x/latest", 100)
	reqs := u.Requests()
	for _, r := range reqs {
		if len(r.Header) != 2 || r.Header.Get("User-Agent") != "modmirror/test (admin@example.com)" || r.Header.Get("Accept-Encoding") != "identity" {
			t.Errorf("%s has the header %v", r.Path, r.Header)
		}
		if r.Method != "GET" || r.Query != "" {
			t.Errorf("%s %s?%s", r.Method, r.Path, r.Query)
		}
	}
	if len(reqs) != 5 {
		t.Errorf("%d requests", len(reqs))
	}
}

// A credential goes to its own scheme, host and port only.
func TestCredentials(t *testing.T) {
	home, m := start(t)
	other, _ := start(t)
	secure := httptest.NewTLSServer(other)
	defer secure.Close()
	withUser := func(raw, user string) string { return strings.Replace(raw, "://", "://"+user+"@", 1) }
	for user, want := range map[string]string{"alice:s3cret%40x": "alice:s3cret@x", "t0ken": "t0ken:"} {
		l := parse(t, withUser(home.URL(), user)+"|"+other.URL(), Config{})
		trust(l, secure)
		home.Reset()
		other.Reset()
		if _, err := l.Versions(t.Context(), m.Path); err != nil {
			t.Fatal(err)
		}
		if got := home.Requests()[0].Header.Get("Authorization"); got != "Basic "+base64.StdEncoding.EncodeToString([]byte(want)) {
			t.Errorf("%s: Authorization = %q", user, got)
		}
		home.Redirect(modPath, secure.URL)
		if _, err := fetch(t, l, m, artifact.Mod); err != nil {
			t.Fatal(err)
		}
		home.Heal()
		home.Status("/", 404, "")
		l.Versions(t.Context(), m.Path)
		home.Heal()
		if other.Count(modPath) != 1 || other.Count(listPath) != 1 {
			t.Errorf("other was asked %+v", other.Requests())
		}
		for _, r := range other.Requests() {
			if r.Header.Get("Authorization") != "" {
				t.Errorf("%s: other got the credentials with %s", user, r.Path)
			}
		}
	}
}

// A redirect that leads away and back does not make us authenticate a request that somebody else chose.
func TestCredentialsAreNotSentOnTheWayBack(t *testing.T) {
	home, m := start(t)
	secure := httptest.NewTLSServer(home)
	defer secure.Close()
	back := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, secure.URL+"/example.com/!hello/@v/v1.0.0.info", http.StatusFound)
	}))
	defer back.Close()
	home.Redirect(modPath, back.URL)
	l := parse(t, strings.Replace(secure.URL, "://", "://u:p@", 1), Config{})
	trust(l, secure)
	if _, err := fetch(t, l, m, artifact.Mod); err != nil {
		t.Fatal(err)
	}
	reqs := home.Requests()
	if len(reqs) != 2 || reqs[0].Header.Get("Authorization") == "" || reqs[1].Header.Get("Authorization") != "" {
		t.Errorf("home got %+v", reqs)
	}
}

// Neither an error nor a name holds a password, whatever goes wrong; not even if the upstream prints it back.
func TestRedaction(t *testing.T) {
	home, m := start(t)
	raw := strings.Replace(home.URL(), "://", "://s3cretuser:s3cretword@", 1)
	l := parse(t, raw, Config{})
	check := func(err error) {
		t.Helper()
		if err == nil {
			t.Error("no error")
		}
		var e *Error
		text := l.String() + l.Entries()[0].String() + l.Entries()[0].Below("/x").String()
		if errors.As(err, &e) {
			text += e.Source + e.URL + e.Reason + e.Error()
		}
		if text += err.Error(); strings.Contains(text, "s3cret") {
			t.Errorf("a secret shows: %s", text)
		}
	}
	faults := []func(){
		func() { home.Status("/", 403, "you sent s3cretword, which is wrong") },
		func() { home.Down(true) },
		func() { home.Gzip(m, artifact.Zip) },
		func() { home.Truncate(m, artifact.Zip, 3) },
		func() { home.Redirect("/", "https://u:s3cret@127.0.0.1:1/x?sig=s3cret") },
		func() { home.Redirect("/", "ftp://u:s3cret@127.0.0.1:1/x?sig=s3cret") },
		func() { home.Redirect("/", "http://s3cret@169.254.169.254/s3cret") },
		func() { home.Redirect("/", "https://s3cret@169.254.169.254/s3cret") },
		func() { home.Close() },
	}
	for _, set := range faults {
		home.Heal()
		set()
		_, err := fetch(t, l, m, artifact.Zip)
		check(err)
	}
}

func TestRedirects(t *testing.T) {
	home, m := start(t)
	other, _ := start(t)
	secure := httptest.NewTLSServer(other)
	defer secure.Close()
	l := parse(t, home.URL(), Config{})
	trust(l, secure)
	home.Redirect("/", secure.URL)
	if b, err := fetch(t, l, m, artifact.Zip); err != nil || string(b) != string(other.Artifact(m, artifact.Zip)) {
		t.Errorf("a redirect to another port: %v", err)
	}
	for name, base := range map[string]string{"a loop": home.URL(), "link-local": "https://169.254.169.254", "another scheme": "ftp://127.0.0.1", "unspecified": "https://0.0.0.0:1", "mapped": "https://[::ffff:169.254.169.254]"} {
		home.Redirect("/", base)
		home.Reset()
		_, err := fetch(t, l, m, artifact.Mod)
		checkMatches(t, name, err, "malformed")
		if n := len(home.Requests()); name == "a loop" && n != 1+maxRedirects || name != "a loop" && n != 1 {
			t.Errorf("%s: %d requests", name, n)
		}
		if e := (*Error)(nil); !errors.As(err, &e) || e.Status != http.StatusFound || e.Source != home.URL() {
			t.Errorf("%s: %#v", name, err)
		}
	}
	home.Redirect("/", "")
	home.Status("/", 302, "")
	_, err := fetch(t, l, m, artifact.Mod)
	checkMatches(t, "no location", err, "malformed")
}

// FAULTS 17: what is fetched goes unencrypted only to where an operator said so, whatever an upstream would like.
func TestRedirectToHTTP(t *testing.T) {
	home, m := start(t)
	plain, _ := start(t)
	back := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, home.URL()+"/back"+r.URL.EscapedPath(), http.StatusMovedPermanently)
	})
	secure := httptest.NewTLSServer(back)
	defer secure.Close()
	home.Mount("/back", plain)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(home.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ upstream, location, reason string }{
		"from https":                    {secure.URL, "", "from https to http://127.0.0.1"},
		"from http to another port":     {home.URL(), plain.URL(), "from http to http://127.0.0.1"},
		"from http to another name":     {home.URL(), "http://localhost:" + port, "from http to http://localhost"},
		"from http over https and back": {home.URL(), secure.URL, "from https to http://127.0.0.1"},
	} {
		home.Redirect(modPath, tt.location)
		l := parse(t, tt.upstream, Config{})
		trust(l, secure)
		home.Reset()
		_, err := fetch(t, l, m, artifact.Mod)
		checkMatches(t, name, err, "malformed")
		if err != nil && !strings.Contains(err.Error(), tt.reason) {
			t.Errorf("%s: %v, want %q", name, err, tt.reason)
		}
		if n := len(home.Requests()); n > 1 || n == 1 && tt.upstream != home.URL() {
			t.Errorf("%s: home got %d requests", name, n)
		}
	}
	if n := len(plain.Requests()); n != 0 {
		t.Errorf("another http server got %d requests", n)
	}
	// An operator's own, which is http, may send a request elsewhere on itself.
	for _, location := range []string{home.URL() + "/back", "/back"} {
		home.Redirect(modPath, location)
		if b, err := fetch(t, parse(t, home.URL(), Config{}), m, artifact.Mod); err != nil || string(b) != string(home.Artifact(m, artifact.Mod)) {
			t.Errorf("on the same host and port, to %s: %q, %v", location, b, err)
		}
	}
}

// trust makes l accept the certificate of srv, which is that of every server of httptest.
func trust(l *List, srv *httptest.Server) {
	roots := srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	for _, rt := range append(l.network.below[:], l.network.open) {
		rt.(*http.Transport).TLSClientConfig.RootCAs = roots
	}
}

// What does not arrive whole is unavailable, and the separator says what then.
func TestBrokenBodies(t *testing.T) {
	bad, m := start(t)
	good, _ := start(t)
	for name, set := range map[string]func(){
		"cut short":           func() { bad.Truncate(m, artifact.Zip, 10) },
		"declared too long":   func() { bad.WrongLength(m, artifact.Zip, 7) },
		"no answer at all":    func() { bad.Down(true) },
		"cut short, no bytes": func() { bad.Truncate(m, artifact.Zip, 0) },
	} {
		set()
		_, err := fetch(t, parse(t, bad.URL()+","+good.URL(), Config{}), m, artifact.Zip)
		checkMatches(t, name, err, "unavailable")
		if _, err := fetch(t, parse(t, bad.URL()+"|"+good.URL(), Config{}), m, artifact.Zip); err != nil {
			t.Errorf("%s, then |: %v", name, err)
		}
		// It is the source's fault also if the reader calls it something else.
		if !strings.HasPrefix(name, "no answer") {
			err = parse(t, bad.URL(), Config{}).Fetch(t.Context(), m, artifact.Zip, func(body io.Reader, _ int64, _ string) error {
				io.Copy(io.Discard, body)
				return artifact.ErrRefused
			})
			checkMatches(t, name+", refused by the reader", err, "unavailable")
		}
		bad.Heal()
	}
}

// What net/http would notice is noticed with any transport.
func TestBodyIsNotAsDeclared(t *testing.T) {
	for _, declared := range []int64{3, 5} {
		l := parse(t, "https://a.example", Config{Transport: answer200("four", declared)})
		_, err := fetch(t, l, anyModule, artifact.Zip)
		checkMatches(t, "another length than declared", err, "unavailable")
	}
}

// A time-out below us, as of a dialer, is a time-out.
func TestNetworkTimeout(t *testing.T) {
	l := parse(t, "https://a.example", Config{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
		return nil, os.ErrDeadlineExceeded
	})})
	_, err := l.Versions(t.Context(), anyModule.Path)
	checkMatches(t, "dial", err, "unavailable", "deadline")
}

// What declares to be too large is not even looked at.
func TestTooLargeIsNotAccepted(t *testing.T) {
	l := parse(t, "https://a.example", Config{Transport: answer200("", artifact.MaxZip+1)})
	err := l.Fetch(t.Context(), anyModule, artifact.Zip, func(io.Reader, int64, string) error {
		t.Error("accept is called")
		return nil
	})
	checkMatches(t, "too large", err, "malformed")
}

func answer200(body string, size int64) http.RoundTripper {
	return roundTrip(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, ContentLength: size, Body: io.NopCloser(strings.NewReader(body))}, nil
	})
}

// Where only the host's name can be checked, as behind a proxy, that is checked; credentials in a location are dropped.
func TestRedirectsByName(t *testing.T) {
	for location, ok := range map[string]bool{
		"https://b.example/x": true, "https://u:p@b.example": true, "/x": true, "https://8.8.8.8": true, "https://127.0.0.1": false,
		"https://localhost": false, "https://x.LOCALHOST.": false, "https://10.0.0.1": false, "https://[fd00::1]": false, "https://[::1]:8443": false,
	} {
		n := 0
		l := parse(t, "https://a.example", Config{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			if n++; n == 1 {
				return &http.Response{StatusCode: 307, Header: http.Header{"Location": {location}}, Body: http.NoBody}, nil
			}
			if r.URL.User != nil {
				t.Errorf("%s: credentials are kept", location)
			}
			return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
		})})
		if _, err := l.Latest(t.Context(), anyModule.Path); ok != (err == nil) || ok != (n == 2) {
			t.Errorf("%s: %d requests, %v", location, n, err)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// hang is a transport that answers nothing, or a header and then nothing, until the request's context ends.
func hang(header bool, asked *[]time.Time) http.RoundTripper {
	var mu sync.Mutex
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		*asked = append(*asked, time.Now())
		mu.Unlock()
		if header {
			return &http.Response{StatusCode: 200, ContentLength: -1, Body: hanging{r.Context()}}, nil
		}
		<-r.Context().Done()
		return nil, context.Cause(r.Context())
	})
}

type hanging struct{ ctx context.Context }

func (h hanging) Read([]byte) (int, error) { <-h.ctx.Done(); return 0, h.ctx.Err() }
func (hanging) Close() error               { return nil }

// How long things take that never end, by a clock that does not wait.
func TestTimeouts(t *testing.T) {
	for _, tt := range []struct {
		name     string
		goproxy  string
		header   bool
		deadline time.Duration
		want     time.Duration
		asked    int
	}{
		{"no header, no deadline", "https://a.example", false, 0, 30 * time.Second, 1},
		{"no header, a deadline", "https://a.example", false, 2 * time.Minute, 2 * time.Minute, 1},
		{"no header, a short deadline", "https://a.example", false, time.Second, time.Second, 1},
		{"no header, somebody else to ask", "https://a.example|https://b.example", false, 2 * time.Minute, 2 * time.Minute, 2},
		{"no header, nobody else after a comma", "https://a.example,https://b.example", false, time.Minute, time.Minute, 1},
		{"a short deadline, somebody else to ask", "https://a.example|https://b.example", false, 20 * time.Second, 20 * time.Second, 2},
		{"no body, a short deadline, somebody else to ask", "https://a.example|https://b.example", true, 20 * time.Second, 20 * time.Second, 2},
		{"no body", "https://a.example", true, 2 * time.Minute, 30 * time.Second, 1},
		{"no body, somebody else to ask", "https://a.example|https://b.example", true, 2 * time.Minute, time.Minute, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked []time.Time
				l, err := Parse(tt.goproxy, Config{Transport: hang(tt.header, &asked)})
				if err != nil {
					t.Fatal(err)
				}
				ctx := t.Context()
				if tt.deadline > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.deadline)
					defer cancel()
				}
				begin := time.Now()
				_, err = l.Versions(ctx, anyModule.Path)
				checkMatches(t, tt.name, err, "unavailable", "deadline")
				if took := time.Since(begin); took != tt.want || len(asked) != tt.asked {
					t.Errorf("took %v and asked %d, want %v and %d", took, len(asked), tt.want, tt.asked)
				}
				if first := min(30*time.Second, tt.deadline/2); tt.asked == 2 && asked[1].Sub(begin) != first {
					t.Errorf("the second was asked after %v", asked[1].Sub(begin))
				}
			})
		})
	}
}

// The time that the reader takes is not the source's.
func TestSlowReaderIsNotIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := Parse("https://a.example", Config{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, ContentLength: 3, Body: ctxBody{r.Context(), strings.NewReader("abc")}}, nil
		})})
		if err != nil {
			t.Fatal(err)
		}
		err = l.Fetch(t.Context(), anyModule, artifact.Zip, func(body io.Reader, _ int64, _ string) error {
			for range 3 {
				time.Sleep(time.Hour)
				if _, err := io.ReadFull(body, make([]byte, 1)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

type ctxBody struct {
	ctx context.Context
	r   io.Reader
}

func (b ctxBody) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, b.ctx.Err()
	}
	return b.r.Read(p)
}
func (ctxBody) Close() error { return nil }

// The same over real connections: a stall before the header, after it, in the middle; and a caller that gives up.
func TestStalls(t *testing.T) {
	u, m := start(t)
	for _, after := range []int{-1, 0, 10} {
		u.Stall(m, artifact.Zip, after)
		l := parse(t, u.URL(), Config{IdleTimeout: 20 * time.Millisecond, HeaderTimeout: 20 * time.Millisecond})
		_, err := fetch(t, l, m, artifact.Zip)
		checkMatches(t, "stalled", err, "unavailable", "deadline")

		u.Reset()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- parse(t, u.URL(), Config{}).Fetch(ctx, m, artifact.Zip, func(body io.Reader, _ int64, _ string) error {
				_, err := io.ReadAll(body)
				return err
			})
		}()
		if err := u.Await(t.Context(), zipPath, 1); err != nil {
			t.Fatal(err)
		}
		cancel()
		checkMatches(t, "canceled", <-done, "canceled")
	}
}

func TestRetry(t *testing.T) {
	u, m := start(t)
	for _, tt := range []struct {
		name string
		set  func()
		want int
	}{
		{"503", func() { u.Status("/", 503, "") }, 2},
		{"502", func() { u.Status("/", 502, "") }, 2},
		{"503 with a time", func() { u.Status("/", 503, "", "Retry-After", "9") }, 1},
		{"500", func() { u.Status("/", 500, "") }, 1},
		{"429", func() { u.Status("/", 429, "") }, 1},
		{"404", func() { u.Status("/", 404, "") }, 1},
		{"no answer", func() { u.Down(true) }, 2},
	} {
		u.Heal()
		tt.set()
		u.Reset()
		l := parse(t, u.URL(), Config{}) // without a connection that net/http would count as broken by age
		if _, err := l.Versions(t.Context(), m.Path); err == nil || u.Count(listPath) != tt.want {
			t.Errorf("%s: asked %d times, want %d: %v", tt.name, u.Count(listPath), tt.want, err)
		}
	}
	// A restart of the upstream goes unnoticed.
	n := 0
	l := parse(t, "https://a.example", Config{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
		if n++; n == 1 {
			return nil, io.EOF
		}
		return &http.Response{StatusCode: 200, ContentLength: 7, Body: io.NopCloser(strings.NewReader("v1.0.0\n"))}, nil
	})})
	if b, err := l.Versions(t.Context(), m.Path); err != nil || string(b) != "v1.0.0\n" {
		t.Errorf("after one broken connection: %q, %v", b, err)
	}
}

// No more than MaxPerHost requests are under way, of them half for zips; who cannot get in says so.
func TestConcurrencyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var now, most int
		underWay := func() int {
			mu.Lock()
			defer mu.Unlock()
			return now
		}
		release := make(chan struct{})
		l, err := Parse("https://a.example/x|https://A.example:443/y", Config{MaxPerHost: 4, Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			select {
			case <-release:
			case <-r.Context().Done():
			}
			mu.Lock()
			now--
			mu.Unlock()
			return &http.Response{StatusCode: 404, Body: http.NoBody}, r.Context().Err()
		})})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var wg sync.WaitGroup
		zip := func() {
			wg.Go(func() {
				l.Fetch(ctx, anyModule, artifact.Zip, func(io.Reader, int64, string) error { return nil })
			})
		}
		for range 10 {
			zip()
		}
		synctest.Wait()
		if n := underWay(); n != 2 {
			t.Errorf("%d zips under way, want 2", n)
		}
		for range 10 {
			wg.Go(func() {
				_, err := l.Entries()[0].Get(ctx, "/sumdb/x/latest", 1)
				if err == nil {
					t.Error("no error")
				}
			})
		}
		synctest.Wait()
		if n := underWay(); n != 4 {
			t.Errorf("%d requests under way, want 4", n)
		}
		for want, ask := range map[string]func(context.Context) error{
			"4 requests to this host are under way already": func(ctx context.Context) error {
				_, err := l.Entries()[1].Get(ctx, "/sumdb/x/latest", 1)
				return err
			},
			"2 zips from this host are under way already": func(ctx context.Context) error {
				return l.Fetch(ctx, anyModule, artifact.Zip, func(io.Reader, int64, string) error { return nil })
			},
		} {
			// Before the 30 s are over after which the two zips are given up, because there is another entry to ask.
			short, cancel := context.WithTimeout(ctx, 7*time.Second)
			begin := time.Now()
			err := ask(short)
			checkMatches(t, want, err, "unavailable", "deadline")
			if took := time.Since(begin); took != 7*time.Second || !strings.Contains(err.Error(), want) {
				t.Errorf("after %v: %v, want %s", took, err, want)
			}
			cancel()
		}
		close(release)
		wg.Wait()
		if now != 0 || most != 4 {
			t.Errorf("at the end %d are under way, at most there were %d", now, most)
		}
	})
}

// The turn of a zip comes when those before it are done, which may be long after any answer must have begun.
func TestZipsWaitForTheirTurn(t *testing.T) {
	for goproxy, wait := range map[string]time.Duration{"https://a.example": 9 * time.Minute, "https://a.example|https://b.example": 4 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			l, err := Parse(goproxy, Config{MaxPerHost: 2, Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, ContentLength: 1, Body: io.NopCloser(strings.NewReader("x"))}, nil
			})})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			begin := time.Now()
			go l.Fetch(ctx, anyModule, artifact.Zip, func(io.Reader, int64, string) error { time.Sleep(wait); return nil })
			synctest.Wait()
			if err := l.Fetch(ctx, anyModule, artifact.Zip, func(io.Reader, int64, string) error { return nil }); err != nil || time.Since(begin) != wait {
				t.Errorf("%s: after %v: %v", goproxy, time.Since(begin), err)
			}
		})
	}
}

// Who ends waiting for one of all slots gives the one for large requests back.
func TestSlotOfLargeComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newNetwork(Config{}).slotsOf("x", 1)
		leave, err := s.enter(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		waiting, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			_, err := s.enter(waiting, true)
			done <- err
		}()
		synctest.Wait() // it has the one for large requests
		cancel()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "1 requests") || len(s.large) != 0 {
			t.Errorf("enter = %v, %d slots for large requests taken", err, len(s.large))
		}
		leave()
	})
}

// A body that is closed, read or not, gives its slot back.
func TestSlotsComeBack(t *testing.T) {
	u, m := start(t)
	l := parse(t, u.URL(), Config{MaxPerHost: 1, HeaderTimeout: 5 * time.Second})
	faults := []func(){func() {}, func() { u.Status("/", 404, "") }, func() { u.Status("/", 503, "") }, func() { u.Gzip(m, artifact.Zip) },
		func() { u.Truncate(m, artifact.Zip, 4) }, func() { u.Down(true) }, func() { u.Redirect("/", u.URL()) }}
	for range 2 {
		for _, set := range faults {
			u.Heal()
			set()
			fetch(t, l, m, artifact.Zip)
			l.Fetch(t.Context(), m, artifact.Zip, func(io.Reader, int64, string) error { return artifact.ErrRefused })
		}
	}
	u.Heal()
	if _, err := fetch(t, l, m, artifact.Zip); err != nil {
		t.Error(err)
	}
}

// Nothing runs on after Close: a bubble of synctest does not end while one of its goroutines lives.
func TestNothingRunsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []time.Time
		l, err := Parse("https://a.example", Config{Transport: hang(true, &asked)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		_, err = l.Versions(ctx, anyModule.Path)
		checkMatches(t, "canceled", err, "canceled")
		l.Close()
	})
}
