package delayline

import (
	"errors"
	"fmt"
	"time"
)

// Config of a path, the same in both directions.
type Config struct {
	Delay         time.Duration // one way
	BitsPerSecond uint64        // of IP packets; 0: as fast as it goes
	QueueBytes    int64         // what may wait for the line in each direction; 0: DefaultQueue
	Loss          float64       // the part of the packets that is lost at random
	Seed          uint64        // of the loss: the same packets of the same sequence are lost
}

// Bounds of a Config.
const (
	MaxDelay         = 10 * time.Second
	MinBitsPerSecond = 1000 // one full-sized packet takes 12 s
)

// Validate tells whether there can be such a path.
func (c Config) Validate() error {
	switch {
	case c.Delay < 0 || c.Delay > MaxDelay:
		return fmt.Errorf("delay %v: use 0 to %v", c.Delay, MaxDelay)
	case c.BitsPerSecond > 0 && c.BitsPerSecond < MinBitsPerSecond:
		return fmt.Errorf("rate %d bit/s: use at least %d", c.BitsPerSecond, MinBitsPerSecond)
	case c.QueueBytes < 0:
		return fmt.Errorf("queue of %d bytes: use 1 or more", c.QueueBytes)
	case c.QueueBytes > 0 && c.BitsPerSecond == 0:
		return errors.New("a queue without a rate: nothing ever waits")
	case !(c.Loss >= 0 && c.Loss < 1):
		return fmt.Errorf("loss of %v: use 0 or more, and less than 1", c.Loss)
	}
	return nil
}

// DefaultQueue is the bound in bytes where none is configured: 100 ms at the rate, as in netns.Limit, and room for two of the largest packets.
func DefaultQueue(bitsPerSecond uint64) int64 {
	return int64(max(bitsPerSecond/8/10, 2*maxPacket))
}
