package artifact

import (
	"net/netip"
	"strings"
)

// IsPublicName reports whether host, in lower case, may be the name of a public host by its form: it is no address, in none
// of the forms that anybody takes for one, and not this machine. Nobody is asked.
func IsPublicName(host string) bool {
	host = strings.TrimSuffix(host, ".")
	_, err := netip.ParseAddr(host)
	last := host[strings.LastIndexByte(host, '.')+1:]
	return err != nil && last != "localhost" && !IsNumeric(host)
}

// IsNumeric reports whether host, in lower case, would be read as an IPv4 address, because its last label is a number (WHATWG
// URL, host parsing): 127.0.0.1, but also 127.1, 0x7f.1 and 2130706433.
func IsNumeric(host string) bool {
	host = strings.TrimSuffix(host, ".")
	last := host[strings.LastIndexByte(host, '.')+1:]
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return last != "" && strings.Trim(last, "0123456789") == ""
}
