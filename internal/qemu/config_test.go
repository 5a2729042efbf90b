package qemu

import (
	"flag"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func fullConfig() Config {
	return Config{
		Name: "vm0", Kernel: "/k/vmlinux", Initrd: "/run/vm0/initramfs.cpio", Append: "mitigations=off",
		RunDir: "/run/vm0,a", // a comma needs quoting
		Taps: []Tap{
			{IfName: "tap0", MAC: net.HardwareAddr{0x52, 0x54, 0, 0x77, 0, 0x10}, NetNS: "/run/netns/host"},
			{IfName: "tap1", MAC: net.HardwareAddr{0x52, 0x54, 0, 0x77, 0, 0x11}},
		},
		Shares:   []Share9p{{Tag: "media", Path: "/srv/media,hd"}},
		Virtiofs: []ShareVirtiofs{{Tag: "media-fs", Path: "/srv/media"}},
		Channels: []Channel{
			{Name: "spillway.0", SocketPath: "/run/spillway/vm0.sock"},
			{Name: "spillway.ctl", SocketPath: "/run/vm0/ctl.sock", Listen: true},
		},
		Accel:     AccelKVM,
		Firmware:  []string{"/q/share/qemu", "/q/share/seabios"},
		Incoming:  true,
		ExtraArgs: []string{"-no-shutdown"},
	}
}

func TestArgs(t *testing.T) {
	kvm := Config{Name: "vm1", Kernel: "/k/vmlinux", RunDir: "/run/vm1", Accel: AccelKVM, MemoryMiB: 512, CPUs: 2}
	tcg := kvm
	tcg.Accel = AccelTCG
	for _, c := range []struct {
		golden  string
		config  Config
		version Version
	}{
		{"full-7.2", fullConfig(), Version{7, 2, 22}},
		{"full-9.2", fullConfig(), Version{9, 2, 0}},
		{"kvm", kvm, Version{10, 0, 2}},
		{"tcg", tcg, Version{10, 0, 2}},
	} {
		config := c.config.withDefaults()
		if err := config.validate(); err != nil {
			t.Errorf("%s: %v", c.golden, err)
		}
		got := strings.Join(config.args(c.version), "\n") + "\n"
		name := "testdata/args-" + c.golden + ".golden"
		if *update {
			if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestValidate(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"no name":           func(c *Config) { c.Name = "" },
		"no kernel":         func(c *Config) { c.Kernel = "" },
		"no run directory":  func(c *Config) { c.RunDir = "" },
		"accelerator":       func(c *Config) { c.Accel = "hvf" },
		"memory":            func(c *Config) { c.MemoryMiB = -1 },
		"long socket path":  func(c *Config) { c.QMPSocket = strings.Repeat("x", 108) },
		"channel no socket": func(c *Config) { c.Channels[0].SocketPath = "" },
		"channel no name":   func(c *Config) { c.Channels[0].Name = "" },
		"tap no MAC":        func(c *Config) { c.Taps[0].MAC = nil },
		"tap no name":       func(c *Config) { c.Taps[0].IfName = "" },
		"share no path":     func(c *Config) { c.Shares[0].Path = "" },
		"virtiofs tag":      func(c *Config) { c.Virtiofs[0].Tag = strings.Repeat("x", 37) },
		"virtiofs comma":    func(c *Config) { c.Virtiofs[0].Path = "/a,b" },
		"virtiofs socket":   func(c *Config) { c.RunDir, c.QMPSocket = "/"+strings.Repeat("x", 100), "/q" },
		"share's tag":       func(c *Config) { c.Shares[0].Tag = strings.Repeat("x", 32) },
	} {
		c := fullConfig().withDefaults()
		spoil(&c)
		if err := c.validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for in, want := range map[string]Version{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright": {7, 2, 22},
		"QEMU emulator version 10.0.2\n":                                            {10, 0, 2},
	} {
		if got, err := parseVersion([]byte(in)); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "QEMU emulator", "QEMU emulator version x.y"} {
		if v, err := parseVersion([]byte(in)); err == nil {
			t.Errorf("%q: %v and no error", in, v)
		}
	}
}
