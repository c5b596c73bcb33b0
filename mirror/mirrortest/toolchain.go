package mirrortest

import (
	"fmt"
	"strings"

	"golang.org/x/mod/module"
)

// AddToolchain adds the toolchain module (go.dev/doc/toolchain#download) of a Go version such as "go1.99.0" for
// linux-amd64. Its bin/go is a shell script that prints "go version go1.99.0 linux/amd64", whatever it is asked.
// A go command that runs with GOTOOLCHAIN=go1.99.0 downloads it, checks it against the checksum database and runs it.
func (u *Upstream) AddToolchain(version string) module.Version {
	m := module.Version{Path: "golang.org/toolchain", Version: "v0.0.1-" + version + ".linux-amd64"}
	zip := Zip(m, map[string]string{
		"VERSION":            version + "\ntime 2024-02-29T12:00:00Z\n",
		"bin/go":             fmt.Sprintf("#!/bin/sh\necho go version %s linux/amd64\n", version),
		"bin/gofmt":          "#!/bin/sh\nexit 0\n",
		"pkg/tool/buildid":   "#!/bin/sh\nexit 0\n",
		"src/_go.mod":        "module std\n\ngo " + lang(version) + "\n",
		"src/fmt/doc.go":     "package fmt\n",
		"lib/time/README.md": "Nothing here.\n",
	})
	u.AddZip(m, zip, []byte("module golang.org/toolchain\n"), nil)
	return m
}

// lang returns the language version of a toolchain's: "1.99" for "go1.99.0".
func lang(version string) string {
	f := strings.Split(strings.TrimPrefix(version, "go"), ".")
	return strings.Join(f[:min(2, len(f))], ".")
}
