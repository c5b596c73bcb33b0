// Package wannet is a network of several datacenters on one Linux machine, for tests with real processes. Each host is a network
// namespace with an address of its own, and one TUN device as its only way out; the test process holds the other ends of these
// devices and carries the IP packets between them, by rules that it can change at any time:
//
//	n, err := wannet.New(wannet.Config{Seed: 1})
//	defer n.Close()
//	a, err := n.Host("a", "eu")
//	b, err := n.Host("b", "us") // 10.77.2.1
//	n.Both("eu", "us", wannet.Policy{Delay: 40 * time.Millisecond, Rate: 100_000_000})
//	err = b.Command(ctx, "modmirror", "serve").Start() // listens at 10.77.2.1, and on a loopback of its own
//	conn, err := a.Dial(ctx, "tcp", "10.77.2.1:3000")
//	n.Set("eu", "us", wannet.Policy{Block: true}) // one way
//	n.Between("us", "eu").Delivered.Bytes         // that arrived so far
//
// What TCP does about delay, loss and a full queue is what the kernel does, as nothing above IP is touched.
//
// # Why in user space
//
// The kernel's own way to a bad network is tc with netem, which many kernels are built without, those of small virtual machines
// and of continuous integration among them. This needs namespaces and TUN only. Besides, every packet is seen: what crossed
// between two hosts is counted to the byte, dropped ones apart, and of two runs with one seed the n-th packet from one zone to
// another has the same fate in both.
//
// # Packets
//
// Between zones the path has an MTU of 1500 bytes, so that a lost packet is as much as it is on the Internet. Within a zone it
// has 65,000, which costs one processor little at more than a gigabit a second; such packets are carried at once.
//
// # What it needs
//
// Linux, root, /dev/net/tun, and ip of iproute2; [Check] says what is missing. Namespaces are called mmwan-PID-HOST, with the
// id of the process that made them. Close removes them, with the processes in them. Those of a run that was killed are removed
// by the next [New], which leaves those of processes that run alone.
package wannet
