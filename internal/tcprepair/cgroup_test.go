package tcprepair

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const hiddenCgroupEnv = "SPILLWAY_TEST_HIDDEN_CGROUP"

// TestHiddenCgroup: the programs are attached also where cgroup2 is not seen, as under `ip netns exec`, which mounts /sys anew.
func TestHiddenCgroup(t *testing.T) {
	if os.Getenv(hiddenCgroupEnv) != "" {
		inHiddenCgroup(t)
		return
	}
	dir, err := ownCgroup()
	if err != nil {
		t.Skip(err)
	}
	dir.Close()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHiddenCgroup$", "-test.v")
	cmd.Env = append(os.Environ(), hiddenCgroupEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PASS: TestHiddenCgroup")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// inHiddenCgroup runs in a process with a mount namespace of its own.
func inHiddenCgroup(t *testing.T) {
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " - cgroup2 ") {
			must(t, unix.Unmount(strings.Fields(line)[4], unix.MNT_DETACH))
		}
	}
	w, err := NewStartWindow()
	must(t, err)
	must(t, w.Close())
	h, err := NewHalter()
	must(t, err)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	must(t, err)
	must(t, h.Halt(fd, 0))
	h.Resume(fd)
	must(t, errors.Join(unix.Close(fd), h.Close()))
}
