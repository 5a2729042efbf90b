package redirect

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// TestSees: a client on this machine, and one behind the VM's own interface, are not seen; all others are.
func TestSees(t *testing.T) {
	r := newRouter(t)
	var rd *Redirect
	r.host.do(t, func() { rd = install(t, Config{}) })
	for _, c := range []struct{ local, remote, want string }{
		{"10.77.0.2", "10.78.0.2", ""},
		{"10.77.0.2", "10.78.0.77", ""},
		{"fd77::2", "fd78::2", ""},
		{"10.77.0.2", "10.78.0.1", "of this machine"},
		{"10.77.0.2", "10.77.0.1", "of this machine"},
		{"fd77::2", "fd78::1", "of this machine"},
		{"10.77.0.2", "10.77.0.9", "the same interface"},
		{"fd77::2", "fd77::9", "the same interface"},
	} {
		for range 2 { // once asked, once remembered
			err := rd.Sees(netip.MustParseAddr(c.local), netip.MustParseAddr(c.remote))
			var unseen *UnseenError
			if (c.want == "") != (err == nil) || err != nil && (!errors.As(err, &unseen) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("from %s to %s: %v; want %q", c.remote, c.local, err, c.want)
			}
		}
	}
	if err := rd.Sees(netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("203.0.113.1")); err == nil || errors.As(err, new(*UnseenError)) {
		t.Errorf("without a route: %v", err)
	}
	check(t, rd.Remove())
	if err := rd.Sees(netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("10.78.0.99")); !errors.Is(err, ErrRemoved) {
		t.Errorf("removed: %v", err)
	}
}
