package e2e

import (
	"net"
	"os/exec"
	"testing"

	"spillway/internal/lab"
)

// TestClientOnHost: a client on the machine of the daemon itself, as a health check or a proxy is: its packets never come in, so its connections stay in the
// guest.
func TestClientOnHost(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	for _, arm := range offloading {
		c := dialFrom(t, l.Host, l.Addr(arm))
		c.get("10m.mp4", files.files["10m.mp4"])
		c.get("4k.m4s", files.files["4k.m4s"])
		if s := serverStats(t, l, arm); s.Counts.Handovers != 0 || s.Fallbacks["path"] == 0 {
			t.Errorf("%s: %+v; want no handover, and fallbacks for path", arm, s)
		}
		fetch(t, l, arm, "10m.mp4", files.files["10m.mp4"]) // others are not concerned
		expectSends(t, l, arm, 1)
	}
}

// TestPublishedPort: a port that the host publishes for the guest (DNAT) leads clients to it by another address. Their connections are leased as well.
func TestPublishedPort(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal("nft is not installed; scripts/setup.sh does it: ", err)
	}
	files := newMedia(t)
	l := newLab(t, files)
	check := watchResets(t, l)
	for port, arm := range map[string]lab.Arm{"8181": lab.Offload, "8182": lab.Lease} {
		must(t, l.Host.Do(func() error {
			for _, line := range [][]string{
				{"add", "table", "ip", "publish"},
				{"add", "chain", "ip", "publish", "prerouting", "{ type nat hook prerouting priority dstnat; }"},
				{"add", "rule", "ip", "publish", "prerouting", "tcp", "dport", port, "dnat", "to", l.Addr(arm)},
			} {
				if out, err := exec.Command(nft, line...).CombinedOutput(); err != nil {
					t.Errorf("nft %v: %s", line, out)
					return err
				}
			}
			return nil
		}))
		host, _, err := net.SplitHostPort(l.Addr(lab.Baremetal))
		must(t, err)
		c := dialAddr(t, l, net.JoinHostPort(host, port))
		for range 3 {
			c.get("10m.mp4", files.files["10m.mp4"])
			c.get("4k.m4s", files.files["4k.m4s"])
		}
		expectSends(t, l, arm, 6)
		must(t, c.Close())
	}
	noLeases(t, l)
	check()
}

// TestMasqueradedClient: a client whose address the host hides from the guest (SNAT) is one of the host's own to the guest: it is served, by the guest.
func TestMasqueradedClient(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal("nft is not installed; scripts/setup.sh does it: ", err)
	}
	files := newMedia(t)
	l := newLab(t, files)
	must(t, l.Host.Do(func() error {
		for _, line := range [][]string{
			{"add", "table", "ip", "hide"},
			{"add", "chain", "ip", "hide", "postrouting", "{ type nat hook postrouting priority srcnat; }"},
			{"add", "rule", "ip", "hide", "postrouting", "oifname", "guest0", "masquerade"},
		} {
			if out, err := exec.Command(nft, line...).CombinedOutput(); err != nil {
				t.Errorf("nft %v: %s", line, out)
				return err
			}
		}
		return nil
	}))
	for _, arm := range offloading {
		c := dial(t, l, arm)
		c.get("10m.mp4", files.files["10m.mp4"])
		c.get("4k.m4s", files.files["4k.m4s"])
		if s := serverStats(t, l, arm); s.Counts.Handovers != 0 || s.Fallbacks["path"] == 0 {
			t.Errorf("%s: %+v; want no handover, and fallbacks for path", arm, s)
		}
	}
}
