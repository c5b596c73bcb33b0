//go:build alerts

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// Prometheus itself reads the alerts, evaluates them in their cases, and reads what the dashboard asks for. make alerts gets promtool.
func TestAlertRules(t *testing.T) {
	promtool(t, "check", "rules", "../../deploy/prometheus/modmirror.rules.yml")
	promtool(t, "test", "rules", "../../deploy/prometheus/modmirror.rules.test.yml")

	type rule struct{ Record, Expr string }
	var board struct {
		Panels []struct {
			ID      int
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(readDeploy(t, "grafana/modmirror.json")), &board); err != nil {
		t.Fatal(err)
	}
	var rules []rule
	for _, p := range board.Panels {
		for i, target := range p.Targets {
			rules = append(rules, rule{fmt.Sprintf("panel_%d_%d", p.ID, i), strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")})
		}
	}
	if len(rules) < 50 {
		t.Errorf("the dashboard asks for %d things only", len(rules))
	}
	b, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", file)
}

func promtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %q: %v\n%s", args, err, out)
	}
}
