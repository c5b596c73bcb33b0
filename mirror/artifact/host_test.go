package artifact

import "testing"

func TestIsPublicName(t *testing.T) {
	for host, want := range map[string]bool{
		"example.com": true, "example.com.": true, "1.example.com": true, "a.0x7g": true, "localhost.example": true, "xn--bcher-kva.example": true,
		"8.8.8.8": false, "127.0.0.1.": false, "127.1": false, "0x7f.1": false, "0x7f000001": false, "2130706433": false, "a.0x": false, "a.b.1": false,
		"::1": false, "fe80::1%eth0": false, "localhost": false, "localhost.": false, "x.localhost": false,
	} {
		if got := IsPublicName(host); got != want {
			t.Errorf("IsPublicName(%q) = %v, want %v", host, got, want)
		}
	}
}
