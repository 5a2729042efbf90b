package lab

import (
	"fmt"
	"slices"
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
		fmt.Fprintf(&b, "\nThe cache, which %s have their files from; it is filled from %s:\n  %s cache ls --share %s --admin %s\n",
			listed(l.offloading()), l.Origin, l.Binary, shareName, l.adminSocket())
	}
	if _, ok := l.Link.DelayLine(); ok {
		fmt.Fprintf(&b, "\nThe client's link:  %v; what it carried:\n  curl --unix-socket %s http://link/stats\n", l.Link, l.linkSocket())
	} else if link := l.Link.String(); link != "" {
		fmt.Fprintf(&b, "\nThe client's link:  %s\n", link)
	}
	fmt.Fprintf(&b, "\nLogs and sockets:  %s\n", l.Dir)
	for _, m := range l.machines {
		fmt.Fprintf(&b, "Console of %s:    %s (accelerator: %s)\n", m.name, l.vmConfig(m).ConsolePath(), m.vm.Accel())
	}
	fmt.Fprintf(&b, "\nRemove all of it:\n  %s lab down --name %s\n", l.Binary, l.Name)
	return b.String()
}

// offloading are the arms of the lab that use the host daemon.
func (l *Lab) offloading() []Arm {
	return slices.DeleteFunc(l.servers(), func(a Arm) bool { return !a.offloads() })
}

// listed joins arms for a sentence: a, b and c.
func listed(arms []Arm) string {
	var b strings.Builder
	for i, arm := range arms {
		switch {
		case i > 0 && i == len(arms)-1:
			b.WriteString(" and ")
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(string(arm))
	}
	return b.String()
}
