package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"modmirror/mirror/artifact"
	"modmirror/replicate"
)

// recovery is what `modmirror cluster recover` was asked for.
type recovery struct {
	dir    string
	reason string
	show   bool
	asJSON bool
	yes    bool
	force  bool
}

func clusterRecoverCommand() *cobra.Command {
	var r recovery
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Go on with one survivor after the majority is lost for ever",
		Long: `Recover makes a stopped node the only voter of a new cluster, in which everything is that this node holds. It is for a
cluster that has lost the majority of its voters for ever; as long as they may come back, wait for them: what is stored is
served without them. What they committed and this node never received is lost, and their data directories can never
take part again.

Of several survivors, recover the one whose last entry has the highest term, and of these the highest index: --show prints both,
and changes nothing. Recover one only; the others are started as new nodes. See docs/recover.md for all of it.

It works on the data directory, so the node must not run. What it will do is printed first, and asked about. It may be
repeated if it was interrupted.`,
		Args: cobra.NoArgs,
	}
	fs := cmd.Flags()
	fs.StringVar(&r.dir, "data-dir", defaultDataDir, "the survivor's `directory`")
	fs.StringVar(&r.reason, "reason", "", "what happened, in your `words`: it is kept in the cluster's audit")
	fs.BoolVar(&r.show, "show", false, "print what this survivor holds, and change nothing")
	fs.BoolVar(&r.asJSON, "json", false, "print it as JSON; only with --show")
	fs.BoolVar(&r.yes, "yes", false, "do not ask: for scripts")
	fs.BoolVar(&r.force, "force", false, "go on although another member's address answers, because something else is there now")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := loadSettings(cmd); err != nil {
			return err
		}
		return r.run(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
	}
	return cmd
}

func (r recovery) run(ctx context.Context, in io.Reader, out io.Writer) error {
	if r.asJSON && !r.show {
		return usageError("--json: only with --show")
	}
	if !r.show && strings.TrimSpace(r.reason) == "" {
		return usageError("--reason is needed: what happened, for the cluster's audit; --show looks and changes nothing")
	}
	if err := hasCatalog(r.dir); err != nil {
		return err
	}
	v, err := replicate.OpenSurvivor(r.dir)
	if errors.Is(err, replicate.ErrLocked) {
		return fmt.Errorf("a mirror is running on %s: stop it first: %w", r.dir, err)
	}
	if err != nil {
		return err
	}
	defer v.Close()
	rem, err := remainsOf(ctx, r.dir, v)
	if err != nil {
		return err
	}
	if r.asJSON {
		return printJSON(out, rem)
	}
	if err := rem.print(out); err != nil || r.show {
		return err
	}
	if len(rem.Others()) == 0 && !rem.Recovered.IsZero() {
		_, err := fmt.Fprintf(out, "nothing is left to do: it was recovered on %s, as cluster %s\n", rem.Recovered.Format(time.RFC3339), rem.Cluster)
		return err
	}
	return r.recover(ctx, v, rem, in, out)
}

func (r recovery) recover(ctx context.Context, v *replicate.Survivor, rem remains, in io.Reader, out io.Writer) error {
	others := rem.Others()
	if len(others) > 0 && rem.Node.ID != "" {
		rem.announce(out)
		if there := whoAnswers(ctx, others); len(there) > 0 && !r.force {
			return fmt.Errorf("%s: something answers at the address of another member. If that is the member, it has not been lost: stop it, or bring the majority back and do not recover. If it is something else: --force", strings.Join(there, ", "))
		}
		if !r.yes {
			if err := confirm(in, out, "recover"); err != nil {
				return err
			}
		}
	}
	now, err := v.Recover(auditNow("recover", r.reason))
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "done: cluster %s goes on as cluster %s, and %s is its only voter; start it with the command line that it always had\n", rem.Cluster, now, nameOf(rem.Node))
	if len(rem.Missing) > 0 {
		fmt.Fprintf(out, "missing here, see above: %s; the running node asks the upstream for what is missing, and takes nothing but the very bytes that are committed\n", count(len(rem.Missing), "published blob"))
	}
	return nil
}

// remains is what a survivor holds, with the blobs that it lacks.
type remains struct {
	replicate.Remains
	Blobs   int           `json:"blobs"`   // that it should have
	Missing []missingBlob `json:"missing"` // of these
}

// missingBlob is one that is published, and not here.
type missingBlob struct {
	Module  string `json:"module"`
	Version string `json:"version"`
	Kind    string `json:"kind"`
	Digest  string `json:"digest"`
	Size    int64  `json:"size"`
}

// remainsOf looks which blobs are here, by name and size; fsck reads them.
func remainsOf(ctx context.Context, dir string, v *replicate.Survivor) (rem remains, err error) {
	if rem.Remains, err = v.Remains(); err != nil {
		return rem, err
	}
	store, err := artifact.OpenStoreReadOnly(dir)
	if err != nil {
		return rem, err
	}
	defer store.Close()
	rem.Missing = []missingBlob{}
	seen := map[artifact.Digest]bool{}
	err = v.All(ctx, func(m artifact.Manifest) error {
		for _, k := range []artifact.Kind{artifact.Info, artifact.Mod, artifact.Zip} {
			ref := m.Ref(k)
			if ref.IsZero() || k != artifact.Zip && ref.Size <= artifact.MaxInline || seen[ref.Digest] {
				continue
			}
			seen[ref.Digest] = true
			if !store.Has(ref) && !store.HasUnproven(ref) {
				rem.Missing = append(rem.Missing, missingBlob{m.Module.Path, m.Module.Version, k.String(), ref.Digest.String(), ref.Size})
			}
		}
		return nil
	})
	rem.Blobs = len(seen)
	return rem, err
}

// maxNamed is how many missing blobs are named on a terminal.
const maxNamed = 20

func (r remains) print(w io.Writer) error {
	fmt.Fprintf(w, "%s\n", describe(r.Node, r.Node.ID))
	fmt.Fprintf(w, "  cluster     %s\n", r.Cluster)
	fmt.Fprintf(w, "  last entry  term %d, index %d\n", r.Term, r.Index)
	fmt.Fprintf(w, "  catalog     up to index %d, with %s, root %v\n", r.Applied, count(int(r.Seq), "change"), r.Root)
	if n := r.Index - r.Applied; n > 0 {
		fmt.Fprintf(w, "  behind it   %s with %s: nobody is left to say whether they were committed; a recovery takes them\n",
			numbered(int(n), "entry", "entries"), count(len(r.Tail), "publication"))
	}
	fmt.Fprintf(w, "  blobs       %d of %d are here\n", r.Blobs-len(r.Missing), r.Blobs)
	for i, b := range r.Missing {
		if i == maxNamed {
			fmt.Fprintf(w, "    and %d more: --show --json names them all\n", len(r.Missing)-i)
			break
		}
		fmt.Fprintf(w, "    missing: %s@%s %s, %s\n", b.Module, b.Version, b.Kind, size(b.Size))
	}
	fmt.Fprintln(w, "  members")
	var err error
	for _, p := range r.Members {
		_, err = fmt.Fprintf(w, "    %s\n", describe(p, r.Node.ID))
	}
	return err
}

// describe names a member of a cluster of which nobody can be asked.
func describe(p replicate.Peer, self string) string {
	if p.ID == "" {
		return "a node that is no member"
	}
	what := "nonvoter"
	if p.Voter {
		what = "voter"
	}
	if p.ID == self {
		what += ", this node"
	}
	return fmt.Sprintf("%s (%s), %s, %s", nameOf(p), shortID(p.ID), cmp.Or(p.Address, "no address"), what)
}

// announce says what a recovery will do.
func (r remains) announce(w io.Writer) {
	var names []string
	for _, p := range r.Others() {
		names = append(names, nameOf(p))
	}
	fmt.Fprintf(w, `recover
  now    what this node holds goes on, as a new cluster with this node as its only voter
  gone   %s: never start them with their old data again: they cannot take part, and would be a second cluster of their own
  lost   what they committed and this node never received
`, strings.Join(names, ", "))
	if voters := r.voters(); voters < 3 {
		fmt.Fprintf(w, "  note   there are only %d voters: without the other one, a survivor cannot know what was committed\n", voters)
	}
}

func (r remains) voters() (n int) {
	for _, p := range r.Members {
		if p.Voter {
			n++
		}
	}
	return n
}

// whoAnswers returns the nodes at whose addresses something listens.
func whoAnswers(ctx context.Context, nodes []replicate.Peer) (there []string) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var mu sync.Mutex // guards there
	var wg sync.WaitGroup
	for _, p := range nodes {
		wg.Go(func() {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "tcp", p.Address)
			if err != nil {
				return
			}
			_ = conn.Close()
			mu.Lock()
			defer mu.Unlock()
			there = append(there, nameOf(p)+" at "+p.Address)
		})
	}
	wg.Wait()
	return there
}

func numbered(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
