package host

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"spillway/internal/config"
	"spillway/internal/redirect"
	"spillway/internal/tcprepair"
	"spillway/internal/testkit"
	"spillway/internal/wire"
)

// patience bounds every wait of a test for something that happens at once on an idle machine.
const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a daemon in the host's namespace, with a client's and a guest's namespace beside it.
type rig struct {
	tb     testing.TB
	net    *testkit.Network
	cfg    config.Host
	daemon *Daemon
	stop   context.CancelFunc
	done   chan struct{}
	err    error // of Run, when done is closed
	files  string
	big    []byte // the content of the file "big"
	guests *net.TCPListener
	guest6 *net.TCPListener
}

// nsSockets makes sockets in a namespace.
type nsSockets struct {
	ns      *testkit.Namespace
	freezer *tcprepair.Freezer
}

func (s nsSockets) Get(family int) (fd int, err error) {
	err = s.ns.Do(func() (err error) {
		fd, err = s.freezer.NewTransparent(family)
		return err
	})
	return fd, err
}
func (nsSockets) Close() {}

// newRig starts a daemon for the VMs "one" (the guest's addresses) and "two" (others).
func newRig(tb testing.TB, options ...func(*rig)) *rig {
	tb.Helper()
	testkit.CheckFDs(tb)
	r := &rig{tb: tb, net: testkit.Triple(tb), files: tb.TempDir(), done: make(chan struct{})}
	r.big = make([]byte, 1<<20+12345)
	seed := rand.Uint64()
	tb.Logf("content seed %d", seed)
	random := rand.NewChaCha8([32]byte(binary.LittleEndian.AppendUint64(make([]byte, 24), seed)))
	random.Read(r.big)
	r.write("big", r.big)
	r.write("small", r.big[:4096])

	run := tb.TempDir()
	r.cfg = config.DefaultHost()
	r.cfg.Admin = filepath.Join(run, "admin.sock")
	r.cfg.Shares = []config.HostShare{{Name: "media", Path: r.files}, {Name: "private", Path: r.files}}
	for _, name := range []string{"one", "two"} {
		v := config.DefaultVM()
		v.Name, v.Shares = name, []string{"media"}
		v.Channels = []string{"unix:" + filepath.Join(run, name+".sock")}
		v.Addresses = []netip.Addr{netip.MustParseAddr("10.77.0.99")}
		if name == "one" {
			v.Addresses = []netip.Addr{netip.MustParseAddr(testkit.Guest4), netip.MustParseAddr(testkit.Guest6)}
		}
		r.cfg.VMs = append(r.cfg.VMs, v)
	}
	r.guests = r.net.Guest.Listen(tb, "tcp4", testkit.Guest4+":80")
	r.guest6 = r.net.Guest.Listen(tb, "tcp6", "["+testkit.Guest6+"]:80")
	for _, o := range options {
		o(r)
	}
	r.start()
	return r
}

// environment runs the daemon in the namespace of the host.
func (r *rig) environment() environment {
	return environment{
		do:      r.net.Host.Do,
		sockets: func(f *tcprepair.Freezer, _ int) sockets { return nsSockets{r.net.Host, f} },
	}
}

// start runs the daemon; the test's end stops it and checks that nothing is left.
func (r *rig) start() {
	r.tb.Helper()
	var err error
	if r.daemon == nil {
		if r.daemon, err = newDaemon(r.cfg, r.logger(), r.environment()); err != nil {
			r.tb.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() {
		defer close(r.done)
		r.err = r.daemon.Run(ctx)
	}()
	r.tb.Cleanup(r.checkStop)
	r.eventually("the daemon listens", func() bool {
		for _, v := range r.cfg.VMs {
			if _, err := os.Stat(v.Channels[0][len("unix:"):]); err != nil {
				return false
			}
		}
		_, err := os.Stat(r.cfg.Admin)
		return err == nil
	})
}

func (r *rig) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{r.tb}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct{ tb testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.tb.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// checkStop stops the daemon and looks for what it left behind.
func (r *rig) checkStop() {
	r.stop()
	select {
	case <-r.done:
	case <-time.After(patience):
		r.tb.Fatal("the daemon does not stop")
	}
	if r.err != nil {
		r.tb.Errorf("Run: %v", r.err)
	}
	for _, v := range r.cfg.VMs {
		if _, err := os.Lstat(v.Channels[0][len("unix:"):]); !errors.Is(err, os.ErrNotExist) {
			r.tb.Errorf("socket of VM %s is left: %v", v.Name, err)
		}
	}
	if _, err := os.Lstat(r.cfg.Admin); !errors.Is(err, os.ErrNotExist) {
		r.tb.Errorf("admin socket is left: %v", err)
	}
	r.net.Host.Must(r.tb, func() error {
		st, err := redirect.Check(redirect.Config{})
		if err == nil && !st.Empty() {
			err = fmt.Errorf("redirect is left: %+v", st)
		}
		return err
	})
	for _, s := range r.daemon.Status().VMs {
		if s.Leases != 0 || s.Sessions != 0 {
			r.tb.Errorf("VM %s has %d leases and %d sessions after the stop", s.Name, s.Leases, s.Sessions)
		}
	}
}

func (r *rig) eventually(what string, ok func() bool) {
	r.tb.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.tb.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// status of VM "one".
func (r *rig) status() VMStatus { return r.daemon.Status().VMs[0] }

// write makes a file of the share and returns how a guest refers to it.
func (r *rig) write(name string, content []byte) wire.FileRef {
	r.tb.Helper()
	if err := os.WriteFile(filepath.Join(r.files, name), content, 0o644); err != nil {
		r.tb.Fatal(err)
	}
	return r.ref(name)
}

func (r *rig) ref(name string) wire.FileRef {
	r.tb.Helper()
	info, err := os.Stat(filepath.Join(r.files, name))
	if err != nil {
		r.tb.Fatal(err)
	}
	return wire.FileRef{Share: "media", Path: name, Size: info.Size(), MTime: info.ModTime().UnixNano()}
}

// whole is a SEND of a whole file.
func (r *rig) whole(name, header string) wire.Send {
	ref := r.ref(name)
	return wire.Send{File: ref, Count: ref.Size, Header: []byte(header)}
}
