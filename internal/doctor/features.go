package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"spillway/internal/feature"
)

// need says what the absence of a feature means for a role.
type need struct {
	status Status // Fail: nothing works; Warn: works with less; OK: only told
	lost   string // what does not work without it
	hint   string // what to do; empty: what the feature's table says
}

// needs returns which features a role looks at. What is not listed is not needed there.
func needs(role Role) map[string]need {
	const noHandover = "no connection can be handed over"
	both := map[string]need{
		"cap-net-admin":         {Fail, noHandover, "run spillway as root, or give its unit AmbientCapabilities=CAP_NET_ADMIN"},
		"cap-bpf":               {OK, "not here: only needed where unprivileged BPF is off", ""},
		"tcp-repair":            {Fail, noHandover, "run a standard Linux kernel, outside of a sandbox that filters TCP_REPAIR"},
		"tcp-repair-window":     {Fail, noHandover, ""},
		"tcp-repair-silent-off": {Fail, noHandover, ""},
		"bpf-socket-filter":     {Fail, noHandover, ""},
		"mptcp":                 {OK, "not here: no client can speak it, nothing to do", ""},
		"vsock":                 {OK, "not here: the channel uses virtio-serial", ""},
	}
	if role == Guest {
		both["virtio-ports"] = need{Warn, "no virtio-serial channel in this VM", "run `modprobe virtio_console` in the VM, and start it with -device virtio-serial-pci"}
		return both
	}
	for name, n := range map[string]need{
		"cap-net-raw":      {OK, "not here: CAP_NET_ADMIN is enough", ""},
		"cap-sys-admin":    {Warn, "the lab cannot make namespaces", "run spillway lab as root"},
		"ip-transparent":   {Fail, "the host cannot own a guest's address", ""},
		"ipv6-transparent": {Warn, "IPv6 connections stay with the guest", ""},
		"nft-socket":       {Fail, "the redirect cannot be installed", "run `modprobe -a nft_socket nft_tproxy`; a kernel without them needs CONFIG_NFT_SOCKET, CONFIG_NFT_TPROXY and CONFIG_NF_TABLES_INET"},
		"policy-routing":   {Fail, "the redirect cannot be installed", ""},
		"openat2":          {Fail, "a share cannot be confined", ""},
		"sendfile":         {Fail, "files cannot be sent", ""},
		"net-namespaces":   {Warn, "no namespace lab", ""},
		"kvm":              {Warn, "VMs run under TCG emulation, slowly", "switch on virtualization in the firmware (or nested virtualization in the outer hypervisor), then run `modprobe kvm_intel` or `modprobe kvm_amd`"},
		"tun":              {Warn, "no tap interfaces for VMs", "run `modprobe tun`"},
		"vhost-vsock":      {OK, "not here: the channel uses virtio-serial", ""},
	} {
		both[name] = n
	}
	return both
}

// featureChecks returns a check for each feature of the role, in the order of feature's table.
func featureChecks(role Role) []Check {
	var checks []Check
	wanted := needs(role)
	for _, f := range feature.All() {
		n, ok := wanted[f.Name]
		if !ok {
			continue
		}
		checks = append(checks, Check{
			Name: "feature-" + f.Name,
			Run:  func(_ context.Context, env Env) Result { return judgeFeature(f, n, env.probe(f)) },
		})
	}
	return checks
}

func judgeFeature(f feature.Feature, n need, got feature.Result) Result {
	switch got.Outcome {
	case feature.Supported:
		return Result{Status: OK, Detail: f.Why}
	case feature.Unsupported:
		detail := fmt.Sprintf("%s (%v)", n.lost, cause(got.Err))
		if n.status == OK {
			return Result{Status: OK, Detail: detail}
		}
		hint := n.hint
		if hint == "" {
			hint = "run a kernel that has it: " + f.Needs()
		}
		return Result{Status: n.status, Detail: detail, Hint: hint}
	}
	hint := "report this error together with the output of `uname -a`"
	if errors.Is(got.Err, fs.ErrPermission) {
		hint = "run the doctor as root"
	}
	return Result{Status: Warn, Detail: fmt.Sprintf("could not tell: %v", cause(got.Err)), Hint: hint}
}

// cause leaves out what a feature's error says about itself: the check's name and the hint say it already.
func cause(err error) error {
	if e := (*feature.Error)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}
