package doctor

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/feature"
	"spillway/internal/redirect"
	"spillway/internal/tcprepair"
)

// TestSick breaks one thing at a time. The check must see it, say what to do, and no other check may notice.
func TestSick(t *testing.T) {
	set := func(path, value string) func(*fake) {
		return func(f *fake) { f.write("proc/sys/net/"+path, value+"\n") }
	}
	gone := func(path string) func(*fake) { return func(f *fake) { f.remove(path) } }
	absent := func(name string) func(*fake) {
		return func(f *fake) { f.outcome(name, feature.Unsupported, errFake) }
	}
	program := func(check string, err error) func(*fake) { return func(f *fake) { f.program(check, err) } }
	status := func(st redirect.Status, err error) func(*fake) { return func(f *fake) { f.redirect(st, err) } }
	for _, tt := range []struct {
		role  Role
		check string
		sick  func(*fake)
		want  Status
		says  string // in detail or hint
	}{
		{Host, "root", func(f *fake) { f.write("proc/self/status", "Uid:\t1000\t1000\t1000\t1000\n") }, Warn, "sudo spillway doctor"},
		{Host, "root", gone("proc/self/status"), Warn, "no such file"},
		{Host, "root", func(f *fake) { f.write("proc/self/status", "Name:\tx\n") }, Warn, "no Uid line"},
		{Host, "kernel-version", func(f *fake) { f.write("proc/sys/kernel/osrelease", "5.4.0-1\n") }, Warn, "older than 5.6, which brought openat2"},
		{Guest, "kernel-version", func(f *fake) { f.write("proc/sys/kernel/osrelease", "4.18.0\n") }, Warn, "older than 4.19"},
		{Host, "window-retraction", func(f *fake) { f.write("proc/sys/kernel/osrelease", "6.17.1\n") }, Warn, "TcpExtBeyondWindow is 42"},
		{Guest, "window-retraction", func(f *fake) {
			f.write("proc/sys/kernel/osrelease", "6.18.44-fc\n")
			f.remove("proc/thread-self/net/netstat")
		}, Warn, "TcpExtBeyondWindow is unknown"},

		{Host, "feature-cap-net-admin", absent("cap-net-admin"), Fail, "AmbientCapabilities=CAP_NET_ADMIN"},
		{Host, "feature-tcp-repair", absent("tcp-repair"), Fail, "no connection can be handed over"},
		{Guest, "feature-tcp-repair", func(f *fake) { f.outcome("tcp-repair", feature.Unknown, fs.ErrPermission) }, Warn, "as root"},
		{Guest, "feature-tcp-repair", func(f *fake) { f.outcome("tcp-repair", feature.Unknown, errFake) }, Warn, "uname -a"},
		{Host, "feature-openat2", absent("openat2"), Fail, "run a kernel that has it: Linux 5.6"},
		{Host, "feature-nft-socket", absent("nft-socket"), Fail, "modprobe -a nft_socket"},
		{Host, "feature-ipv6-transparent", absent("ipv6-transparent"), Warn, "stay with the guest"},
		{Host, "feature-kvm", absent("kvm"), Warn, "TCG"},
		{Host, "feature-mptcp", absent("mptcp"), OK, "nothing to do"},
		{Guest, "feature-virtio-ports", absent("virtio-ports"), Warn, "modprobe virtio_console"},

		{Host, "bpf-start-window", program("bpf-start-window", errFake), Warn, "begin slowly"},
		{Guest, "bpf-start-window", program("bpf-start-window", tcprepair.ErrNoCgroup2), Warn, "mount -t cgroup2"},
		{Host, "bpf-halt", program("bpf-halt", errFake), Warn, "CONFIG_CGROUP_BPF"},
		{Host, "bpf-hold", program("bpf-hold", errFake), Fail, "the daemon does not start (fake error)"},
		{Host, "bpf-hold", program("bpf-hold", unix.EPERM), Warn, "as root"},

		{Host, "redirect", status(redirect.Status{Parts: parts(redirect.Missing)}, nil), OK, "not installed"},
		{Host, "redirect", status(redirect.Status{Held: true, Parts: parts(redirect.Installed), IPv6Off: errFake}, nil), OK, "IPv4 only: fake error"},
		{Host, "redirect", status(redirect.Status{Parts: parts(redirect.Installed)}, nil), Warn, "`remove nft table inet spillway; remove ip rule"},
		{Host, "redirect", status(redirect.Status{Parts: parts(redirect.Missing, redirect.Outdated)}, nil), Warn, "`remove ip rule"},
		{Host, "redirect", status(redirect.Status{Held: true, Parts: parts(redirect.Installed, redirect.Missing)}, nil), Fail, "changed: ip rule pref 83"},
		{Host, "redirect", status(redirect.Status{Collisions: []*redirect.CollisionError{{Option: "mark", Value: "0x53", Found: "ip rule pref 7"}}}, nil),
			Fail, "set another mark in the [redirect] section"},
		{Host, "redirect", status(redirect.Status{}, errFake), Fail, "nft list ruleset"},
		{Host, "redirect", status(redirect.Status{}, unix.EPERM), Warn, "as root"},

		{Host, "src-valid-mark", set("ipv4/conf/all/src_valid_mark", "1"), Fail, "on eth0, tap0"},
		{Host, "src-valid-mark", set("ipv4/conf/eth0/src_valid_mark", "1"), Fail, "for c in all default eth0;"},
		{Host, "src-valid-mark", set("ipv4/conf/default/src_valid_mark", "1"), Warn, "made from now on"},
		{Host, "src-valid-mark", set("ipv4/conf/lo/src_valid_mark", "1"), OK, "no interface"},
		{Host, "src-valid-mark", func(f *fake) {
			for _, iface := range []string{"all", "default", "eth0", "tap0"} { // without a filter the mark does no harm
				f.write("proc/sys/net/ipv4/conf/"+iface+"/rp_filter", "0\n")
			}
			f.write("proc/sys/net/ipv4/conf/all/src_valid_mark", "1\n")
		}, OK, "no interface"},
		{Host, "src-valid-mark", func(f *fake) { // the filter of "all" counts for every interface
			f.write("proc/sys/net/ipv4/conf/eth0/rp_filter", "0\n")
			f.write("proc/sys/net/ipv4/conf/all/rp_filter", "1\n")
			f.write("proc/sys/net/ipv4/conf/eth0/src_valid_mark", "1\n")
		}, Fail, "on eth0"},
		{Host, "src-valid-mark", set("ipv4/conf/eth0/rp_filter", "x"), Warn, "could not look"},
		{Host, "src-valid-mark", gone("proc/sys/net/ipv4/conf"), Warn, "could not look"},

		{Host, "ip-forward", set("ipv4/ip_forward", "0"), Fail, "sysctl -w net.ipv4.ip_forward=1"},
		{Host, "ip-forward", gone("proc/sys/net/ipv4/ip_forward"), Warn, "could not look"},
		{Host, "ipv6-forward", set("ipv6/conf/all/forwarding", "0"), Warn, "sysctl -w net.ipv6.conf.all.forwarding=1"},
		{Host, "ipv6-forward", gone("proc/sys/net/ipv6"), Skip, "no IPv6"},
		{Guest, "tcp-timestamps", set("ipv4/tcp_timestamps", "0"), Warn, "sysctl -w net.ipv4.tcp_timestamps=1"},
		{Host, "fwmark-reflect", set("ipv4/fwmark_reflect", "1"), Warn, "sysctl -w net.ipv4.fwmark_reflect=0"},
		{Host, "fwmark-reflect", set("ipv6/fwmark_reflect", "1"), Warn, "sysctl -w net.ipv6.fwmark_reflect=0"},
		{Host, "conntrack", set("netfilter/nf_conntrack_tcp_loose", "0"), Warn, "nf_conntrack_tcp_loose=1"},
		{Host, "conntrack", gone("proc/sys/net/netfilter"), OK, "not loaded"},
		{Guest, "mptcp", set("mptcp/enabled", "0"), OK, "is 0"},
		{Guest, "mptcp", gone("proc/sys/net/mptcp"), OK, "no MPTCP"},
		{Guest, "mptcp", set("mptcp/enabled", "?"), Warn, "could not look"},

		{Host, "bridged-guests", func(f *fake) {
			f.write("sys/class/net/br0/brif/tap0/state", "3\n")
			f.write("sys/class/net/tap0/tun_flags", "0x1002\n")
		}, Warn, "tap0 on br0 (bridge-nf-call-iptables=1 does not"},
		{Host, "bridged-guests", func(f *fake) { f.write("sys/class/net/br0/brif/eth0/state", "3\n") }, OK, "no VM interface"},

		{Host, "qemu", func(f *fake) { f.env.QEMU = "/no/such/qemu" }, Warn, "apt-get install"},
		{Host, "qemu", func(f *fake) { f.write("qemu", "#!/bin/sh\necho 'QEMU emulator version 5.2.0'\n") }, Warn, "tested from 7.2 on"},
		{Host, "qemu", func(f *fake) { f.write("qemu", "#!/bin/sh\necho hello\n") }, Warn, "names no version"},
		{Host, "qemu", func(f *fake) { f.write("qemu", "#!/bin/sh\nexit 1\n") }, Warn, "exit status 1"},
		{Host, "qemu", func(f *fake) {
			f.write("qemu", "#!/bin/sh\nexec sleep 600\n")
			f.env.patience = 100 * time.Millisecond
		}, Fail, "did not answer"},

		{Host, "channel", func(f *fake) { f.env.ChannelSocket = "" }, Skip, "no channel socket given"},
		{Host, "channel", gone("vm0.sock"), Warn, "no daemon serves this VM yet"},
		{Host, "channel", func(f *fake) { f.env.ChannelSocket = filepath.Join(f.root, "share/a.mp4") }, Fail, "is no socket"},
		{Host, "channel", func(f *fake) {
			f.write("proc/thread-self/net/unix", "Num RefCount Protocol Flags Type St Inode Path\n")
		}, Warn, "nobody listens"},
		{Guest, "channel", func(f *fake) { f.env.ChannelPort = "" }, Skip, "no channel port given"},
		{Guest, "channel", func(f *fake) { f.env.ChannelPort = "other" }, Fail, `"org.qemu.guest_agent.0" "org.spillway.0"`},
		{Guest, "channel", gone("dev/vport1p2"), Fail, "mount -t devtmpfs"},
		{Guest, "channel", func(f *fake) {
			f.remove("dev/vport1p2")
			f.must(os.Mkdir(filepath.Join(f.root, "dev/vport1p2"), 0o755))
		}, Fail, "is a directory"},
		{Guest, "channel", gone("sys/class/virtio-ports"), Fail, "-device virtserialport,chardev=spillway,name=org.spillway.0"},

		{Host, "share", gone("share"), Fail, "correct the share's path"},
		{Guest, "share", gone("share"), Fail, "mount -t 9p"},
		{Guest, "share", gone("share/a.mp4"), Warn, "is empty"},
		{Guest, "share", func(f *fake) { f.env.Share = "" }, Skip, "no share given"},
		{Host, "cache-disk", gone("cache"), Fail, "mkdir -p"},
		{Host, "cache-disk", func(f *fake) { f.env.CacheMinFreeBytes = 1 << 62 }, Warn, "MiB left, less than"},
		{Host, "cache-disk", func(f *fake) { f.env.CacheDir = "" }, Skip, "no cache directory given"},
		{Host, "cache-disk", func(f *fake) { f.env.CacheDir = filepath.Join(f.root, "qemu") }, Fail, "is no directory"},
		{Host, "cache-disk", func(f *fake) { f.env.CacheDir = f.readOnly() }, Fail, "not writable: read-only file system"},
	} {
		name := string(tt.role) + "/" + tt.check + "/" + tt.says
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			tt.sick(f)
			r := Run(t.Context(), f.env, tt.role)
			got := find(t, r, tt.check)
			if got.Status != tt.want || !strings.Contains(got.Detail+"\n"+got.Hint, tt.says) {
				t.Errorf("%+v, want %s and %q", got, tt.want, tt.says)
			}
			if needsHint := tt.want == Warn || tt.want == Fail; needsHint != (got.Hint != "") {
				t.Errorf("status %s with the hint %q", got.Status, got.Hint)
			}
			if r.OK() != (tt.want != Fail) {
				t.Errorf("OK() is %t after %s", r.OK(), tt.want)
			}
			for _, other := range r.Checks {
				if other.Name != tt.check && other.Status != OK && !(tt.check == "root" || tt.check == "kernel-version") {
					t.Errorf("another check noticed: %+v", other)
				}
			}
		})
	}
}
