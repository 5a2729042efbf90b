package evaluation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/bench"
	"spillway/internal/guest"
	"spillway/internal/lab"
)

// Server is one that is already there, and the arm of its rows. It serves the files of the cases below its path.
type Server struct {
	Arm   string
	Addr  string // host:port
	Path  string // begins and ends with a slash
	Admin string // URL of its counters, without a slash at its end; empty: nothing is known of it but what the client sees
}

// ParseServer reads NAME=URL, or a URL alone, whose arm is byDefault. Behind a comma may stand admin=URL: what spillway serve --admin listens at. Without
// it there is no arm that offloads, as nobody could tell whether it did.
func ParseServer(s, byDefault string) (Server, error) {
	name, rest, found := strings.Cut(s, "=")
	if !found || strings.Contains(name, "/") {
		name, rest = byDefault, s
	}
	address, admin, _ := strings.Cut(rest, ",")
	u, err := plainURL(address)
	if err != nil || name == "" {
		return Server{}, fmt.Errorf("%q: write http://HOST[:PORT]/PATH/, or NAME=http://…", s)
	}
	server := Server{Arm: name, Addr: u.Host, Path: u.EscapedPath()}
	if u.Port() == "" {
		server.Addr = net.JoinHostPort(u.Hostname(), "80")
	}
	if !strings.HasSuffix(server.Path, "/") {
		server.Path += "/"
	}
	if admin != "" {
		value, ok := strings.CutPrefix(admin, "admin=")
		u, err := plainURL(value)
		if !ok || err != nil {
			return Server{}, fmt.Errorf("%q: write admin=http://HOST:PORT behind the comma", s)
		}
		server.Admin = strings.TrimSuffix(u.String(), "/")
	}
	if offloads(lab.Arm(name)) && server.Admin == "" {
		return Server{}, fmt.Errorf("%q: arm %s needs the address of its counters, or nobody knows whether it offloads: %s=%s,admin=http://HOST:PORT, "+
			"where spillway serve runs with --admin", s, name, name, address)
	}
	return server, nil
}

func plainURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err == nil && (u.Scheme != "http" || u.Hostname() == "" || u.RawQuery != "") {
		err = errors.New("no plain http URL")
	}
	return u, err
}

func offloads(arm lab.Arm) bool {
	return arm == lab.Offload || arm == lab.Lease || arm == lab.LeaseCache
}

// Machines are the user's: servers that are there already, in place of a lab. Nothing is changed on them.
type Machines struct {
	Servers []Server
	// Running are processes on this machine whose CPU time is to be measured, by the names of a lab: host (the daemon), qemu, and arms for their servers.
	Running map[string]int
	// Env is what the user says of them. An accelerator that is not named is found out from QEMU's process, if there is one among Running.
	Env bench.Env

	before map[lab.Arm]guest.Snapshot // at the last reset
}

// Run measures a plan whose arms are the servers.
func (m *Machines) Run(ctx context.Context, name string, plan Plan, progress *bench.Progress) (*bench.Report, error) {
	return m.report(ctx, name, plan, func(plan Plan) ([]bench.Row, error) { return measure(ctx, m, plan, progress) })
}

// Dash is [RunDash] against the servers.
func (m *Machines) Dash(ctx context.Context, plan Plan, players PlayersPlan, progress *bench.Progress) (*bench.Report, error) {
	return m.report(ctx, "dash", plan, func(plan Plan) ([]bench.Row, error) {
		players.Arms = plan.Arms
		return measureDash(ctx, m, plan, players, progress)
	})
}

// Concurrency is [RunConcurrency] against the servers.
func (m *Machines) Concurrency(ctx context.Context, plan Plan, numbers []int, requests int, progress *bench.Progress) (*bench.Report, error) {
	if err := checkConcurrency(&plan, numbers); err != nil {
		return nil, err
	}
	return m.report(ctx, "concurrency", plan, func(plan Plan) ([]bench.Row, error) {
		return measureConcurrency(ctx, m, plan, numbers, requests, progress)
	})
}

// report makes the servers the plan's arms, and a report of what measure says of them.
func (m *Machines) report(ctx context.Context, name string, plan Plan, measure func(Plan) ([]bench.Row, error)) (*bench.Report, error) {
	plan.Arms, plan.cpu = nil, len(m.Running) > 0
	if err := errors.Join(plan.Validate(), m.check(ctx)); err != nil {
		return nil, err
	}
	for _, s := range m.Servers {
		plan.Arms = append(plan.Arms, lab.Arm(s.Arm))
	}
	env, err := m.environment()
	if err != nil {
		return nil, err
	}
	report := bench.NewReport(name, env)
	report.Rows, err = measure(plan)
	return report, err
}

// check asks the servers whether they are what their names say.
func (m *Machines) check(ctx context.Context) error {
	for i, s := range m.Servers {
		if slices.ContainsFunc(m.Servers[:i], func(o Server) bool { return o.Arm == s.Arm }) {
			return fmt.Errorf("arm %s is there twice; name the servers as in a=http://… b=http://…", s.Arm)
		}
		if s.Arm == string(lab.VMCold) {
			return fmt.Errorf("arm %s: only the caches of a lab's own VM can be dropped", s.Arm)
		}
		if s.Admin == "" {
			continue
		}
		stats, err := m.ask(ctx, s)
		if err != nil {
			return err
		}
		mode := guest.Off.String()
		if offloads(lab.Arm(s.Arm)) {
			mode = s.Arm
		}
		switch {
		case stats.Mode != mode:
			return fmt.Errorf("arm %s: the server at %s is in mode %q", s.Arm, s.Admin, stats.Mode)
		case mode != guest.Off.String() && stats.Host != "up":
			return fmt.Errorf("arm %s: the server at %s has no session with the host daemon: its host is %q", s.Arm, s.Admin, stats.Host)
		}
	}
	return nil
}

// environment is what is known of the machines: of the host only what the user says, unless one of its processes runs here.
func (m *Machines) environment() (bench.Env, error) {
	env := m.Env
	if len(m.Running) > 0 {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return env, err
		}
		if env.CPUs = runtime.NumCPU(); env.Kernel == "" {
			env.Kernel = unix.ByteSliceToString(u.Release[:])
		}
	}
	if pid, ok := m.Running[lab.QEMUProcess]; ok && env.Accelerator == "" {
		var err error
		if env.Accelerator, err = acceleratorOf(pid); err != nil {
			return env, err
		}
	}
	for _, field := range []*string{&env.Accelerator, &env.Link} {
		if *field == "" {
			*field = "unknown"
		}
	}
	return env, nil
}

// acceleratorOf a QEMU: one that uses KVM has a descriptor of its VM (KVM_CREATE_VM, virt/kvm/kvm_main.c).
func acceleratorOf(pid int) (string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	files, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, f := range files {
		// One that was closed meanwhile fails, and is none.
		if target, err := os.Readlink(filepath.Join(dir, f.Name())); err == nil && target == "anon_inode:kvm-vm" {
			return "kvm", nil
		}
	}
	return "tcg", nil
}

func (m *Machines) server(arm lab.Arm) Server {
	i := slices.IndexFunc(m.Servers, func(s Server) bool { return s.Arm == string(arm) })
	if i < 0 {
		return Server{}
	}
	return m.Servers[i]
}

// statsTimeout bounds a question for counters.
const statsTimeout = 5 * time.Second

// ask reads a server's counters.
func (m *Machines) ask(ctx context.Context, s Server) (stats guest.Snapshot, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("arm %s: its counters: %w", s.Arm, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Admin+"/stats", nil)
	if err != nil {
		return stats, err
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		return stats, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return stats, fmt.Errorf("GET %s: %s", req.URL, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return stats, err
	}
	return stats, json.Unmarshal(body, &stats)
}

// URL implements site.
func (m *Machines) URL(arm lab.Arm, file string) string {
	s := m.server(arm)
	return "http://" + s.Addr + s.Path + file
}

// DialContext implements site.
func (m *Machines) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, address)
}

// RTT implements site: it is not known.
func (m *Machines) RTT() time.Duration { return 0 }

// ServerStats implements site: what a server has counted since the last reset. The times of its steps cannot be told apart from earlier ones.
func (m *Machines) ServerStats(ctx context.Context, arm lab.Arm) (guest.Snapshot, error) {
	s := m.server(arm)
	if s.Admin == "" {
		return guest.Snapshot{}, nil
	}
	now, err := m.ask(ctx, s)
	if err != nil {
		return now, err
	}
	before := m.before[arm]
	now.Counts.Handovers -= before.Counts.Handovers
	now.Counts.Handbacks -= before.Counts.Handbacks
	now.Counts.Sends -= before.Counts.Sends
	for reason, n := range before.Fallbacks {
		now.Fallbacks[reason] -= n
	}
	maps.DeleteFunc(now.Fallbacks, func(_ string, n uint64) bool { return n == 0 })
	now.Steps = nil
	return now, nil
}

// ResetServerStats implements site. The server goes on counting.
func (m *Machines) ResetServerStats(ctx context.Context, arm lab.Arm) error {
	s := m.server(arm)
	if s.Admin == "" {
		return nil
	}
	stats, err := m.ask(ctx, s)
	if m.before == nil {
		m.before = map[lab.Arm]guest.Snapshot{}
	}
	m.before[arm] = stats
	return err
}

// TCPTimeouts implements site: nobody tells.
func (m *Machines) TCPTimeouts(context.Context) (map[string]int64, error) { return nil, nil }

// DropCaches implements site.
func (m *Machines) DropCaches(context.Context, ...string) error {
	return errors.New("the caches of machines that are not a lab's cannot be dropped")
}

// PIDs implements site.
func (m *Machines) PIDs() map[string]int { return m.Running }
