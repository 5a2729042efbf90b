package doctor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"spillway/internal/feature"
	"spillway/internal/redirect"
)

// fake is a machine in a directory, healthy until a test breaks it.
type fake struct {
	t    *testing.T
	root string
	env  Env
}

func newFake(t *testing.T) *fake {
	t.Helper()
	root := t.TempDir()
	f := &fake{t: t, root: root, env: Env{
		ProcRoot: filepath.Join(root, "proc"), SysRoot: filepath.Join(root, "sys"), DevRoot: filepath.Join(root, "dev"),
		QEMU:  filepath.Join(root, "qemu"),
		Share: filepath.Join(root, "share"), CacheDir: filepath.Join(root, "cache"), CacheMinFreeBytes: 1,
		ChannelSocket: filepath.Join(root, "vm0.sock"), ChannelPort: "org.spillway.0",
		probe: func(feature.Feature) feature.Result { return feature.Result{Outcome: feature.Supported} },
		try:   func(program) error { return nil },
		redirectCheck: func(redirect.Config) (redirect.Status, error) {
			return redirect.Status{Held: true, Parts: parts(redirect.Installed)}, nil
		},
	}}
	for path, text := range map[string]string{
		"proc/sys/kernel/osrelease":                     "6.1.0-18-amd64\n",
		"proc/self/status":                              "Name:\tspillway\nUid:\t1000\t0\t0\t0\nGid:\t0\t0\t0\t0\n",
		"proc/thread-self/net/netstat":                  "TcpExt: SyncookiesSent BeyondWindow\nTcpExt: 1 42\nIpExt: InNoRoutes\nIpExt: 0\n",
		"proc/thread-self/net/unix":                     "Num RefCount Protocol Flags Type St Inode Path\n0: 00000002 00000000 00010000 0001 01 12 " + root + "/vm0.sock\n",
		"proc/sys/net/ipv4/ip_forward":                  "1\n",
		"proc/sys/net/ipv4/tcp_timestamps":              "1\n",
		"proc/sys/net/ipv4/fwmark_reflect":              "0\n",
		"proc/sys/net/ipv6/fwmark_reflect":              "0\n",
		"proc/sys/net/ipv6/conf/all/forwarding":         "1\n",
		"proc/sys/net/netfilter/nf_conntrack_tcp_loose": "1\n",
		"proc/sys/net/mptcp/enabled":                    "1\n",
		"proc/sys/net/bridge/bridge-nf-call-iptables":   "1\n",
		"sys/class/virtio-ports/vport1p1/name":          "org.qemu.guest_agent.0\n",
		"sys/class/virtio-ports/vport1p2/name":          "org.spillway.0\n",
		"dev/vport1p2":                                  "",
		"share/a.mp4":                                   "x",
		"cache/.keep":                                   "",
	} {
		f.write(path, text)
	}
	for _, iface := range []string{"all", "default", "lo", "eth0", "tap0"} {
		f.write("proc/sys/net/ipv4/conf/"+iface+"/src_valid_mark", "0\n")
		f.write("proc/sys/net/ipv4/conf/"+iface+"/rp_filter", "2\n")
	}
	f.write("qemu", "#!/bin/sh\necho 'QEMU emulator version 7.2.9 (Debian 1:7.2+dfsg-7+deb12u5)'\n")
	f.must(os.Chmod(filepath.Join(root, "qemu"), 0o755))
	f.listen("vm0.sock")
	return f
}

func (f *fake) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) write(path, text string) {
	f.t.Helper()
	path = filepath.Join(f.root, path)
	f.must(os.MkdirAll(filepath.Dir(path), 0o755))
	f.must(os.WriteFile(path, []byte(text), 0o644))
}

func (f *fake) remove(path string) {
	f.t.Helper()
	f.must(os.RemoveAll(filepath.Join(f.root, path)))
}

func (f *fake) listen(path string) {
	f.t.Helper()
	l, err := net.Listen("unix", filepath.Join(f.root, path))
	f.must(err)
	f.t.Cleanup(func() { _ = l.Close() })
}

// readOnly returns a directory on a read-only file system, which root cannot write either. It is mounted nowhere, so it
// vanishes with its descriptor.
func (f *fake) readOnly() string {
	f.t.Helper()
	if os.Geteuid() != 0 {
		f.t.Skip("only root can make a file system")
	}
	config, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	f.must(err)
	defer unix.Close(config)
	f.must(unix.FsconfigCreate(config))
	mount, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	f.must(err)
	f.t.Cleanup(func() { _ = unix.Close(mount) })
	return fmt.Sprintf("/proc/self/fd/%d", mount)
}

// outcome makes one feature's probe answer so, and leaves the others supported.
func (f *fake) outcome(name string, outcome feature.Outcome, err error) {
	f.env.probe = func(ft feature.Feature) feature.Result {
		if ft.Name != name {
			return feature.Result{Outcome: feature.Supported}
		}
		return feature.Result{Outcome: outcome, Err: &feature.Error{Feature: ft, Outcome: outcome, Err: err}}
	}
}

// program makes loading one of the programs answer so.
func (f *fake) program(check string, err error) {
	f.env.try = func(p program) error {
		if p.check != check {
			return nil
		}
		return err
	}
}

// redirect makes the redirect look so.
func (f *fake) redirect(st redirect.Status, err error) {
	f.env.redirectCheck = func(redirect.Config) (redirect.Status, error) { return st, err }
}

func parts(states ...redirect.State) (all []redirect.Part) {
	for i, name := range []string{"nft table inet spillway", "ip rule pref 83 fwmark 0x53 lookup 5383"} {
		all = append(all, redirect.Part{Name: name, Remove: "remove " + name, State: states[min(i, len(states)-1)]})
	}
	return all
}

var errFake = errors.New("fake error")
