package feed

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"modmirror/mirror/artifact"
)

// The form of a line is that of the public index.
func TestEntryForm(t *testing.T) {
	c := artifact.Change{At: time.Date(2019, 4, 10, 19, 8, 52, 997264000, time.UTC), Manifest: artifact.Manifest{
		Module: module.Version{Path: "golang.org/x/text", Version: "v0.3.0"}, Info: artifact.RefOf([]byte("i")), Zip: artifact.RefOf([]byte("z"))}}
	for _, tt := range []struct {
		parts bool
		want  string
		kinds int
	}{
		{false, `{"Path":"golang.org/x/text","Version":"v0.3.0","Timestamp":"2019-04-10T19:08:52.997264Z"}` + "\n", 3},
		{true, `{"Path":"golang.org/x/text","Version":"v0.3.0","Timestamp":"2019-04-10T19:08:52.997264Z","Parts":["info","zip"]}` + "\n", 2},
	} {
		line, err := EntryOf(c, tt.parts).AppendTo(nil)
		if err != nil || string(line) != tt.want {
			t.Errorf("%s (%v), want %s", line, err, tt.want)
		}
		list, err := parsePage(strings.NewReader(string(line)), Query{})
		if err != nil || len(list) != 1 || list[0].Module() != c.Manifest.Module || !list[0].Timestamp.Equal(c.At) || len(list[0].Kinds()) != tt.kinds {
			t.Errorf("parsed as %+v, %v", list, err)
		}
	}
}

func TestPageRefused(t *testing.T) {
	const a, b = `{"Path":"a.example","Version":"v1.0.0","Timestamp":"2020-01-01T00:00:00.000001Z"}`, `{"Path":"b.example","Version":"v1.0.0","Timestamp":"2020-01-01T00:00:00Z"}`
	since := Query{Since: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), Limit: 2}
	for name, body := range map[string]string{
		"out of order":    a + "\n" + b + "\n",
		"before since":    strings.Replace(a, "2020", "2019", 1),
		"more than asked": b + "\n" + a + "\n" + a,
		"no JSON":         "<html>",
		"cut short":       a[:40],
		"a long line":     strings.Repeat("x", maxLine+1),
	} {
		if list, err := parsePage(strings.NewReader(body), since); err == nil {
			t.Errorf("%s: %+v", name, list)
		}
	}
	if list, err := parsePage(strings.NewReader(b+"\n\n"+a), since); err != nil || len(list) != 2 {
		t.Errorf("two entries: %+v, %v", list, err)
	}
}

func TestQueryRefused(t *testing.T) {
	for _, raw := range []string{"since=yesterday", "since=2020-01-01", "since=2020-01-01T00:00:00Z&since=2020-01-01T00:00:00Z", "limit=0", "limit=-1", "limit=2001", "limit=x",
		"limit=1;2", "wait=61s", "wait=-1s", "wait=5", "parts=2", "since=%zz", "since=0001-01-01T00:00:00Z"} {
		if q, err := ParseQuery(raw); !errors.Is(err, artifact.ErrMalformed) || q != (Query{}) {
			t.Errorf("%s: %+v, %v", raw, q, err)
		}
	}
	q, err := ParseQuery("since=2019-04-10T21:08:52.997264%2B02:00&limit=10&wait=30s&parts=1&include=all")
	want := Query{Since: time.Date(2019, 4, 10, 19, 8, 52, 997264000, time.UTC), Limit: 10, Wait: 30 * time.Second, Parts: true}
	if err != nil || q != want {
		t.Errorf("%+v, %v, want %+v", q, err, want)
	}
	if q, err := ParseQuery("since=&limit="); err != nil || q != (Query{}) {
		t.Errorf("empty parameters: %+v, %v", q, err)
	}
}

// What is read is what it was written from, within the bounds.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{"", "since=2019-04-10T19:08:52.997264Z&limit=10", "wait=1m&parts=true", "limit=2000", "since=9999-12-31T23:59:59Z", "%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		q, err := ParseQuery(raw)
		if err != nil {
			if q != (Query{}) || !errors.Is(err, artifact.ErrMalformed) {
				t.Errorf("%q: %+v, %v", raw, q, err)
			}
			return
		}
		if q.Limit < 0 || q.Limit > MaxLimit || q.Wait < 0 || q.Wait > MaxWait {
			t.Errorf("%q: %+v", raw, q)
		}
		if again, err := ParseQuery(q.Encode()); err != nil || again != q {
			t.Errorf("%q: %+v, and again %+v, %v", raw, q, again, err)
		}
	})
}
