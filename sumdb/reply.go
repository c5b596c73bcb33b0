package sumdb

import (
	"net/http"
	"strconv"

	"golang.org/x/mod/module"
)

// Values of headers that answers share. Nobody may change them.
var (
	typeText   = []string{"text/plain; charset=UTF-8"}
	typeBinary = []string{"application/octet-stream"}
	fullTile   = []string{strconv.Itoa(tileBytes)}
)

// reply is a good answer that is ready to be sent. It is never changed.
type reply struct {
	body        []byte
	contentType []string
	cacheFor    []string // Cache-Control
	length      []string
}

func newReply(body []byte, contentType, cacheFor []string) reply {
	length := fullTile
	if len(body) != tileBytes {
		length = []string{strconv.Itoa(len(body))}
	}
	return reply{body, contentType, cacheFor, length}
}

func (a reply) send(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h["Content-Type"] = a.contentType
	h["Cache-Control"] = a.cacheFor
	h["Content-Length"] = a.length
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(a.body) // the client sees by the length if it is cut short
	}
}

// composed is what a lookup is answered with: a record and a head. It is as good as the newest committed head that it was
// put together for, and not good for another: every use of it has to ask the catalog what that is now. Nothing else that
// the answer depends on can change: records and heads are only added.
type composed struct {
	module module.Version
	reply  reply
	newest int64 // records in that head

	uncommitted bool // the head is not committed: the answer is not kept
}

var notCommitted = []string{"false"}

// composedCost is about what a composed takes besides its body, its path and the bookkeeping of the cache.
const composedCost = 300

func (c composed) cost() int64 {
	return int64(len(c.reply.body)+len(c.module.Path)+len(c.module.Version)) + composedCost
}
