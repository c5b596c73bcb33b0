package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"
)

// Alerts and dashboards ask for metrics that exist, by labels that they have; each alert has a runbook.

func TestAlerts(t *testing.T) {
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	d := yaml.NewDecoder(strings.NewReader(readDeploy(t, "prometheus/modmirror.rules.yml")))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}
	have := seriesOf(t)
	seen := map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if seen[r.Alert] || !strings.HasPrefix(r.Alert, "Modmirror") {
				t.Errorf("alert %q is there twice or has another prefix than Modmirror", r.Alert)
			}
			seen[r.Alert] = true
			if err := checkExpr(r.Expr, have); err != nil {
				t.Errorf("%s: %v", r.Alert, err)
			}
			if s := r.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
			if r.Annotations["summary"] == "" {
				t.Errorf("%s: no summary", r.Alert)
			}
			page, section, _ := strings.Cut(r.Annotations["runbook_url"], "#")
			if !slices.Contains(anchors(t, page), section) {
				t.Errorf("%s: %s has no section #%s", r.Alert, page, section)
			}
		}
	}
	if len(seen) < 20 {
		t.Errorf("only %d alerts", len(seen))
	}
}

func TestDashboard(t *testing.T) {
	type panel struct {
		ID      int
		Title   string
		Type    string
		Targets []struct{ Expr, LegendFormat string }
	}
	var board struct {
		Title, UID string
		Panels     []panel
		Templating struct{ List []struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(readDeploy(t, "grafana/modmirror.json")), &board); err != nil {
		t.Fatal(err)
	}
	have := seriesOf(t)
	ids := map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q has the id %d of another", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			if err := checkExpr(target.Expr, have); err != nil {
				t.Errorf("panel %q: %v", p.Title, err)
			}
		}
	}
	if len(ids) < 20 {
		t.Errorf("only %d panels", len(ids))
	}
}

// What is told of zones and of a mirror that is followed is watched: there is an alert and a panel for each of these.
func TestZonesAndFeedAreWatched(t *testing.T) {
	rules, board := readDeploy(t, "prometheus/modmirror.rules.yml"), readDeploy(t, "grafana/modmirror.json")
	for _, name := range []string{"modmirror_peer_wan_bytes_total", "modmirror_cluster_zone_complete_timestamp_seconds", "modmirror_cluster_zone_members",
		"modmirror_cluster_under_replicated_blobs", "modmirror_cluster_roots_differ", "modmirror_feed_failing", "modmirror_feed_behind",
		"modmirror_feed_through_timestamp_seconds", "modmirror_feed_refused", "modmirror_feed_failed"} {
		metric := regexp.MustCompile(`\b` + name + `\b`)
		if !metric.MatchString(rules) {
			t.Errorf("no alert asks for %s", name)
		}
		if !metric.MatchString(board) {
			t.Errorf("no panel shows %s", name)
		}
	}
}

// Metrics that the pages name exist.
func TestMetricsInDocs(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 5 {
		t.Fatalf("pages %q, %v", pages, err)
	}
	have := seriesOf(t)
	for _, page := range append(pages, "../../README.md") {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range metricName.FindAllString(string(b), -1) {
			if labelsOf(name, have) == nil {
				t.Errorf("%s names the metric %s, which there is not", page, name)
			}
		}
	}
}

var metricName = regexp.MustCompile(`\bmodmirror_[a-z_]*[a-z]\b`)

// seriesOf returns the metrics that a node of a cluster has: their labels, by name.
func seriesOf(t *testing.T) map[string][]string {
	t.Helper()
	dir := t.TempDir()
	c := serveConfig(t, []string{"serve", "--data-dir", filepath.Join(dir, "data"), "--listen", "localhost:0", "--peer-listen", "localhost:0", "--upstream", "file://" + dir, "--follow", "http://localhost:1"})
	n, err := openNode(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	})
	newConns(nil, 1, 1, n.metrics)
	have := map[string][]string{"up": nil} // Prometheus' own
	descs := make(chan *prometheus.Desc)
	go func() {
		n.metrics.Describe(descs)
		close(descs)
	}()
	for d := range descs {
		m := descForm.FindStringSubmatch(d.String())
		if m == nil {
			t.Errorf("a metric of unknown form: %s", d)
			continue
		}
		for _, l := range append(constForm.FindAllStringSubmatch(m[2], -1), labelForm.FindAllStringSubmatch(m[3], -1)...) {
			have[m[1]] = append(have[m[1]], l[1])
		}
		have[m[1]] = append(have[m[1]], "job", "instance")
	}
	return have
}

// What a Desc says of itself; there is no other way to ask it.
var (
	descForm  = regexp.MustCompile(`fqName: "(\w+)", .*constLabels: \{(.*?)\}, variableLabels: \{(.*?)\}`)
	constForm = regexp.MustCompile(`(\w+)="`)
	labelForm = regexp.MustCompile(`(\w+)`)
)

// Tokens of PromQL, as far as it is used here: strings, durations and numbers, names, operators.
var (
	promToken    = regexp.MustCompile(`^(?:"(?:[^"\\]|\\.)*"|\$\w+|\d+(?:\.\d+)?(?:[smhdwy]\b)?|\w+|=~|!~|!=|==|>=|<=|[-+*/=<>(){}\[\],])`)
	promWord     = regexp.MustCompile(`^[a-zA-Z_]\w*$`)
	promWords    = strings.Fields("by without on ignoring group_left group_right and or unless offset bool")
	promFunction = strings.Fields("sum min max avg count rate increase delta changes histogram_quantile time predict_linear clamp_min")
)

// checkExpr reports whether expr is made of known functions and of metrics and labels that there are, with its brackets in
// pairs.
func checkExpr(expr string, have map[string][]string) error {
	var tokens []string
	for rest := strings.TrimSpace(expr); rest != ""; rest = strings.TrimSpace(rest) {
		token := promToken.FindString(rest)
		if token == "" {
			return fmt.Errorf("%s: cannot be read at %q", expr, rest)
		}
		tokens, rest = append(tokens, token), rest[len(token):]
	}
	if err := checkBrackets(tokens); err != nil {
		return fmt.Errorf("%s: %v", expr, err)
	}
	var metric string
	matchers, grouping, metrics := false, false, 0
	for i, token := range tokens {
		next := ""
		if i+1 < len(tokens) {
			next = tokens[i+1]
		}
		switch {
		case token == "{":
			matchers = true
		case token == "}":
			matchers = false
		case token == "(":
			grouping = i > 0 && slices.Contains([]string{"by", "without", "on", "ignoring"}, tokens[i-1])
		case token == ")":
			grouping = false
		case !promWord.MatchString(token):
		case matchers && !slices.Contains(labelsOf(metric, have), token):
			return fmt.Errorf("%s: %s has no label %s", expr, metric, token)
		case grouping && !anyHas(have, token):
			return fmt.Errorf("%s: no metric has a label %s", expr, token)
		case matchers, grouping, slices.Contains(promWords, token):
		case next == "(" || slices.Contains(promFunction, token):
			if !slices.Contains(promFunction, token) {
				return fmt.Errorf("%s: %s is no function that is known here", expr, token)
			}
		default:
			metric = token
			metrics++
			if labelsOf(metric, have) == nil && metric != "up" {
				return fmt.Errorf("%s: there is no metric %s", expr, metric)
			}
		}
	}
	if metrics == 0 {
		return fmt.Errorf("%s: asks for no metric", expr)
	}
	return nil
}

func checkBrackets(tokens []string) error {
	pairs := map[string]string{")": "(", "}": "{", "]": "["}
	var open []string
	for _, token := range tokens {
		switch token {
		case "(", "{", "[":
			open = append(open, token)
		case ")", "}", "]":
			if len(open) == 0 || open[len(open)-1] != pairs[token] {
				return fmt.Errorf("a %s without its %s", token, pairs[token])
			}
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 {
		return fmt.Errorf("a %s is not closed", open[len(open)-1])
	}
	return nil
}

// labelsOf returns the labels of a metric, also of the series of a histogram; nil if there is no such metric.
func labelsOf(metric string, have map[string][]string) []string {
	if labels, ok := have[metric]; ok {
		return append(slices.Clone(labels), "job")
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(metric, suffix); ok && have[base] != nil && !strings.HasSuffix(base, "_total") {
			return append(slices.Clone(have[base]), "le")
		}
	}
	return nil
}

func anyHas(have map[string][]string, label string) bool {
	if label == "le" {
		return true
	}
	for _, labels := range have {
		if slices.Contains(labels, label) {
			return true
		}
	}
	return false
}

// The check itself: what is wrong with an expression is found.
func TestCheckExpr(t *testing.T) {
	have := map[string][]string{"a_total": {"job", "code"}, "b_seconds": {"job"}, "up": nil}
	for expr, want := range map[string]string{
		`sum by (job) (rate(a_total{code=~"5.."}[5m])) / 2 > 0.05`:               "",
		`histogram_quantile(0.99, sum by (le) (rate(b_seconds_bucket[5m]))) > 1`: "",
		`up{job="x"} == 0`:              "",
		`max(c_total) > 0`:              "there is no metric c_total",
		`rate(a_total{class="x"}[5m])`:  "a_total has no label class",
		`sum by (class) (a_total)`:      "no metric has a label class",
		`summe(a_total)`:                "no function",
		`sum(rate(a_total[5m])`:         "not closed",
		`sum(rate(a_total[5m)])`:        "without its",
		`a_total_bucket`:                "there is no metric",
		`rate(a_total{code=5}[5m]) § 3`: "cannot be read",
		`1 > 0`:                         "asks for no metric",
	} {
		if err := checkExpr(expr, have); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("checkExpr(%s) = %v, want %q", expr, err, want)
		}
	}
}

// anchors returns the anchors of the sections of a page in the repository, as GitHub makes them.
func anchors(t *testing.T, page string) (all []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../..", page))
	if err != nil {
		t.Error(err)
		return nil
	}
	for line := range strings.Lines(string(b)) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			all = append(all, anchorOf(strings.TrimSpace(title)))
		}
	}
	return all
}

var notAnchor = regexp.MustCompile(`[^\w\- ]`)

func anchorOf(title string) string {
	return strings.ReplaceAll(notAnchor.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
}
