package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"spillway/internal/config"
	"spillway/internal/delayline"
	"spillway/internal/netns"
)

// Link is what the way between client and host is like. The zero value is a link as fast as it goes. It is a pflag.Value.
//
// A rate alone is a token bucket on a veth pair. Everything else takes a delay line, whose TUN devices then stand in the place of the pair, with the same
// names and addresses.
type Link struct {
	RTT           time.Duration // half of it each way
	BitsPerSecond uint64
	QueueBytes    int64   // before the rate, in each direction; 0: 100 ms of it
	LossPercent   float64 // of the packets, at random, each way
	Seed          uint64  // of the loss; 0: Up chooses one
}

// maxRTT keeps a lab usable: it is twice the way to the moon.
const maxRTT = 5 * time.Second

// ParseLink reads a link as a flag has it: a rate as tc(8) writes it, a round-trip time, and more, in any order: 100mbit; 40ms;
// 40ms,1gbit,loss=0.1%,seed=7,queue=256KiB. Empty is the zero value.
func ParseLink(s string) (Link, error) {
	var l Link
	if s == "" {
		return l, nil
	}
	seen := map[string]bool{}
	for item := range strings.SplitSeq(s, ",") {
		what, err := l.parse(item)
		if err == nil && seen[what] {
			err = fmt.Errorf("%s is there twice", what)
		}
		if err != nil {
			return Link{}, fmt.Errorf("link %q: %w", s, err)
		}
		seen[what] = true
	}
	switch {
	case seen["seed"] && !seen["loss"]:
		return Link{}, fmt.Errorf("link %q: a seed is of the loss, and there is none", s)
	case seen["queue"] && !seen["rate"]:
		return Link{}, fmt.Errorf("link %q: a queue needs a rate, or nothing ever waits", s)
	}
	return l, nil
}

// parse reads one item and tells what it is.
func (l *Link) parse(item string) (what string, err error) {
	key, value, found := strings.Cut(item, "=")
	switch {
	case found && key == "loss":
		percent, ok := strings.CutSuffix(value, "%")
		p, err := strconv.ParseFloat(percent, 64)
		if !ok || err != nil || !(p > 0 && p < 100) {
			return "", fmt.Errorf("%q: write a loss in percent, as loss=0.1%%", item)
		}
		l.LossPercent = p
		return "loss", nil
	case found && key == "seed":
		if l.Seed, err = strconv.ParseUint(value, 10, 64); err != nil || l.Seed == 0 {
			return "", fmt.Errorf("%q: write a seed as a number above 0", item)
		}
		return "seed", nil
	case found && key == "queue":
		var size config.Size
		if err := size.Set(value); err != nil || size == 0 {
			return "", fmt.Errorf("%q: write a queue in bytes, as queue=256KiB", item)
		}
		l.QueueBytes = int64(size)
		return "queue", nil
	case strings.HasSuffix(item, "bit"):
		l.BitsPerSecond, err = parseRate(item)
		return "rate", err
	}
	d, err := time.ParseDuration(item)
	if err != nil {
		return "", fmt.Errorf("%q: write a rate as 1gbit or 100mbit, a round-trip time as 40ms, or both and more as 40ms,100mbit,loss=0.1%%", item)
	}
	if d <= 0 || d > maxRTT {
		return "", fmt.Errorf("%q: a round-trip time is above 0 and at most %v", item, maxRTT)
	}
	l.RTT = d
	return "round-trip time", nil
}

// rateUnits, the largest first.
var rateUnits = []struct {
	suffix string
	bits   uint64
}{{"gbit", 1e9}, {"mbit", 1e6}}

func parseRate(s string) (bitsPerSecond uint64, err error) {
	for _, u := range rateUnits {
		if number, ok := strings.CutSuffix(s, u.suffix); ok {
			if n, err := strconv.ParseUint(number, 10, 16); err == nil && n > 0 {
				return n * u.bits, nil
			}
		}
	}
	return 0, fmt.Errorf("%q: write a rate as 1gbit or 100mbit", s)
}

// String is what ParseLink reads: empty for a link as fast as it goes.
func (l Link) String() string {
	var items []string
	if l.RTT > 0 {
		items = append(items, l.RTT.String())
	}
	for _, u := range rateUnits {
		if l.BitsPerSecond > 0 && l.BitsPerSecond%u.bits == 0 {
			items = append(items, fmt.Sprintf("%d%s", l.BitsPerSecond/u.bits, u.suffix))
			break
		}
	}
	if l.QueueBytes > 0 {
		items = append(items, "queue="+config.Size(l.QueueBytes).String())
	}
	if l.LossPercent > 0 {
		items = append(items, fmt.Sprintf("loss=%g%%", l.LossPercent))
	}
	if l.Seed > 0 {
		items = append(items, fmt.Sprintf("seed=%d", l.Seed))
	}
	return strings.Join(items, ",")
}

// Set reads a link from a flag.
func (l *Link) Set(s string) (err error) {
	*l, err = ParseLink(s)
	return err
}

// Type names the type in a flag's help.
func (l *Link) Type() string { return "link" }

// DelayLine is how a delay line makes this link; without ok none is needed.
func (l Link) DelayLine() (cfg delayline.Config, ok bool) {
	cfg = delayline.Config{Delay: l.RTT / 2, BitsPerSecond: l.BitsPerSecond, QueueBytes: l.QueueBytes, Loss: l.LossPercent / 100, Seed: l.Seed}
	return cfg, l.RTT > 0 || l.LossPercent > 0 || l.QueueBytes > 0
}

// seeded is the link with a seed, if it needs one.
func (l Link) seeded() Link {
	if l.LossPercent > 0 && l.Seed == 0 {
		l.Seed = uint64(rand.Uint32()) + 1
	}
	return l
}

// linkProcess is the name of the process that carries the delay line's packets.
const linkProcess = "link"

// Descriptors with which a delay line's process is born.
const (
	ClientDeviceFD = 3 + iota
	HostDeviceFD
)

// LinkStats is what a delay line has carried, as its process shows it.
type LinkStats struct {
	Link     string             `json:"link"`
	ToHost   delayline.Counters `json:"to_host"`
	ToClient delayline.Counters `json:"to_client"`
}

// Drops are the packets that did not arrive, by cause, in both directions.
func (s LinkStats) Drops() map[string]int64 {
	a, b := s.ToHost, s.ToClient
	return map[string]int64{"queue_full": a.QueueFull + b.QueueFull, "lost": a.Lost + b.Lost, "refused": a.Refused + b.Refused}
}

// LinkStats asks the delay line for its counters.
func (l *Lab) LinkStats(ctx context.Context) (s LinkStats, err error) {
	if _, ok := l.Link.DelayLine(); !ok {
		return s, errors.New("the lab's link is no delay line")
	}
	return s, askSocket(ctx, l.linkSocket(), "GET", "/stats", &s)
}

func (l *Lab) linkSocket() string { return filepath.Join(l.Dir, "link.sock") }

// clientLink makes the link to the client.
func (l *Lab) clientLink() error {
	cfg, ok := l.Link.DelayLine()
	if !ok {
		err := l.Host.Veth(clientLink, clientLinkIndex, l.Client, peerLink)
		if err == nil && l.Link.BitsPerSecond > 0 {
			err = l.Host.Limit(clientLink, l.Link.BitsPerSecond)
		}
		return err
	}
	var devices []*os.File
	defer func() {
		for _, d := range devices {
			d.Close() // the process has its own
		}
	}()
	for _, end := range []struct {
		ns   *netns.Namespace
		name string
	}{{l.Client, peerLink}, {l.Host, clientLink}} { // in the order of the descriptors
		err := end.ns.Do(func() error {
			d, err := delayline.OpenDevice(end.name, cfg)
			if err == nil {
				devices = append(devices, d)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return l.startProcess(linkProcess, l.Host, devices, "delayline", "--link", l.Link.String(), "--admin", l.linkSocket())
}
