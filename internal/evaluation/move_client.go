package evaluation

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// meterInterval is the resolution of a bandwidth over time.
const meterInterval = 20 * time.Millisecond

// meter counts what clients receive. Its methods are safe for concurrent use.
type meter struct {
	began    time.Time
	requests atomic.Int64
	bytes    atomic.Int64

	mu      sync.Mutex
	samples []int64
	stalls  map[int]stall // of each client, the longest since resetStalls
}

// stall is the longest time that a client waited for a byte.
type stall struct {
	client netip.AddrPort
	from   time.Time
	length time.Duration
}

func newMeter() *meter { return &meter{began: time.Now(), stalls: map[int]stall{}} }

// received counts bytes that a client has waited for.
func (m *meter) received(client int, address netip.AddrPort, n int, waited time.Duration) {
	m.bytes.Add(int64(n))
	slot := int(time.Since(m.began) / meterInterval)
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.samples) <= slot {
		m.samples = append(m.samples, 0)
	}
	m.samples[slot] += int64(n)
	if s := m.stalls[client]; waited > s.length {
		m.stalls[client] = stall{address, time.Now().Add(-waited), waited}
	}
}

// resetStalls returns each client's longest wait, and begins anew.
func (m *meter) resetStalls() map[int]stall {
	m.mu.Lock()
	defer m.mu.Unlock()
	longest := m.stalls
	m.stalls = map[int]stall{}
	return longest
}

// longest is the longest of all clients' stalls.
func longest(stalls map[int]stall) (out time.Duration) {
	for _, s := range stalls {
		out = max(out, s.length)
	}
	return out
}

func (m *meter) counted() []int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]int64(nil), m.samples...)
}

// rate is what was received from one moment to another, MB/s, as the samples have it.
func (m *meter) rate(from, to time.Time) float64 {
	first, last := int(from.Sub(m.began)/meterInterval), int(to.Sub(m.began)/meterInterval)
	samples := m.counted()
	sum, n := int64(0), 0
	for i := first; i < last && i < len(samples); i++ {
		sum += samples[i]
		n++
	}
	if n == 0 {
		return 0
	}
	return float64(sum) / 1e6 / (float64(n) * meterInterval.Seconds())
}

// moveClient asks for files over one connection, as long as that lives, and compares every byte.
type moveClient struct {
	number  int
	files   []moveFile
	first   int   // of the files, so that clients do not all ask for the same one
	pace    int64 // bytes per second; 0: no bound
	meter   *meter
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	address string

	buf [64 << 10]byte
}

// paced is how much a client that has a pace reads at once.
const paced = 8 << 10

// stream asks and reads until ctx is done. Whatever else ends it is an error.
func (c *moveClient) stream(ctx context.Context) error {
	conn, err := c.dial(ctx, "tcp", c.address)
	if err != nil {
		return fmt.Errorf("client %d: %w", c.number, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	reader := bufio.NewReaderSize(conn, len(c.buf))
	for i := c.first; ; i++ {
		f := c.files[i%len(c.files)]
		if err := c.get(conn, reader, f); err != nil {
			return fmt.Errorf("client %d, request %d, %s: %w", c.number, i-c.first+1, f.url, err)
		}
		c.meter.requests.Add(1)
	}
}

// get asks for one file.
func (c *moveClient) get(conn net.Conn, r *bufio.Reader, f moveFile) error {
	local := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	asked := time.Now()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: lab\r\n\r\n", f.url); err != nil {
		return err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(f.body)) {
		return fmt.Errorf("%s with %d bytes, want %d", resp.Status, resp.ContentLength, len(f.body))
	}
	for got := 0; got < len(f.body); {
		p := c.buf[:]
		if c.pace > 0 {
			p = p[:paced]
			time.Sleep(time.Duration(paced) * time.Second / time.Duration(c.pace))
			asked = time.Now()
		}
		n, err := resp.Body.Read(p)
		if !bytes.Equal(p[:n], f.body[got:min(got+n, len(f.body))]) {
			return fmt.Errorf("wrong bytes at %d", got)
		}
		got += n
		if err != nil && got < len(f.body) {
			return fmt.Errorf("ends at byte %d of %d: %w", got, len(f.body), err)
		}
		c.meter.received(c.number, local, n, time.Since(asked))
		asked = time.Now()
	}
	return nil
}
