package main

// fit reports whether another node is known to be able to do all that a voter and a leader has to: it answers, serves, takes new
// artifacts, and is not about to stop.
func (n *node) fit(id string) bool {
	s, entry, ok := n.heard(id)
	return ok && entry.Healthy && s.fit()
}

// fit is what a node says of itself in that.
func (s selfStatus) fit() bool {
	return s.Ready == "ok" && s.Writes == "ok" && !s.Draining && s.NoBlobs == ""
}

// mute reports whether another node is known not to answer the questions how it is.
func (n *node) mute(id string) bool {
	s, ok := n.seen(id)
	return ok && s.Asked && !s.Healthy
}
