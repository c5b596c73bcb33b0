package replicate

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"modmirror/mirror/artifact"
	"modmirror/replicate/replicatetest"
)

// someCommands has one command of each kind, with every field set.
func someCommands(tb testing.TB) []command {
	db := replicatetest.NewDatabase(tb, "sum.example.org")
	a := db.AddModule("example.com/a", "v1.0.0", "module example.com/a\n")
	fork := db.Fork()
	db.Add("b v1.0.0 x\n")
	db.Add("c v1.0.0 x\n")
	fork.Add("d v1.0.0 x\n")
	when := time.Unix(1_700_000_000, 0).UTC()
	return []command{
		publishCommand{db.Publication(a, 3)},
		listingCommand{artifact.Listing{Path: "example.com/a", Versions: []string{"v1.0.0", "v1.2.0"}, Listed: when, Latest: a.Info, Latested: when.Add(time.Hour)}},
		trustCommand{db.Key},
		headCommand{Database: db.Name, Note: db.Head(3), Base: 1, Proof: db.Prove(3, 1)},
		forkCommand{artifact.Fork{Database: db.Name, A: fork.Head(2), B: db.Head(3), Derived: db.Tree(2).Hash, Proof: db.Prove(3, 2)}},
		ackForkCommand{db.Name},
		clusterCommand{"the cluster"},
		registerCommand{Peer{ID: "ID1", Name: "one", Address: "host:1", Zone: "z", Role: RoleVoter, Version: "v1", Boot: "B", Starts: 300}},
		forgetCommand{"ID1"},
		holdCommand{"ID1", true},
		levelCommand{2, "ID1"},
		auditCommand{Audit{Time: time.Unix(1_700_000_000, 5).UTC(), Actor: "root@host1", Action: "recover", Reason: "two of three disks are lost"}},
		clockCommand{1_700_000_000_123_456},
		rebalanceCommand{"ID1"},
	}
}

func TestEntryRoundTrip(t *testing.T) {
	cmds := someCommands(t)
	got, err := parseEntry(entryOf(t, cmds...))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, cmds) {
		t.Errorf("parseEntry() = %+v, want %+v", got, cmds)
	}
}

// Any publication, whatever is in its fields, comes out of an entry as it went in, also between others; bytes that are not
// there are told from bytes that are empty. Whatever else can be made of the entry by changing a byte of it or cutting it is
// refused, or is itself the one encoding of what it says.
func TestPublicationCodec(t *testing.T) {
	text := rapid.StringN(0, 20, 60)
	data := func(rt *rapid.T, label string) []byte {
		if rapid.Bool().Draw(rt, label+" travels") {
			return rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(rt, label)
		}
		return nil
	}
	ref := rapid.Custom(func(rt *rapid.T) artifact.Ref {
		return rapid.SampledFrom([]artifact.Ref{{}, artifact.RefOf(nil), artifact.RefOf([]byte("x")), {Size: 1 << 40}, {Digest: artifact.Digest{1}}}).Draw(rt, "ref")
	})
	publication := rapid.Custom(func(rt *rapid.T) command {
		m := artifact.Manifest{
			Module: module.Version{Path: text.Draw(rt, "path"), Version: text.Draw(rt, "version")},
			Record: artifact.Record{Database: text.Draw(rt, "database"), ID: rapid.Int64Min(0).Draw(rt, "id"), TreeSize: rapid.Int64Min(0).Draw(rt, "tree")},
			ModSum: text.Draw(rt, "go.mod sum"), ZipSum: text.Draw(rt, "zip sum"),
			Info: ref.Draw(rt, "info"), Mod: ref.Draw(rt, "go.mod"), Zip: ref.Draw(rt, "zip"),
		}
		if b := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(rt, "record"); len(b) > 0 {
			m.Record.Text = b
		}
		for range rapid.IntRange(0, 64).Draw(rt, "proof") {
			m.Record.Proof = append(m.Record.Proof, tlog.Hash{byte(len(m.Record.Proof))})
		}
		return publishCommand{artifact.Publication{Manifest: m, Info: data(rt, "info bytes"), Mod: data(rt, "go.mod bytes")}}
	})
	rapid.Check(t, func(rt *rapid.T) {
		cmds := rapid.SliceOfN(publication, 1, 3).Draw(rt, "commands")
		entry := entryOf(t, cmds...)
		if got, err := parseEntry(entry); err != nil || !reflect.DeepEqual(got, cmds) {
			rt.Fatalf("parseEntry() = %+v, %v, want %+v", got, err, cmds)
		}
		bad := bytes.Clone(entry)
		at := rapid.IntRange(0, len(bad)-1).Draw(rt, "at")
		if rapid.Bool().Draw(rt, "cut") {
			bad = bad[:at]
		} else {
			bad[at] ^= byte(rapid.IntRange(1, 255).Draw(rt, "change"))
		}
		if got, err := parseEntry(bad); err == nil && (reflect.DeepEqual(got, cmds) || !bytes.Equal(entryOf(t, got...), bad)) {
			rt.Fatalf("an entry with byte %d changed, %x, is %+v", at, bad, got)
		}
	})
}

// The example of the package doc.
func TestEntryExample(t *testing.T) {
	const key = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
	if got, want := entryOf(t, trustCommand{key}), append([]byte{0x01, 0x03, 0x45, 0x44}, key...); !bytes.Equal(got, want) {
		t.Errorf("entry = %x, want %x", got, want)
	}
}

func TestEntryRefused(t *testing.T) {
	good := entryOf(t, ackForkCommand{"x"})
	for name, data := range map[string][]byte{
		"empty":                 {},
		"no command":            {entryFormat},
		"other format":          append([]byte{entryFormat + 1}, good[1:]...),
		"unknown kind":          {entryFormat, 99, 0},
		"kind zero":             {entryFormat, 0, 0},
		"cut short":             good[:len(good)-1],
		"a byte too many":       append(bytes.Clone(good), 0),
		"longer form of length": {entryFormat, kindAckFork, 0x82, 0, 1, 'x'},
		"body with a rest":      {entryFormat, kindAckFork, 3, 1, 'x', 0},
		"huge length":           {entryFormat, kindAckFork, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
	} {
		if cmds, err := parseEntry(data); err == nil {
			t.Errorf("%s: parseEntry(%x) = %+v, want an error", name, data, cmds)
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	for _, c := range someCommands(f) {
		f.Add(entryOf(f, c))
	}
	f.Add(entryOf(f, someCommands(f)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		cmds, err := parseEntry(data)
		if err != nil {
			return
		}
		again := entryOf(t, cmds...)
		if !bytes.Equal(again, data) {
			t.Fatalf("parseEntry accepts %x, which encodes as %x", data, again)
		}
		if twice, err := parseEntry(again); err != nil || !reflect.DeepEqual(twice, cmds) {
			t.Fatalf("parseEntry(%x) = %+v, %v, want %+v", again, twice, err, cmds)
		}
	})
}

func TestCompactIsTheTree(t *testing.T) {
	var c compact
	var hashes []tlog.Hash
	read := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, x := range indexes {
			out = append(out, hashes[x])
		}
		return out, nil
	})
	for n := range int64(130) {
		want, err := tlog.TreeHash(n, read)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseCompact(c.encode())
		if err != nil || again.root() != want || again.size != n {
			t.Fatalf("root of %d leaves = %v (%v), want %v", n, again.root(), err, want)
		}
		leaf := tlog.RecordHash([]byte{byte(n)})
		more, err := tlog.StoredHashesForRecordHash(n, leaf, read)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, more...)
		c.add(leaf)
	}
	for _, bad := range [][]byte{nil, {1}, bigEndian(-1), append(bigEndian(3), make([]byte, 32)...), append(bigEndian(1), 1)} {
		if _, err := parseCompact(bad); err == nil {
			t.Errorf("parseCompact(%x) = nil, want an error", bad)
		}
	}
}

func TestCheckInfo(t *testing.T) {
	for _, good := range []string{
		`{"Version":"v1.0.0"}`,
		`{"Version":"v1.0.0","Time":"2024-05-06T07:08:09Z"}`,
		`{"Version":"v2.0.0+incompatible","Time":"2024-05-06T07:08:09.123Z"}`,
		`{"Version":"v1.0.0","Origin":{"VCS":"git"}}`,
		`{"Version":"v1.0.0","Time":"2024-05-06T07:08:09Z","Origin":{"VCS":"git","URL":"https://example.com/a b"}}`,
	} {
		if _, err := checkInfo([]byte(good)); err != nil {
			t.Errorf("checkInfo(%s) = %v, want nil", good, err)
		}
		info, err := artifact.ParseInfo([]byte(good))
		if err != nil || string(info.JSON()) != good {
			t.Errorf("canonical form of %s is %s (%v)", good, info.JSON(), err)
		}
	}
	for _, bad := range []string{
		``, `{}`, `null`, `{"Version":"v1.0.0"} `, `{"Version":"v1.0.0"}}`, `{"Version":"v1.0"}`, `{"Version":"master"}`,
		`{"Version":"v1.0.0","Time":""}`, `{"Version":"v1.0.0","Time":"2024-05-06T07:08:09+00:00"}`,
		`{"Version":"v1.0.0","Time":"2024-05-06T07:08:09.120Z"}`, `{"Version":"v1.0.0","Time":"2024-05-06T09:08:09+02:00"}`,
		`{"Version":"v1.0.0", "Time":"2024-05-06T07:08:09Z"}`, `{"version":"v1.0.0"}`, `{"Version":"v1.0.0","Extra":1}`,
		`{"Version":"v1.0.0","Time":"0001-01-01T00:00:00Z"}`,
		`{"Version":"v1.0.0","Origin":{}, "Version":"v2.0.0"}`, `{"Version":"v1.0.0","Origin":{},"Version":"v2.0.0"}`,
		`{"Version":"v1.0.0","Origin":{"VCS": "git"}}`, `{"Version":"v1.0.0","Origin":[]}`, `{"Version":"v1.0.0","Origin":`,
	} {
		if v, err := checkInfo([]byte(bad)); err == nil {
			t.Errorf("checkInfo(%s) = %s, want an error", bad, v)
		}
	}
}

func FuzzCheckInfo(f *testing.F) {
	f.Add([]byte(`{"Version":"v1.0.0","Time":"2024-05-06T07:08:09Z","Origin":{"VCS":"git"}}`))
	f.Add([]byte(`{"version":"v1.0.0", "time":"2024-05-06T07:08:09+01:00"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if info, err := artifact.ParseInfo(b); err == nil {
			if _, err := checkInfo(info.JSON()); err != nil {
				t.Fatalf("the canonical form %s is refused: %v", info.JSON(), err)
			}
		}
		if v, err := checkInfo(b); err == nil {
			info, err := artifact.ParseInfo(b)
			if err != nil || info.Version != v {
				t.Fatalf("checkInfo accepts %s as %s, ParseInfo says %+v, %v", b, v, info, err)
			}
		}
	})
}
