package evaluation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"spillway/internal/bench"
	"spillway/internal/dataset"
	"spillway/internal/guest"
	"spillway/internal/lab"
)

// PlayersPlan says what players do. Their media are the data sets as one ladder: at each moment of the film a player takes the segment of the set whose bit
// rate it can sustain. Their clock runs Speed times as fast as ours, so that a film of an hour takes a minute; a set's bit rate is that many times higher then.
type PlayersPlan struct {
	Sets    []lab.Set
	Arms    []lab.Arm
	Rounds  int
	Players int
	Speed   float64
	Media   time.Duration // of the film that each player plays, by its clock
	Seed    uint64        // of where each begins, and when
	Only    bool          // in RunDash: nothing but this
}

// Players' habits, by their clock: those of dash.js (stableBufferTime, and bandwidthSafetyFactor in its throughput rule).
const (
	fullBuffer    = 30 * time.Second
	safetyFactor  = 0.9
	throughputLag = 0.7 // of the older estimate, in the next one
	maxStartPause = 10 * time.Second
)

// Validate tells whether the plan can be carried out.
func (p PlayersPlan) Validate() error {
	switch {
	case p.Players < 1:
		return fmt.Errorf("players: %d; at least 1 is needed", p.Players)
	case !(p.Speed > 0):
		return fmt.Errorf("speed: %g; it must be above 0", p.Speed)
	case p.Media <= 0:
		return fmt.Errorf("media: %v; it must be above 0", p.Media)
	case len(p.Sets) == 0:
		return errors.New("players: there is no data set")
	}
	return Plan{Arms: p.Arms, Rounds: p.Rounds, Connections: p.Players}.Validate()
}

// rung is a data set on the ladder.
type rung struct {
	bitsPerSecond float64
	segment       time.Duration
	targets       []bench.Target
}

// ladder sorts the sets, the lowest bit rate first.
func (p PlayersPlan) ladder() ([]rung, error) {
	var rungs []rung
	for i, c := range SetCases(&lab.Files{Sets: p.Sets}) {
		set, err := dataset.Lookup(p.Sets[i].Name)
		if err != nil {
			return nil, err
		}
		rungs = append(rungs, rung{float64(set.BitsPerSecond), time.Duration(set.SegmentSeconds) * time.Second, c.Targets})
	}
	slices.SortFunc(rungs, func(a, b rung) int { return int(a.bitsPerSecond - b.bitsPerSecond) })
	return rungs, nil
}

// player plays one film.
type player struct {
	ladder   []rung
	plan     PlayersPlan
	client   *bench.Client
	recorder bench.Recorder

	at         time.Duration // the moment of the film that is needed next
	played     time.Duration // of the film, what has been taken
	buffer     time.Duration
	throughput float64 // bits per second of the player's clock; 0: not known yet
	last       int     // rung
	seen       playback
}

// playback adds up what players saw.
type playback struct {
	stalls, switches int64
	stalled          time.Duration
	bits, seconds    float64
	startups         []time.Duration
}

// choose is the highest rung that the estimate sustains; the lowest, while there is none.
func (p *player) choose() int {
	best := 0
	for i, r := range p.ladder {
		if r.bitsPerSecond <= safetyFactor*p.throughput {
			best = i
		}
	}
	return best
}

// arrived takes a segment into account that took so long by the player's clock, and returns how long the player waits before it asks for the next.
func (p *player) arrived(index int, size int64, took time.Duration) (pause time.Duration) {
	r := p.ladder[index]
	rate := float64(size) * 8 / max(took, time.Microsecond).Seconds()
	first := p.throughput == 0
	if first {
		p.throughput = rate
		p.seen.startups = append(p.seen.startups, took)
	} else {
		p.throughput = throughputLag*p.throughput + (1-throughputLag)*rate
		if p.buffer -= took; p.buffer < 0 { // the picture stood still until the segment was there
			p.seen.stalls++
			p.seen.stalled -= p.buffer
			p.buffer = 0
		}
		if index != p.last {
			p.seen.switches++
		}
	}
	p.last = index
	next := (p.at/r.segment + 1) * r.segment
	gained := next - p.at
	p.at, p.played, p.buffer = next, p.played+gained, p.buffer+gained
	p.seen.bits += r.bitsPerSecond * gained.Seconds()
	p.seen.seconds += gained.Seconds()
	if pause = p.buffer - fullBuffer; pause < 0 {
		return 0
	}
	p.buffer -= pause
	return pause
}

// play requests segments until the film is over.
func (p *player) play(ctx context.Context) error {
	for p.played < p.plan.Media {
		index := p.choose()
		r := p.ladder[index]
		target := r.targets[int(p.at/r.segment)%len(r.targets)]
		var took time.Duration
		err := bench.Pass(ctx, p.client, []bench.Target{target}, false, &p.recorder, func(res bench.Result) { took = res.Elapsed })
		if err != nil {
			return err
		}
		pause := p.arrived(index, target.Bytes, time.Duration(float64(took)*p.plan.Speed))
		if err := sleep(ctx, p.real(pause)); err != nil {
			return err
		}
	}
	return nil
}

// real is a time of the player's clock by ours.
func (p *player) real(d time.Duration) time.Duration { return time.Duration(float64(d) / p.plan.Speed) }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// runPlayers lets players play and returns a row for each arm.
func runPlayers(ctx context.Context, s site, plan PlayersPlan, progress *bench.Progress) ([]bench.Row, error) {
	if err := plan.Validate(); err != nil {
		return nil, err
	}
	ladder, err := plan.ladder()
	if err != nil {
		return nil, err
	}
	var names []string
	recorders, seen, paces := map[lab.Arm]*bench.Recorder{}, map[lab.Arm]*playback{}, map[lab.Arm]*pace{}
	for _, arm := range plan.Arms {
		names = append(names, string(arm))
		recorders[arm], seen[arm], paces[arm] = &bench.Recorder{}, &playback{}, &pace{}
		if err := s.ResetServerStats(ctx, arm); err != nil {
			return nil, err
		}
	}
	err = bench.Interleave(ctx, names, plan.Rounds, func(ctx context.Context, name string, round int) error {
		arm := lab.Arm(name)
		progress.Step("%d players, %s: round %d of %d", plan.Players, arm, round+1, plan.Rounds)
		return paces[arm].measure(recorders[arm], func() error { return playRound(ctx, s, arm, plan, ladder, round, recorders[arm], seen[arm]) })
	})
	if err != nil {
		return nil, err
	}
	progress.Done("")
	var rows []bench.Row
	var doubts []error
	for _, arm := range plan.Arms {
		stats, err := settled(ctx, s, arm)
		if err != nil {
			return rows, errors.Join(append(doubts, err)...)
		}
		row, doubt := newRow(arm, fmt.Sprintf("%d players", plan.Players), recorders[arm], &bench.Recorder{}, stats)
		paces[arm].report(&row, recorders[arm])
		row.Playback = seen[arm].report(plan.Players)
		rows, doubts = append(rows, row), append(doubts, doubt, refuse(&row), usedHost(arm, stats))
		rows[len(rows)-1] = row
	}
	return rows, errors.Join(doubts...)
}

// usedHost doubts the figures of an arm that offloads and never did. Not each response must: the lowest rung may be below the threshold.
func usedHost(arm lab.Arm, stats guest.Snapshot) error {
	if offloads(arm) && stats.Counts.Handovers == 0 {
		return fmt.Errorf("arm %s handed no connection over: %v", arm, stats.Fallbacks)
	}
	return nil
}

// playRound lets all players play once. Each begins at another moment of the film, after another pause; the same in every arm.
func playRound(ctx context.Context, s site, arm lab.Arm, plan PlayersPlan, ladder []rung, round int, into *bench.Recorder, seen *playback) error {
	players := make([]*player, plan.Players)
	errs := make([]error, plan.Players)
	ladder = slices.Clone(ladder)
	for i := range ladder {
		ladder[i].targets = there(s, arm, ladder[i].targets)
	}
	random := rand.New(rand.NewPCG(plan.Seed, uint64(round)))
	var wait sync.WaitGroup
	start := time.Now()
	for i := range players {
		p := &player{ladder: ladder, plan: plan, client: newClient(s, arm)}
		p.at = time.Duration(random.Int64N(int64(plan.Media) + 1))
		pause := p.real(time.Duration(random.Int64N(int64(maxStartPause))))
		players[i] = p
		wait.Go(func() {
			defer p.client.Close()
			if errs[i] = sleep(ctx, pause); errs[i] == nil {
				errs[i] = p.play(ctx)
			}
		})
	}
	wait.Wait()
	into.AddElapsed(time.Since(start))
	for _, p := range players {
		into.Merge(&p.recorder)
		seen.add(p.seen)
	}
	return errors.Join(errs...)
}

func (s *playback) add(o playback) {
	s.stalls, s.switches, s.stalled = s.stalls+o.stalls, s.switches+o.switches, s.stalled+o.stalled
	s.bits, s.seconds, s.startups = s.bits+o.bits, s.seconds+o.seconds, append(s.startups, o.startups...)
}

func (s *playback) report(players int) *bench.Playback {
	r := &bench.Playback{Players: players, Stalls: s.stalls, StalledS: rounded(s.stalled.Seconds()), Switches: s.switches}
	if s.seconds > 0 {
		r.MeanKbit = rounded(s.bits / s.seconds / 1000)
	}
	r.StartupMs = rounded(float64(bench.Summarize(s.startups).Median) / float64(time.Millisecond))
	return r
}
