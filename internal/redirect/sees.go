package redirect

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// seesFor is how long an answer of Sees is believed, and maxPaths how many there are at a time.
const (
	seesFor  = 10 * time.Second
	maxPaths = 4096
)

// paths remembers how addresses are reached.
type paths struct {
	mu    sync.Mutex
	known map[netip.Addr]path
}

// path is the way to an address: the interface, or 0 for this machine itself.
type path struct {
	link  int
	until time.Time
}

// UnseenError says why the rule does not see the packets that a client sends to a VM.
type UnseenError struct {
	Local, Remote netip.Addr // the VM's address and the client's
	Reason        string
}

func (e *UnseenError) Error() string {
	return fmt.Sprintf("packets from %v to %v do not pass this host's redirect: %s", e.Remote, e.Local, e.Reason)
}

// Sees tells whether packets from remote, a client, to local, a VM, come by the rule, as far as the routing tables tell; if not, the error is an
// *UnseenError. They do not when the client is this machine itself, whose packets go out without having come in, and when client and VM are reached by the
// same interface: then a switch or a bridge joins them. What it finds is believed for seconds.
func (r *Redirect) Sees(local, remote netip.Addr) error {
	toVM, err := r.pathTo(local)
	if err != nil {
		return err
	}
	toClient, err := r.pathTo(remote)
	if err != nil {
		return err
	}
	switch {
	case toClient == 0:
		return &UnseenError{local, remote, "the client's address is one of this machine, which is so for clients on it, and for those that it masquerades"}
	case toClient == toVM:
		return &UnseenError{local, remote, "both are reached by the same interface, so that a bridge or switch joins them; route to the VM instead"}
	}
	return nil
}

// pathTo returns the interface by which an address is reached, 0 for this machine's own.
func (r *Redirect) pathTo(address netip.Addr) (link int, err error) {
	now := time.Now()
	p := &r.paths
	p.mu.Lock()
	defer p.mu.Unlock()
	if known, ok := p.known[address]; ok && now.Before(known.until) {
		return known.link, nil
	}
	routes, err := r.routesTo(address)
	if err != nil {
		return 0, fmt.Errorf("route to %v: %w", address, err)
	}
	for _, route := range routes {
		if route.Type != unix.RTN_LOCAL {
			link = route.LinkIndex
		}
	}
	if len(p.known) >= maxPaths || p.known == nil {
		p.known = make(map[netip.Addr]path)
	}
	p.known[address] = path{link, now.Add(seesFor)}
	return link, nil
}

// routesTo is `ip route get`.
func (r *Redirect) routesTo(address netip.Addr) ([]netlink.Route, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kernel == nil {
		return nil, ErrRemoved
	}
	return r.kernel.route.RouteGet(address.AsSlice())
}
