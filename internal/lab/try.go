package lab

import (
	"fmt"
	"strings"
)

// WhatToTry tells a person what the lab is good for.
func (l *Lab) WhatToTry(file string) string {
	var b strings.Builder
	client := namespaceName(l.Name, "client")
	fmt.Fprintf(&b, "Download through the VM, sent by the host:\n  ip netns exec %s curl -o /dev/null %s\n", client, l.URL(Lease, file))
	fmt.Fprintf(&b, "\nThe same file by each way to serve:\n")
	for _, arm := range l.servers() {
		fmt.Fprintf(&b, "  %-10s %s\n", arm, l.URL(arm, file))
	}
	fmt.Fprintf(&b, "\nWhat became of it:\n  %s status --admin %s\n  ip netns exec %s curl %s\n",
		l.Binary, l.adminSocket(), client, l.adminURL(Lease, "/stats"))
	if l.Origin != "" {
		fmt.Fprintf(&b, "\nThe cache, which %s and %s have their files from; it is filled from %s:\n  %s cache ls --share %s --admin %s\n",
			Lease, Offload, l.Origin, l.Binary, shareName, l.adminSocket())
	}
	if _, ok := l.Link.DelayLine(); ok {
		fmt.Fprintf(&b, "\nThe client's link:  %v; what it carried:\n  curl --unix-socket %s http://link/stats\n", l.Link, l.linkSocket())
	} else if link := l.Link.String(); link != "" {
		fmt.Fprintf(&b, "\nThe client's link:  %s\n", link)
	}
	fmt.Fprintf(&b, "\nLogs and sockets:  %s\n", l.Dir)
	if l.VM == QEMU {
		fmt.Fprintf(&b, "The VM's console:  %s (accelerator: %s)\n", l.vmConfig().ConsolePath(), l.Accelerator())
	}
	fmt.Fprintf(&b, "\nRemove all of it:\n  %s lab down --name %s\n", l.Binary, l.Name)
	return b.String()
}
