package upstream

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"modmirror/mirror/artifact"
)

func TestStatuses(t *testing.T) {
	u, m := start(t)
	l := parse(t, u.URL(), Config{})
	for want, codes := range map[string][]int{
		"notexist": {404, 410}, "policy": {401, 403, 451}, "unavailable": {407, 408, 429, 500, 502, 503, 504, 599}, "malformed": {204, 206, 300, 304, 400, 405, 418},
	} {
		for _, code := range codes {
			u.Heal()
			u.Status("/", code, "the reason\nwhat to do\nrequest id: x\n\nnot this", "Retry-After", "7")
			_, err := l.Versions(t.Context(), m.Path)
			checkMatches(t, u.URL(), err, want)
			var e *Error
			if !errors.As(err, &e) || e.Status != code || e.Source != u.URL() || e.URL != u.URL()+strings.ReplaceAll(listPath, "!", "%21") || e.RetryIn() != 7*time.Second {
				t.Errorf("%d: %+v", code, e)
			}
			if noBody := code == 204 || code == 304; !noBody && e.Reason != "the reason" || strings.Contains(err.Error(), "what to do") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%d: reason %q in %q", code, e.Reason, err)
			}
		}
	}
}

func TestPlainReason(t *testing.T) {
	for _, tt := range []struct{ contentType, body, want string }{
		{"text/plain", "why\n", "why"},
		{"text/plain; charset=UTF-8", "warum: ä\r\nzwei\n", "warum: ä"},
		{"text/plain", "\n\nfirst\n\nsecond", "first"},
		{"text/html", "why", ""},
		{"", "why", ""},
		{"text/plain; charset=utf-16", "why", ""},
		{"text/plain", "esc\x1b[31m", ""},
		{"text/plain", "bad\xff", ""},
		{"text/plain", strings.Repeat("l\n", 20), "l"},
	} {
		if got := plainReason(tt.contentType, []byte(tt.body)); got != tt.want {
			t.Errorf("plainReason(%q, %q) = %q, want %q", tt.contentType, tt.body, got, tt.want)
		}
	}
	for _, s := range []string{"x", "ä", "€", "😀"} {
		for shift := range 4 {
			got := plainReason("text/plain", []byte(strings.Repeat("a", shift)+strings.Repeat(s, 1000)))
			if len(got) < 590 || len(got) > 600 {
				t.Errorf("%q shifted by %d: %d bytes", s, shift, len(got))
			}
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "x": 0, "-5": 0, "0": 0, "120": 2 * time.Minute, "99999999": time.Hour, "99999999999999999999": 0,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:00:00 GMT": 0, "Fri, 02 Jan 2027 03:00:00 GMT": time.Hour,
	} {
		if got := retryAfter(in, now); got != want {
			t.Errorf("retryAfter(%q) = %v, want %v", in, got, want)
		}
	}
}

func TestMetrics(t *testing.T) {
	u, m := start(t)
	r := prometheus.NewRegistry()
	l := parse(t, u.URL(), Config{Metrics: r})
	if _, err := NewSite(u.URL(), Config{Metrics: r}); err != nil { // shares them
		t.Fatal(err)
	}
	fetch(t, l, m, artifact.Zip)
	l.Latest(t.Context(), "example.com/unknown")
	u.Status("/", 503, "", "Retry-After", "1")
	l.Versions(t.Context(), m.Path)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		for _, x := range f.Metric {
			key := f.GetName()
			for _, p := range x.Label {
				key += " " + p.GetValue()
			}
			got[key] = x.GetCounter().GetValue() + x.GetGauge().GetValue() + float64(x.GetHistogram().GetSampleCount())
		}
	}
	for key, want := range map[string]float64{
		"modmirror_upstream_requests_total zip ok":           1,
		"modmirror_upstream_requests_total latest absent":    1,
		"modmirror_upstream_requests_total list unavailable": 1,
		"modmirror_upstream_received_bytes_total zip":        float64(len(u.Artifact(m, artifact.Zip))),
		"modmirror_upstream_seconds list":                    1,
		"modmirror_upstream_in_flight":                       0,
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s = %v, want %v", key, v, want)
		}
	}
}
