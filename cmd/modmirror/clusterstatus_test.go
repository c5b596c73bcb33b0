package main

import (
	"encoding/json"
	"testing"
)

// A node that has every blob and cannot prove every record is not complete, nor is one of which it is not known.
func TestHolds(t *testing.T) {
	for said, want := range map[string]int64{
		`{"blobs":10,"proves":10}`: 10,
		`{"blobs":10,"proves":3}`:  3,
		`{"blobs":2,"proves":10}`:  2,
		`{"blobs":10}`:             0,
	} {
		var s selfStatus
		if err := json.Unmarshal([]byte(said), &s); err != nil {
			t.Fatal(err)
		}
		if got := s.holds(); got != want {
			t.Errorf("a node that says %s holds all up to %d, want %d", said, got, want)
		}
	}
}
