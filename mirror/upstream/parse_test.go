package upstream

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"https://a.example", "https://a.example"},
		{"https://a.example,https://b.example|file:///srv/x,off", "https://a.example,https://b.example|file:///srv/x,off"},
		{" https://a.example , , |http://b.example:80/go ", "https://a.example,http://b.example:80/go"},
		{"a.example/go|b.example", "https://a.example/go|https://b.example"},
		{"https://a.example,direct", "https://a.example"},
		{"https://a.example,off,https://never.example", "https://a.example,off"},
		{"https://a.example,direct,https://never.example", "https://a.example"},
		{"https://user:secret@a.example,https://token@b.example/go", "https://a.example,https://b.example/go"},
		{"http://user:secret@localhost:1", "http://localhost:1"},
		{"off", "off"},
	} {
		l, err := Parse(tt.in, Config{})
		if err != nil || l.String() != tt.want {
			t.Errorf("Parse(%q) = %v, %v, want %s", tt.in, l, err, tt.want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	self := []string{"localhost:3000", ":4000", "[::1]:5000", "mirror.example:443"}
	for _, tt := range []struct{ in, want string }{
		{"", "is empty"},
		{" , |", "is empty"},
		{"direct", `nothing in front of "direct"`},
		{"direct,https://a.example", `nothing in front of "direct"`},
		{"nonsense", "entry 1 of the upstream list has not the scheme"},
		{"https://a.example,/srv/x", "entry 2 of the upstream list has not the scheme"},
		{"ftp://a.example", "has not the scheme"},
		{"https://a.example/?x=1", "has a query"},
		{"https://a.example/#x", "has a query"},
		{"https:///go", "has no host"},
		{"file://host/srv", "more than a path"},
		{"http://user:secret@a.example", "http://a.example, which would send them unencrypted"},
		{"https://user:sec/ret@a.example", "is not a URL"},
		{"https://user:sec%ret@a.example", "is not a URL"},
		{"http://127.0.0.1:3000/go", "is this mirror itself, which listens at localhost:3000"},
		{"http://localhost:4000", "is this mirror itself"},
		{"http://127.0.0.1:4000", "is this mirror itself"},
		{"http://[::1]:5000", "is this mirror itself"},
		{"http://localhost:5000", "is this mirror itself"},
		{"https://MIRROR.example", "is this mirror itself"},
	} {
		l, err := Parse(tt.in, Config{Self: self})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%q) = %v, %v, want an error with %q", tt.in, l, err, tt.want)
		}
		if err != nil && (strings.Contains(err.Error(), "sec") || strings.Contains(err.Error(), "user")) {
			t.Errorf("Parse(%q) prints a secret: %v", tt.in, err)
		}
	}
	for _, in := range []string{"http://localhost:3001", "http://10.99.99.99:4000", "https://mirror.example:8443", "http://127.0.0.2:3000"} {
		if _, err := Parse(in, Config{Self: self}); err != nil {
			t.Errorf("Parse(%q): %v, but that is somebody else", in, err)
		}
	}
}

func TestDirectIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	if _, err := Parse("https://u:secret@a.example|b.example,direct", Config{Log: slog.New(slog.NewTextHandler(&log, nil))}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "level=INFO") || strings.Contains(log.String(), "secret") {
		t.Errorf("log:\n%s", &log)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("https://u:p@a.example/x,b.example|file:///srv,off")
	f.Fuzz(func(t *testing.T, in string) {
		l, err := Parse(in, Config{})
		if err != nil {
			return
		}
		again, err := Parse(l.String(), Config{})
		if err != nil || again.String() != l.String() {
			t.Errorf("Parse(%q).String() = %q, parsed again: %v, %v", in, l, again, err)
		}
	})
}
