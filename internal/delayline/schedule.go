package delayline

import (
	"math/rand/v2"
	"time"
)

// schedule decides, packet by packet, when each arrives at the other end, or that it does not. Times count from the start of the path.
type schedule struct {
	cfg   Config
	bound int64 // bytes that may wait
	loss  *rand.Rand

	free time.Duration // when the line has sent everything that was admitted
}

// verdict on a packet.
type verdict int

const (
	admitted  verdict = iota
	queueFull         // more than the bound is waiting
	lost              // at random
)

// newSchedule makes the schedule of one direction; direction numbers it, so that the two lose different packets.
func newSchedule(cfg Config, direction uint64) *schedule {
	s := &schedule{cfg: cfg, bound: cfg.QueueBytes}
	if s.bound == 0 {
		s.bound = DefaultQueue(cfg.BitsPerSecond)
	}
	if cfg.Loss > 0 {
		s.loss = rand.New(rand.NewPCG(cfg.Seed, direction))
	}
	return s
}

// admit charges a packet that has come at now with its bytes on the line. What is lost at random was on the line all the same.
func (s *schedule) admit(now time.Duration, bytes int64) (due time.Duration, v verdict) {
	if s.cfg.BitsPerSecond > 0 {
		if waits := s.free - now; waits > 0 && s.bytes(waits)+bytes > s.bound {
			return 0, queueFull
		}
		s.free = max(s.free, now) + s.duration(bytes)
	} else {
		s.free = now
	}
	if s.loss != nil && s.loss.Float64() < s.cfg.Loss {
		return 0, lost
	}
	return s.free + s.cfg.Delay, admitted
}

// duration is how long bytes take on the line.
func (s *schedule) duration(bytes int64) time.Duration {
	return time.Duration(float64(bytes) * 8 / float64(s.cfg.BitsPerSecond) * float64(time.Second))
}

// bytes is how many the line sends in d.
func (s *schedule) bytes(d time.Duration) int64 {
	return int64(d.Seconds() * float64(s.cfg.BitsPerSecond) / 8)
}
