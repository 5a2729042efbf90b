package guestinit

import (
	"fmt"
	"net/netip"
	"path"
)

// What the initramfs holds for init, besides /init itself. Package qemu writes it.
const (
	SpecPath   = "/spillway.json"
	modulesDir = "/modules"
)

// ModulePath is the place of the n-th kernel module in load order: the order of the names is the order of loading.
func ModulePath(n int, name string) string {
	return path.Join(modulesDir, fmt.Sprintf("%03d-%s.ko", n, name))
}

// ReadyLine is in the line that init prints on the console when the guest is set up and its commands are started.
const ReadyLine = "spillway: guest ready"

// Spec says what init sets up, in the order of the fields.
type Spec struct {
	Hostname   string
	Interfaces []Interface
	Sysctls    map[string]string // by dotted or slashed name, for instance net.ipv4.tcp_congestion_control
	Mounts     []Mount
	Commands   []Command
}

// Interface is one network interface, found by its MAC.
type Interface struct {
	MAC    string
	Addrs  []netip.Prefix
	Routes []Route
	MTU    int // bytes; 0 keeps the driver's
}

// Route is a way to Dst through the neighbour Via, which an address of the same interface reaches. Default routes are
// 0.0.0.0/0 and ::/0.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// Mount is one mount(2). The target directory is created.
type Mount struct {
	Source  string // the share's tag
	Target  string
	Type    string // "9p", "virtiofs", "tmpfs" …
	Options string
	// ReadOnly, NoExec and so on are no options for mount(2) but flags; shares need the first one only.
	ReadOnly bool
}

// Options9p are the mount options for a 9p share over virtio. Linux 6.1 caps msize at 512000; cache=loose lets the guest's
// page cache serve repeated reads, as a share is read-only.
const Options9p = "trans=virtio,version=9p2000.L,msize=512000,cache=loose"

// Command is a program that runs as long as the guest does: when it ends it is started again.
type Command struct {
	Name string   // prefix of its lines on the console, and its name for the control port
	Args []string // Args[0] is the path; our own binary is /init
	Env  []string // more variables, "KEY=value"
	// Log, when set, is the file that gets the output instead of the console. The guest's files live in its memory.
	Log string
}
