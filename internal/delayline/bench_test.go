package delayline

import (
	"fmt"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkTCP measures what one TCP connection carries through a path, and how late packets come:
// go test -run '^$' -bench TCP ./internal/delayline
func BenchmarkTCP(b *testing.B) {
	for _, congestion := range []string{"cubic", "bbr"} {
		for _, c := range []struct {
			name string
			cfg  Config
		}{
			{"no delay", Config{}},
			{"1ms", Config{Delay: time.Millisecond}},
			{"20ms", Config{Delay: 20 * time.Millisecond}},
			{"20ms,100mbit", Config{Delay: 20 * time.Millisecond, BitsPerSecond: 1e8}},
			{"20ms,1gbit", Config{Delay: 20 * time.Millisecond, BitsPerSecond: 1e9}},
			{"20ms,1gbit by packet", Config{Delay: 20 * time.Millisecond, BitsPerSecond: 1e9, Loss: 1e-12}},
		} {
			b.Run(fmt.Sprintf("%s/%s", congestion, c.name), func(b *testing.B) { benchmarkTCP(b, c.cfg, congestion) })
		}
	}
}

func benchmarkTCP(b *testing.B, cfg Config, congestion string) {
	r := newRig(b, cfg, false)
	r.start(b)
	r.left.Sysctl(b, "net/ipv4/tcp_wmem", "4096 16384 33554432") // room for the fastest of these paths
	l := r.right.Listen(b, "tcp", right4.Addr().String()+":0")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	c := r.left.Dial(b, "tcp", l.Addr().String())
	raw, err := c.SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion); err != nil {
			b.Fatal(err)
		}
	}); err != nil {
		b.Fatal(err)
	}
	chunk := make([]byte, 1<<20)
	for begin := time.Now(); time.Since(begin) < 2*time.Second; { // let the window grow
		if _, err := c.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := c.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	there, _ := r.path.Counters()
	b.ReportMetric(float64(there.LateMean), "late-us")
	b.ReportMetric(float64(there.LateMax), "late-max-us")
	b.ReportMetric(float64(there.QueueFull), "queue-full")
	c.Close()
	<-ended
}
