package unixsock

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const holderEnv = "SPILLWAY_TEST_UNIXSOCK_HOLDER"

func TestMain(m *testing.M) {
	if name := os.Getenv(holderEnv); name != "" {
		l, err := net.Listen("unix", name)
		fmt.Println(err)
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the test is over
		if err == nil {
			l.Close()
		}
		return
	}
	os.Exit(m.Run())
}

// holder is a process that listens at name until the test ends.
func holder(t *testing.T, name string, attr *syscall.SysProcAttr) (pid int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), holderEnv+"="+name)
	cmd.SysProcAttr = attr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "<nil>\n" {
		t.Fatalf("the holder says %q, %v", line, err)
	}
	return cmd.Process.Pid
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	abstract := fmt.Sprintf("@spillway-test-%d/a b", os.Getpid())
	for _, c := range []struct {
		name, bound, asked string
		attr               *syscall.SysProcAttr
		root               bool
	}{
		{"path", dir + "/a.sock", dir + "/a.sock", nil, false},
		{"path with a space", dir + "/a b.sock", dir + "/a b.sock", nil, false},
		{"path by another way", dir + "/b.sock", link + "/./b.sock", nil, false},
		{"abstract", abstract, abstract, nil, false},
		{"in another network namespace", dir + "/c.sock", dir + "/c.sock", &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.root && os.Getuid() != 0 {
				t.Skip("needs root, to make a network namespace")
			}
			pid := holder(t, c.bound, c.attr)
			got, ok := Find(c.asked)
			if !ok || got.PID != pid || !strings.Contains(got.String(), fmt.Sprintf("pid %d", pid)) || got.Command == "" {
				t.Errorf("Find(%q) = %v, %v; want pid %d", c.asked, got, ok, pid)
			}
		})
	}
}

// TestFindNone: a socket of the same name elsewhere is another one.
func TestFindNone(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/other", 0o755); err != nil {
		t.Fatal(err)
	}
	holder(t, dir+"/a.sock", nil)
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/other/a.sock"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	name := fmt.Sprintf("@spillway-test-%d", os.Getpid())
	if os.Getuid() == 0 { // an abstract name belongs to its network namespace
		holder(t, name, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET})
	}
	for _, asked := range []string{dir + "/other/a.sock", dir + "/none", name, ""} {
		if got, ok := Find(asked); ok {
			t.Errorf("Find(%q) = %v", asked, got)
		}
	}
}
