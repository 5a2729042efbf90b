// Package redirect installs the static redirect of the host: the one nftables rule, and the one policy route for each
// address family, that deliver a packet to a leased connection's socket on the host instead of forwarding it to the VM.
//
// # Step of the data path
//
// A packet from a client arrives at the host and would be forwarded to the VM. The rule looks its 4-tuple up among the
// sockets of the host; when a transparent socket (IP_TRANSPARENT) owns it, the packet gets our mark, and the policy
// route for that mark delivers it locally. Every other packet is forwarded as if nothing were installed:
//
//	table inet spillway {
//	    chain prerouting {
//	        type filter hook prerouting priority dstnat + 10; policy accept;
//	        meta l4proto tcp socket transparent 1 tproxy to :1 meta mark set 0x53 accept
//	    }
//	}
//	ip    rule  add pref 83 fwmark 0x53 lookup 5383 protocol 83
//	ip    route add local 0.0.0.0/0 dev lo table 5383 proto 83
//	ip -6 rule  add pref 83 fwmark 0x53 lookup 5383 protocol 83
//	ip -6 route add local ::/0 dev lo table 5383 proto 83
//
// Nothing is added or removed for a connection: the socket table of the kernel is the state.
//
// # What is ours
//
// The nftables table is ours when it holds nothing but our chain and rules that carry our comment; rules and routes are ours
// when they carry the protocol number [Protocol]. What a killed daemon left is therefore recognized and replaced, and
// nothing of the operator's is ever touched: a clash with it is a [CollisionError] that says what to change.
//
// The table does not carry the nftables owner flag, by which the kernel would drop it with the daemon: after a kill the
// kernel still ends the daemon's connections, and their last segments must go on reaching the host. At the guest they
// would draw a reset.
//
// # Do not
//
//   - Do not give a leased socket the redirect's mark with SO_MARK: what it sends would be routed to lo.
//   - Do not expect forwarding sysctls, rp_filter or src_valid_mark to be set here; package doctor checks them.
//   - Do not switch on fwmark_reflect: the kernel's own answers (the last ACK of a connection in TIME_WAIT) would then carry
//     the mark, too, and end on lo. Measured; package doctor checks it.
//   - Do not use it for frames that a Linux bridge switches: they never reach the IP hooks.
//
// systemd-networkd removes routes and rules that it did not make when it starts, unless networkd.conf says
// ManageForeignRoutes=no and ManageForeignRoutingPolicyRules=no; [Check] sees that they are gone.
//
// # Needs
//
// CAP_NET_ADMIN; Linux 4.19 (CONFIG_NFT_SOCKET, CONFIG_NFT_TPROXY, CONFIG_NF_TABLES_INET, CONFIG_IP_MULTIPLE_TABLES,
// CONFIG_IPV6_MULTIPLE_TABLES). Every function acts in the network namespace of the calling thread; an installed
// [Redirect] stays bound to it.
package redirect
