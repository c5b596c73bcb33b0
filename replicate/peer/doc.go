// Package peer is how the nodes of a cluster find each other, know each other, and speak to each other.
//
// # The port
//
// A node listens on one port for the others. Everything on it is TLS 1.3 with certificates on both ends. What a
// connection is for is said by its ALPN protocol (RFC 7301):
//
//	modmirror-raft/1  a Raft stream: a handshake in frames, then whatever Raft writes
//	h2                control: small questions and answers
//	http/1.1          bulk: bodies that are large. HTTP/2 gives a stream too small a window for long distances
//
// Certificates come from the cluster's token, 256 random bits in the form
//
//	modmirror-cluster-1.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8.cce781a3
//
// (the secret in base64url, then the first four bytes of the SHA-256 of what stands before the last dot, in hex).
// HKDF-SHA256 (RFC 5869) without salt, with the info "modmirror cluster authority 1", makes of it the seed of the
// ed25519 key of a certificate authority, which is so the same on all nodes. Each node signs its own leaf, for six hours
// back and a day ahead, and another one every eight hours: clocks may be hours apart. Or they come from the operator's
// files, which are read again when they change; their authority must sign for nobody but the nodes of this cluster.
//
// The server name (SNI) of a dialer is "token-", eight characters that tell tokens apart, ".modmirror.internal"; with files
// it is "files.modmirror.internal". So both ends can say that their tokens differ, although one of them hangs up.
//
// # The handshake
//
// After TLS each end says who it is: a [Hello]. On a Raft stream that is a frame, four bytes with the length and JSON:
//
//	00 00 00 41 {"to":"NODE2","hello":{"cluster":"C","node":"NODE1","boot":"B1"}}
//	00 00 00 34 {"hello":{"cluster":"C","node":"NODE2","boot":"B2"}}
//	.. .. .. .. {"hello":{...},"refused":{"class":"removed","text":"node NODE1 was removed from cluster C: ..."}}
//
// of which the second or the third is the answer (without the fields of the hello that may be empty). Over HTTP each request and each answer has headers:
//
//	Modmirror-Hello: eyJjbHVzdGVyIjoiQyIsIm5vZGUiOiJOT0RFMSIsImJvb3QiOiJCMSJ9
//	Modmirror-To: NODE2
//	Modmirror-Refused: removed
//
// the second only in requests that mean a certain node, the third only in refusals, whose body is the reason.
//
// A refusal ([Refusal]) has a class and a text that says what is wrong and what to do; both ends have it, and who refuses
// logs it. What a handshake of TLS refuses, the dialer learns as an alert, which is put into words there.
//
// # Promises
//
//   - Nobody without the token, or a certificate of the operator's authority, gets to say anything.
//   - A stream or an answer comes from the node that was asked for, in the same cluster, or there is an error that says
//     which node it was. All who have the token are believed when they say who they are.
//   - Two processes with the same node id are not let in at the same time, as long as the first can be asked.
//   - A node without a cluster can only take part in founding one, or ask to join: nothing else is answered to it.
//   - Handshakes have a deadline, and at most 64 are in flight: who keeps them open loses the oldest. Connections are
//     bounded, for each certificate and host and in all. Bulk transfers end when nothing moves for half a minute.
//
// # Founding a cluster
//
// Nodes that have no cluster ask each other in rounds for {who, expect, sees, proposal, formed} (GET /v1/form). If anybody
// is in a cluster, they join that. Otherwise: a node that expects N nodes, and sees at least N-1 free ones that see it and
// expect N as well, and has the lowest id of all these, proposes the first N of them, sorted by id, with a random id for
// the cluster (POST /v1/form/propose). A node accepts one proposal, in a file, fsynced:
//
//	{"format": 1, "node": "NODE2", "state": "accepted", "proposal": {"cluster": "C", "expect": 3, "servers": [...]}}
//
// and no other, until who proposed it takes it back; no timer does. When all N have accepted, the proposer writes the state
// "formed", and that is the founding. No two proposals can be accepted by all of their nodes if they share one; and they do
// share one if expect is more than half of the nodes that there are. Form refuses to found when --join has more addresses.
//
// The answer "I have no such proposal" of its proposer releases a node, because a proposer writes its own acceptance before
// it tells anybody, and removes it before it takes the proposal back. Only answers count that were asked for after
// the node had accepted: an older one may be from before the proposal.
//
// # If the process dies
//
// Before the proposer's own acceptance is durable: nothing has happened. After: it proposes the same again.
//
// Before a node's acceptance is durable: it has not accepted, nobody was told otherwise, and it is asked again. After: it
// accepts the same again, and nothing else.
//
// When all have accepted, before the proposer has written "formed": it asks all again, and all accept again. After: the
// cluster is founded, Form returns it on each start; the others hear of it from whoever knows.
//
// Before a proposal that is taken back is removed at the proposer: it proposes the same again. After: it is void, the
// others hear of that when they ask.
//
// After Form has returned and before the node has written the cluster's id elsewhere: Form returns the same again.
//
// If the disk of a proposer is lost while others have accepted its proposal, nobody can take it back: they wait, and say
// for whom and which file to remove.
package peer
