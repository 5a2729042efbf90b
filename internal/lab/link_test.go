package lab

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/internal/delayline"
)

func TestParseLink(t *testing.T) {
	const ms = time.Millisecond
	for in, want := range map[string]struct {
		link Link
		text string // empty: as it was read
	}{
		"":            {},
		"1gbit":       {link: Link{BitsPerSecond: 1e9}},
		"10gbit":      {link: Link{BitsPerSecond: 1e10}},
		"100mbit":     {link: Link{BitsPerSecond: 1e8}},
		"1mbit":       {link: Link{BitsPerSecond: 1e6}},
		"1000mbit":    {Link{BitsPerSecond: 1e9}, "1gbit"},
		"40ms":        {link: Link{RTT: 40 * ms}},
		"1.5ms":       {link: Link{RTT: 1500 * time.Microsecond}},
		"0.5s":        {Link{RTT: 500 * ms}, "500ms"},
		"40ms,1gbit":  {link: Link{RTT: 40 * ms, BitsPerSecond: 1e9}},
		"1gbit,40ms":  {Link{RTT: 40 * ms, BitsPerSecond: 1e9}, "40ms,1gbit"},
		"loss=0.1%":   {link: Link{LossPercent: 0.1}},
		"loss=0.07%":  {link: Link{LossPercent: 0.07}},
		"loss=1e-05%": {link: Link{LossPercent: 0.00001}},
		"40ms,1gbit,queue=256KiB,loss=0.1%,seed=7": {
			link: Link{RTT: 40 * ms, BitsPerSecond: 1e9, QueueBytes: 256 << 10, LossPercent: 0.1, Seed: 7},
		},
		"seed=7,queue=1000,loss=2%,5ms,3mbit": {
			Link{RTT: 5 * ms, BitsPerSecond: 3e6, QueueBytes: 1000, LossPercent: 2, Seed: 7}, "5ms,3mbit,queue=1000,loss=2%,seed=7",
		},
	} {
		got, err := ParseLink(in)
		if got != want.link || err != nil {
			t.Errorf("ParseLink(%q) = %+v, %v, want %+v", in, got, err, want.link)
		}
		if want.text == "" {
			want.text = in
		}
		if got.String() != want.text {
			t.Errorf("ParseLink(%q) is shown as %q, want %q", in, got, want.text)
		}
	}
	for in, want := range map[string]string{
		"1": "1gbit or 100mbit", "gbit": "1gbit or 100mbit", "0mbit": "1gbit or 100mbit", "-1mbit": "1gbit or 100mbit",
		"1.5gbit": "1gbit or 100mbit", "1Gbit": "1gbit or 100mbit", "1 gbit": "1gbit or 100mbit", "1gbit ": "1gbit or 100mbit",
		"100000gbit": "1gbit or 100mbit", "1kbit": "1gbit or 100mbit", "1gbitgbit": "1gbit or 100mbit",
		"fast": "40ms,100mbit,loss=0.1%", "40": "40ms", "40ms,": "40ms,100mbit", ",": `""`,
		"0ms": "above 0", "-40ms": "above 0", "1h": "at most 5s",
		"40ms,50ms": "round-trip time is there twice", "1gbit,40ms,1gbit": "rate is there twice", "loss=1%,loss=1%": "loss is there twice",
		"loss=0.1": "percent", "loss=0%": "percent", "loss=100%": "percent", "loss=-1%": "percent", "loss=NaN%": "percent", "loss=%": "percent",
		"seed=7": "of the loss", "loss=1%,seed=0": "seed=0", "loss=1%,seed=x": "seed=x",
		"queue=1000": "a queue needs a rate", "1gbit,queue=0": "queue=0", "1gbit,queue=1kB": "queue=1kB",
		"rtt=40ms": "rtt=40ms",
	} {
		got, err := ParseLink(in)
		if err == nil || !strings.Contains(err.Error(), want) || got != (Link{}) {
			t.Errorf("ParseLink(%q) = %+v, %v, want an error with %q", in, got, err, want)
		}
	}
}

// TestDelayLineOf: half of the round trip each way; a rate alone takes none.
func TestDelayLineOf(t *testing.T) {
	for in, want := range map[string]delayline.Config{
		"": {}, "1gbit": {},
		"40ms":                 {Delay: 20 * time.Millisecond},
		"loss=1%,seed=7":       {Loss: 0.01, Seed: 7},
		"100mbit,queue=64KiB":  {BitsPerSecond: 1e8, QueueBytes: 64 << 10},
		"40ms,1gbit,loss=0.5%": {Delay: 20 * time.Millisecond, BitsPerSecond: 1e9, Loss: 0.005},
	} {
		l, err := ParseLink(in)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := l.DelayLine()
		if ok != (want != delayline.Config{}) || ok && got != want {
			t.Errorf("%q: %+v, %v, want %+v", in, got, ok, want)
		}
		if ok && got.Validate() != nil {
			t.Errorf("%q: %v", in, got.Validate())
		}
	}
	if l := (Link{LossPercent: 1}).seeded(); l.Seed == 0 {
		t.Error("a loss without a seed")
	}
	if l := (Link{LossPercent: 1, Seed: 7}).seeded(); l.Seed != 7 {
		t.Errorf("the seed is %d", l.Seed)
	}
	if l := (Link{RTT: 1}).seeded(); l.Seed != 0 {
		t.Error("a seed of no loss")
	}
}

// TestLinkKilled: a lab whose delay line was killed says so, and goes as every other.
func TestLinkKilled(t *testing.T) {
	name := labName()
	t.Cleanup(func() { _ = Down(context.Background(), name, quiet) })
	l, err := Up(t.Context(), Options{
		Name: name, VM: NetNS, Binary: buildBinary(t), Files: t.TempDir(), Detached: true, Link: Link{RTT: time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	link := l.daemons[linkProcess]
	if err := syscall.Kill(link.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-link.ended
	if err := l.Health(); err == nil || !strings.Contains(err.Error(), linkProcess) {
		t.Errorf("the lab says %v", err)
	}
	if err := l.Client.Up(peerLink); err == nil {
		t.Error("the client's device is still there")
	}
	if err := Down(t.Context(), name, quiet); err != nil {
		t.Errorf("Down: %v", err)
	}
	for _, p := range l.daemons {
		<-p.ended
	}
	l.Client.Close()
	l.Host.Close()
	l.Guest.Close()
	if left := traces(t, name); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
