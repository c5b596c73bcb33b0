// Package sumdb verifies what a checksum database says about a module version, and answers /sumdb/<name>/… from what was
// verified, so that a stock go command with its default GOSUMDB verifies through the mirror, also offline.
//
// # Protocol
//
// A checksum database is an append-only log of records in a Merkle tree (go.dev/design/25530-sumdb, RFC 6962 section 2).
// It answers /lookup/<module>@<version> with the record's id, the record's text (go.sum lines), a blank line and a signed
// tree head (c2sp.org/tlog-checkpoint):
//
//	0
//	golang.org/x/text v0.3.0 h1:g61tztE5qeGQ89tm6NTjjM9VPIm088od1l6aSorWRWg=
//	golang.org/x/text v0.3.0/go.mod h1:NqM8EUOU14njkJ3fqMW+pc6Ldnwhi/IjpwHt7yyuwOQ=
//
//	go.sum database tree
//	66385784
//	dRgqg6bNjCv/HjgbQbR4FTQxb01x93qAiafZ4wW6HNI=
//
//	— sum.golang.org Az3grgdaBaBY…
//
// and /tile/8/<level>/<n>[.p/<width>] with the hashes of the tree, 256 to a full tile. /latest is the newest tree head.
// /supported tells a client whether a proxy speaks for the database.
//
// # Promises
//
//   - A record is accepted only by [artifact.Record.Check]: an inclusion proof against the root of a signed tree head
//     that the [Catalog] committed. No error from a tile reader, and nothing that a source says, stands in for it.
//   - Sums come from the record's text alone, and both lines must be there for exactly the module asked.
//   - What is served again is put together from the checked parts. Whatever else a source sent (text around the record,
//     unknown signatures) is dropped.
//   - A tile is stored only once it is authenticated against a head that is consistent with the committed one. A bad
//     tile is a reason to ask another source, and never the proof of a fork.
//   - The head moves only by a checked consistency proof. Two validly signed heads that contradict each other are a fork:
//     the evidence is committed, what is new is refused, what is held stays served, until an operator acknowledges it. A
//     source that shows the acknowledged head after that is passed over; a further head of that history is a new fork.
//   - Nothing is remembered from an error. A 404 is believed for two seconds.
//   - A record is called committed only if its head is. One that lies beyond, because there is no quorum to commit a head
//     with, is verified all the same, is answered with "Modmirror-Committed: false" and "no-store", and is as true.
//   - Every answer of a source, every wait, queue, cache and number of goroutines is bounded. A client that goes away
//     does not end a lookup that others wait for.
//   - The name of a private module is never sent to a source.
//
// # Heads and anchors
//
// A lookup may be answered with the stored record and any signed head that covers it. A client whose own tree is newer
// than the answered head checks that head in the shape of its own tree, for which it needs tiles that were still partial
// when the head was new. So an old head whose right edge has become full since then is a better answer than the newest
// one, above all offline. Of the committed heads A below the newest head N, the anchor is the newest with A>>16 < N>>16
// (its edge tiles of level 0 and 1 are full) and the deep anchor the newest with A>>24 < N>>24 (level 2 too). An answer
// takes the deep anchor if it covers the record, else the anchor, else the newest head, and of these the first whose
// tiles are held here; if none of them will do, an older head whose tiles are.
//
// # Many nodes
//
// The nodes of a cluster share the [Catalog], which may be behind on any of them, and each has its own [TileStore]. All of
// them are one URL to a client, which may be told of a head by one node and ask the next one for the tiles of it. So that
// this never fails:
//
//   - [DB.Run] holds on each node what every committed record needs in the shape of the newest committed head, and the edge
//     of every committed head in that shape, whoever looked the record up or moved the head ([Config.Changes]). Tiles come
//     from the peers first ([Config.Peers]). How far this is, is in a file beside the tiles, and in [Status].
//   - What is not held when a client asks is read through: from peers, then proxies, then the database. A lookup whose newest
//     head is not held here is answered with an older committed one that is.
//   - A record that is not committed here and not to be had elsewhere, and a tile beyond the committed tree, have the catalog
//     catch up ([Config.Sync]) before there is an answer.
//   - If the catalog cannot, a tile beyond the committed tree is served in a newer tree that a peer tells of, once that is
//     proven: its head is signed, and the committed tree is a prefix of it. That commits nothing.
//
// Without a quorum no head is committed. A record beyond the committed one is then verified against the signed head that it
// came with, which is proven consistent with the committed head, and with all others that wait to be committed. [DB.Run]
// commits these heads, smallest first, once there is a quorum. They are in memory only: after a restart the record is looked
// up again. No later history can contradict such a head without being half of a fork, which freezes the database as ever.
//
// What clients look up at many nodes at once, one node looks up for all ([Config.Owner]); if it does not, each does.
//
// A peer is believed no more than any source: each tile is authenticated, each head and record verified. What a peer says is
// never a reason for 404, unless it was asked in the place of the database.
//
// # If the process dies
//
// The order for a new record is: lookup; tiles read and authenticated; tiles fsynced; if the record lies beyond the
// committed head, that head committed with its consistency proof; record returned, for the catalog to commit. After the
// tiles are stored, and after the head is committed, what is there is true and of use by itself; the next lookup of the
// record finds more of it in place and otherwise does the same work. The cursor of the tiles is stored after the tiles that
// it speaks of: what it is behind, is looked at once more. A tile is written under a temporary name, fsynced,
// renamed, and its directory fsynced; a temporary file that a crash left is removed by [OpenTiles].
package sumdb
