package main

import (
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// Every alert has a case in which it fires, of series that there are, and none is expected to when all is well. make alerts has
// Prometheus evaluate them.
func TestAlertCases(t *testing.T) {
	var rules struct {
		Groups []struct{ Rules []struct{ Alert string } }
	}
	if err := yaml.Unmarshal([]byte(readDeploy(t, "prometheus/modmirror.rules.yml")), &rules); err != nil {
		t.Fatal(err)
	}
	var cases struct {
		RuleFiles []string `yaml:"rule_files"`
		Tests     []struct {
			Name   string
			Input  []struct{ Series string } `yaml:"input_series"`
			Alerts []struct {
				Alert    string `yaml:"alertname"`
				Expected []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	if err := yaml.Unmarshal([]byte(readDeploy(t, "prometheus/modmirror.rules.test.yml")), &cases); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(cases.RuleFiles, []string{"modmirror.rules.yml"}) {
		t.Errorf("the cases are of %q", cases.RuleFiles)
	}
	have := seriesOf(t)
	fires, well := map[string]bool{}, map[string]bool{}
	for _, c := range cases.Tests {
		for _, in := range c.Input {
			name, labels, _ := strings.Cut(in.Series, "{")
			known := labelsOf(name, have)
			if known == nil && name != "up" {
				t.Errorf("%s: there is no metric %s", c.Name, name)
			}
			for _, label := range constForm.FindAllStringSubmatch(labels, -1) {
				if label[1] != "job" && label[1] != "instance" && !slices.Contains(known, label[1]) {
					t.Errorf("%s: %s has no label %s", c.Name, name, label[1])
				}
			}
		}
		for _, a := range c.Alerts {
			fires[a.Alert] = fires[a.Alert] || len(a.Expected) > 0
			if c.Name == "all is well" {
				well[a.Alert] = len(a.Expected) == 0
			}
		}
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if !fires[r.Alert] || !well[r.Alert] {
				t.Errorf("%s: a case in which it fires: %v; it is known to be silent when all is well: %v", r.Alert, fires[r.Alert], well[r.Alert])
			}
			delete(fires, r.Alert)
		}
	}
	for alert := range fires {
		t.Errorf("cases are about %s, which there is not", alert)
	}
}
