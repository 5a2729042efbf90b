package lab

import (
	"fmt"
	"strconv"
	"strings"
)

// WhatToTry tells a person what the lab is good for.
func (l *Lab) WhatToTry(file string) string {
	var b strings.Builder
	client := namespaceName(l.Name, "client")
	fmt.Fprintf(&b, "Download through the VM, sent by the host:\n  ip netns exec %s curl -o /dev/null %s\n", client, l.URL(Lease, file))
	fmt.Fprintf(&b, "\nThe same file by each way to serve:\n")
	for _, arm := range Arms() {
		fmt.Fprintf(&b, "  %-10s %s\n", arm, l.URL(arm, file))
	}
	fmt.Fprintf(&b, "\nWhat became of it:\n  %s status --admin %s\n  ip netns exec %s curl %s\n",
		l.Binary, l.adminSocket(), client, l.adminURL(Lease, "/stats"))
	fmt.Fprintf(&b, "\nLogs and sockets:  %s\n", l.Dir)
	if l.VM == QEMU {
		fmt.Fprintf(&b, "The VM's console:  %s (accelerator: %s)\n", l.vmConfig().ConsolePath(), l.Accelerator())
	}
	fmt.Fprintf(&b, "\nRemove all of it:\n  %s lab down --name %s\n", l.Binary, l.Name)
	return b.String()
}

// ParseLink reads a link's speed as tc(8) writes it: 1gbit, 100mbit; empty is 0, no limit.
func ParseLink(s string) (bitsPerSecond uint64, err error) {
	if s == "" {
		return 0, nil
	}
	for suffix, unit := range map[string]uint64{"gbit": 1e9, "mbit": 1e6} {
		if number, ok := strings.CutSuffix(s, suffix); ok {
			if n, err := strconv.ParseUint(number, 10, 16); err == nil && n > 0 {
				return n * unit, nil
			}
		}
	}
	return 0, fmt.Errorf("link %q: write it as 1gbit or 100mbit", s)
}
