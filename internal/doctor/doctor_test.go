package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway/internal/feature"
	"spillway/internal/redirect"
)

var update = flag.Bool("update", false, "write the golden files anew")

func find(t *testing.T, r Report, name string) Finding {
	t.Helper()
	for _, f := range r.Checks {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no check %q for the role %s", name, r.Role)
	return Finding{}
}

func TestHealthy(t *testing.T) {
	for _, role := range []Role{Host, Guest} {
		r := Run(t.Context(), newFake(t).env, role)
		if !r.OK() || !r.Healthy {
			t.Errorf("%s: not OK on a healthy machine", role)
		}
		for _, f := range r.Checks {
			if f.Status != OK || f.Hint != "" || f.Detail == "" {
				t.Errorf("%s: healthy, but %+v", role, f)
			}
		}
	}
}

// TestChecks holds what the JSON output promises.
func TestChecks(t *testing.T) {
	kebab := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	for _, role := range []Role{Host, Guest} {
		var names []string
		for _, c := range Checks(role) {
			if !kebab.MatchString(c.Name) || slices.Contains(names, c.Name) {
				t.Errorf("%s: %q is no unique kebab-case name", role, c.Name)
			}
			names = append(names, c.Name)
		}
		for name := range needs(role) {
			if _, ok := feature.Lookup(name); !ok {
				t.Errorf("%s needs %q, which is not in the feature table", role, name)
			}
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, f := range Run(ctx, newFake(t).env, Host).Checks {
		if f.Status != Skip {
			t.Errorf("after the cancellation: %+v", f)
		}
	}
}

// golden is a report with every status, and with characters that an encoder could spoil.
func golden() Report {
	return Report{Schema: Schema, Role: Host, Kernel: "6.1.0-18-amd64", Checks: []Finding{
		{"root", Result{Status: OK, Detail: "runs as root"}},
		{"feature-kvm", Result{Status: Warn, Detail: "kvm: not supported: open /dev/kvm", Hint: "run `modprobe kvm_intel`"}},
		{"src-valid-mark", Result{Status: Fail, Detail: "src_valid_mark=1 on eth0", Hint: "run `a && b <c>`"}},
		{"share", Result{Status: Skip, Detail: "no share given"}},
	}}
}

func TestGolden(t *testing.T) {
	for name, write := range map[string]func(Report, *bytes.Buffer) error{
		"report.json": func(r Report, b *bytes.Buffer) error { return r.WriteJSON(b) },
		"report.txt":  func(r Report, b *bytes.Buffer) error { return r.WriteText(b) },
	} {
		var got bytes.Buffer
		if err := write(golden(), &got); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestJSONRoundTrip(t *testing.T) {
	var b bytes.Buffer
	want := Run(t.Context(), newFake(t).env, Guest)
	if err := want.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got Report
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("after JSON (-want +got):\n%s", diff)
	}
}

// TestThisMachine runs everything for real, in a network namespace of its own that forwards: nothing may fail here. What
// may warn is what a machine may lack.
func TestThisMachine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	mayWarn := []string{"window-retraction", "feature-kvm", "feature-tun", "feature-virtio-ports", "qemu", "bridged-guests"}
	enterNetNS(t)
	for _, role := range []Role{Host, Guest} {
		r := Run(t.Context(), Env{CacheDir: t.TempDir()}, role)
		for _, f := range r.Checks {
			t.Logf("%s: %-4s %s: %s", role, f.Status, f.Name, f.Detail)
			if f.Status == Fail || f.Status == Warn && !slices.Contains(mayWarn, f.Name) {
				t.Errorf("%s: %+v", role, f)
			}
		}
	}

	rd, err := redirect.Install(redirect.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := rd.Remove(); err != nil {
			t.Error(err)
		}
	}()
	if f := find(t, Run(t.Context(), Env{}, Host), "redirect"); f.Status != OK || !strings.Contains(f.Detail, "held by a running process") {
		t.Errorf("with the redirect installed: %+v", f)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := Run(t.Context(), Env{}, Host); find(t, r, "ip-forward").Status != Fail || r.OK() {
		t.Error("with ip_forward off the report is OK")
	}
}

// enterNetNS moves the test's thread into a network namespace of its own, where lo is up and forwarding is on. The thread
// stays locked, so that it ends with the test, and the namespace with it.
func enterNetNS(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+path, []byte("1"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
