package feature

import "golang.org/x/sys/unix"

// All returns every feature, in the order in which the data path needs them.
func All() []Feature {
	return []Feature{
		// Privileges first: without them most other probes cannot tell.
		capability("cap-net-admin", "TCP_REPAIR, the redirect, policy routing", unix.CAP_NET_ADMIN),
		capability("cap-net-raw", "transparent sockets when CAP_NET_ADMIN is given up", unix.CAP_NET_RAW),
		capability("cap-sys-admin", "network namespaces and mounts of the lab", unix.CAP_SYS_ADMIN),
		capability("cap-bpf", "loading the drop filter where unprivileged BPF is off", unix.CAP_BPF, unix.CAP_SYS_ADMIN),

		{
			Name: "tcp-repair", Why: "extract and restore an established TCP connection",
			// net/ipv4/tcp.c has no option for it; seccomp sandboxes and user-space kernels leave it out.
			MinKernel: Kernel{3, 5, 0}, probe: probeRepair,
		},
		{
			Name: "tcp-repair-window", Why: "keep the receive window of a restored connection, so that no segment is dropped",
			MinKernel: Kernel{4, 8, 0}, probe: probeRepairWindow,
		},
		{
			Name: "tcp-repair-silent-off", Why: "end repair without a window probe to the client (TCP_REPAIR_OFF_NO_WP)",
			MinKernel: Kernel{4, 19, 0}, probe: probeRepairSilentOff,
		},
		{
			Name: "bpf-socket-filter", Why: "block a connection's input while it is frozen, in 1 µs",
			MinKernel: Kernel{3, 19, 0}, Brings: "CONFIG_BPF_SYSCALL", probe: probeSocketFilter,
		},
		{
			Name: "ip-transparent", Why: "own a socket with the guest's IPv4 address",
			MinKernel: Kernel{2, 6, 28}, probe: probeTransparent4,
		},
		{
			Name: "ipv6-transparent", Why: "own a socket with the guest's IPv6 address",
			MinKernel: Kernel{2, 6, 37}, Brings: "CONFIG_IPV6 and no ipv6.disable=1", probe: probeTransparent6,
		},
		{
			Name: "nft-socket", Why: "the static redirect finds leased connections by their socket",
			MinKernel: Kernel{4, 19, 0}, Brings: "CONFIG_NF_TABLES_INET, CONFIG_NFT_SOCKET and CONFIG_NFT_TPROXY", probe: probeNftSocket,
		},
		{
			Name: "policy-routing", Why: "deliver packets of leased connections to the host itself",
			MinKernel: Kernel{2, 6, 17}, Brings: "CONFIG_IP_MULTIPLE_TABLES", probe: probePolicyRouting,
		},
		{
			Name: "openat2", Why: "open files beneath a share and nowhere else (RESOLVE_BENEATH)",
			MinKernel: Kernel{5, 6, 0}, probe: probeOpenat2,
		},
		{
			Name: "sendfile", Why: "send files without copying them through user space",
			MinKernel: Kernel{2, 6, 33}, probe: probeSendfile,
		},
		{
			Name: "mptcp", Why: "only to recognize MPTCP clients, which are served by the guest itself",
			MinKernel: Kernel{5, 6, 0}, Brings: "CONFIG_MPTCP and net.mptcp.enabled=1", probe: probeMPTCP,
		},
		{
			Name: "net-namespaces", Why: "the lab's client, host and guest without VMs",
			MinKernel: Kernel{3, 0, 0}, Brings: "CONFIG_NET_NS", probe: probeNetNS,
		},

		{
			Name: "kvm", Why: "run VMs at the processor's speed; without it TCG emulates", Kind: KindMachine,
			MinKernel: Kernel{2, 6, 22}, Brings: "CONFIG_KVM and virtualization switched on in the firmware or the outer hypervisor",
			probe: probeKVM,
		},
		{
			Name: "tun", Why: "the VM's network interface (tap)", Kind: KindMachine,
			MinKernel: Kernel{2, 6, 27}, Brings: "CONFIG_TUN and /dev/net/tun", probe: probeTun,
		},
		{
			Name: "virtio-ports", Why: "the channel in the guest", Kind: KindMachine,
			MinKernel: Kernel{2, 6, 35}, Brings: "CONFIG_VIRTIO_CONSOLE (modprobe virtio_console)", probe: probeVirtioPorts,
		},
		{
			Name: "vsock", Why: "the channel over vsock", Kind: KindMachine,
			MinKernel: Kernel{3, 9, 0}, Brings: "CONFIG_VSOCKETS (modprobe vsock)", probe: probeVsock,
		},
		{
			Name: "vhost-vsock", Why: "the host's end of the channel over vsock", Kind: KindMachine,
			MinKernel: Kernel{4, 8, 0}, Brings: "CONFIG_VHOST_VSOCK (modprobe vhost_vsock)", probe: probeVhostVsock,
		},
	}
}
