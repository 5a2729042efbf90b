package testkit

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// recorder is a testing.TB that notes failures and runs cleanups when told.
type recorder struct {
	testing.TB
	errors   []string
	cleanups []func()
}

func (r *recorder) Helper()                      {}
func (r *recorder) Cleanup(f func())             { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Error(args ...any)            { r.errors = append(r.errors, "error") }
func (r *recorder) Errorf(f string, args ...any) { r.errors = append(r.errors, f) }
func (r *recorder) finish() {
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
}

func TestTripleRoutes(t *testing.T) {
	CheckFDs(t)
	hooked := false
	n := Triple(t, func(_ testing.TB, n *Network) { hooked = n.Guest != nil })
	if !hooked {
		t.Error("the hook was not called")
	}
	n.CheckNoResets(t)
	for _, guest := range []string{Guest4, Guest6} {
		ln := n.Guest.Listen(t, "tcp", net.JoinHostPort(guest, "0"))
		c := n.Client.Dial(t, "tcp", ln.Addr().String())
		if _, err := c.Write([]byte("through the host")); err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		s, err := ln.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		s.SetDeadline(time.Now().Add(20 * time.Second))
		if got, err := io.ReadAll(s); err != nil || string(got) != "through the host" {
			t.Errorf("%s received %q, %v", guest, got, err)
		}
	}
	if seen := n.Host.TCPCounter(t, "InSegs"); seen != 0 {
		t.Errorf("the host took %d segments for its own", seen)
	}
}

func TestNamespaceDo(t *testing.T) {
	ns := NewNamespace(t, "alone")
	inside, outside := "", ""
	ns.Must(t, func() (err error) { inside, err = os.Readlink("/proc/thread-self/ns/net"); return err })
	outside, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil || inside == outside {
		t.Errorf("inside is %s, outside %s, %v", inside, outside, err)
	}
	want := errors.New("cause")
	if err := ns.Do(func() error { return want }); !errors.Is(err, want) || !strings.Contains(err.Error(), "alone") {
		t.Errorf("Do says %v", err)
	}
	if err := ns.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("Do hides that the function ended its goroutine")
	}
}

func TestCheckNoResetsSees(t *testing.T) {
	n := Triple(t)
	r := &recorder{TB: t}
	n.CheckNoResets(r)
	n.Client.Must(t, func() error {
		if _, err := net.DialTimeout("tcp", net.JoinHostPort(Guest4, "9"), 20*time.Second); err == nil {
			return errors.New("nothing listens there")
		}
		return nil
	})
	r.finish()
	if len(r.errors) != 1 {
		t.Errorf("a RST of the guest made %d errors, want 1", len(r.errors))
	}
}

func TestCheckFDsSees(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for settleTime")
	}
	r := &recorder{TB: t}
	CheckFDs(r)
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.finish()
	if len(r.errors) != 1 {
		t.Errorf("an open file made %d errors, want 1", len(r.errors))
	}
}

func TestSNMPCounter(t *testing.T) {
	const text = "Ip: A B\nIp: 1 2\nTcp: OutRsts InErrs\nTcp: 7 8\n"
	if got, err := snmpCounter(text, "Tcp:", "InErrs"); got != 8 || err != nil {
		t.Errorf("got %d, %v, want 8", got, err)
	}
	if _, err := snmpCounter(text, "Tcp:", "None"); err == nil {
		t.Error("no error for a counter that is not there")
	}
}
