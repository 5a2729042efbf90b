package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/internal/lab"
	"spillway/internal/nginx"
	"spillway/internal/testkit"
)

// realOrigin is a server of files as others have it, in the host's namespace of a lab.
type realOrigin struct {
	name    string
	address string // of the share, for the daemon; the way there is a gate at originAddr
	// start serves files at upstreamAddr until the test ends, and returns what its own log says: how often it has sent a part of each file.
	start func(t *testing.T, l *lab.Lab, files map[string][]byte) (requests func() map[string]int)
}

// upstreamAddr is in the host's namespace of each lab.
const upstreamAddr = "127.0.0.1:7081"

var realOrigins = []realOrigin{
	{"nginx", "http://" + originAddr + "/vod/", startNginxOrigin},
	{"versitygw", s3Address, startS3Origin},
}

// The S3 server's account, and the address of its bucket.
const (
	s3User, s3Secret = "user", "secret"
	s3Address        = "s3://bucket?region=us-east-1&use_path_style=true&endpoint=http://" + originAddr
)

// TestVMCacheOrigins: two real VMs share a cache, whose origin is nginx, and then an S3 server. What the first VM has asked for, the second one's first request
// finds there, and the origin's own log has each file once. 200 clients of both VMs ask for a segment that nobody has asked for: it is fetched once, and each has
// its first byte before the origin has sent the last one.
func TestVMCacheOrigins(t *testing.T) {
	testkit.CheckFDs(t)
	t.Setenv("AWS_ACCESS_KEY_ID", s3User) // the daemon has it from here
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3Secret)
	files := newMedia(t)
	l := newLab(t, files, func(o *lab.Options) {
		o.VM, o.Binary, o.Cache = lab.QEMU, vmProgram, cache
		o.Origin, o.SecondGuest = realOrigins[0].address, true
	})
	t.Logf("accelerator %s, QEMU %s", l.Accelerator(), l.QEMUVersion())
	for _, o := range realOrigins {
		t.Run(o.name, func(t *testing.T) {
			requests := o.start(t, l, files.files)
			g := newGate(t, l, upstreamAddr)
			stopHost(t, l, syscall.SIGTERM)
			must(t, os.RemoveAll(filepath.Join(l.Dir, "cache")))
			l.Origin = o.address
			startHost(t, l)
			waitArm(t, l, lab.Second)
			secondFindsAll(t, l, files, g, requests)
			coldCrowd(t, l, files.files[coldFile], g, requests)
		})
	}
}

// coldFile is the one that only the crowd asks for.
const coldFile = "10m.mp4"

// secondFindsAll: the first VM's clients ask for all files but one, then the second VM's.
func secondFindsAll(t *testing.T, l *lab.Lab, files *media, g *gate, requests func() map[string]int) {
	names := slices.DeleteFunc(files.names(), func(name string) bool { return name == coldFile })
	total := uint64(0)
	for _, name := range names {
		fetch(t, l, lab.Lease, name, files.files[name])
		total += uint64(len(files.files[name]))
	}
	before := cacheStats(t, l).Cache
	passed := g.total()
	for _, name := range names {
		fetch(t, l, lab.Second, name, files.files[name])
	}
	after := cacheStats(t, l).Cache
	if n := uint64(len(names)); after.Hits < before.Hits+n || after.Misses != before.Misses || after.Lookups != before.Lookups || after.FillBytes != total {
		t.Errorf("before %+v\nafter %+v; want %d hits more, nothing else, and %d bytes fetched in all", before, after, n, total)
	}
	if now := g.total(); now != passed {
		t.Errorf("the origin has sent %d bytes for the second VM", now-passed)
	}
	want := map[string]int{}
	for _, name := range names {
		want[name] = 1
	}
	expectRequests(t, requests, want)
}

// expectRequests waits until the origin's log says so: it writes a line after the last byte.
func expectRequests(t *testing.T, requests func() map[string]int, want map[string]int) {
	t.Helper()
	var got map[string]int
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if got = requests(); maps.Equal(got, want) {
			return
		}
	}
	t.Errorf("the origin's log has %v, want %v", got, want)
}

// coldCrowd: the clients of both VMs ask for the same segment at once.
func coldCrowd(t *testing.T, l *lab.Lab, want []byte, g *gate, requests func() map[string]int) {
	const clients, sentAtFirst, first = 200, 5_000_000, 1000
	sum := sha256.Sum256(want)
	before, log := cacheStats(t, l).Cache, requests()
	sends := map[lab.Arm]uint64{}
	g.hold(sentAtFirst)
	passed := g.total()
	var began, done sync.WaitGroup
	began.Add(clients)
	for i := range clients {
		arm := []lab.Arm{lab.Lease, lab.Second}[i%2]
		if i < 2 {
			sends[arm] = serverStats(t, l, arm).Counts.Sends
		}
		c := dial(t, l, arm)
		c.patience = bootPatience
		done.Go(func() {
			ok := c.begin(coldFile, want, first)
			began.Done()
			if !ok {
				return
			}
			got := bytes.Clone(want[:first])
			if rest, err := c.rest(len(want) - first); err != nil || sha256.Sum256(append(got, rest...)) != sum {
				t.Errorf("client %d, of %s: %d bytes, %v", i, arm, first+len(rest), err)
			}
			must(t, c.Close())
		})
	}
	began.Wait()
	if s, n := cacheStats(t, l).Cache, g.total()-passed; s.Filling != 1 || n >= int64(len(want)) {
		t.Errorf("all clients have their first byte: %+v, and %d bytes from the origin; want one fill under way", s, n)
	}
	g.open()
	done.Wait()
	after := cacheStats(t, l).Cache
	if after.Fills != before.Fills+1 || after.FillBytes != before.FillBytes+uint64(len(want)) || after.Lookups != before.Lookups+1 || after.Filling != 0 {
		t.Errorf("before %+v\nafter %+v; want one question, and one fetch of %d bytes", before, after, len(want))
	}
	if n := g.total() - passed; n > int64(len(want))+10_000 { // headers
		t.Errorf("the origin has sent %d bytes for a file of %d", n, len(want))
	}
	log[coldFile] = 1
	expectRequests(t, requests, log)
	for arm, before := range sends {
		if n := serverStats(t, l, arm).Counts.Sends - before; n < clients/2*9/10 { // a stray fallback is no fault
			t.Errorf("the host has sent %d of the responses of %s, want %d", n, arm, clients/2)
		}
	}
}

// startInHost runs a program in the host's namespace until the test ends, and waits until it listens at upstreamAddr.
func startInHost(t *testing.T, l *lab.Lab, dir string, args ...string) {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	ended, err := l.Host.Start(cmd)
	must(t, err)
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(hangLimit):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("%s: %s", filepath.Base(args[0]), &log)
		}
	})
	listens := func() bool {
		c, err := l.Host.Dial(&net.Dialer{}, "tcp", upstreamAddr)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	eventually(t, args[0]+" listens", listens)
}

// startNginxOrigin is Debian's nginx with its usual log.
func startNginxOrigin(t *testing.T, l *lab.Lab, _ map[string][]byte) func() map[string]int {
	p, err := nginx.Find(filepath.Join(cache, "nginx"))
	must(t, err)
	state := t.TempDir()
	log, config := filepath.Join(state, "access.log"), filepath.Join(state, "nginx.conf")
	text := nginx.Config{Workers: 1, Listen: upstreamAddr, Status: "127.0.0.1:7082", Prefix: "/vod/", Dir: l.Files, State: state, AccessLog: log}.String()
	must(t, os.WriteFile(config, []byte(text), 0o644))
	startInHost(t, l, state, p.Command(config)...)
	return func() map[string]int { return logged(t, log, `"GET /vod/(\S+) HTTP/1\.1" 20[06] `) }
}

// startS3Origin is versitygw, to which curl has brought the files.
func startS3Origin(t *testing.T, l *lab.Lab, files map[string][]byte) func() map[string]int {
	program, err := filepath.Abs(filepath.Join(cache, "versitygw"))
	must(t, err)
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v\nbuild it with: make build/cache/versitygw", err)
	}
	state := t.TempDir()
	log, data := filepath.Join(state, "access.log"), filepath.Join(state, "data")
	must(t, os.MkdirAll(filepath.Join(data, "bucket"), 0o755))
	startInHost(t, l, state, program, "--port", upstreamAddr, "--access", s3User, "--secret", s3Secret, "--quiet", "--access-log", log, "posix", data)
	for name, content := range files {
		sum := sha256.Sum256(content)
		cmd := exec.Command("curl", "-sS", "--fail", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", s3User+":"+s3Secret, "--upload-file", filepath.Join(l.Files, name),
			"--header", "x-amz-content-sha256: "+hex.EncodeToString(sum[:]), "http://"+upstreamAddr+"/bucket/"+urlPath(name))
		var said bytes.Buffer
		cmd.Stderr = &said
		ended, err := l.Host.Start(cmd)
		must(t, err)
		<-ended
		if !cmd.ProcessState.Success() {
			t.Fatalf("curl brings %s: %v\n%s", name, cmd.ProcessState, &said)
		}
	}
	return func() map[string]int { return logged(t, log, ` s3_GetObject .* /bucket/([^ ?]+)(?:\?\S*)? 20[06] `) }
}

// logged counts the lines of a log that match, by the file whose path in a URL is the pattern's group.
func logged(t *testing.T, log, pattern string) map[string]int {
	t.Helper()
	text, err := os.ReadFile(log)
	must(t, err)
	counts := map[string]int{}
	for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
		name, err := url.PathUnescape(string(m[1]))
		must(t, err)
		counts[name]++
	}
	return counts
}

// urlPath of a file beneath a server's root.
func urlPath(name string) string { return (&url.URL{Path: name}).EscapedPath() }
