package dataset

import (
	"fmt"
	"math"
	"strings"
)

// Set is one column of the seed paper's Table I.
type Set struct {
	Name           string
	TotalBytes     int64 // of all media segments
	SegmentSeconds int
	BitsPerSecond  int // as the manifest announces it
	Segments       int
	Width, Height  int // pixels; the paper names none
}

// The paper's units. That its KB are 1024 bytes follows from its own figures: 875 segments of 288.6 KB are 246.6 MB only if 1 MB is 1024 KB, and
// segments of the stated length and bit rate would have 11.25 MB, 1.5 MB and 300 KB of 1000 bytes, which is 2 to 3 % more than these sizes.
const (
	kilobyte = 1024
	megabyte = 1024 * kilobyte
)

// Sets returns the three data sets of Table I, the largest segments first. The totals are the more exact ones of what the table says: mean times
// number for Smart TV (10.5 MB, 3.6 GB in all) and Mobile Phone (288.6 KB, 246.6 MB), the total of Tablet (729.5 MB, 1.4 MB on average).
func Sets() []Set {
	return []Set{
		{Name: "smarttv", TotalBytes: 351 * 10.5 * megabyte, SegmentSeconds: 15, BitsPerSecond: 6_000_000, Segments: 351, Width: 1920, Height: 1080},
		{Name: "tablet", TotalBytes: 729.5 * megabyte, SegmentSeconds: 10, BitsPerSecond: 1_200_000, Segments: 526, Width: 1280, Height: 720},
		{Name: "mobile", TotalBytes: 875 * 288.6 * kilobyte, SegmentSeconds: 6, BitsPerSecond: 400_000, Segments: 875, Width: 640, Height: 360},
	}
}

// Bytes is the size of a number of the set's segments together, at the mean of all.
func (s Set) Bytes(segments int) int64 { return s.TotalBytes * int64(segments) / int64(s.Segments) }

// Scaled is the number of segments of a smaller set with the same kind of segments; at least one.
func (s Set) Scaled(scale float64) int {
	return min(max(1, int(math.Round(scale*float64(s.Segments)))), s.Segments)
}

// UnknownSetError says that there is no data set of that name.
type UnknownSetError struct{ Name string }

func (e *UnknownSetError) Error() string {
	var names []string
	for _, s := range Sets() {
		names = append(names, s.Name)
	}
	return fmt.Sprintf("unknown data set %q: use one of %s", e.Name, strings.Join(names, ", "))
}

// Lookup returns a data set by name, or an *UnknownSetError.
func Lookup(name string) (Set, error) {
	for _, s := range Sets() {
		if s.Name == name {
			return s, nil
		}
	}
	return Set{}, &UnknownSetError{Name: name}
}
