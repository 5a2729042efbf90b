package bench

import (
	"context"
	"fmt"
)

// Interleave calls fn for each arm in each round, so that whatever drifts on the machine (temperature, caches, neighbours) drifts for
// all arms alike. Each round begins with another arm: no arm always runs behind the same one. The first error ends it.
func Interleave(ctx context.Context, arms []string, rounds int, fn func(ctx context.Context, arm string, round int) error) error {
	for round := range rounds {
		for i := range arms {
			if err := ctx.Err(); err != nil {
				return err
			}
			arm := arms[(round+i)%len(arms)]
			if err := fn(ctx, arm, round); err != nil {
				return fmt.Errorf("arm %s, round %d: %w", arm, round+1, err)
			}
		}
	}
	return nil
}
