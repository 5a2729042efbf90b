//go:build race

package e2e

// raceEnabled tells that the tests run under the race detector, and so the processes of their labs.
const raceEnabled = true
