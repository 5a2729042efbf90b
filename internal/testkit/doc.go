// Package testkit holds the fixtures that tests of several packages share: network namespaces on the real kernel, and checks
// that nothing is left behind. It is for tests only; no other code may import it.
//
// It needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN). Its namespaces have no name and live as long as a file descriptor of this
// process refers to them, or a socket in them is open: even a test that is killed leaves nothing behind.
package testkit
