package evaluation

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/bench"
	"spillway/internal/guest"
	"spillway/internal/lab"
)

// IdlePlan says how many leased connections are kept, and what they do before and after they are idle.
type IdlePlan struct {
	Connections int
	Window      int   // of them that read slowly at the same time
	Size        int64 // bytes of a response
}

// What a lease may cost, on the host and in the guest. The bars of memory and threads are held from barConnections on: below, what a process takes anyway
// is more than what its leases do.
const (
	maxBytesPerLease = 24_000
	maxMediaFiles    = 100 // all connections ask for the same file
	maxThreads       = 200
	barConnections   = 1000
)

// spareFiles are descriptors that a process needs besides one for each connection.
const spareFiles = 500

// Validate tells whether the plan can be carried out.
func (p IdlePlan) Validate() error {
	switch {
	case p.Connections < 1 || p.Connections > 60_000:
		return fmt.Errorf("connections: %d; 1 to 60000 are possible, as many as a client has ports", p.Connections)
	case p.Window < 1:
		return fmt.Errorf("window: %d; at least 1 is needed", p.Window)
	case p.Size < 1:
		return fmt.Errorf("size: %d; at least 1 byte is needed", p.Size)
	}
	return raiseFileLimit(uint64(p.Connections + spareFiles))
}

// raiseFileLimit makes sure that this process, and those that it starts, may open n files.
func raiseFileLimit(n uint64) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	if limit.Max >= n { // Go has set the soft limit to the hard one
		return nil
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n}); err != nil {
		return fmt.Errorf("connections: client, server and daemon need %d open files each, and the limit is %d (ulimit -Hn): %w", n, limit.Max, err)
	}
	return nil
}

// RunIdle keeps leased connections in a lab of namespaces and tells what they cost. The rows are the phases of their life: base (there is none
// yet), slow (each has read one response slowly), idle, at once (all ask together; the figures of processes are the most that was seen), idle again, and
// closed. The file is made in opts.Files.
func RunIdle(ctx context.Context, opts lab.Options, plan IdlePlan, progress *bench.Progress) (report *bench.Report, err error) {
	if err := plan.Validate(); err != nil {
		return nil, err
	}
	if opts.VM != lab.NetNS {
		return nil, fmt.Errorf("a guest of kind %s: the idle bench measures the server's process, and needs netns", opts.VM)
	}
	cases, err := SizeCases(opts.Files, []int64{plan.Size}, 1)
	if err != nil {
		return nil, err
	}
	opts.MaxLeases, opts.Threshold = plan.Connections+1, 0
	err = inLab(ctx, opts, progress, func(l *lab.Lab) error {
		env, err := environment(l)
		if err != nil {
			return err
		}
		report = bench.NewReport("idle", env)
		m := idleMeasurement{lab: l, plan: plan, target: cases[0].Targets[0], progress: progress, report: report}
		defer m.close()
		return m.run(ctx)
	})
	return report, err
}

// idleMeasurement is a plan in progress.
type idleMeasurement struct {
	lab      *lab.Lab
	plan     IdlePlan
	target   bench.Target
	progress *bench.Progress
	report   *bench.Report
	clients  []idleClient
	base     map[string]bench.Process
}

// idleClient is one connection.
type idleClient struct {
	*bench.Client
	pace *atomic.Bool // it reads slowly
}

const (
	// idleSettle is how long the connections are left alone before memory is read.
	idleSettle = 3 * time.Second
	// idleTimeout is the silence that is a failure: all connections share two CPUs.
	idleTimeout = time.Minute
	// idleBuffer is the client's: there are thousands of them in this process. Bytes.
	idleBuffer = 8 << 10
)

// run is the life of the connections.
func (m *idleMeasurement) run(ctx context.Context) error {
	if err := m.lab.Client.Sysctl("net/ipv4/ip_local_port_range", "1024 65535"); err != nil {
		return err
	}
	m.progress.Step("idle: warm-up")
	if err := m.warmUp(ctx); err != nil {
		return err
	}
	if err := m.phase(ctx, "base", nil, false); err != nil {
		return err
	}
	m.base = m.report.Rows[0].Processes
	if err := m.lab.ResetServerStats(ctx, lab.Lease); err != nil { // the warm-up's
		return err
	}
	for range m.plan.Connections {
		m.clients = append(m.clients, m.newClient())
	}
	if err := m.phase(ctx, "slow", m.ask(m.plan.Window, true), false); err != nil {
		return err
	}
	if err := m.phase(ctx, "idle", nil, true); err != nil {
		return err
	}
	if err := m.phase(ctx, "at once", m.ask(m.plan.Connections, false), false); err != nil {
		return err
	}
	if err := m.phase(ctx, "idle again", nil, true); err != nil {
		return err
	}
	m.progress.Step("idle: closing %d connections", m.plan.Connections)
	m.close()
	if _, err := settled(ctx, m.lab, lab.Lease); err != nil {
		return err
	}
	if err := m.phase(ctx, "closed", nil, false); err != nil {
		return err
	}
	m.progress.Done("")
	return errors.Join(m.overBar()...)
}

// warmUp uses everything once, so that what is made once is not counted for the leases.
func (m *idleMeasurement) warmUp(ctx context.Context) error {
	c := m.newClient()
	defer c.Close()
	var rec bench.Recorder
	if err := bench.Pass(ctx, c.Client, []bench.Target{m.target, m.target}, true, &rec, nil); err != nil {
		return err
	}
	if err := errors.Join(rec.Errors()...); err != nil {
		return err
	}
	c.Close()
	_, err := settled(ctx, m.lab, lab.Lease)
	return err
}

// ask has every client request the file, at most window of them at the same time, and checks the bodies.
func (m *idleMeasurement) ask(window int, slowly bool) func(ctx context.Context) (*bench.Recorder, error) {
	return func(ctx context.Context) (*bench.Recorder, error) {
		recorders := make([]bench.Recorder, len(m.clients))
		errs := make([]error, len(m.clients))
		var running sync.WaitGroup
		var answered atomic.Int64
		slots := make(chan struct{}, window)
		start := time.Now()
		for i, c := range m.clients {
			slots <- struct{}{}
			if ctx.Err() != nil {
				break
			}
			running.Go(func() {
				defer func() { <-slots }()
				c.pace.Store(slowly)
				errs[i] = bench.Pass(ctx, c.Client, []bench.Target{m.target}, true, &recorders[i], nil)
				m.progress.Update("%d of %d", answered.Add(1), len(m.clients))
			})
		}
		running.Wait()
		all := &bench.Recorder{}
		all.AddElapsed(time.Since(start))
		for i := range recorders {
			all.Merge(&recorders[i])
		}
		return all, errors.Join(firstOf(errs), ctx.Err())
	}
}

// firstOf is the first error: thousands of the same say no more.
func firstOf(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// phase carries out a phase and adds its row. In a phase without work the processes are left alone, and with leases every connection must have
// its own; during work the most that was seen of threads and files is noted.
func (m *idleMeasurement) phase(ctx context.Context, name string, work func(context.Context) (*bench.Recorder, error), leases bool) error {
	m.progress.Step("idle: %s", name)
	rec := &bench.Recorder{}
	var most map[string]bench.Process
	if work == nil {
		if err := m.leaveAlone(ctx, leases); err != nil {
			return err
		}
	} else {
		stop := make(chan struct{})
		watched := make(chan map[string]bench.Process)
		go func() { watched <- m.watch(stop) }()
		var err error
		rec, err = work(ctx)
		close(stop)
		most = <-watched
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	processes, err := usage(ctx, m.lab, lab.Lease)
	if err != nil {
		return err
	}
	stats, err := m.lab.ServerStats(ctx, lab.Lease)
	if err != nil {
		return err
	}
	row, wrong := newRow(lab.Lease, name, rec, &bench.Recorder{}, stats)
	row.Leases, row.Processes = stats.Leases, map[string]bench.Process{}
	if work == nil {
		row.Steps = nil // of earlier phases
	}
	for name, p := range processes {
		if base, ok := m.base[name]; ok && leases {
			p.RSSBytesPerLease = (p.RSSBytes - base.RSSBytes) / int64(stats.Leases)
		}
		p.Threads, p.OpenFiles, p.MediaFiles = max(p.Threads, most[name].Threads), max(p.OpenFiles, most[name].OpenFiles),
			max(p.MediaFiles, most[name].MediaFiles)
		row.Processes[name] = p
	}
	m.report.Rows = append(m.report.Rows, row)
	return wrong
}

// leaveAlone waits until all connections are leased, and what has to do with earlier work is over.
func (m *idleMeasurement) leaveAlone(ctx context.Context, leases bool) error {
	want := 0
	if leases {
		want = m.plan.Connections
	}
	var stats guest.Snapshot
	for deadline := time.Now().Add(idleTimeout); ; {
		var err error
		if stats, err = m.lab.ServerStats(ctx, lab.Lease); err != nil {
			return err
		}
		if stats.Leases == want {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d leases, want %d; responses that the guest has sent by itself: %v", stats.Leases, want, stats.Fallbacks)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return pause(ctx, idleSettle)
}

// pause sleeps, unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// watch notes the most threads and files that the processes have until stop is closed.
func (m *idleMeasurement) watch(stop <-chan struct{}) map[string]bench.Process {
	most := map[string]bench.Process{}
	pids := m.lab.PIDs()
	for {
		for name, pid := range map[string]int{hostName: pids["host"], serverName: pids[string(lab.Lease)]} {
			now, err := threadsAndFiles(pid, m.lab.Files)
			if err != nil {
				continue // it has ended, which the clients notice
			}
			was := most[name]
			most[name] = bench.Process{Threads: max(now.Threads, was.Threads), OpenFiles: max(now.OpenFiles, was.OpenFiles),
				MediaFiles: max(now.MediaFiles, was.MediaFiles)}
		}
		select {
		case <-stop:
			return most
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// overBar says what of the last phases is more than it may be.
func (m *idleMeasurement) overBar() (over []error) {
	for _, row := range m.report.Rows {
		for name, p := range row.Processes {
			if p.MediaFiles > maxMediaFiles {
				over = append(over, fmt.Errorf("%s: %s has %d media files open, more than %d", row.Case, name, p.MediaFiles, maxMediaFiles))
			}
			if m.plan.Connections < barConnections {
				continue
			}
			if p.RSSBytesPerLease > maxBytesPerLease {
				over = append(over, fmt.Errorf("%s: %s takes %d bytes for each lease, more than %d", row.Case, name, p.RSSBytesPerLease, maxBytesPerLease))
			}
			if p.Threads > maxThreads {
				over = append(over, fmt.Errorf("%s: %s has %d threads, more than %d", row.Case, name, p.Threads, maxThreads))
			}
		}
	}
	return over
}

// newClient is a client that can read slowly, with a small receive buffer so that the sender notices.
func (m *idleMeasurement) newClient() idleClient {
	pace := &atomic.Bool{}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		d := &net.Dialer{Timeout: idleTimeout, Control: func(_, _ string, raw syscall.RawConn) error {
			const receiveBuffer = 16 << 10
			var err error
			return errors.Join(raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
			}), err)
		}}
		conn, err := m.lab.Client.Dial(d, network, addr)
		if err != nil {
			return nil, err
		}
		return pacedConn{conn, pace}, nil
	}
	opts := bench.ClientOptions{Dial: dial, Timeout: idleTimeout, StallAfter: idleTimeout, BufferBytes: idleBuffer}
	return idleClient{bench.NewClient(m.lab.Addr(lab.Lease), opts), pace}
}

// pacedConn reads little at a time while it is told to be slow.
type pacedConn struct {
	net.Conn
	slow *atomic.Bool
}

func (c pacedConn) Read(p []byte) (int, error) {
	if c.slow.Load() {
		time.Sleep(10 * time.Millisecond)
		p = p[:min(len(p), 4<<10)]
	}
	return c.Conn.Read(p)
}

// close closes all connections.
func (m *idleMeasurement) close() {
	for _, c := range m.clients {
		_ = c.Close() // an error says that it is closed
	}
	m.clients = nil
}
