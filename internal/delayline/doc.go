// Package delayline is a path with delay between two network namespaces, for labs on a kernel without netem: a TUN device in each, and two
// loops that carry IP packets across, IPv4 and IPv6, each with a one-way delay, a rate, a bounded queue and random loss.
//
//	namespace a ── TUN ──► read, charge, wait ──► TUN ── namespace b
//	               TUN ◄── wait, charge, read ◄── TUN
//
// In each direction packets are put on the line one behind the other at the rate, what finds more than the bound waiting is dropped at the tail, and a
// packet arrives when the delay has passed since its last bit was put on the line. Packets never overtake each other. A
// delay is never shorter than configured; how much longer it was is counted (Counters.Late).
//
// A TCP super-packet (GSO) crosses as one, at the cost on the line of the packets that it stands for; with loss every packet crosses, and is lost, by
// itself. There is no link layer: bytes are those of IP packets.
//
// It needs CAP_NET_ADMIN to make the devices and nothing to run. Devices, addresses and routes go with the last descriptor of the device. Daemons do not
// use it.
package delayline
