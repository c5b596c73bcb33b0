package artifact

import (
	"strings"
	"testing"
)

func TestDigest(t *testing.T) {
	// FIPS 180-2, B.1.
	const abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	d := DigestOf([]byte("abc"))
	if d.String() != abc {
		t.Errorf("DigestOf(abc) = %s, want %s", d, abc)
	}
	if got, err := ParseDigest(abc); err != nil || got != d {
		t.Errorf("ParseDigest = %s, %v", got, err)
	}
	for _, s := range []string{"", "ba", abc[:62], abc[:63], abc + "00", abc + " ", strings.ToUpper(abc), "g" + abc[1:], "sha256:" + abc} {
		if got, err := ParseDigest(s); err == nil || got != (Digest{}) {
			t.Errorf("ParseDigest(%q) = %s, %v, want an error", s, got, err)
		}
	}
}

func FuzzParseDigest(f *testing.F) {
	f.Add(DigestOf(nil).String())
	f.Add("BA78")
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := ParseDigest(s); err == nil && d.String() != s {
			t.Errorf("ParseDigest(%q) = %s", s, d)
		}
	})
}

func TestRef(t *testing.T) {
	r := RefOf([]byte("abc"))
	if r.Size != 3 || r.Digest != DigestOf([]byte("abc")) || r.IsZero() || !(Ref{}).IsZero() {
		t.Errorf("RefOf(abc) = %v", r)
	}
	if RefOf(nil).IsZero() {
		t.Error("an empty artifact looks like none")
	}
	if s := r.String(); s != "sha256:"+r.Digest.String()+" (3 bytes)" {
		t.Errorf("String = %s", s)
	}
}

func TestKind(t *testing.T) {
	for k, want := range map[Kind]string{Info: "info", Mod: "mod", Zip: "zip", 0: "Kind(0)", 9: "Kind(9)"} {
		if k.String() != want {
			t.Errorf("Kind %d = %s, want %s", uint8(k), k, want)
		}
	}
	if Info.Limit() != MaxInfo || Mod.Limit() != MaxMod || Zip.Limit() != MaxZip || Kind(0).Limit() != 0 {
		t.Error("limits are mixed up")
	}
	m := testManifest()
	if m.Ref(Info) != m.Info || m.Ref(Mod) != m.Mod || m.Ref(Zip) != m.Zip || !m.Ref(0).IsZero() {
		t.Error("parts are mixed up")
	}
}
