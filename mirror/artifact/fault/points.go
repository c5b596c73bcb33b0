// Package fault names the points of the program at which a test makes things go wrong: the process dies, stops or waits there, or
// the disk fails. In an ordinary build there is nothing of it: the functions are empty and inlined, and no name of a point is in
// the binary. Built with -tags faults, a process reads at each point the control file that the environment names:
//
//	MODMIRROR_FAULTS=/path/of/file           rules, one a line; read anew at every point, so a running process can be told
//	MODMIRROR_FAULTS_LIMITS=name=1,name=2    see [Limit]
//
// A rule is a point, which hit of it is meant since the file has had this content (with a plus, that one and all after it), and
// what happens:
//
//	blob.rename 1 kill             the process kills itself with SIGKILL, and nothing after the point runs
//	log.store 3 stop               it stops itself with SIGSTOP; SIGCONT has it go on
//	apply.begin 1+ delay 200ms     it waits
//	blob.fsync 1 error ENOSPC      the operation that follows fails with this error and is not tried; EIO, ENOSPC or EDQUOT
//
// Before it happens a line on standard error says so: "fault: blob.rename hit 1: kill". A file that is not there has no rules. One
// that cannot be read or understood ends the process with status 97: a test that believes to have armed a point must not pass.
package fault

// Name is the name of a point.
type Name string

// Points of one ingest, on the node that brings the artifact in.
const (
	RecordKnown  Name = "record.known"
	DraftCreated Name = "draft.created"
	DraftWritten Name = "draft.written"
	BlobFsync    Name = "blob.fsync"
	BlobFsynced  Name = "blob.fsynced"
	BlobRename   Name = "blob.rename"
	BlobDirSync  Name = "blob.dirsync"
	BlobDurable  Name = "blob.durable"
	AcksCounted  Name = "acks.counted"
	TilesSpread  Name = "tiles.spread"
	LeaderSaid   Name = "leader.said"
	PublishDone  Name = "publish.done"
)

// Points of a voter that takes a copy before it is published.
const (
	AckDurable Name = "ack.durable"
	AckGiven   Name = "ack.given"
	TilesHeld  Name = "tiles.held"
)

// Points of a checksum database's tiles and head.
const (
	TileFsync     Name = "tile.fsync"
	TileRename    Name = "tile.rename"
	TilesDurable  Name = "tiles.durable"
	HeadCommit    Name = "head.commit"
	HeadCommitted Name = "head.committed"
)

// Points of the log and the catalog.
const (
	ProposeBegin Name = "propose.begin"
	LogStore     Name = "log.store"
	LogStored    Name = "log.stored"
	ApplyBegin   Name = "apply.begin"
	ApplyWritten Name = "apply.written"
	ApplyDone    Name = "apply.done"
	ProposeDone  Name = "propose.done"
	VoteStore    Name = "vote.store"
	VoteStored   Name = "vote.stored"
)

// Points of a snapshot on its way from the leader into the place of a follower's catalog.
const (
	SnapshotSend     Name = "snapshot.send"
	SnapshotReceive  Name = "snapshot.receive"
	SnapshotFsync    Name = "snapshot.fsync"
	SnapshotReceived Name = "snapshot.received"
	SnapshotMarked   Name = "snapshot.marked"
	SnapshotRenamed  Name = "snapshot.renamed"
	SnapshotRestored Name = "snapshot.restored"
)

// Points of the follower of blobs, and of what waits for a quorum.
const (
	PullRead        Name = "pull.read"
	UnprovenRename  Name = "unproven.rename"
	UnprovenDirSync Name = "unproven.dirsync"
	UnprovenKept    Name = "unproven.kept"
	ProvenRename    Name = "proven.rename"
	CursorSave      Name = "cursor.save"
	CursorSaved     Name = "cursor.saved"
	IntentWrite     Name = "intent.write"
	IntentWritten   Name = "intent.written"
	IntentCommitted Name = "intent.committed"
)

// Points are all of them, in the order in which an artifact passes them, and what is true at each.
var Points = []struct {
	Name   Name
	Errors bool // it stands before an operation of the disk, which can be made to fail
	Where  string
}{
	{RecordKnown, false, "the checksum database's record is proven; nothing is fetched"},
	{DraftCreated, false, "a file in tmp/ is made, and empty"},
	{DraftWritten, false, "the whole body is in the draft, unchecked"},
	{BlobFsync, true, "before the draft is fsynced"},
	{BlobFsynced, false, "the draft is fsynced, and has no other name"},
	{BlobRename, true, "before the draft gets the name of a blob"},
	{BlobDirSync, true, "the blob has its name; its directory is not fsynced"},
	{BlobDurable, false, "the blob is durable on this node; no manifest names it"},
	{AckDurable, false, "a voter has the copy durable, and has not said so"},
	{AckGiven, false, "a voter has said that it has the copy"},
	{AcksCounted, false, "a majority of the voters has the blob, if there is one; nothing is proposed"},
	{TileFsync, true, "before a tile's temporary file or its directory is fsynced"},
	{TileRename, false, "a tile is fsynced under its temporary name"},
	{TilesDurable, false, "the tiles of a view are durable; no head or record that needs them is committed"},
	{HeadCommit, false, "before a tree head is proposed"},
	{HeadCommitted, false, "a tree head is committed; the record that needed it is not"},
	{TilesHeld, false, "a voter holds the tiles that prove a record, and has not said so"},
	{TilesSpread, false, "a majority holds them; the manifest is not proposed"},
	{ProposeBegin, false, "the leader has a command, with enough acks; it is not in its log"},
	{LogStore, true, "before entries are written to the log, by leader or follower"},
	{LogStored, false, "they are durable in this node's log; the leader has not heard of it"},
	{ApplyBegin, false, "an entry is committed; this node's catalog does not have it"},
	{ApplyWritten, false, "in the transaction that applies it, before that is committed"},
	{ApplyDone, false, "this node's catalog has it; nobody has been told"},
	{ProposeDone, false, "the leader has applied a command; whoever proposed it has not been answered"},
	{LeaderSaid, false, "the leader's answer has come; this node has not applied the entry"},
	{PublishDone, false, "it is applied where it was brought in; the client has no answer"},
	{VoteStore, true, "a voter is about to give its vote; it is not on the disk"},
	{VoteStored, false, "the vote is durable, and not given"},
	{SnapshotSend, false, "a part of the catalog is on its way to a follower"},
	{SnapshotReceive, true, "a follower has a part of the leader's catalog, in a temporary file"},
	{SnapshotFsync, true, "it has all of it; it is not fsynced or checked"},
	{SnapshotReceived, false, "the received catalog is durable and checked, under its temporary name"},
	{SnapshotMarked, false, "the log says that the catalog up to this index comes from a snapshot; the old catalog has its name"},
	{SnapshotRenamed, false, "the received catalog has the name; its directory is not fsynced"},
	{SnapshotRestored, false, "the received catalog is in use"},
	{PullRead, false, "a follower has a part of a blob that it pulls"},
	{UnprovenRename, true, "blobs that were pulled in bulk are fsynced, under temporary names"},
	{UnprovenDirSync, true, "they have their names among what is unproven; the directory is not fsynced"},
	{UnprovenKept, false, "they are durable, and unproven; the follower does not know"},
	{ProvenRename, true, "the go.sum hash of one is right; it is not among the blobs yet"},
	{CursorSave, false, "the blobs up to a place are durable; the cursor does not say so"},
	{CursorSaved, false, "the cursor says so"},
	{IntentWrite, false, "without a quorum: what passed the gate is durable; that it waits is not on the disk"},
	{IntentWritten, false, "that it waits is on the disk; the client has no answer"},
	{IntentCommitted, false, "what waited is committed; its file is still there"},
}
