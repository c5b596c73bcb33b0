package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// What people copy from deploy and from the docs must be understood by the commands as they are.
const deployDir = "../../deploy"

func readDeploy(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(deployDir, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// serveConfig is what `modmirror serve` makes of a command line. It starts nothing.
func serveConfig(t *testing.T, args []string) config {
	t.Helper()
	if len(args) == 0 || args[0] != "serve" {
		t.Fatalf("the command line is %q, want one of serve", args)
	}
	var c config
	cmd := &cobra.Command{Use: "serve"}
	c.flags(cmd.Flags())
	if err := cmd.ParseFlags(args[1:]); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	if rest := cmd.Flags().Args(); len(rest) > 0 {
		t.Fatalf("%q: serve takes no arguments, these are left: %q", args, rest)
	}
	if err := c.validate(); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return c
}

func TestDeployCompose(t *testing.T) {
	var file struct {
		Services map[string]struct {
			Hostname    string
			Command     []string
			Environment map[string]string
			Secrets     []string
		}
	}
	if err := yaml.Unmarshal([]byte(readDeploy(t, "docker-compose.yml")), &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Services) != 3 {
		t.Errorf("%d services, want 3", len(file.Services))
	}
	for name, s := range file.Services {
		args := s.Command
		for v, value := range s.Environment {
			wantSettings(t, v+"="+value)
			if v == envName("cluster-token-file") {
				args = append(args, "--cluster-token-file="+value)
			}
		}
		c := serveConfig(t, args)
		if c.Cluster.Expect != 3 || len(c.Cluster.Join) != 3 || !slices.Contains(c.Cluster.Join, s.Hostname+clusterPeerListen) || s.Hostname != name {
			t.Errorf("%s (%s): --bootstrap-expect %d --join %q: want three with this one among them", name, s.Hostname, c.Cluster.Expect, c.Cluster.Join)
		}
		if len(s.Secrets) != 1 || c.Cluster.TokenFile != "/run/secrets/"+s.Secrets[0] {
			t.Errorf("%s: --cluster-token-file %s, the secrets are %q", name, c.Cluster.TokenFile, s.Secrets)
		}
	}
}

// wantSettings fails the test for variables that no command reads.
func wantSettings(t *testing.T, environ ...string) {
	t.Helper()
	for _, name := range unknownVariables(rootCommand(), environ) {
		t.Errorf("%s is no setting of any command", name)
	}
}

func TestDeployDockerfile(t *testing.T) {
	file := readDeploy(t, "Dockerfile")
	var health []string
	for line := range strings.Lines(file) {
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch verb {
		case "ENV":
			wantSettings(t, strings.Fields(rest)...)
		case "HEALTHCHECK":
			_, args, _ := strings.Cut(rest, "CMD ")
			if err := json.Unmarshal([]byte(args), &health); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		}
	}
	if len(health) < 2 || health[0] != "/modmirror" {
		t.Fatalf("HEALTHCHECK runs %q, want /modmirror", health)
	}
	cmd, rest, err := rootCommand().Find(health[1:])
	if err != nil || cmd.Name() != "status" {
		t.Fatalf("HEALTHCHECK runs %q: %v", health, err)
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Errorf("HEALTHCHECK runs %q: %v", health, err)
	}
}

func TestDeployKubernetes(t *testing.T) {
	type workload struct {
		Kind string
		Spec struct {
			Template struct {
				Spec struct {
					EnableServiceLinks *bool `yaml:"enableServiceLinks"`
					Grace              int   `yaml:"terminationGracePeriodSeconds"`
					Containers         []struct {
						Args []string
						Env  []struct{ Name string }
					}
				}
			}
		}
	}
	dec := yaml.NewDecoder(strings.NewReader(readDeploy(t, "kubernetes/modmirror.yaml")))
	for {
		var w workload
		if err := dec.Decode(&w); err != nil {
			t.Fatalf("no StatefulSet: %v", err)
		}
		if w.Kind != "StatefulSet" {
			continue
		}
		pod := w.Spec.Template.Spec
		if pod.EnableServiceLinks == nil || *pod.EnableServiceLinks {
			t.Error("enableServiceLinks: the service modmirror makes variables that look like settings")
		}
		values := map[string]string{"POD_NAME": "modmirror-0", "POD_NAMESPACE": "default"}
		var args []string
		for _, a := range pod.Containers[0].Args {
			args = append(args, regexp.MustCompile(`\$\((\w+)\)`).ReplaceAllStringFunc(a, func(v string) string {
				name := v[2 : len(v)-1]
				if !slices.Contains(pod.Containers[0].Env, struct{ Name string }{name}) || values[name] == "" {
					t.Errorf("%s: %s is not defined", a, name)
				}
				return values[name]
			}))
		}
		c := serveConfig(t, args)
		if got, want := c.Cluster.Advertise, "modmirror-0.modmirror-peers.default.svc:3001"; got != want {
			t.Errorf("--advertise=%s, want %s", got, want)
		}
		if least := c.DrainDelay.Seconds() + c.DrainTime.Seconds() + 5; float64(pod.Grace) <= least {
			t.Errorf("terminationGracePeriodSeconds: %d, want more than %v: a node may take that long to stop", pod.Grace, least)
		}
		return
	}
}

func TestDeploySystemd(t *testing.T) {
	unit := readDeploy(t, "systemd/modmirror.service")
	m := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/modmirror (.*)$`).FindStringSubmatch(unit)
	if m == nil {
		t.Fatal("there is no ExecStart")
	}
	var settings strings.Builder // the example: what is indented in the comment, up to the first other thing
	for line := range strings.Lines(unit) {
		if text, ok := strings.CutPrefix(line, "#\t"); ok && strings.Contains(text, ": ") {
			settings.WriteString(text)
		}
	}
	var c config
	cmd := &cobra.Command{Use: "serve"}
	c.flags(cmd.Flags())
	if err := cmd.ParseFlags(strings.Fields(m[1])[1:]); err != nil {
		t.Fatal(err)
	}
	if err := setFromYAML(cmd.Flags(), "the example", []byte(settings.String())); err != nil {
		t.Fatal(err)
	}
	if err := c.validate(); err != nil {
		t.Error(err)
	}
	if c.Cluster.Expect != 3 || len(c.Cluster.Join) != 3 {
		t.Errorf("the example makes %+v of the cluster", c.Cluster)
	}
}

// The balancers were tried by hand; what that showed must stay.
func TestDeployBalancers(t *testing.T) {
	comment := regexp.MustCompile(`#.*`)
	nginx := comment.ReplaceAllString(readDeploy(t, "balancer/nginx.conf"), "")
	if servers, kept := strings.Count(nginx, ".example.com:3000"), strings.Count(nginx, ":3000 max_fails=0;"); servers != 3 || kept != 3 {
		t.Errorf("nginx.conf takes out nodes for saying 503 to what is new: %d servers, %d with max_fails=0", servers, kept)
	}
	if !strings.Contains(nginx, "proxy_next_upstream error timeout http_503;") {
		t.Error("nginx.conf does not go on after an error and a 503")
	}
	haproxy := comment.ReplaceAllString(readDeploy(t, "balancer/haproxy.cfg"), "")
	if strings.Contains(haproxy, "shutdown-sessions") {
		t.Error("haproxy.cfg cuts the answers of a node that drains")
	}
	m := regexp.MustCompile(`check inter (\d+)ms fall (\d+)`).FindStringSubmatch(haproxy)
	if m == nil {
		t.Fatal("haproxy.cfg checks no node")
	}
	inter, err1 := strconv.Atoi(m[1])
	fall, err2 := strconv.Atoi(m[2])
	noticed := time.Duration(inter*fall) * time.Millisecond
	if err1 != nil || err2 != nil || noticed >= serveConfig(t, []string{"serve"}).DrainDelay {
		t.Errorf("HAProxy takes %v to notice that a node drains, which has closed its port by then", noticed)
	}
}

var (
	flagName    = regexp.MustCompile(`(?:^|[^-\w])--([a-z][a-z-]*[a-z])`)
	commandLine = regexp.MustCompile("modmirror ([^`|;&)\"\n]*)")
	otherTool   = regexp.MustCompile(`(?m)^(?:go|docker|docker-compose|kubectl|journalctl|RUN) (.*[/(](modmirror .*))?.*$`) // and the mirror's command in it
	placeholder = regexp.MustCompile(`^[a-z]+$`)
)

// commandOf returns the command that the words after modmirror begin with.
func commandOf(words string) *cobra.Command {
	cmd := rootCommand()
	for _, w := range strings.Fields(words) {
		if !placeholder.MatchString(w) {
			break
		}
		i := slices.IndexFunc(cmd.Commands(), func(c *cobra.Command) bool { return c.Name() == w })
		if i < 0 {
			break
		}
		cmd = cmd.Commands()[i]
	}
	return cmd
}

// unknownFlags returns those flags of text that do not exist. In a command line they must be of that command; elsewhere, of
// serve or of a command that the same paragraph names.
func unknownFlags(text string) (unknown []string) {
	text = strings.ReplaceAll(text, "\\\n", " ")
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		near := []*cobra.Command{commandOf("serve")}
		rest := commandLine.ReplaceAllStringFunc(paragraph, func(line string) string {
			cmd := commandOf(strings.TrimPrefix(line, "modmirror "))
			if !cmd.HasParent() { // the mirror itself is spoken of
				return line
			}
			cmd.InitDefaultHelpFlag()
			near = append(near, cmd)
			near = append(near, cmd.Commands()...)
			for _, m := range flagName.FindAllStringSubmatch(line, -1) {
				if cmd.Flags().Lookup(m[1]) == nil {
					unknown = append(unknown, "--"+m[1]+" of "+cmd.CommandPath())
				}
			}
			return ""
		})
		for _, m := range flagName.FindAllStringSubmatch(rest, -1) {
			if !slices.ContainsFunc(near, func(c *cobra.Command) bool { return c.Flags().Lookup(m[1]) != nil }) {
				unknown = append(unknown, "--"+m[1])
			}
		}
	}
	return unknown
}

func TestUnknownFlags(t *testing.T) {
	for text, want := range map[string][]string{
		"modmirror serve --listen :3000 \\\n    --joined x":     {"--joined of modmirror serve"},
		"`modmirror cluster remove OLD --yes`, `--drain-delay`": nil,
		"`modmirror cluster remove OLD --join x`":               {"--join of modmirror cluster remove"},
		"`--peer x`": {"--peer"},
		"`modmirror cluster …` commands speak with `--peer x`":     nil,
		"modmirror cluster token --new > f && chmod --xy":          {"--xy"},
		"      - --advertise=$(POD_NAME):3001\n      - --advert=x": {"--advert"},
	} {
		if got := unknownFlags(text); !slices.Equal(got, want) {
			t.Errorf("unknownFlags(%q) = %q, want %q", text, got, want)
		}
	}
}

// Every flag that deploy and the pages for operators name exists.
func TestFlagsInDeployAndDocs(t *testing.T) {
	var files []string
	for _, page := range []string{"cluster", "install", "configure", "clients", "troubleshooting", "trust"} {
		files = append(files, filepath.Join("../../docs", page+".md"))
	}
	err := filepath.WalkDir(deployDir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != "Dockerfile" { // which has flags of its own, see above
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found += len(flagName.FindAllString(string(b), -1))
		text := regexp.MustCompile(`(?m)^#\t`).ReplaceAllString(string(b), "")
		text = otherTool.ReplaceAllString(text, "$2")
		for _, flag := range unknownFlags(text) {
			t.Errorf("%s: there is no %s", file, flag)
		}
	}
	if found < 50 {
		t.Errorf("only %d flags found: the files are elsewhere", found)
	}
}
