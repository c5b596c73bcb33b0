package main

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// load runs the settings of a command line, an environment and a file through the loader that every command uses.
func load(t *testing.T, args []string, env map[string]string, file string) (config, error) {
	t.Helper()
	for k, v := range env {
		t.Setenv(k, v)
	}
	if file != "" {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	var c config
	var loaded error
	cmd := &cobra.Command{Use: "x", SilenceErrors: true, SilenceUsage: true, RunE: func(cmd *cobra.Command, _ []string) error {
		loaded = loadSettings(cmd)
		return nil
	}}
	c.flags(cmd.Flags())
	cmd.SetArgs(args)
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	return c, loaded
}

func TestSettingsPrecedence(t *testing.T) {
	file := "listen: file:1\ndata-dir: from-file\nlist-ttl: 5s\nsumdb: [a+00000001+x, b+00000002+y]\noffline: true\nprivate: []\n"
	env := map[string]string{"MODMIRROR_LISTEN": "env:1", "MODMIRROR_DATA_DIR": "from-env"}
	c, err := load(t, []string{"--listen", "flag:1"}, env, file)
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "flag:1" || c.DataDir != "from-env" || c.ListTTL != 5*time.Second || !c.Offline || len(c.Private) > 0 {
		t.Errorf("settings = %+v", c)
	}
	if want := []string{"a+00000001+x", "b+00000002+y"}; !slices.Equal(c.SumDB, want) {
		t.Errorf("sumdb = %q, want %q", c.SumDB, want)
	}
	if c.LogFormat != "text" {
		t.Errorf("log-format = %q, want the default", c.LogFormat)
	}
}

func TestSettingsOfSeveralDatabases(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		env  map[string]string
		file string
	}{
		"flag twice":         {args: []string{"--sumdb", "a", "--sumdb", "b https://b.example"}},
		"variable":           {env: map[string]string{"MODMIRROR_SUMDB": "a,b https://b.example"}},
		"list in file":       {file: "sumdb:\n- a\n- b https://b.example\n"},
		"flag over file":     {args: []string{"--sumdb", "a,b https://b.example"}, file: "sumdb: [c]\n"},
		"variable over file": {env: map[string]string{"MODMIRROR_SUMDB": "a,b https://b.example"}, file: "sumdb: [c]\n"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := load(t, tt.args, tt.env, tt.file)
			if err != nil {
				t.Fatal(err)
			}
			if want := []string{"a", "b https://b.example"}; !slices.Equal(c.SumDB, want) {
				t.Errorf("sumdb = %q, want %q", c.SumDB, want)
			}
		})
	}
}

func TestSettingsErrorsNameTheirPlace(t *testing.T) {
	for name, tt := range map[string]struct {
		env  map[string]string
		file string
		want string
	}{
		"unknown key":          {file: "listen: x:1\n\nupstraem: y\n", want: `config.yaml:3: unknown setting "upstraem"`},
		"config in config":     {file: "config: other.yaml\n", want: `:1: unknown setting "config"`},
		"key twice":            {file: "listen: a:1\nlisten: b:1\n", want: `:2: "listen" is already set in line 1`},
		"bad value":            {file: "listen: a:1\nlist-ttl: soon\n", want: `:2: list-ttl: "soon"`},
		"mapping for a scalar": {file: "listen:\n  host: a\n", want: ":1: listen: expected a plain value"},
		"list for a scalar":    {file: "listen: [a, b]\n", want: ":1: listen: expected a plain value"},
		"not a mapping":        {file: "- listen\n", want: ":1: expected settings"},
		"broken YAML":          {file: "listen: [a\n", want: "config.yaml: line 1"},
		"two documents":        {file: "listen: a\n---\nlisten: b\n", want: "more than one document"},
		"bool in words":        {file: "offline: yes\n", want: `:1: offline: "yes": want true or false`},
		"null":                 {file: "listen: a:1\ndata-dir: null\n", want: ":2: data-dir: there is no value"},
		"tilde":                {file: "offline: ~\n", want: ":1: offline: there is no value"},
		"nothing":              {file: "private:\n", want: ":1: private: there is no value"},
		"null in a list":       {file: "private: [a, null]\n", want: ":1: private: expected a list of plain values"},
		"bad and overridden":   {env: map[string]string{"MODMIRROR_LIST_TTL": "5s"}, file: "list-ttl: soon\n", want: `:1: list-ttl: "soon"`},
		"bad variable":         {env: map[string]string{"MODMIRROR_OFFLINE": "maybe"}, want: `MODMIRROR_OFFLINE="maybe"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, nil, tt.env, tt.file)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error = %v, want one line with %q", err, tt.want)
			}
		})
	}
}

func TestRunExitCodes(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		code int
		want string
	}{
		"version":             {[]string{"version"}, 0, ""},
		"help":                {nil, 0, ""},
		"unknown flag":        {[]string{"serve", "--upstraem", "x"}, 2, "unknown flag: --upstraem"},
		"unknown command":     {[]string{"server"}, 2, `unknown command "server"`},
		"argument too many":   {[]string{"serve", "x"}, 2, "modmirror serve"},
		"bad level":           {[]string{"serve", "--log-level", "loud"}, 2, `"loud" is not one of`},
		"bad format":          {[]string{"serve", "--log-format", "xml"}, 2, "neither text nor json"},
		"no database":         {[]string{"serve", "--sumdb", ""}, 2, "--sumdb"},
		"blank in private":    {[]string{"serve", "--private", "example.com/a b"}, 2, `--private: pattern "example.com/a b"`},
		"glob in private":     {[]string{"serve", "--private", "example.com/[a"}, 2, `--private: pattern "example.com/[a"`},
		"URL in private":      {[]string{"serve", "--private", "https://example.com/a"}, 2, `--private: pattern "https://example.com/a"`},
		"empty private":       {[]string{"serve", "--private", "example.com/a,,"}, 2, `--private: pattern ""`},
		"address":             {[]string{"serve", "--listen", "999"}, 2, "--listen: address 999: missing port"},
		"port":                {[]string{"serve", "--listen", "localhost:99999"}, 2, `--listen localhost:99999: "99999" is not a port`},
		"not-found-ttl":       {[]string{"serve", "--not-found-ttl", "2m"}, 2, "--not-found-ttl: at most one minute"},
		"no connections":      {[]string{"serve", "--max-connections", "0"}, 2, "--max-connections: want a number from 1"},
		"too much memory":     {[]string{"serve", "--cache-memory", "2000000"}, 2, "--cache-memory: want a number from 1"},
		"no time":             {[]string{"serve", "--zip-timeout", "0s"}, 2, "--zip-timeout: want a positive duration"},
		"missing config":      {[]string{"serve", "--config", "does-not-exist.yaml"}, 2, "config file"},
		"fsck of nothing":     {[]string{"fsck", "--data-dir", "does-not-exist"}, 1, "--data-dir"},
		"fsck of another":     {[]string{"fsck", "--data-dir", "testdata"}, 1, "there is no catalog.db"},
		"prove of nothing":    {[]string{"prove", "--data-dir", "does-not-exist", "example.com/m@v1.0.0"}, 1, "--data-dir: stat does-not-exist"},
		"prove of another":    {[]string{"prove", "--data-dir", "testdata", "example.com/m@v1.0.0"}, 1, "there is no catalog.db"},
		"ack-fork of nothing": {[]string{"sumdb", "ack-fork", "--data-dir", "does-not-exist", "x"}, 1, "--data-dir"},
		"audit of another":    {[]string{"cluster", "audit", "--data-dir", "testdata"}, 1, "there is no catalog.db"},
		"ack-fork of another": {[]string{"sumdb", "ack-fork", "--data-dir", "testdata", "x"}, 1, "there is no catalog.db"},
		"prove without @":     {[]string{"prove", "example.com/m"}, 2, "is not module@version"},
		"prove a bad version": {[]string{"prove", "example.com/m@latest"}, 2, "latest"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, stderr strings.Builder
			code := run(tt.args, &out, &stderr)
			if code != tt.code || !strings.Contains(stderr.String(), tt.want) {
				t.Errorf("run(%q) = %d with %q, want %d with %q", tt.args, code, stderr.String(), tt.code, tt.want)
			}
			if lines := strings.Count(strings.TrimSuffix(stderr.String(), "\n"), "\n"); lines > 0 {
				t.Errorf("run(%q) printed %d lines of error, want one: %q", tt.args, lines+1, stderr.String())
			}
		})
	}
}

func TestPrivatePatternsAreTrimmed(t *testing.T) {
	c, err := load(t, []string{"--private", "example.com/a, example.com/B/ ,*.corp.example"}, nil, "")
	if err == nil {
		err = c.validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	n := node{config: c}
	for path, want := range map[string]bool{"example.com/a": true, "example.com/a/b": true, "example.com/B": true, "x.corp.example/y": true, "example.com/ab": false} {
		if got := n.private(path); got != want {
			t.Errorf("private(%q) = %v, want %v", path, got, want)
		}
	}
}

// Every limit has a flag, and its default is what the README says.
func TestLimits(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var c config
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	c.flags(fs)
	if err := c.Limits.validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && !strings.Contains(string(readme), "`--"+f.Name+"`") {
			t.Errorf("the README does not name --%s", f.Name)
		}
	})
	set := pflag.NewFlagSet("limits", pflag.ContinueOnError)
	new(limits).flags(set)
	set.VisitAll(func(f *pflag.Flag) {
		def := f.DefValue
		if short, ok := strings.CutSuffix(def, "m0s"); ok { // 5m0s is written 5m
			def = short + "m"
		}
		if row := "| `--" + f.Name + "` | " + def + " |"; !strings.Contains(string(readme), row) {
			t.Errorf("the README has no row %q", row)
		}
	})
}

// What the README says of the memory for lists holds for every size.
func TestListMemory(t *testing.T) {
	for mib, want := range map[int]int64{1: 512 << 10, 8: 4 << 20, 64: 32 << 20, 1000: 32 << 20} {
		l := limits{CacheMiB: mib}
		if got := l.listBytes(); got != want || l.hotBytes() != int64(mib)<<20 {
			t.Errorf("--cache-memory %d: %d bytes for lists, %d for artifacts", mib, got, l.hotBytes())
		}
	}
}

// A command that only looks at a data directory makes none.
func TestAckForkFoundsNothing(t *testing.T) {
	dir := t.TempDir()
	var out, stderr strings.Builder
	if code := run([]string{"sumdb", "ack-fork", "--data-dir", dir, "x"}, &out, &stderr); code != 1 {
		t.Errorf("ack-fork = %d, %s", code, &stderr)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("the directory has %v, %v", files, err)
	}
}

func TestUnknownVariables(t *testing.T) {
	got := unknownVariables(rootCommand(), []string{"MODMIRROR_DATA_DIR=x", "MODMIRROR_DATADIR=x", "MODMIRROR_SERVER=x", "MODMIRROR=x", "HOME=x", "MODMIRROR_UPSTRAEM"})
	if strings.Join(got, " ") != "MODMIRROR_DATADIR MODMIRROR_UPSTRAEM" {
		t.Errorf("unknownVariables = %q", got)
	}
}

// FuzzSettings reads any file: what is accepted sets what it says and nothing else, and when it is written down in another
// form it reads as the same. What is refused is refused in one line that names the file.
func FuzzSettings(f *testing.F) {
	f.Add([]byte("listen: localhost:1\nlist-ttl: 5s\nsumdb: [a, b https://b.example]\noffline: true\nmax-fetches: 0x10\n"))
	f.Add([]byte("private: a.example,\"b.example\"\nprivate: []\n"))
	f.Add([]byte("? listen\n: &a x:1\ndata-dir: *a\n"))
	f.Add([]byte("<<: {listen: x:1}\n"))
	f.Add([]byte("private: [a.example, null]\n--- \n"))
	f.Add([]byte("sumdb: !!str x\nno-look-ahead: !!bool false\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		read := func(data []byte, args ...string) (config, *pflag.FlagSet, error) {
			var c config
			fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
			c.flags(fs)
			if err := fs.Parse(args); err != nil {
				t.Fatal(err)
			}
			err := setFromYAML(fs, "the-file", data)
			c.SumDB, c.Private = slices.Concat(c.SumDB), slices.Concat(c.Private) // nil if empty
			return c, fs, err
		}
		c, fs, err := read(data)
		if err != nil {
			if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "config file the-file") {
				t.Errorf("%q: error %q", data, err)
			}
			return
		}
		said := make(map[string]yaml.Node)
		if err := yaml.Unmarshal(data, &said); err != nil {
			t.Fatalf("%q is accepted: %v", data, err)
		}
		written := make(map[string]any)
		fs.VisitAll(func(f *pflag.Flag) {
			if _, ok := said[f.Name]; ok != f.Changed {
				t.Errorf("%q: --%s is set: %v", data, f.Name, f.Changed)
			}
			if f.Changed {
				written[f.Name] = valueInFile(f)
			}
		})
		out, err := yaml.Marshal(written)
		if err != nil {
			t.Fatal(err)
		}
		if again, _, err := read(out); err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("%q is %+v, written as %q it is %+v, %v", data, c, out, again, err)
		}
		// The command line wins, whatever the file says.
		if over, _, err := read(data, "--listen", "flag:1", "--sumdb", "flag"); err != nil || over.Listen != "flag:1" || !slices.Equal(over.SumDB, []string{"flag"}) || over.DataDir != c.DataDir {
			t.Errorf("%q overrides the command line: %+v, %v", data, over, err)
		}
	})
}

// valueInFile returns the value of a flag as a file may have it.
func valueInFile(f *pflag.Flag) any {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return list.GetSlice()
	}
	if f.Value.Type() == "bool" {
		return f.Value.String() == "true"
	}
	return f.Value.String()
}
