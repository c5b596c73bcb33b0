package peer

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
)

// Token is the secret of a cluster, 256 random bits. Who has it can do everything that a node can do. The zero Token is
// none.
type Token struct{ secret [32]byte }

const tokenMark = "modmirror-cluster-1"

// NewToken returns a new random token.
func NewToken() Token {
	var t Token
	rand.Read(t.secret[:]) // never fails, see crypto/rand
	return t
}

// String returns the token as ParseToken reads it: the secret itself. Do not log it; LogValue stands in for it there.
func (t Token) String() string {
	body := tokenMark + "." + base64.RawURLEncoding.EncodeToString(t.secret[:])
	return body + "." + tokenSum(body)
}

// LogValue implements slog.LogValuer, and does not tell the secret.
func (t Token) LogValue() slog.Value { return slog.StringValue("token " + t.Fingerprint()) }

// Fingerprint returns eight characters that tell tokens apart and do not tell the token.
func (t Token) Fingerprint() string { return newAuthority(t).fingerprint }

// tokenSum is there to catch a token that was typed wrong or cut short, before it is mistaken for the token of another
// cluster.
func tokenSum(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:4])
}

// ParseToken parses the form that String prints and nothing else. Its errors do not repeat s.
func ParseToken(s string) (Token, error) {
	var t Token
	mark, rest, ok1 := strings.Cut(s, ".")
	secret, sum, ok2 := strings.Cut(rest, ".")
	if !ok1 || !ok2 || mark != tokenMark {
		return t, fmt.Errorf("malformed cluster token: it has the form %s.SECRET.CHECKSUM, as `modmirror cluster token` prints it", tokenMark)
	}
	if tokenSum(mark+"."+secret) != sum {
		return t, errors.New("malformed cluster token: its checksum is wrong, so a character was changed or lost: copy it again")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(secret)
	if err != nil || len(b) != len(t.secret) {
		return t, errors.New("malformed cluster token: its secret is not 32 bytes in base64url: copy it again")
	}
	copy(t.secret[:], b)
	if t.String() != s { // base64 skips line ends
		return Token{}, errors.New("malformed cluster token: there are line ends in it: copy it again")
	}
	return t, nil
}

// ReadToken reads the token in a file, which may have white space around it.
func ReadToken(path string) (Token, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Token{}, fmt.Errorf("read the cluster token: %w", err)
	}
	t, err := ParseToken(strings.TrimSpace(string(b)))
	if err != nil {
		return Token{}, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}
