package delayline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Path carries packets between two devices.
type Path struct {
	devices    [2]*os.File
	wake       int // an eventfd that is readable when the path ends
	directions [2]*direction
}

// New makes a path between two devices of OpenDevice. It owns them: they are closed when Run returns, or by Close if it is never called.
func New(cfg Config, a, b *os.File) (*Path, error) {
	p := &Path{devices: [2]*os.File{a, b}, wake: -1}
	err := cfg.Validate()
	if err == nil {
		p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	}
	var fds [2]int
	for i, f := range p.devices {
		fds[i] = int(f.Fd())
		if err == nil {
			err = prepare(fds[i])
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("delay line: %w", err), p.Close())
	}
	began := time.Now()
	for i := range p.directions {
		p.directions[i] = &direction{
			from: fds[i], to: fds[1-i], wake: p.wake, began: began, schedule: newSchedule(cfg, uint64(i)),
		}
	}
	return p, nil
}

// prepare makes reads of a device return at once. A file that is none is refused.
func prepare(fd int) error {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return fmt.Errorf("descriptor %d is no TUN device: %w", fd, err)
	}
	return unix.SetNonblock(fd, true)
}

// Close removes the devices. It must not be called while Run runs.
func (p *Path) Close() error {
	if p.wake >= 0 {
		unix.Close(p.wake)
		p.wake = -1
	}
	return errors.Join(p.devices[0].Close(), p.devices[1].Close())
}

// Run carries packets until ctx ends, which is no error, or a device is gone. What is under way then is lost. It can be called once.
func (p *Path) Run(ctx context.Context) error {
	end := func() {
		one := [8]byte{1} // not zero in any byte order
		_, _ = unix.Write(p.wake, one[:])
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		end()
		close(ended)
	})
	var errs [2]error
	var running sync.WaitGroup
	for i, d := range p.directions {
		running.Go(func() {
			errs[i] = d.run()
			end() // one direction alone is no path
		})
	}
	running.Wait()
	if !stop() {
		<-ended // or it would write to a descriptor that is another file's by then
	}
	return errors.Join(errs[0], errs[1], p.Close())
}

// Counters of the packets from the first device to the second one, and back. It may be called at any time, from any goroutine.
func (p *Path) Counters() (there, back Counters) {
	return p.directions[0].counters(), p.directions[1].counters()
}
