package replicate

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// What is read by hand is what the standard library of today reads.
func FuzzCanonicalTime(f *testing.F) {
	for _, s := range []string{
		"2024-05-06T07:08:09Z", "2024-02-29T23:59:59.999999999Z", "2023-02-29T00:00:00Z", "1900-02-29T00:00:00Z", "2000-02-29T00:00:00Z",
		"0001-01-01T00:00:00Z", "0001-01-01T00:00:00.1Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2024-04-31T00:00:00Z",
		"2024-13-01T00:00:00Z", "2024-00-01T00:00:00Z", "2024-01-00T00:00:00Z", "2024-01-32T00:00:00Z", "2024-01-01T24:00:00Z", "2024-01-01T00:60:00Z",
		"2024-01-01T00:00:60Z", "2024-01-01T00:00:00.Z", "2024-01-01T00:00:00.10Z", "2024-01-01T00:00:00.1234567891Z", "2024-01-01T00:00:00,1Z",
		"2024-01-01T00:00:00.1x2Z", "2024-01-01T00:00:00+00:00", "2024-01-01t00:00:00z", "", "Z", "2024-01-01T00:00:00", "2024-01-01T00:00:00.-1Z",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		when, err := time.Parse(time.RFC3339Nano, s)
		want := err == nil && !when.IsZero() && when.UTC().Format(time.RFC3339Nano) == s
		if got := canonicalTime([]byte(s)); got != want {
			t.Errorf("canonicalTime(%q) = %v, want %v", s, got, want)
		}
	})
}

func FuzzCompactObject(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"a":1}`, `{"a":[1,-0,0.5,1e9,1E+9,1e-9,true,false,null,"x",{},[]],"b":{"c":"\u00aF\"\\\/\b\f\n\r\t"}}`, `{"a":"` + "\xff" + `"}`,
		`{"VCS":"git","URL":"https://example.com/a","Hash":"ab","Ref":"refs/tags/v1.0.0"}`,
		``, `[]`, `{`, `{}{}`, `{} `, ` {}`, `{ }`, `{"a" :1}`, `{"a": 1}`, `{"a":1,}`, `{,}`, `{"a"}`, `{"a":}`, `{a:1}`, `{"a":01}`, `{"a":-}`, `{"a":1.}`,
		`{"a":.5}`, `{"a":1e}`, `{"a":+1}`, `{"a":"\x"}`, `{"a":"\u12g4"}`, `{"a":"\u12`, `{"a":"\`, "{\"a\":\"\n\"}", `{"a":tru}`, `{"a":[1,]}`, `{"a":[}`,
		`{"a":[1 ,2]}`, `{"a":[1}`, `{"a":"x}`, `{"a":1 }`, `{"a":--1}`, `{"a":1-}`, `{"a":00}`, `{"a":0}`, `{"a":truefalse}`,
		`{"a":` + strings.Repeat("[", 9999) + strings.Repeat("]", 9999) + `}`, `{"a":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + `}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, s []byte) {
		var b bytes.Buffer
		want := bytes.HasPrefix(s, []byte("{")) && json.Compact(&b, s) == nil && bytes.Equal(b.Bytes(), s)
		if got := compactObject(s); got != want {
			t.Errorf("compactObject(%q) = %v, want %v", s, got, want)
		}
	})
}
