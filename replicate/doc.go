// Package replicate is a node of the cluster: a Raft log, and the catalog that its entries build.
//
// # What is agreed on
//
// The catalog holds, for each module version, a manifest ([modmirror/mirror/artifact.Manifest]) with the checksum
// database's record and its proof; the bytes of infos and go.mod files up to 64 KiB; the tree heads of each trusted
// checksum database, all of them that were ever committed; the evidence of forks and of conflicts; what upstreams said
// about versions; which databases are trusted; which nodes there are; which acts of operators are to be accounted for.
// Zips are not in it, only their digests.
//
// A node checks everything again when it applies it, with pure functions: the record's proof against a committed head
// whose signature it verified, the sums against the record, digests and go.sum hash against the inline bytes, a head
// against the newest one by a consistency proof (RFC 6962 §2.1.2). A leader that lies does not get it into any catalog.
//
//   - A manifest only grows, by compare-and-set: what was committed first stays, on every node.
//   - The newest head of a database only moves to one proven consistent with it. Two heads that contradict each other
//     are kept as evidence and freeze the database until somebody acknowledges them; what is committed stays.
//   - Publish returns after its entry is fsynced on a majority of the voters and applied on this node. Any node can publish:
//     a follower passes the command on to the leader (forwardcodec.go), and believes its own catalog about what became of it.
//   - A blob is published only when a majority of the present voters have it durably. They say so by acks, which the leader
//     holds against the newest configuration and the node table when it proposes. Acks are not part of the entry.
//   - Reads ask no other node. They may be late, they are never wrong.
//
// # Nodes
//
// A node's id is born with its data directory. Each Open of the directory counts its starts up, in node.json, and each start
// is registered in the node table through the log, by compare-and-set: a start that is known, with the same random text of
// its life, or a later one is taken; an earlier one, or the same number of another life, is a copy of the directory or an
// old image, and refused, as is a name that another id has. An ack names the start that it was given in, so none of an earlier
// life counts. What this cannot see is an image of the present life that is put back: it counts as a later start. Its acks
// are asked for again, but the log has forgotten votes; put back no image of a voter, remove it and start it empty.
//
// A node joins as a nonvoter. The leader makes it a voter when there are too few and it holds every blob (grow.go). A change
// of the members holds only if no other came in between. A voter goes only if enough of the others answer, and if these hold
// every blob: the last copy of one could go with it. A removal is noted in the catalog first and the id never comes back;
// the removed node votes on until it is out of the configuration, and then stops.
//
// Rules of Apply that older versions do not know wait for a feature level of the cluster (level.go), which the leader raises
// when all nodes say that they support it. A node that does not is refused from then on.
//
// Nodes tell each other their numbers of leaves and roots ([Node.Compare]). One that finds another root than a majority of
// the voters has, at an equal number, stops taking part and answers every read with an error that is not one of absence.
//
// # Files
//
//	node.json    who this node is: {"node":"…","cluster":"…","state":"new","starts":1}, random; the state becomes
//	             "founded" when log and catalog are there for good; starts is counted up at each start
//	raft/raft.db Raft's log, term and vote (raft-boltdb)
//	catalog.db   the catalog (bbolt)
//
// An entry of the log is the byte 1 and one or more commands: a byte kind, a uvarint length, a body. A command to trust a
// database is, in full:
//
//	01 03 45 44 "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
//
// Each entry is stored with a checksum (sealedlog.go); one whose checksum is wrong is neither applied nor sent to others.
// There is one encoding of everything, so nodes compare bytes. An entry that a node cannot parse stops its writes: a
// node that skipped it would no longer hold what the others hold. The catalog's buckets are listed in catalog.go. Each
// change of a manifest appends a leaf to a Merkle tree (RFC 6962 §2.1; the leaf is the manifest's encoding), so nodes
// that compare [Node.Root] at the same number of leaves know whether they hold the same.
//
// # If the process dies
//
// While a node is created: node.json, the log and the catalog are each written under a temporary name, fsynced and then
// named, the log together with the first entry of the cluster. Whatever of the three is there is whole; the next start
// makes the rest. Once all are there node.json says so, before any of them is used, and from then on nothing is made anew:
// a log that is lost, empty, cut short, or older than the catalog has forgotten votes and entries, and a start on it is
// refused with words, as is one without node.json or the catalog.
//
// While a cluster of several is founded: node.json names the cluster before the log is there. Without a log nothing was
// founded, and the next start decides again. The log of the founder has its first entry, with all the voters, from the
// beginning; the logs of the others are empty, and know nothing of a cluster until the founder, or who it elects, speaks.
//
// While a start is counted: node.json is replaced by one with a larger number before raft runs. A start that dies then was
// one too many, which does no harm. On a full disk the start is counted when there is room, and the node registers after.
//
// While a node registers, or a command is forwarded: all commands may be repeated, so whoever does not know what became of
// one proposes it again.
//
// While a node is removed: it is noted in the catalog, or nothing happened. From there on the leader, or the next one, takes
// it out of the configuration.
//
// While a cluster is founded anew from a backup: a file in the directory keeps every node off it, until log, catalog and
// node.json are there (refound.go).
//
// While entries are appended: bbolt's commit is atomic, the entries are there or not. Nobody was told that they are
// committed.
//
// While entries are applied: one transaction holds a batch and the index that it ends at. It is in the catalog as a whole
// or not at all, and the next start applies what the catalog does not have. Entries up to its index are never applied
// twice.
//
// While a snapshot is taken: there is nothing to copy, the catalog is the snapshot. Its index is noted in it first, the
// log is cut after. In between, the log is merely longer than it needs to be.
//
// While a snapshot is sent: the receiver has a temporary file, which its next start removes. What is sent ends in its
// SHA-256, so that it is refused if a byte was lost or turned on the way (sealedstream.go).
//
// While a snapshot is installed: the received file is fsynced and checked as a whole, then renamed over catalog.db, then
// the directory is fsynced. Before the rename the old catalog is there, and the leader sends again; after it the new one,
// with the index that it ends at. The log may have older entries; they are below that index and are not asked for.
//
// # If the disk fails
//
// After the first write or fsync that fails, or takes 30 s, the node writes nothing any more in this process: nobody
// knows what such a disk holds. It tells Config.OnFault once, leaves the cluster's work to others, and goes on to answer
// reads. The catalog's own index says where the next start goes on.
//
// A disk that is full is not such a fault, as long as it says so when it is asked to take bytes and not when they are to
// be made durable. Nothing was written then. The leader steps down, the only voter is elected again and again; entries
// that the catalog has no room for wait; proposals are answered with what is the matter. Once there is room all goes on.
// Only a follower that has deleted entries and has no room for those in their place stops as after a fault.
package replicate
