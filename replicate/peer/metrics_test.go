package peer

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// When the certificate of an operator expires is known in time, also after its file was replaced.
func TestCertificateExpiryMetric(t *testing.T) {
	f := newCertFiles(t)
	ca := newAuthority(NewToken())
	made := time.Now().Add(-2 * leafFresh)
	f.write(t, ca, "a", made)
	now := time.Now()
	creds, err := fromFiles(f.ca, f.cert, f.key, nil, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	files, token := prometheus.NewRegistry(), prometheus.NewRegistry()
	start(t, "a", func(c *Config, _ *Hello) { c.Credentials, c.Metrics = creds, files })
	start(t, "b", func(c *Config, _ *Hello) { c.Metrics = token })
	const name = "modmirror_peer_certificate_expires_timestamp_seconds"
	value := func(reg *prometheus.Registry, credentials string) time.Time {
		t.Helper()
		all, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range all {
			if family.GetName() == name {
				m := family.GetMetric()[0]
				if got := m.GetLabel()[0].GetValue(); got != credentials {
					t.Errorf("credentials are %q, want %q", got, credentials)
				}
				return time.Unix(int64(m.GetGauge().GetValue()), 0)
			}
		}
		t.Fatalf("there is no %s", name)
		return time.Time{}
	}
	if got := value(files, "files").Sub(made).Round(time.Minute); got != leafLife {
		t.Errorf("certificate expires %v after it was made, want %v", got, leafLife)
	}
	f.write(t, ca, "a", now)
	now = now.Add(2 * filesEvery)
	if got := value(files, "files").Sub(now).Round(time.Minute); got != leafLife {
		t.Errorf("the next certificate expires in %v, want %v", got, leafLife)
	}
	if got := time.Until(value(token, "token")).Round(time.Minute); got != leafLife {
		t.Errorf("a certificate made from the token expires in %v, want %v", got, leafLife)
	}
	if problems, err := testutil.GatherAndLint(files, name); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}
