// Package qemu starts a virtual machine that needs no disk image: a Debian kernel, an initramfs that holds one static
// binary as init, and QEMU.
//
// It stands beside the data path, not in it: the lab and the tests boot their guests with it. Users run their own VMs
// with the hypervisor of their choice; nothing of the daemons imports this package.
//
// The steps, each one file: [FindKernel] finds the unpacked kernel package that scripts/setup.sh left behind, [Kernel.ELF]
// decompresses it (a PVH boot of the ELF file is twice as fast as a boot of the bzImage), [Kernel.Modules] resolves modules
// without depmod, [Initramfs] packs them with the init binary, [Start] runs QEMU, [QMP] talks to it. A VM
// that moves needs a newer QEMU ([FindProgram]), and two of them.
//
// It needs qemu-system-x86_64 7.2 or later and, for a VM with network interfaces, /dev/net/tun and CAP_NET_ADMIN in the
// network namespace of each tap (CAP_SYS_ADMIN as well when that is not the caller's own). KVM is used where the
// CPU can virtualize and /dev/kvm can be opened; TCG emulates elsewhere.
package qemu
