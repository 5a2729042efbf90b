package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway/internal/lab"
)

// plain is the arm whose server listens with net.Listen: what it does is right.
const plain = lab.VM

// startTraffic replaces the servers of the arms, so that any Go server has the guest to itself.
func startTraffic(t *testing.T, l *lab.Lab, arms ...lab.Arm) (pids map[lab.Arm]int) {
	t.Helper()
	pids = map[lab.Arm]int{}
	self, err := os.Executable()
	must(t, err)
	for _, arm := range arms {
		killServer(t, l, arm)
		cfg := trafficConfig{Mode: string(arm), Channel: "unix:" + channelSocket(l, arm), Files: l.Files, Port: portOf(t, l.Addr(arm))}
		if arm == plain {
			cfg.Mode = "plain"
		}
		text, err := json.Marshal(cfg)
		must(t, err)
		log, err := os.Create(l.LogPath("traffic-" + string(arm)))
		must(t, err)
		defer log.Close()
		cmd := exec.Command(self, "traffic", l.Dir) // the arguments are for whoever looks for what is left
		cmd.Env = append(os.Environ(), trafficEnv+"="+string(text))
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		ended, err := l.Guest.Start(cmd)
		must(t, err)
		pids[arm] = cmd.Process.Pid
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended, which is seen below
			select {
			case <-ended:
				if !cmd.ProcessState.Success() { // a panic, or what the race detector has found
					t.Errorf("the traffic server of %s: %v", arm, cmd.ProcessState)
				}
			case <-time.After(patience):
				t.Errorf("the traffic server of %s does not end", arm)
				_ = cmd.Process.Kill()
			}
		})
		eventually(t, "the traffic server of "+string(arm), func() bool {
			s, err := l.ServerStats(context.Background(), arm)
			return err == nil && (arm == plain || s.Host == "up")
		})
	}
	return pids
}

func portOf(t testing.TB, addr string) int {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	must(t, err)
	n, err := strconv.Atoi(port)
	must(t, err)
	return n
}

// way is how the connections of an exchange come to their server.
type way struct {
	name  string
	arm   lab.Arm
	used  bool // a connection has had a large response: it is leased, or was
	storm bool // the host is told to give all connections back, again and again
}

var (
	plainNew  = way{"plain", plain, false, false}
	plainUsed = way{"plain used", plain, true, false}
	otherNew  = []way{{"lease new", lab.Lease, false, false}, {"offload new", lab.Offload, false, false}}
	otherUsed = []way{{"lease", lab.Lease, true, false}, {"offload", lab.Offload, true, false}, {"recalled", lab.Lease, true, true}}
)

// exchange is one run of a scenario.
type exchange struct {
	t     *testing.T
	l     *lab.Lab
	files *media
	way   way
	ctl   *http.Client
	key   string // of the notes
	notes int    // that were seen
	lines []string
}

// TestAnyServer: what clients of net/http and of other servers see, and what these see of their clients, is the same on a net.Listen, on
// connections that the host has, and on those that come and go.
func TestAnyServer(t *testing.T) {
	files := newBigMedia(t)
	l := newLab(t, files)
	startTraffic(t, l, plain, lab.Lease, lab.Offload)
	for name, play := range scenarios {
		t.Run(name, func(t *testing.T) {
			for reference, others := range map[way][]way{plainNew: otherNew, plainUsed: otherUsed} {
				want := run(t, l, files, name, reference, play)
				t.Logf("%s:\n%s", reference.name, want)
				for _, other := range others {
					t.Run(other.name, func(t *testing.T) {
						if diff := cmp.Diff(want, run(t, l, files, name, other, play)); diff != "" {
							t.Errorf("unlike %s (-) is %s (+):\n%s", reference.name, other.name, diff)
						}
					})
				}
			}
		})
	}
	noTrafficLeases(t, l)
	const sessions = 4 // of the lab's servers, and of those that have taken their places
	if s := hostStatus(t, l); s.Breaches != 0 || s.Closed["kernel"] != 0 || s.SessionsTotal != sessions {
		t.Errorf("%d breaches, %d sessions, leases closed for %v", s.Breaches, s.SessionsTotal, s.Closed)
	}
}

// noTrafficLeases waits until neither end knows of a lease.
func noTrafficLeases(t *testing.T, l *lab.Lab) {
	t.Helper()
	noLeases(t, l)
	eventually(t, "no connection is left on the host", func() bool { return len(hostConnections(t, l)) == 0 })
}

// run plays a scenario over one way and returns what there was to see.
func run(t *testing.T, l *lab.Lab, files *media, name string, w way, play func(*exchange)) string {
	t.Helper()
	key := strings.ReplaceAll(name+"-"+w.name, " ", "-")
	e := &exchange{t: t, l: l, files: files, way: w, ctl: httpClient(t, l), key: url.QueryEscape(strings.ReplaceAll(key, ",", ""))}
	if w.storm {
		defer e.recallAllTheTime()()
	}
	play(e)
	return strings.Join(e.lines, "\n")
}

// recallAllTheTime lets the host give back whatever it has, until stop is called.
func (e *exchange) recallAllTheTime() (stop func()) {
	quit, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-quit:
				return
			case <-time.After(3 * time.Millisecond):
				_ = e.l.HostAdmin(context.Background(), http.MethodPost, "/recall", nil) // that it works is seen elsewhere
			}
		}
	}()
	return sync.OnceFunc(func() { close(quit); <-stopped })
}

// saw notes what there was to see.
func (e *exchange) saw(format string, args ...any) {
	e.lines = append(e.lines, fmt.Sprintf(format, args...))
}

// addr is the server's address at a distance from its first port.
func (e *exchange) addr(distance int) string {
	host, _, _ := net.SplitHostPort(e.l.Addr(e.way.arm))
	return net.JoinHostPort(host, strconv.Itoa(portOf(e.t, e.l.Addr(e.way.arm))+distance))
}

// connect makes a connection to net/http.
func (e *exchange) connect(options ...func(fd int) error) *client {
	e.t.Helper()
	return e.connectTo(e.addr(0), options...)
}

func (e *exchange) connectTo(addr string, options ...func(fd int) error) *client {
	e.t.Helper()
	c := dialAddr(e.t, e.l, addr, options...)
	if e.way.used {
		before := serverStats(e.t, e.l, e.way.arm).Counts.Handovers
		c.get("64k.m4s", e.files.files["64k.m4s"])
		e.checkHandedOver(before)
	}
	return c
}

// checkHandedOver makes sure that the test is not one of local connections.
func (e *exchange) checkHandedOver(before uint64) {
	e.t.Helper()
	if e.way.arm == plain {
		return
	}
	eventually(e.t, "the guest has heard that its connection was handed over", func() bool {
		return serverStats(e.t, e.l, e.way.arm).Counts.Handovers > before
	})
}

// raw makes a connection to a service, either one that was HTTP before or one that begins with the service.
func (e *exchange) raw(name string, options ...func(fd int) error) *client {
	e.t.Helper()
	if !e.way.used {
		c := e.connect(options...)
		c.send("GET /raw/" + name + "?note=" + e.key + " HTTP/1.1\r\nHost: x\r\n\r\n")
		if resp, err := c.header(http.MethodGet); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			e.t.Fatalf("%s: %v, %v", name, resp, err)
		}
		return c
	}
	before := serverStats(e.t, e.l, e.way.arm).Counts.Handovers
	c := dialAddr(e.t, e.l, e.addr(rawPort), options...)
	c.send(name + " " + e.key + "\n")
	c.take(e.files.files[firstFile])
	e.checkHandedOver(before)
	return c
}

// ask calls the control of the server.
func (e *exchange) ask(path string, query url.Values) string {
	e.t.Helper()
	resp, err := e.ctl.Get("http://" + e.addr(adminPort) + path + "?" + query.Encode())
	must(e.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(e.t, err)
	if resp.StatusCode != http.StatusOK {
		e.t.Fatalf("%s: %s: %s", path, resp.Status, body)
	}
	return string(body)
}

// notesOf waits for n notes of a key.
func (e *exchange) notesOf(key string, n int) (notes []string) {
	e.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		notes = nil
		must(e.t, json.Unmarshal([]byte(e.ask("/notes", url.Values{"key": {key}})), &notes))
		if len(notes) >= n {
			break
		}
	}
	return notes
}

// sawNotes waits for n more notes of the server.
func (e *exchange) sawNotes(n int) {
	e.t.Helper()
	notes := e.notesOf(e.key, e.notes+n)
	e.lines = append(e.lines, notes[min(e.notes, len(notes)):]...)
	if len(notes) < e.notes+n {
		e.saw("%d notes are missing", e.notes+n-len(notes))
	}
	e.notes = len(notes)
}

// sawStates waits until net/http has told of so many states of a connection.
func (e *exchange) sawStates(c *client, n int) {
	e.t.Helper()
	e.saw("states: %s", strings.Join(e.notesOf(c.LocalAddr().String(), n), " "))
}

// open opens a gate.
func (e *exchange) open(key string) { e.t.Helper(); e.ask("/open", url.Values{"key": {key}}) }

// sawAnswer reads one response.
func (e *exchange) sawAnswer(c *client, method string) {
	e.t.Helper()
	resp, err := c.header(method)
	if err != nil {
		e.saw("no response: %s", endOf(err))
		return
	}
	resp.Header.Del("Date")
	body := digest(resp.Body)
	e.saw("%s, length %d, %v, close %v, %v: %s, trailers %v", resp.Status, resp.ContentLength, resp.TransferEncoding, resp.Close, resp.Header, body, resp.Trailer)
}

// digest reads r to its end.
func digest(r io.Reader) string {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%d bytes %.6x, %s", n, h.Sum(nil), endOf(err))
}

// endOf is kindOf for the client of a connection that ends too early: by FIN or by RST is the kernel's decision, which depends on the moment.
func endOf(err error) string {
	if err != nil && closedByPeer(err) {
		return "cut"
	}
	return kindOf(err)
}
