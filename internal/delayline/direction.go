package delayline

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Counters of one direction.
type Counters struct {
	Packets   int64 `json:"packets"` // delivered, as many as a super-packet stands for
	Bytes     int64 `json:"bytes"`   // of them, with their IP headers
	QueueFull int64 `json:"queue_full"`
	Lost      int64 `json:"lost"`    // at random
	Refused   int64 `json:"refused"` // by the device at the other end, for instance as it was down
	UnderWay  int64 `json:"under_way"`

	// How much later than due packets were delivered. What a packet waited in its first device, for this process to read it, is not part of it.
	LateMean Microseconds `json:"late_mean_us"`
	LateMax  Microseconds `json:"late_max_us"`
}

// Microseconds is a duration that JSON shows in µs.
type Microseconds float64

// direction carries packets from one device to the other.
type direction struct {
	from, to int // descriptors
	wake     int // readable at the end
	began    time.Time
	schedule *schedule
	fifo     fifo

	mu      sync.Mutex
	count   Counters
	writes  int64 // that were tried
	late    time.Duration
	lateMax time.Duration
}

// batch is how many packets are read before it is looked for what is due.
const batch = 64

// maxHeld bounds what is under way where no rate does, in bytes.
const maxHeld = 256 << 20

// run carries packets until the wake descriptor is readable.
func (d *direction) run() error {
	// The thread sleeps in ppoll: Go's own timers come up to 1 ms late (netpoll, runtime/netpoll_epoll.go). It is never unlocked, so that its settings go
	// with it.
	runtime.LockOSThread()
	// The kernel would let timers of an ordinary thread come 50 µs late (prctl(2)).
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_TIMERSLACK", err)
	}
	// A wire does not wait for those who talk over it. Where this is not allowed packets are later, which the counters show.
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Policy: unix.SCHED_RR, Priority: 1}, 0)
	for {
		d.deliver()
		ready, ended, err := d.wait()
		if ended || err != nil {
			return err
		}
		if !ready {
			continue
		}
		if err := d.receive(); err != nil {
			return err
		}
	}
}

// wait sleeps until a packet has come, which makes ready true, or one is due.
func (d *direction) wait() (ready, ended bool, err error) {
	var timeout *unix.Timespec // nil: as long as it takes
	if p, ok := d.fifo.first(); ok {
		ts := unix.NsecToTimespec(int64(max(p.due-time.Since(d.began), 0)))
		timeout = &ts
	}
	fds := [...]unix.PollFd{{Fd: int32(d.from), Events: unix.POLLIN}, {Fd: int32(d.wake), Events: unix.POLLIN}}
	_, err = unix.Ppoll(fds[:], timeout, nil)
	if err != nil && err != unix.EINTR {
		return false, false, os.NewSyscallError("ppoll", err)
	}
	return fds[0].Revents != 0, fds[1].Revents != 0, nil
}

// receive reads what has come, up to a batch.
func (d *direction) receive() error {
	for range batch {
		space := d.fifo.space()
		n, err := unix.Read(d.from, space)
		switch {
		case err == unix.EAGAIN:
			return nil
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("delay line: read from a device: %w", err) // EBADFD: its network namespace is gone
		case n <= headerBytes:
			continue
		}
		d.admit(space[:n:n])
	}
	return nil
}

// admit puts a packet on the line, or drops it.
func (d *direction) admit(packet []byte) {
	packets, bytes := onLine(packet)
	due, v := d.schedule.admit(time.Since(d.began), bytes)
	if v == admitted && d.fifo.held+int64(len(packet)) > maxHeld {
		v = queueFull
	}
	if v == admitted {
		d.fifo.push(pending{due: due, bytes: packet, packets: packets, onLine: bytes})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch v {
	case admitted:
		d.count.UnderWay += packets
	case queueFull:
		d.count.QueueFull += packets
	case lost:
		d.count.Lost += packets
	}
}

// deliver writes everything that is due.
func (d *direction) deliver() {
	for {
		p, ok := d.fifo.first()
		if !ok {
			return
		}
		now := time.Since(d.began)
		if p.due > now {
			return
		}
		_, err := unix.Write(d.to, p.bytes)
		for err == unix.EINTR {
			_, err = unix.Write(d.to, p.bytes)
		}
		d.fifo.drop()
		d.delivered(p, now-p.due, err)
	}
}

// delivered counts a packet that has left the line.
func (d *direction) delivered(p pending, late time.Duration, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count.UnderWay -= p.packets
	d.writes++
	d.late += late
	d.lateMax = max(d.lateMax, late)
	if err != nil {
		d.count.Refused += p.packets
		return
	}
	d.count.Packets += p.packets
	d.count.Bytes += p.onLine
}

func (d *direction) counters() Counters {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.count
	c.LateMean = Microseconds(float64(d.late) / float64(max(d.writes, 1)) / float64(time.Microsecond))
	c.LateMax = Microseconds(float64(d.lateMax) / float64(time.Microsecond))
	return c
}
