package faultproxy

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// Whose returns which of some processes of this user opened c, a connection over IPv4 on this machine; 0 if none of them did.
// The kernel tells of each connection the number of the socket, and of each process which of its files is which socket.
func Whose(c net.Conn, pids []int) (int, error) {
	socket, err := socketOf(c.RemoteAddr().(*net.TCPAddr), c.LocalAddr().(*net.TCPAddr))
	if err != nil || socket == "" {
		return 0, err
	}
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		files, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, f := range files {
			if to, err := os.Readlink(filepath.Join(dir, f.Name())); err == nil && to == socket {
				return pid, nil
			}
		}
	}
	return 0, nil
}

// socketOf returns "socket:[123]" of the end at local of a connection.
func socketOf(local, remote *net.TCPAddr) (string, error) {
	b, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line)) // sl local remote state queues timer retransmits uid timeout inode
		if len(f) > 9 && f[1] == inTable(local) && f[2] == inTable(remote) && f[9] != "0" {
			return "socket:[" + f[9] + "]", nil
		}
	}
	return "", nil
}

// inTable is how /proc/net/tcp writes an address: the four bytes as a number of this machine, which is taken to be little endian.
func inTable(a *net.TCPAddr) string {
	ip := a.IP.To4()
	return fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], a.Port)
}
