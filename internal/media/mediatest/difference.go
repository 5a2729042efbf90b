package mediatest

import "fmt"

// describeDifference says where a body went wrong, without printing megabytes.
func describeDifference(got, want []byte) string {
	n := min(len(got), len(want))
	for i := range n {
		if got[i] != want[i] {
			end := min(i+16, n)
			return fmt.Sprintf("%d bytes, want %d; first wrong byte at %d: % x, want % x", len(got), len(want), i, got[i:end], want[i:end])
		}
	}
	return fmt.Sprintf("%d bytes, want %d; the first %d are right", len(got), len(want), n)
}
