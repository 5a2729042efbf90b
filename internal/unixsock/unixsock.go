// Package unixsock tells which process has a unix socket, so that an error can name it.
//
// It stands beside the data path: package channel asks when a daemon's socket is taken, package redirect when its lock is. The kernel would also tell
// whoever connects (SO_PEERCRED), but a connection to a channel ends the VM's session, and a lock takes none; so it reads /proc, which disturbs nobody.
//
// It must not be used to decide anything: the answer is a moment old, and there is none without the right to look into the other process, which root has.
package unixsock

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Owner is a process that has a socket.
type Owner struct {
	PID     int
	Command string // its name, as ps(1) shows it
}

func (o Owner) String() string { return fmt.Sprintf("%s, pid %d", o.Command, o.PID) }

// Find finds the process that has the socket of the given name: a path, whatever network namespace the process is in, or an abstract name of the calling
// thread's, written with a leading @.
func Find(name string) (Owner, bool) {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return Owner{}, false
	}
	abstract := strings.HasPrefix(name, "@")
	here, _ := os.Readlink("/proc/thread-self/ns/net") // without it no abstract name is found
	lists := map[string]map[string]string{}            // of a network namespace: what /proc/PID/fd calls its sockets of that name → their whole names
	for _, process := range processes {
		namespace, err := os.Readlink(process + "/ns/net")
		if err != nil || abstract && namespace != here {
			continue // gone, or not for us to look into
		}
		if _, ok := lists[namespace]; !ok {
			lists[namespace] = sockets(process, filepath.Base(name))
		}
		if has(process, name, lists[namespace]) {
			return owner(process), true
		}
	}
	return Owner{}, false
}

// sockets are those of a process's network namespace whose names end in base.
func sockets(process, base string) map[string]string {
	list, _ := os.ReadFile(process + "/net/unix")
	found := map[string]string{}
	for line := range strings.Lines(string(list)) {
		// unix(7): Num, RefCount, Protocol, Flags, Type, St, Inode, and the name, which may hold spaces.
		var inode string
		rest := strings.TrimSuffix(line, "\n")
		for range 7 {
			inode, rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ")
		}
		if rest != "" && filepath.Base(rest) == base {
			found["socket:["+inode+"]"] = rest
		}
	}
	return found
}

// has tells whether a process has one of the sockets, and it is the one of that name: a path may be written in several ways, and be another file in another mount
// namespace.
func has(process, name string, sockets map[string]string) bool {
	if len(sockets) == 0 {
		return false
	}
	descriptors, _ := filepath.Glob(process + "/fd/*") // the pattern is valid
	for _, fd := range descriptors {
		target, err := os.Readlink(fd)
		bound, ok := sockets[target]
		if err != nil || !ok {
			continue
		}
		if bound == name && strings.HasPrefix(name, "@") {
			return true
		}
		ours, err := os.Stat(name)
		theirs, theirErr := os.Stat(filepath.Join(process, "root", bound))
		if err == nil && theirErr == nil && os.SameFile(ours, theirs) {
			return true
		}
	}
	return false
}

func owner(process string) Owner {
	pid, _ := strconv.Atoi(filepath.Base(process)) // the pattern has seen to that
	command, err := os.ReadFile(process + "/comm")
	if err != nil {
		command = []byte("a process") // it has gone meanwhile
	}
	return Owner{PID: pid, Command: strings.TrimSpace(string(command))}
}
