// Package e2e holds the tests of Spillway's promises: what a client sees, and what is left behind, when real processes of the real binary
// serve it in a lab (package lab), while daemons, servers and clients are killed, misbehave or stop reading.
//
// It has no code but tests. A file is a promise: conformance (the same bytes in every arm), load, bypass (no byte of a leased body enters the
// VM), daemon, server, client and file faults, hostile guests, the protocol's corners, recall, resets, leftovers. All of them run in network
// namespaces; vm_test.go boots one real VM for what a namespace cannot show.
//
// That any Go server can have a guest's listener is the promise of the files traffic_*, http2, websocket, conn and flow. Their server is this test binary
// itself (traffic_server_test.go), with net.Listen or with guest.Listen; one table of scenarios runs over both, and must see the same.
//
// Needs root, Linux 5.10 or later, and for the VM what scripts/setup.sh installs.
package e2e
