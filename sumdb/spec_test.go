package sumdb

import (
	"testing"

	"modmirror/sumdb/sumdbtest"
)

func TestParseSpec(t *testing.T) {
	key := sumdbtest.New("sum.example.com/team").Key()
	tmp := sumdbtest.New("tile/tmp").Key()
	real := known["sum.golang.org"]
	for in, want := range map[string]Spec{
		"sum.golang.org": {"sum.golang.org", real, ""},
		real:             {"sum.golang.org", real, ""},
		"  sum.golang.org   https://x.example/y/ ": {"sum.golang.org", real, "https://x.example/y"},
		key:                               {"sum.example.com/team", key, ""},
		key + " http://localhost:8080/db": {"sum.example.com/team", key, "http://localhost:8080/db"},
		key + " file:///srv/db":           {"sum.example.com/team", key, "file:///srv/db"},
		tmp:                               {"tile/tmp", tmp, ""},
	} {
		got, err := ParseSpec(in)
		if err != nil || got != want {
			t.Errorf("ParseSpec(%q) = %+v, %v, want %+v", in, got, err, want)
		}
		if again, err := ParseSpec(got.String()); err != nil || again != got {
			t.Errorf("ParseSpec(%q) = %+v, %v", got.String(), again, err)
		}
	}
	for _, in := range []string{
		"", " ", "off", "sum.example.com", "sum.golang.org a b", key[:len(key)-1], key + "x", "sum.golang.org x", "sum.golang.org ftp://x/y",
		"sum.golang.org https://", "sum.golang.org https://u:p@x", "sum.golang.org https://x?a=b", "sum.golang.org https://x#f", "sum.golang.org https://x?",
		sumdbtest.New("sum.example.com/tile").Key(), sumdbtest.New("sum.example.com/tile/8/0").Key(), sumdbtest.New("sum.example.com/x/Lookup").Key(),
		sumdbtest.New("sum.example.com/.tmp").Key(), sumdbtest.New(".tmp").Key(), sumdbtest.New("x/../y").Key(), sumdbtest.New("x/").Key(), sumdbtest.New("/x").Key(), sumdbtest.New("x//y").Key(), sumdbtest.New("u@x").Key(), sumdbtest.New("x?y").Key(), sumdbtest.New("x%2fy").Key(),
	} {
		if got, err := ParseSpec(in); err == nil {
			t.Errorf("ParseSpec(%q) = %+v, want an error", in, got)
		}
	}
	if d := (Spec{Name: "a.example/b"}).Direct(); d != "https://a.example/b" {
		t.Errorf("Direct() = %s", d)
	}
}

func TestOpenRefuses(t *testing.T) {
	d := sumdbtest.New("sum.example.com")
	tiles := openTiles(t, t.TempDir())
	for name, c := range map[string]Config{
		"no key":     {Catalog: sumdbtest.NewCatalog(), Tiles: tiles},
		"bad key":    {Key: "x", Catalog: sumdbtest.NewCatalog(), Tiles: tiles},
		"bad name":   {Key: sumdbtest.New("../x").Key(), Catalog: sumdbtest.NewCatalog(), Tiles: tiles},
		"no catalog": {Key: d.Key(), Tiles: tiles},
		"no tiles":   {Key: d.Key(), Catalog: sumdbtest.NewCatalog()},
	} {
		if db, err := Open(c); err == nil {
			t.Errorf("%s: %v", name, db)
		}
	}
}
