package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/goleak"
)

// patience bounds every wait for something that happens at once on an idle machine.
const patience = 20 * time.Second

// TestMain makes the test binary a spillway binary when it is started as one: a lab starts its own program.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-test.") {
		main()
		return
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("os/signal.loop"))
}

// spillway carries out a command line.
func spillway(ctx context.Context, args ...string) (stdout string, err error) {
	var out bytes.Buffer
	cmd := rootCommand()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err = cmd.ExecuteContext(ctx)
	return out.String(), err
}

// TestHelp: every command says in a line what it is for, and shows each of its flags.
func TestHelp(t *testing.T) {
	var walk func(cmd *cobra.Command, path []string)
	seen := 0
	walk = func(cmd *cobra.Command, path []string) {
		if strings.HasSuffix(cmd.Short, ".") || cmd.Short == "" {
			t.Errorf("%v: %q is no title", path, cmd.Short)
		}
		out, err := spillway(t.Context(), append(path, "--help")...)
		if err != nil {
			t.Errorf("%v --help: %v", path, err)
		}
		for line := range strings.Lines(cmd.Long) {
			if !strings.Contains(out, strings.TrimSpace(line)) {
				t.Errorf("%v --help lacks %q", path, line)
			}
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || !strings.Contains(out, "--"+f.Name) {
				t.Errorf("%v: flag --%s is not explained", path, f.Name)
			}
		})
		for _, sub := range cmd.Commands() {
			if !sub.Hidden && !strings.Contains(out, sub.Name()) {
				t.Errorf("%v --help lacks %s", path, sub.Name())
			}
			seen++
			walk(sub, append(path[:len(path):len(path)], sub.Name()))
		}
	}
	walk(rootCommand(), nil)
	if seen < 10 {
		t.Errorf("only %d commands", seen)
	}
}

func TestVersion(t *testing.T) {
	out, err := spillway(t.Context(), "--version")
	if err != nil || !strings.HasPrefix(out, "spillway version ") || !strings.HasSuffix(out, ", built with "+runtime.Version()+" for linux/"+runtime.GOARCH+"\n") {
		t.Errorf("%q, %v", out, err)
	}
	system := []debug.BuildSetting{{Key: "GOOS", Value: "linux"}, {Key: "GOARCH", Value: "amd64"}}
	commit := append(system[:2:2], debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123"}, debug.BuildSetting{Key: "vcs.time", Value: "2026-01-02T03:04:05Z"})
	for want, info := range map[string]debug.BuildInfo{
		"commit 0123456789ab of 2026-01-02T03:04:05Z, built with go1.26.8 for linux/amd64":            {Settings: commit},
		"commit 0123456789ab, modified, of 2026-01-02T03:04:05Z, built with go1.26.8 for linux/amd64": {Settings: append(commit[:4:4], debug.BuildSetting{Key: "vcs.modified", Value: "true"})},
		"v1.2.3, built with go1.26.8 for linux/amd64":                                                 {Settings: system, Main: debug.Module{Version: "v1.2.3"}},
		"of an unknown commit (built with -buildvcs=false, or outside of a git clone), built with go1.26.8 for linux/amd64": {
			Settings: system, Main: debug.Module{Version: "(devel)"}},
	} {
		info.GoVersion = "go1.26.8"
		if got := versionOf(&info); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestMistakes: what a user gets wrong ends at once, with a message that says what was wrong.
func TestMistakes(t *testing.T) {
	empty := write(t, "empty.toml", "")
	unknown := write(t, "unknown.toml", "lissten = [\":80\"]\n")
	dir := t.TempDir()
	for _, c := range []struct {
		args string
		want []string // parts of the error
	}{
		{"nonsense", []string{`unknown command "nonsense"`}},
		{"serve --nonsense", []string{"--nonsense"}},
		{"serve extra", []string{"extra"}},
		{"serve --mode fast", []string{"mode", "fast", "lease"}},
		{"serve --threshold huge", []string{"threshold", "huge"}},
		{"serve --log-level loud", []string{"log-level", "loud"}},
		{"serve --share media", []string{"--share", "media", "NAME:/URL/PREFIX/:DIRECTORY"}},
		{"serve --share media:media:/srv --mode off", []string{"prefix", `"media"`}},
		{"serve --share media:/media/ --mode off", []string{"share[0].mount"}},
		{"serve --share media:/media/:relative --mode off", []string{"relative"}},
		{"serve --share a:/m/:/srv --share b:/m/:/srv --mode off", []string{"share[1].prefix"}},
		{"serve --mode off", []string{"share", "--share"}},
		{"bench request --requests 0", []string{"--requests 0", "at least 1"}},
		{"bench handover -n -5", []string{"--requests -5"}},
		{"bench demo --vm qemu --cache /no/such/cache", []string{"no kernel for the VM", "scripts/setup.sh /no/such/cache", "--vm netns"}},
		{"lab up --vm qemu --cache /no/such/cache", []string{"no kernel for the VM", "scripts/setup.sh /no/such/cache", "--vm netns"}},
		{"serve --mode off --listen nowhere --share a:/a/:/srv", []string{"listen[0]", "nowhere"}},
		{"serve --mode off --admin nowhere --share a:/a/:/srv", []string{"admin", "nowhere"}},
		{"serve --mode lease --channel carrier:pigeon --share a:/a/:/srv", []string{"channel", "carrier:pigeon"}},
		{"serve --config /no/such/file", []string{"/no/such/file"}},
		{"serve --config " + empty, []string{"share"}},
		{"serve --config " + unknown, []string{"lissten", unknown}},
		{"serve --mode off --listen 127.0.0.1:0 --share a:/a/:/no/such/directory", []string{"share a", "/no/such/directory", "mount it first"}},
		{"serve --mode off --listen 203.0.113.1:1 --share a:/a/:" + dir, []string{"203.0.113.1:1"}},
		{"host --config /no/such/file", []string{"/no/such/file", "examples/host.toml"}},
		{"host --config " + unknown, []string{"lissten"}},
		{"host --config " + empty, []string{"vm: there is none", "[[vm]]"}},
		{"host extra", []string{"extra"}},
		{"host --log-level loud", []string{"log-level", "loud"}},
		{"doctor nobody", []string{"nobody", "host (", "guest ("}},
		{"doctor host guest", []string{"at most 1"}},
		{"doctor --config /no/such/file", []string{"/no/such/file"}},
		{"doctor --config " + empty, []string{empty, "vm: there is none"}},
		{"status extra", []string{"extra"}},
		{"status --admin /no/such/admin.sock", []string{"no daemon", "/no/such/admin.sock", "systemctl start spillway-host", "--admin"}},
		{"status --watch --admin /no/such/admin.sock", []string{"no daemon"}},
		{"status --leases --json --admin " + empty, []string{"no daemon", empty}}, // a file, and no socket
		{"status --admin=", []string{"no admin socket"}},
		{"dataset --set nothing --dir " + filepath.Join(dir, "set"), []string{"nothing", "tablet"}},
		{"dataset", []string{"--dir", "526 segments of tablet", "765 MB"}},
		{"dataset --set mobile --segments 10", []string{"--dir", "10 segments of mobile", "3.0 MB"}},
		{"dataset --set nothing", []string{"nothing", "tablet"}},
		{"dataset extra", []string{"extra"}},
		{"dataset --scale 2 --dir " + filepath.Join(dir, "set"), []string{"--scale 2"}},
		{"dataset --scale 0.5 --segments 2 --dir " + filepath.Join(dir, "set"), []string{"--scale", "--segments"}},
		{"dataset --encode --set mobile --dir " + filepath.Join(dir, "set"), []string{"--set", "--encode"}},
		{"dataset --seconds 4 --dir " + filepath.Join(dir, "set"), []string{"--seconds", "--encode"}},
		{"dataset --encode --seconds 1 --dir " + filepath.Join(dir, "set"), []string{"1 s"}},
		{"lab bogus", []string{`unknown command "bogus"`}},
		{"bench bogus", []string{`unknown command "bogus"`}},
		{"lab up --files " + dir + " --vm netns", []string{dir, "no regular file"}},
		{"lab up --files /no/such/directory --vm netns", []string{"--files /no/such/directory: no such file or directory", "a directory with files"}},
		{"lab up --files " + empty + " --vm netns", []string{empty, "no directory"}},
		{"lab up --cache /proc/none --vm netns --cpus 0", []string{"--cpus 0", "at least 1"}},
		{"bench demo --cache /proc/none --vm netns --cpus 0", []string{"--cpus 0", "at least 1"}},
		{"bench idle --cache /proc/none --cpus -1", []string{"--cpus -1", "at least 1"}},
		{"lab up --cache /proc/none --vm xen", []string{"xen"}}, // before a data set is made
		{"lab up --cache /proc/none --name Wrong", []string{"Wrong"}},
		{"bench demo --cache /proc/none --link fast", []string{"fast", "1gbit"}},
		{"bench demo --cache /proc/none --rounds 0", []string{"--rounds 0"}},
		{"bench request --connections 0 --cache " + dir, []string{"connections: 0"}},
		{"bench request --sizes 4096,0 --cache " + dir, []string{"sizes: 0"}},
		{"bench request --arms vm,lease,vm --cache " + dir, []string{"vm is there twice"}},
		{"bench handover --threshold 1 --cache " + dir, []string{"--threshold"}},
		{"lab up --files " + dir + " --vm xen", []string{"xen", "qemu"}},
		{"lab up --files " + dir + " --name Wrong", []string{"Wrong"}},
		{"lab up --files " + dir + " --link fast", []string{"fast", "1gbit"}},
		{"lab down --name no-such-lab-here", []string{"no such lab", "no-such-lab-here", "there "}},
		{"lab down --name ../..", []string{"no such lab"}},
		{"bench request --arms bogus --cache " + dir, []string{"bogus", "baremetal"}},
		{"bench request --link fast --cache " + dir, []string{"fast", "1gbit"}},
		{"bench request --vm xen --cache " + dir, []string{"xen"}},
		{"bench handover --vm xen --cache " + dir, []string{"xen"}},
		{"bench idle --connections 0 --cache " + dir, []string{"connections: 0"}},
		{"bench idle --window 0 --cache " + dir, []string{"window: 0"}},
		{"bench idle --vm qemu --cache " + dir, []string{"qemu", "netns"}},
		{"bench cpu --vm netns --arms bogus --cache " + dir, []string{"bogus", "vm-tmpfs"}},
		{"bench cpu --vm netns --arms vm-tmpfs --cache " + dir, []string{"vm-tmpfs", "qemu"}},
		{"bench request --vm netns --arms vm-tmpfs --cache " + dir, []string{"vm-tmpfs", "qemu"}},
		{"bench request --arms vm-cold --connections 8 --cache " + dir, []string{"vm-cold", "8 connections"}},
		{"bench soak --minutes 0 --cache " + dir, []string{"minutes: 0"}},
		{"bench soak --clients 0 --cache " + dir, []string{"clients: 0"}},
		{"bench soak --sizes 0 --cache " + dir, []string{"sizes: 0"}},
		{"bench path --link 40ms,50ms --cache " + dir, []string{"40ms,50ms", "twice"}},
		{"bench micro --scale 0 --cache " + dir, []string{"--scale 0"}},
		{"bench micro --rounds 0 --target http://x/ --cache " + dir, []string{"--rounds 0"}},
		{"bench micro --sizes 0 --vm netns --cache " + dir, []string{"sizes: 0"}},
		{"bench micro --arms bogus --vm netns --cache " + dir, []string{"bogus", "nginx-vm"}},
		{"bench micro --sizes 4096 --target ftp://x/ --cache " + dir, []string{"--target", "ftp://x/", "http://HOST"}},
		{"bench micro --guest lease=http://x/ --cache " + dir, []string{"--guest", "lease", "admin=http://HOST:PORT"}},
		{"bench dash --guest baremetal=http://x/ --cache " + dir, []string{"--guest", "arms of a host"}},
		{"bench dash --host vm=http://x/ --cache " + dir, []string{"--host", "arms of a host"}},
		{"bench request --host http://x/ --link 1gbit --cache " + dir, []string{"--link", "--env"}},
		{"bench request --host http://x/ --env accelerator=fast --cache " + dir, []string{"accelerator=fast", "kvm"}},
		{"bench concurrency --host http://x/ --env speed=1 --cache " + dir, []string{"speed=1", "accelerator"}},
		{"bench micro --pid qemu=1 --cache " + dir, []string{"--pid", "--guest"}},
		{"bench cpu --host http://x/ --cache " + dir, []string{"--pid"}},
		{"bench dash --scale 0.001 --players -1 --arms vm --rounds 0 --cache " + dir, []string{"--rounds 0"}},
		{"bench dash --scale 2 --cache " + dir, []string{"--scale 2"}},
		{"bench concurrency --connections 0 --vm netns --cache " + dir, []string{"0 connections"}},
		{"bench all --scale 0", []string{"--scale 0"}},
		{"bench all --only everything", []string{"everything", "micro-unshaped"}},
		{"bench report", []string{"at least 1"}},
		{"bench report /no/such/file.json", []string{"/no/such/file.json"}},
		{"bench report " + unknown, []string{unknown}},
		{"bench path --sizes 1 --cache " + dir, []string{"sizes: 1"}},
		{"bench path --following 0 --cache " + dir, []string{"following: 0"}},
		{"bench path --arms bogus --cache " + dir, []string{"bogus", "baremetal"}},
		{"lab up --files " + dir + " --link loss=1", []string{"loss=1", "percent"}},
		{"delayline --link 1gbit", []string{"no delay line is needed"}},
	} {
		t.Run(c.args, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			out, err := spillway(ctx, strings.Fields(c.args)...)
			if err == nil {
				t.Fatalf("no error, but %q", out)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error lacks %q: %v", want, err)
				}
			}
			if strings.Contains(out, "Usage:") {
				t.Errorf("the usage hides the error: %q", out)
			}
		})
	}
}

// TestErrorsKeepTheirCause: scripts and tests tell a missing file from others.
func TestErrorsKeepTheirCause(t *testing.T) {
	for _, args := range []string{"serve --config /no/such/file", "host --config /no/such/file"} {
		if _, err := spillway(t.Context(), strings.Fields(args)...); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestDoctor(t *testing.T) {
	for _, role := range []string{"host", "guest"} {
		out, err := spillway(t.Context(), "doctor", role, "--json") // err: something is missing here, which is no matter
		var report map[string]any
		if jerr := json.Unmarshal([]byte(out), &report); jerr != nil || len(report) == 0 {
			t.Errorf("doctor %s --json: %v, %v: %q", role, err, jerr, out)
		}
		if out, _ := spillway(t.Context(), "doctor", role); !strings.Contains(out, "\n") || strings.HasPrefix(out, "{") {
			t.Errorf("doctor %s: %q", role, out)
		}
	}
}

// TestFirstFile: what a lab tells to try is there.
func TestFirstFile(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b/empty/deep", "c"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"c/2.mp4", "c/1.mp4", "d.mp4"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("d.mp4", filepath.Join(dir, "a.mp4")); err != nil {
		t.Fatal(err)
	}
	if got, err := fileToTry(dir, 0); got != "c/1.mp4" || err != nil {
		t.Errorf("fileToTry = %q, %v", got, err)
	}
	// A small file would be served by the guest, and show nothing.
	if got, err := fileToTry(dir, 10); got != "c/1.mp4" || err != nil {
		t.Errorf("with small files only, fileToTry = %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "d.mp4"), make([]byte, 10), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := fileToTry(dir, 10); got != "d.mp4" || err != nil {
		t.Errorf("with a large file, fileToTry = %q, %v", got, err)
	}
}

func TestDataset(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "set")
	out, err := spillway(t.Context(), "dataset", "--dir", dir, "--set", "mobile", "--segments", "2")
	if err != nil || !strings.Contains(out, "2 segments") {
		t.Fatalf("%q, %v", out, err)
	}
	if segments, _ := filepath.Glob(filepath.Join(dir, "*.m4s")); len(segments) < 2 {
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		t.Errorf("files are %v", files)
	}
}

// TestMicroTarget measures a server of ours as one that is there.
func TestMicroTarget(t *testing.T) {
	dir, cache := filepath.Join(t.TempDir(), "files"), t.TempDir()
	if out, err := spillway(t.Context(), "bench", "micro", "--make", dir, "--sizes", "4096,65536"); err != nil || !strings.Contains(out, "2 files") {
		t.Fatalf("%v, %s", err, out)
	}
	addr := freeAddress(t)
	running(t, "--mode", "off", "--listen", addr, "--admin", "", "--share", "a:/a/:"+dir)
	if status, _ := get(t, "http://"+addr+"/a/4096.bin"); status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	file := filepath.Join(t.TempDir(), "micro.json")
	out, err := spillway(t.Context(), "bench", "micro", "--target", "mine=http://"+addr+"/a", "--sizes", "4096,65536", "--scale", "0.01", "--rounds", "2",
		"--cache", cache, "--json", file)
	if err != nil && !strings.Contains(err.Error(), "bottleneck") || !strings.Contains(out, "mine") {
		t.Fatalf("%v, %s", err, out)
	}
	text, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(text), `"case_bytes": 65536`) {
		t.Errorf("%v, %s", err, text)
	}
	// What was measured on this machine is not to be judged, only shown.
	if err := os.WriteFile(file, regexp.MustCompile(`,\s*"refused": "load generator"`).ReplaceAll(text, nil), 0o644); err != nil {
		t.Fatal(err)
	}
	figures := t.TempDir()
	out, err = spillway(t.Context(), "bench", "report", file, "--out", figures)
	if err != nil || !strings.Contains(out, filepath.Join(figures, "evaluation.md")) || !strings.Contains(out, "figures/micro-bandwidth-unknown-unknown.svg") {
		t.Errorf("bench report: %v, %s", err, out)
	}
}

// TestDatasetScale: every set, smaller, with the mean size of its segments.
func TestDatasetScale(t *testing.T) {
	dir := t.TempDir()
	out, err := spillway(t.Context(), "dataset", "--dir", dir, "--set", "all", "--scale", "0.004")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"smarttv  1 segments  15 s  6000 kbit/s  10752.0 KB  10.5 MB", "tablet  2 segments", "mobile  4 segments   6 s   400 kbit/s    288.6 KB"} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	for set, want := range map[string]int{"smarttv": 1, "tablet": 2, "mobile": 4} {
		if segments, _ := filepath.Glob(filepath.Join(dir, set, "*.m4s")); len(segments) != want {
			t.Errorf("%s has %d segments, want %d", set, len(segments), want)
		}
	}
}

// freeAddress is one that nothing listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// running is a `spillway serve` that runs until the test ends.
func running(t *testing.T, args ...string) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := spillway(ctx, append([]string{"serve"}, args...)...)
		done <- err
	}()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serve ends with %v", err)
			}
		case <-time.After(patience):
			t.Error("serve does not end")
		}
	})
}

// get requests a page, as soon as anything answers there.
func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		resp, err := c.Get(url)
		if err == nil {
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				t.Error(err)
			}
			return resp.StatusCode, string(text)
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestServePrecedence: a flag that is given wins over the file, the file over the default, and a flag that is not given changes nothing.
func TestServePrecedence(t *testing.T) {
	inFile, inFlag := t.TempDir(), t.TempDir()
	for dir, text := range map[string]string{inFile: "of the file", inFlag: "of the flag"} {
		if err := os.WriteFile(filepath.Join(dir, "page.txt"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fileListen, flagListen, fileAdmin := freeAddress(t), freeAddress(t), freeAddress(t)
	file := write(t, "serve.toml", fmt.Sprintf(`listen = [%q]
admin = %q
[offload]
mode = "off"
[http]
segment_max_age = "7s"
[[share]]
name = "media"
prefix = "/file/"
mount = %q
`, fileListen, fileAdmin, inFile))

	t.Run("the file alone", func(t *testing.T) {
		running(t, "--config", file)
		if status, body := get(t, "http://"+fileListen+"/file/page.txt"); status != 200 || body != "of the file" {
			t.Errorf("%d %q", status, body)
		}
		if status, body := get(t, "http://"+fileAdmin+"/stats"); status != 200 || !strings.Contains(body, `"mode":"off"`) {
			t.Errorf("%d %q", status, body)
		}
	})
	t.Run("flags over it", func(t *testing.T) {
		running(t, "-c", file, "--listen", flagListen, "--share", "other:/flag/:"+inFlag)
		if status, body := get(t, "http://"+flagListen+"/flag/page.txt"); status != 200 || body != "of the flag" {
			t.Errorf("%d %q", status, body)
		}
		if status, _ := get(t, "http://"+flagListen+"/file/page.txt"); status != 404 {
			t.Errorf("the file's share is served too: %d", status)
		}
		if _, err := net.DialTimeout("tcp", fileListen, patience); err == nil {
			t.Error("the file's address is served too")
		}
		if status, _ := get(t, "http://"+fileAdmin+"/stats"); status != 200 {
			t.Errorf("the file's admin address: %d", status)
		}
	})
	t.Run("a flag that empties", func(t *testing.T) {
		running(t, "-c", file, "--admin", "")
		if status, _ := get(t, "http://"+fileListen+"/file/page.txt"); status != 200 {
			t.Errorf("%d", status)
		}
		if _, err := net.DialTimeout("tcp", fileAdmin, patience); err == nil {
			t.Error("the file's admin address is served")
		}
	})
	t.Run("a flag in the wrong", func(t *testing.T) {
		_, err := spillway(t.Context(), "serve", "-c", file, "--mode", "lease", "--channel", "nonsense")
		if err == nil || !strings.Contains(err.Error(), "nonsense") {
			t.Error(err)
		}
	})
}

// TestServeWithoutHost: a server whose host is away serves everything itself, and ends in order.
func TestServeWithoutHost(t *testing.T) {
	dir := t.TempDir()
	content := strings.Repeat("media", 100_000)
	if err := os.WriteFile(filepath.Join(dir, "f.mp4"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	listen, admin := freeAddress(t), freeAddress(t)
	running(t, "--listen", listen, "--admin", admin, "--share", "media:/:"+dir, "--channel", "unix:"+filepath.Join(dir, "no.sock"))
	if status, body := get(t, "http://"+listen+"/f.mp4"); status != 200 || body != content {
		t.Errorf("%d with %d bytes", status, len(body))
	}
	if status, body := get(t, "http://"+admin+"/stats"); status != 200 || !strings.Contains(body, `"host":"away"`) ||
		!strings.Contains(body, `"mode":"lease"`) {
		t.Errorf("%d %q", status, body)
	}
}

// TestServeAddressInUse: the error names the address, and the server ends as a whole.
func TestServeAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken, dir := l.Addr().String(), t.TempDir()
	for _, args := range [][]string{
		{"--listen", taken},
		{"--listen", "127.0.0.1:0," + taken},
		{"--listen", "127.0.0.1:0", "--admin", taken},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		_, err := spillway(ctx, append([]string{"serve", "--mode", "off", "--share", "a:/a/:" + dir}, args...)...)
		if err == nil || !strings.Contains(err.Error(), taken) || ctx.Err() != nil {
			t.Errorf("%v: %v", args, err)
		}
		cancel()
	}
}
