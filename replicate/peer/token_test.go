package peer

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestToken(t *testing.T) {
	var fixed Token
	for i := range fixed.secret {
		fixed.secret[i] = byte(i)
	}
	const want = "modmirror-cluster-1.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8.cce781a3" // as in the package's doc
	if got := fixed.String(); got != want {
		t.Errorf("String = %s, want %s", got, want)
	}
	if got, want := fixed.Fingerprint(), "0658e99b"; got != want { // two versions of modmirror must agree on it
		t.Errorf("Fingerprint = %s, want %s", got, want)
	}
	for _, tok := range []Token{fixed, NewToken()} {
		if got, err := ParseToken(tok.String()); err != nil || got != tok {
			t.Errorf("ParseToken(String()) = %v, %v", got, err)
		}
	}
	if a, b := NewToken(), NewToken(); a == b {
		t.Error("two new tokens are equal")
	}
	if s := fmt.Sprint(slog.AnyValue(fixed).Resolve()); strings.Contains(s, "AAECAw") {
		t.Errorf("the log shows the secret: %s", s)
	}
}

func TestParseTokenRefuses(t *testing.T) {
	good := NewToken().String()
	for _, s := range []string{"", "x", good[:len(good)-1], good + "a", good + "\n", " " + good, strings.Replace(good, "-1.", "-2.", 1), good[:30] + "_" + good[31:] + "x", strings.ToUpper(good)} {
		_, err := ParseToken(s)
		if err == nil || !strings.Contains(err.Error(), "malformed cluster token") {
			t.Errorf("ParseToken(%q): %v", s, err)
		} else if len(s) > 30 && strings.Contains(err.Error(), s[20:30]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func TestReadToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if _, err := ReadToken(path); err == nil || !strings.Contains(err.Error(), "read the cluster token") {
		t.Errorf("no file: %v", err)
	}
	want := NewToken()
	os.WriteFile(path, []byte("\n "+want.String()+"\r\n"), 0o600)
	if got, err := ReadToken(path); err != nil || got != want {
		t.Errorf("ReadToken = %v, %v", got, err)
	}
	os.WriteFile(path, []byte("nonsense"), 0o600)
	if _, err := ReadToken(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("nonsense: %v", err)
	}
}
