package redirect

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const holderEnv = "SPILLWAY_TEST_REDIRECT_HOLDER"

func TestMain(m *testing.M) {
	if os.Getenv(holderEnv) != "" {
		hold()
		return
	}
	os.Exit(m.Run())
}

// hold is the process that TestKilledProcess kills.
func hold() {
	if _, err := Install(Config{}); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("installed")
	_, _ = os.Stdin.Read(make([]byte, 1)) // until killed, or until the parent is gone
}

// TestKilledProcess kills a real process with SIGKILL while it holds the redirect.
func TestKilledProcess(t *testing.T) {
	newNS(t).do(t, func() {
		before := snapshot(t)
		holder := exec.Command(os.Args[0]) // inherits this thread's namespace
		holder.Env = append(os.Environ(), holderEnv+"=1")
		stdin, err := holder.StdinPipe()
		check(t, err)
		stdout, err := holder.StdoutPipe()
		check(t, err)
		check(t, holder.Start())
		t.Cleanup(func() { _ = holder.Process.Kill(); _ = stdin.Close() })
		if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "installed\n" {
			t.Fatalf("the holder says %q, %v", line, err)
		}
		if _, err := Install(Config{}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", holder.Process.Pid)) {
			t.Errorf("while the holder lives Install says %v, want ErrInUse and its pid", err)
		}
		check(t, holder.Process.Kill())
		_ = holder.Wait() // "signal: killed"
		if st, err := Check(Config{}); err != nil || !st.Stale() || !st.Complete() {
			t.Errorf("after the kill Check says %+v, %v", st, err)
		}
		check(t, install(t, Config{}).Remove())
		if diff := cmp.Diff(before, snapshot(t)); diff != "" {
			t.Errorf("left behind (-before +after):\n%s", diff)
		}
	})
}

// TestNoDescriptorLeft: neither a life cycle nor a refusal may cost a descriptor.
func TestNoDescriptorLeft(t *testing.T) {
	newNS(t).do(t, func() {
		cycle := func() {
			r, err := Install(Config{})
			check(t, err)
			if _, err := Install(Config{Table: "other"}); !errors.Is(err, ErrInUse) { // takes one name, then meets the mark's
				t.Errorf("Install says %v, want ErrInUse", err)
			}
			_, err = Check(Config{})
			check(t, err)
			check(t, r.Remove())
			check(t, RemoveStale(Config{}))
		}
		cycle() // whatever the runtime opens once
		before := descriptors(t)
		for range 5 {
			cycle()
		}
		if after := descriptors(t); after > before {
			t.Errorf("%d descriptors before, %d after five cycles", before, after)
		}
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(all)
}
