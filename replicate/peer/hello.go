package peer

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"unicode/utf8"
)

// Hello says who speaks. It stands in every handshake. That it comes from a node of the cluster is known from the
// certificate; which one it is, is its word: all who have the token are believed alike.
type Hello struct {
	Cluster string `json:"cluster,omitempty"` // random id of its cluster; empty: it is fresh, and has none
	Node    string `json:"node"`              // random id of its data directory
	Name    string `json:"name,omitempty"`    // what people call it
	Boot    string `json:"boot"`              // random id of this run of the process
	Starts  uint64 `json:"starts,omitempty"`  // how often the data directory was opened
	Address string `json:"address,omitempty"` // host:port where it listens for other nodes
	Zone    string `json:"zone,omitempty"`
	Role    string `json:"role,omitempty"` // "voter" or "replica"
	Version string `json:"version,omitempty"`
	Level   int    `json:"level,omitempty"` // the highest feature level that it supports; 0: by versions without levels
}

// String names the node for people.
func (h Hello) String() string {
	s := "node " + short(h.Node)
	if h.Name != "" && h.Name != short(h.Node) {
		s = "node " + h.Name + " (" + short(h.Node) + ")"
	}
	if h.Address != "" {
		s += " at " + h.Address
	}
	return s
}

// short returns enough of a random id to tell it from others.
func short(id string) string { return id[:min(8, len(id))] }

// Member returns what a list of members says about the node.
func (h Hello) Member() Member {
	return Member{ID: h.Node, Name: h.Name, Address: h.Address, Zone: h.Zone}
}

// Member is a node of the cluster, or of one to be.
type Member struct {
	ID      string `json:"id"`
	Name    string `json:"name,omitempty"`
	Address string `json:"address"`
	Zone    string `json:"zone,omitempty"`
}

func (h Hello) check() error {
	switch {
	case !isID(h.Node):
		return fmt.Errorf("%.80q is not the id of a node", h.Node)
	case !isID(h.Boot):
		return fmt.Errorf("%.80q is not the id of a run", h.Boot)
	case h.Cluster != "" && !isID(h.Cluster):
		return fmt.Errorf("%.80q is not the id of a cluster", h.Cluster)
	case h.Address != "" && !isAddress(h.Address):
		return fmt.Errorf("%.80q is not an address of the form host:port", h.Address)
	case h.Role != "" && h.Role != "voter" && h.Role != "replica":
		return fmt.Errorf("%.80q is not a role: there are voter and replica", h.Role)
	case h.Level < 0:
		return fmt.Errorf("%d is not a feature level", h.Level)
	case !isText(h.Name) || !isText(h.Zone) || !isText(h.Version):
		return fmt.Errorf("%.80q, %.80q, %.80q: name, zone and version have at most 128 printable characters", h.Name, h.Zone, h.Version)
	}
	return nil
}

func (m Member) check() error {
	switch {
	case !isID(m.ID):
		return fmt.Errorf("%.80q is not the id of a node", m.ID)
	case !isAddress(m.Address):
		return fmt.Errorf("%.80q is not an address of the form host:port", m.Address)
	case !isText(m.Name) || !isText(m.Zone):
		return fmt.Errorf("%.80q, %.80q: name and zone have at most 128 printable characters", m.Name, m.Zone)
	}
	return nil
}

func isID(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return 0 < len(s) && len(s) <= 64
}

func isAddress(s string) bool {
	host, port, err := net.SplitHostPort(s)
	n, err2 := strconv.ParseUint(port, 10, 16)
	return err == nil && err2 == nil && n != 0 && host != "" && len(s) <= 300 && isText(s[:min(128, len(s))])
}

func isText(s string) bool {
	for _, r := range s {
		if !strconv.IsPrint(r) || r == utf8.RuneError {
			return false
		}
	}
	return len(s) <= 128
}

// header returns h as the value of a header.
func (h Hello) header() string {
	b, err := json.Marshal(h)
	if err != nil {
		panic(err) // strings and a number
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// parseHeader is the inverse of header. It passes over fields that it does not know.
func parseHeader(s string) (Hello, error) {
	var h Hello
	if len(s) > maxFrame {
		return h, fmt.Errorf("a hello has %d bytes, more than %d", len(s), maxFrame)
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(b, &h)
	}
	if err == nil {
		err = h.check()
	}
	if err != nil {
		return Hello{}, fmt.Errorf("malformed hello: %w", err)
	}
	return h, nil
}
