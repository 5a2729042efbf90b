package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// QEMUProcess is what PIDs calls the first guest's QEMU, SecondQEMUProcess the second one's.
const (
	QEMUProcess       = "qemu"
	SecondQEMUProcess = "qemu2"
)

// PIDs are the processes of the lab that run, by name: host, link, QEMU, and the arms' servers that run on this machine and not in a VM.
func (l *Lab) PIDs() map[string]int {
	pids := map[string]int{}
	for name, p := range l.daemons {
		if !p.exited() {
			pids[name] = p.pid
		}
	}
	for i, name := range []string{QEMUProcess, SecondQEMUProcess} {
		if i < len(l.machines) && l.machines[i].vm != nil {
			pids[name] = l.machines[i].vm.PID()
		}
	}
	return pids
}

// HostMetrics are the host daemon's metrics that have no labels, by name.
func (l *Lab) HostMetrics(ctx context.Context) (map[string]float64, error) {
	var text rawText
	if err := l.HostAdmin(ctx, http.MethodGet, "/metrics", &text); err != nil {
		return nil, err
	}
	return plainMetrics(string(text)), nil
}

// ServerMetrics are the metrics of an arm's server that have no labels, by name.
func (l *Lab) ServerMetrics(ctx context.Context, arm Arm) (map[string]float64, error) {
	text, err := l.get(ctx, http.MethodGet, l.adminURL(arm, "/metrics"))
	return plainMetrics(string(text)), err
}

// plainMetrics reads Prometheus' text format as far as it is NAME VALUE.
func plainMetrics(text string) map[string]float64 {
	values := map[string]float64{}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil && !strings.ContainsAny(name, "#{") {
			values[name] = v
		}
	}
	return values
}

// CutChannel shuts an arm's channel down beneath both ends, as if the connection had failed, and returns how many of its connections there were. What
// uses it connects again.
func (l *Lab) CutChannel(arm Arm) (cut int, err error) {
	pid, ok := l.PIDs()[hostProcess]
	if !ok {
		return 0, errors.New("cut the channel: the host daemon does not run")
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, fmt.Errorf("cut the channel: pidfd_open: %w", err)
	}
	defer unix.Close(process)
	sockets := map[string]bool{}
	for i := range l.CPUs {
		sockets[l.channelSocket(arm, i)] = true
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0, fmt.Errorf("cut the channel: %w", err)
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "fd", e.Name()))
		number, numberErr := strconv.Atoi(e.Name())
		if err != nil || numberErr != nil || !strings.HasPrefix(target, "socket:") {
			continue // closed meanwhile, or no socket
		}
		done, err := cutSocket(process, number, sockets)
		if err != nil {
			return cut, fmt.Errorf("cut the channel: %w", err)
		}
		if done {
			cut++
		}
	}
	return cut, nil
}

// cutSocket shuts a connected unix socket of another process down if it was accepted at one of the given paths.
func cutSocket(process, number int, paths map[string]bool) (done bool, err error) {
	fd, err := unix.PidfdGetfd(process, number, 0)
	if errors.Is(err, unix.EBADF) {
		return false, nil // closed meanwhile
	}
	if err != nil {
		return false, fmt.Errorf("pidfd_getfd: %w", err)
	}
	defer unix.Close(fd)
	name, err := unix.Getsockname(fd)
	if err != nil {
		return false, nil // of a family that has no name
	}
	local, ok := name.(*unix.SockaddrUnix)
	if !ok || !paths[local.Name] {
		return false, nil
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return false, nil // the listener itself
	}
	if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return false, fmt.Errorf("shutdown: %w", err)
	}
	return true, nil
}

// TCPTimeouts are the retransmission timeouts that the kernels have counted (TcpExtTCPTimeouts of /proc/net/netstat): client, host and guests.
func (l *Lab) TCPTimeouts(ctx context.Context) (map[string]int64, error) {
	counts := map[string]int64{}
	for role, ns := range l.namespaces() {
		err := ns.Do(func() error {
			text, err := os.ReadFile("/proc/thread-self/net/netstat")
			if err != nil {
				return err
			}
			counts[role], err = tcpExtension(string(text), "TCPTimeouts")
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for i, m := range l.machines {
		text, err := m.control.Cat(ctx, "/proc/net/netstat")
		if err != nil {
			return nil, err
		}
		if counts[[]string{"guest", secondRole}[i]], err = tcpExtension(string(text), "TCPTimeouts"); err != nil {
			return nil, err
		}
	}
	return counts, nil
}

// tcpExtension finds a counter of the TcpExt lines of /proc/net/netstat: a line of names, and a line of values.
func tcpExtension(text, name string) (int64, error) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, n := range names {
			if n == name && i < len(fields) {
				return strconv.ParseInt(fields[i], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("/proc/net/netstat has no TcpExt %s", name)
}
