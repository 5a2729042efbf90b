package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// program is the binary under test, built once by TestMain and only read by the tests: under the race detector when they are. vmProgram is the same without
// it: it is the VM's init too, and has no libc there.
var program, vmProgram string

func TestMain(m *testing.M) {
	if config := os.Getenv(trafficEnv); config != "" { // this process is a server of a test
		if err := runTraffic(config); err != nil {
			fmt.Fprintln(os.Stderr, "traffic server:", err)
			os.Exit(1)
		}
		return
	}
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, fmt.Errorf("needs root: the labs are network namespaces")
	}
	sweepDirs()
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", dirPrefix, os.Getpid()))
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	vmProgram = filepath.Join(dir, "spillway")
	program = vmProgram
	if err := build(vmProgram, "CGO_ENABLED=0"); err != nil {
		return 1, err
	}
	races := filepath.Join(dir, "race")
	if raceEnabled {
		program = filepath.Join(dir, "spillway-race")
		if err := build(program, "CGO_ENABLED=1", "-race"); err != nil {
			return 1, err
		}
		// Processes that are killed have no exit code to tell by.
		if err := os.Setenv("GORACE", "log_path="+races); err != nil {
			return 1, err
		}
	}
	code = m.Run()
	if left := processes(func(p process) bool { return p.exe == program || p.exe == vmProgram }); len(left) > 0 {
		return 1, fmt.Errorf("processes are left behind: %v", left)
	}
	found, _ := filepath.Glob(races + ".*") // the pattern is valid
	for _, name := range found {
		text, err := os.ReadFile(name)
		if err != nil {
			return 1, err
		}
		fmt.Fprintf(os.Stderr, "e2e: the race detector, in a process of a lab:\n%s\n", text)
		code = 1
	}
	return code, nil
}

// dirPrefix of the directory of a run; its process follows.
const dirPrefix = "spillway-e2e-"

// sweepDirs removes what runs have left that were killed, or ended by a time-out.
func sweepDirs() {
	found, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*")) // the pattern is valid
	for _, dir := range found {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		if _, err := os.Stat("/proc/" + pid); pid != "" && os.IsNotExist(err) {
			os.RemoveAll(dir)
		}
	}
}

// build makes the binary.
func build(path, cgo string, flags ...string) error {
	cmd := exec.Command("go", append(append([]string{"build", "-trimpath"}, flags...), "-o", path, "spillway/cmd/spillway")...)
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the binary: %w\n%s", err, out)
	}
	return nil
}

// process is a running process of this machine.
type process struct {
	pid     string
	exe     string
	cmdline string
}

func (p process) String() string { return p.pid + ": " + strings.ReplaceAll(p.cmdline, "\x00", " ") }

// processes lists those that match.
func processes(match func(process) bool) []process {
	var found []process
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is valid
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue // ended meanwhile, a zombie or a kernel thread
		}
		exe, _ := os.Readlink(filepath.Join(dir, "exe"))
		if p := (process{filepath.Base(dir), exe, string(cmdline)}); match(p) {
			found = append(found, p)
		}
	}
	return found
}
