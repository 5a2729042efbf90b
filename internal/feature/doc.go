// Package feature knows which facilities of the kernel and the machine Spillway needs, and tries each one for real.
//
// [All] is the one table: a name, why it is needed, the kernel that brought it and a probe. A probe has three outcomes:
// supported; not supported, with what would bring it; could not tell, with the error. Version numbers are never compared to
// decide: distributions backport, and sandboxes leave things out.
//
// It stands before the data path: package doctor prints it, and tests skip by it (package featuretest). It must not be used
// to choose a code path while connections are served; code does what it needs and handles the error.
//
// Probes leave nothing behind and change nothing that another process can see: they use sockets and programs that they
// close, and for nftables and routing a network namespace of their own, which dies with its thread. Some need a
// capability (CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF); without it they could not tell.
package feature
