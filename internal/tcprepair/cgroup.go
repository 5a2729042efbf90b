package tcprepair

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrNoCgroup2 is matched by the errors of NewStartWindow and NewHalter where there is no cgroup2 file system to attach their programs in.
var ErrNoCgroup2 = errors.New("no cgroup2 file system is mounted; mount -t cgroup2 none /sys/fs/cgroup")

// ownCgroup opens the directory of this process's cgroup in the cgroup2 file system. The caller closes it.
//
// It need not be mounted in this mount namespace: `ip netns exec` mounts /sys anew, and /sys/fs/cgroup is empty then. So the mounts of whoever has started us
// and of process 1 are looked at, too. We mount none of our own, not even a detached one: without the options of the one that is there, it would switch these
// off for the whole machine (apply_cgroup_root_flags, kernel/cgroup/cgroup.c), nsdelegate and memory_recursiveprot for instance, which systemd has set.
func ownCgroup() (*os.File, error) {
	path, err := ownCgroupPath()
	if err != nil {
		return nil, err
	}
	for _, process := range []string{"/proc/self", fmt.Sprintf("/proc/%d", os.Getppid()), "/proc/1"} {
		for _, mount := range cgroup2Mounts(process) {
			// Our path is not within what is mounted there in a container, for instance.
			for _, dir := range []string{filepath.Join(mount, path), mount} {
				if f := openCgroup2(dir); f != nil {
					return f, nil
				}
			}
		}
	}
	return nil, ErrNoCgroup2
}

// cgroup2Mounts are where a process sees the cgroup2 file system, as paths that are good for us. There are none where we may not look.
func cgroup2Mounts(process string) (mounts []string) {
	text, _ := os.ReadFile(process + "/mountinfo")
	for line := range strings.Lines(string(text)) {
		// proc_pid_mountinfo(5): the mount point is the fifth field, the type follows the separator.
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if ok && len(fields) > 4 && strings.HasPrefix(after, "cgroup2 ") {
			mounts = append(mounts, filepath.Join(process, "root", fields[4]))
		}
	}
	return mounts
}

// ownCgroupPath is where this process is within the cgroup2 file system.
func ownCgroupPath() (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) { // cgroups(7): 0::PATH is the one of cgroup2
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path, nil
		}
	}
	return "/", nil
}

// openCgroup2 opens dir, if it can and it is what mountinfo says, not hidden by another mount.
func openCgroup2(dir string) *os.File {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	var stat unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &stat) != nil || stat.Type != unix.CGROUP2_SUPER_MAGIC {
		f.Close()
		return nil
	}
	return f
}

// attachCgroup attaches a program to an open cgroup.
func attachCgroup(dir *os.File, where ebpf.AttachType, program *ebpf.Program) (link.Link, error) {
	// By descriptor: the path may lead through the mounts of a process that has ended.
	return link.AttachCgroup(link.CgroupOptions{Path: fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), Attach: where, Program: program})
}
