package testkit

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// settleTime is how long a check waits for what goes by itself shortly after, such as a connection that another goroutine
// is about to close.
const settleTime = 5 * time.Second

// CheckFDs fails the test if, at its end, more files are open than now. Call it before what opens them, so that their
// cleanups come before the check. It cannot be used in parallel tests.
func CheckFDs(tb testing.TB) {
	tb.Helper()
	// The Go runtime opens its epoll and event descriptors with the first pipe, and keeps them.
	r, w, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	r.Close()
	w.Close()
	before, err := openFiles()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		deadline := time.Now().Add(settleTime)
		for {
			after, err := openFiles()
			if err != nil {
				tb.Error(err)
				return
			}
			if len(after) <= len(before) {
				return
			}
			if time.Now().After(deadline) {
				for fd, target := range after {
					if before[fd] != target {
						tb.Errorf("file left open: %s → %s", fd, target)
					}
				}
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// openFiles maps each file descriptor of the process to what it refers to.
func openFiles() (map[string]string, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	files := make(map[string]string, len(entries))
	for _, e := range entries {
		// The descriptor that read the directory is gone by now, and fails here.
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			files[e.Name()] = target
		}
	}
	return files, nil
}

// TCPCounter returns a counter of the namespace from the Tcp lines of /proc/net/snmp, for both IP versions together: OutRsts
// (RSTs sent), EstabResets, RetransSegs …, or else from the TcpExt lines of /proc/net/netstat: PAWSEstab …
func (ns *Namespace) TCPCounter(tb testing.TB, name string) int {
	tb.Helper()
	var value int
	ns.Must(tb, func() error {
		text, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		if value, err = snmpCounter(string(text), "Tcp:", name); err == nil {
			return nil
		}
		if text, err = os.ReadFile("/proc/thread-self/net/netstat"); err != nil {
			return err
		}
		value, err = snmpCounter(string(text), "TcpExt:", name)
		return err
	})
	return value
}

// snmpCounter finds a counter in the format of /proc/net/snmp: a line of names and a line of values with the same prefix.
func snmpCounter(text, prefix, name string) (int, error) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != prefix {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, n := range names {
			if n == name && i < len(fields) {
				return strconv.Atoi(fields[i])
			}
		}
	}
	return 0, fmt.Errorf("no counter %s %s", prefix, name)
}

// CheckNoResets fails the test if, at its end, any namespace of the network has sent a RST since now.
func (n *Network) CheckNoResets(tb testing.TB) {
	tb.Helper()
	for _, ns := range []*Namespace{n.Client, n.Host, n.Guest} {
		before := ns.TCPCounter(tb, "OutRsts")
		tb.Cleanup(func() {
			if sent := ns.TCPCounter(tb, "OutRsts") - before; sent != 0 {
				tb.Errorf("%s sent %d RST", ns.Name, sent)
			}
		})
	}
}
