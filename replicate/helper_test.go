package replicate

import (
	"testing"

	"golang.org/x/mod/sumdb/note"

	"modmirror/replicate/replicatetest"
)

func verifierOf(tb testing.TB, db *replicatetest.Database) note.Verifier {
	tb.Helper()
	v, err := note.NewVerifier(db.Key)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}
