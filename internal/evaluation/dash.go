package evaluation

import (
	"context"
	"errors"
	"time"

	"spillway/internal/bench"
	"spillway/internal/lab"
)

// RunDash plays data sets as the seed did, each from the first segment to the last over one connection as fast as it goes, and then, if there are players in the
// plan, as these do.
func RunDash(ctx context.Context, opts lab.Options, plan Plan, players PlayersPlan, progress *bench.Progress) (report *bench.Report, err error) {
	if err := plan.Validate(); err != nil {
		return nil, err
	}
	if players.Players > 0 {
		if err := players.Validate(); err != nil {
			return nil, err
		}
	}
	err = inLabFor(ctx, opts, plan.Arms, progress, func(l *lab.Lab) error {
		env, err := environment(l)
		if err != nil {
			return err
		}
		report = bench.NewReport("dash", env)
		report.Rows, err = measureDash(ctx, l, plan, players, progress)
		return err
	})
	return report, err
}

// measureDash returns the rows of the plan, and those of the players.
func measureDash(ctx context.Context, s site, plan Plan, players PlayersPlan, progress *bench.Progress) ([]bench.Row, error) {
	plan.timeline = true
	var rows []bench.Row
	var err error
	if !players.Only {
		rows, err = measure(ctx, s, plan, progress)
	}
	if players.Players == 0 || ctx.Err() != nil {
		return rows, err
	}
	more, playErr := runPlayers(ctx, s, players, progress)
	return append(rows, more...), errors.Join(err, playErr)
}

// timelineInterval of a timeline, as long as that makes no more than maxIntervals of them.
const (
	timelineInterval = 100 * time.Millisecond
	maxIntervals     = 600
)

// tracker notes when the bodies of one pass came.
type tracker struct {
	start  time.Time
	bodies []arrival
}

// arrival is a body that came between two moments.
type arrival struct {
	from, to time.Duration // since the start
	bytes    int64
}

func (t *tracker) add(now time.Time, res bench.Result) {
	to := now.Sub(t.start)
	t.bodies = append(t.bodies, arrival{max(0, to-res.Elapsed), to, res.Bytes})
}

// report counts the bytes of each interval. Those of a body are taken to have come evenly.
func (t *tracker) report() *bench.Timeline {
	if t == nil || len(t.bodies) == 0 {
		return nil
	}
	end := t.bodies[len(t.bodies)-1].to
	interval := timelineInterval
	for end/interval >= maxIntervals {
		interval *= 2
	}
	line := &bench.Timeline{IntervalMs: interval.Seconds() * 1000, Bytes: make([]int64, end/interval+1)}
	for _, b := range t.bodies {
		left := b.bytes
		for i := b.from / interval; i <= b.to/interval; i++ {
			overlap := min(b.to, (i+1)*interval) - max(b.from, i*interval)
			part := int64(float64(b.bytes) * float64(overlap) / float64(max(1, b.to-b.from)))
			if i == b.to/interval {
				part = left
			}
			line.Bytes[i] += part
			left -= part
		}
	}
	return line
}
