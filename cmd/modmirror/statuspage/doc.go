// Package statuspage is what people see of a mirror in a browser: how to use it, how it and its cluster are, what happens, and
// which modules it holds.
//
//	GET /                       set-up lines, state, the cluster by zone, problems, activity; as plain text for terminals
//	GET /search?q=yaml          modules that are held and whose path begins with the text, or has it in it
//	GET /modules/golang.org/x/text?from=v0.3.0
//	                            versions of a module, newest first: hashes, record, which nodes hold the zip
//	GET /events                 server-sent events (html.spec.whatwg.org, 9.2): the parts of / that change, as HTML
//	GET /assets/page.<hash>.css style, script and icon; the hash is of the bytes, so they are kept for ever
//
// A stream of events begins with the present state, and goes on with what changes:
//
//	retry: 3000
//
//	event: live
//	data: <div id="live" …>…</div>
//
//	: still here
//
// What it promises:
//
//   - All is in the HTML that is sent first; the script only brings it up to date. What is sent later is made from the same
//     templates.
//   - Nothing is looked at while nobody looks. All streams are fed by one goroutine that is there while there is a stream; there are
//     [Config.Streams] of them at most, one that is not read is dropped, and [Page.Close] ends all at once.
//   - A search looks at a bounded part of the catalog, and says where it stopped; the next page goes on from there. Few run at a time.
//   - One client, as [Config.Client] tells them apart, has a part of the streams and searches, and never all.
//   - Names that [Config.Private] knows are never shown, whatever the Source says.
//   - Texts of others, such as names of modules and reasons, are text in every place. The policy (CSP) allows style, script, icon
//     and events from this very server, and nothing else.
package statuspage
