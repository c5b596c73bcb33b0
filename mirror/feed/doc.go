// Package feed is the feed of a mirror, /index: what it has, in the order in which it came to have it, in the format of the
// public module index (index.golang.org). It has the format, and the follower that keeps one mirror up to date with another.
//
//	GET /index?since=2019-04-10T19:08:52.997264Z&limit=2000
//
//	{"Path":"golang.org/x/text","Version":"v0.3.0","Timestamp":"2019-04-10T19:08:52.997264Z"}
//	{"Path":"golang.org/x/net","Version":"v0.1.0","Timestamp":"2019-04-10T19:08:53.000001Z"}
//
// An entry says that something of a module version is published since that time. The info, go.mod and zip of a version may be
// published one after the other. Each of them makes a new entry, and the older one of the version is not listed any more: the
// version moves to the end. So each version has one entry, and
//
//   - entries are in the order of their timestamps, and no two have the same;
//   - who has read everything up to an entry, and asks again from its timestamp on, gets that entry, if it has not moved, and
//     everything that was published after it, once. What he has read can only come again at the end, with more parts;
//   - nothing is ever added before the end of what a mirror has said. A node that is behind its cluster ends earlier.
//
// Parameters, all optional: since (RFC 3339; inclusive), limit (1 to 2000, which is the default), and, which the public index
// does not have, wait (such as 30s, at most a minute: an answer without an entry waits for the first one so long) and parts
// (1: entries have the parts that are published, "Parts":["info","mod","zip"]). Others are passed over.
//
// Headers of the answer: Modmirror-Feed-Id names the cluster whose feed it is, Modmirror-Feed-Through is the time up to which
// the answer is complete, and Modmirror-Feed-Behind how many changes come after it.
//
// The package promises of a [Follower]:
//
//   - It passes over nothing: its cursor moves past an entry only when the target has all its parts for good, or when the
//     entry is in the list of what was refused, which is kept with the cursor, and tried again.
//   - If the process dies, it goes on from the cursor; what it does again does no harm.
//   - It believes nothing: every artifact passes the target's own gate.
package feed
