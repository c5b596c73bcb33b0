package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// config is what `modmirror serve` can be told. The fields are the flags of the same names.
type config struct {
	Listen      string
	DataDir     string
	Upstream    string
	SumDB       []string
	Private     []string
	Offline     bool
	NoLookAhead bool
	ListTTL     time.Duration
	NotFoundTTL time.Duration
	LowDisk     threshold
	ExitOnFault bool
	DrainDelay  time.Duration
	DrainTime   time.Duration
	ScrubEvery  time.Duration
	ScrubLimit  byteRate
	LogFormat   string
	LogLevel    string
	Garbage     garbageConfig
	Limits      limits
	Cluster     clusterConfig
	Follow      followConfig
}

const defaultDataDir = "./modmirror-data"

// flags declares c's settings on fs, with their defaults.
func (c *config) flags(fs *pflag.FlagSet) {
	fs.String("config", "", "read settings from this YAML `file`; its keys are the names of these flags")
	fs.StringVar(&c.Listen, "listen", "localhost:3000", "serve HTTP on this `address`")
	fs.StringVar(&c.DataDir, "data-dir", defaultDataDir, "keep everything in this `directory`")
	fs.StringVar(&c.Upstream, "upstream", "", "fetch from this GOPROXY `list` (default: what the go toolchain would use)")
	fs.StringSliceVar(&c.SumDB, "sumdb", []string{"sum.golang.org"}, "verify with this checksum `database`: a name, name+hash+key, or either with a URL, as in GOSUMDB; several are asked in order")
	fs.StringSliceVar(&c.Private, "private", nil, "refuse modules that match these `patterns` (as in GOPRIVATE) and never tell anybody their names")
	fs.BoolVar(&c.Offline, "offline", false, "never ask any upstream or checksum database; serve what is held")
	fs.BoolVar(&c.NoLookAhead, "no-look-ahead", false, "fetch a go.mod only when a client asks for it")
	fs.DurationVar(&c.ListTTL, "list-ttl", time.Minute, "answer version lists and @latest from memory for this `long`")
	fs.DurationVar(&c.NotFoundTTL, "not-found-ttl", 30*time.Second, "remember for this `long`, at most a minute, that a version does not exist")
	c.LowDisk = defaultThreshold
	fs.Var(&c.LowDisk, "low-disk", "warn if less than this `size`, such as 5% or 20GB, is free on the disk; 0: only once it is full")
	fs.BoolVar(&c.ExitOnFault, "exit-on-disk-fault", false, "end with an error when the disk fails, after handing the leadership over, instead of serving what is stored")
	fs.DurationVar(&c.DrainDelay, "drain-delay", time.Second, "after SIGTERM, say 503 on /readyz for this `long` before closing the port")
	fs.DurationVar(&c.DrainTime, "drain-timeout", 30*time.Second, "after that, give answers in flight this `long` to finish")
	fs.DurationVar(&c.ScrubEvery, "scrub-every", 720*time.Hour, "read everything that is stored again within this `long`, and heal what is damaged; 0: only when modmirror scrub says so")
	c.ScrubLimit = defaultScrubLimit
	fs.Var(&c.ScrubLimit, "scrub-limit", "how many `bytes` a second are read for that at most, for example 50MB; 0: no limit")
	fs.StringVar(&c.LogFormat, "log-format", "text", "log as `text` or json")
	fs.StringVar(&c.LogLevel, "log-level", "info", "log from this `level` on: debug, info, warn or error")
	c.Garbage.flags(fs)
	c.Limits.flags(fs)
	c.Cluster.flags(fs)
	c.Follow.flags(fs)
}

// loadSettings fills the flags of cmd that were not given on the command line from the environment, else from the file
// that --config names, if the command has that flag. Unknown keys in the file are errors that name the line.
func loadSettings(cmd *cobra.Command) error {
	fs := cmd.Flags()
	if err := setFromEnv(fs); err != nil {
		return err
	}
	f := fs.Lookup("config")
	if f == nil || f.Value.String() == "" {
		return nil
	}
	data, err := os.ReadFile(f.Value.String())
	if err != nil {
		return usageError("config file: %v", err)
	}
	return setFromYAML(fs, f.Value.String(), data)
}

// envName is the environment variable of a flag: data-dir is MODMIRROR_DATA_DIR.
func envName(flag string) string {
	return "MODMIRROR_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func setFromEnv(fs *pflag.FlagSet) error {
	var errs []error
	fs.VisitAll(func(f *pflag.Flag) {
		v, ok := os.LookupEnv(envName(f.Name))
		if !ok || v == "" || f.Changed || f.Name == "help" {
			return
		}
		if err := fs.Set(f.Name, v); err != nil {
			errs = append(errs, usageError("%s=%q: %v", envName(f.Name), v, cause(err)))
		}
	})
	return errors.Join(errs...)
}

// unknownVariables returns those of environ that look like settings and are none of any command.
func unknownVariables(root *cobra.Command, environ []string) (names []string) {
	known := make(map[string]bool)
	for _, c := range append(root.Commands(), root) {
		for _, c := range append(c.Commands(), c) {
			c.Flags().VisitAll(func(f *pflag.Flag) { known[envName(f.Name)] = true })
		}
	}
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, envName("")) && !known[name] {
			names = append(names, name)
		}
	}
	return names
}

// setFromYAML takes a mapping of flag names to scalars, or to lists of scalars for flags that may be given several times.
func setFromYAML(fs *pflag.FlagSet, file string, data []byte) error {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // an empty file says nothing
	} else if err != nil {
		return usageError("config file %s: %s", file, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return usageError("config file %s: more than one document", file)
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return usageError("config file %s:%d: expected settings as `name: value`", file, top.Line)
	}
	scratch := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(config).flags(scratch)
	seen := make(map[string]int)
	for i := 0; i < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		if first, ok := seen[key.Value]; ok {
			return usageError("config file %s:%d: %q is already set in line %d", file, key.Line, key.Value, first)
		}
		seen[key.Value] = key.Line
		// First where it has no effect: a wrong value is one also if the command line or the environment overrides it.
		if err := setFromNode(scratch, key.Value, value); err != nil {
			return usageError("config file %s:%d: %v", file, key.Line, err)
		}
		if fs.Lookup(key.Value).Changed {
			continue
		}
		if err := setFromNode(fs, key.Value, value); err != nil {
			return usageError("config file %s:%d: %v", file, key.Line, err)
		}
	}
	return nil
}

// nullTag is YAML's for a value that is null, ~ or nothing.
const nullTag = "!!null"

// setFromNode sets a flag to what the file says.
func setFromNode(fs *pflag.FlagSet, name string, value *yaml.Node) error {
	f := fs.Lookup(name)
	if f == nil || name == "config" || name == "help" {
		return fmt.Errorf("unknown setting %q", name)
	}
	var text string
	switch list, isList := f.Value.(pflag.SliceValue); {
	case value.Kind == yaml.ScalarNode:
		text = value.Value
	case value.Kind == yaml.SequenceNode && isList:
		var items []string
		for _, n := range value.Content {
			if n.Kind != yaml.ScalarNode || n.Tag == nullTag {
				return fmt.Errorf("%s: expected a list of plain values", name)
			}
			items = append(items, n.Value)
		}
		f.Changed = true
		return list.Replace(items)
	default:
		return fmt.Errorf("%s: expected a plain value", name)
	}
	if value.Tag == nullTag {
		return fmt.Errorf("%s: there is no value; leave the setting out for its default", name)
	}
	if f.Value.Type() == "bool" && value.Tag != "!!bool" {
		return fmt.Errorf("%s: %q: want true or false", name, text)
	}
	if err := fs.Set(name, text); err != nil {
		return fmt.Errorf("%s: %q: %v", name, text, cause(err))
	}
	return nil
}

// cause strips what pflag wraps around an error: it speaks of a flag where the user wrote a variable or a file.
func cause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// validate finds what is wrong with c before anything is opened.
func (c *config) validate() error {
	if c.Listen == "" {
		return usageError("--listen: an address is needed, for example localhost:3000")
	}
	if c.DataDir == "" {
		return usageError("--data-dir: a directory is needed")
	}
	if c.ListTTL <= 0 || c.NotFoundTTL <= 0 || c.DrainDelay < 0 || c.DrainTime <= 0 {
		return usageError("--list-ttl, --not-found-ttl and --drain-timeout must be positive, --drain-delay not negative")
	}
	if err := c.Garbage.validate(); err != nil {
		return err
	}
	if c.ScrubEvery < 0 {
		return usageError("--scrub-every must not be negative")
	}
	if err := c.Limits.validate(); err != nil {
		return err
	}
	if c.Follow.once != nil && (c.Cluster.Expect > 1 || len(c.Cluster.Join) > 0) { // one follows for all, and the others would never end
		return usageError("--once is for a mirror of one node: leave it out on the nodes of a cluster, and see modmirror status for how far they are")
	}
	if err := c.Cluster.validate(); err != nil {
		return err
	}
	if c.Offline && c.Cluster.NoUpstream {
		return usageError("--offline and --no-upstream: offline, nobody is asked for what is not held; without an upstream, other nodes are; leave one out")
	}
	if err := c.Follow.validate(c.Offline, c.Cluster.NoUpstream); err != nil {
		return err
	}
	if c.NotFoundTTL > time.Minute {
		return usageError("--not-found-ttl: at most one minute")
	}
	if err := checkPatterns(c.Private); err != nil {
		return err
	}
	if _, port, err := net.SplitHostPort(c.Listen); err != nil {
		return usageError("--listen: %v; want host:port", err)
	} else if _, err := net.LookupPort("tcp", port); err != nil {
		return usageError("--listen %s: %q is not a port; want host:port", c.Listen, port)
	}
	if len(c.SumDB) == 0 {
		return usageError("--sumdb: at least one checksum database is needed: nothing is stored unverified")
	}
	return nil
}
