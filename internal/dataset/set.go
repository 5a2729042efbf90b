package dataset

import (
	"fmt"
	"strings"
)

// Set is one column of the seed paper's Table I.
type Set struct {
	Name           string
	MeanBytes      int64 // of a media segment; 1 MB is 10^6 bytes
	SegmentSeconds int
	BitsPerSecond  int // as the manifest announces it
	Segments       int
	Width, Height  int // pixels; the paper names none
}

// Sets returns the three data sets of Table I, the largest segments first.
func Sets() []Set {
	return []Set{
		{Name: "smarttv", MeanBytes: 10_500_000, SegmentSeconds: 15, BitsPerSecond: 6_000_000, Segments: 351, Width: 1920, Height: 1080},
		{Name: "tablet", MeanBytes: 1_400_000, SegmentSeconds: 10, BitsPerSecond: 1_200_000, Segments: 526, Width: 1280, Height: 720},
		{Name: "mobile", MeanBytes: 288_600, SegmentSeconds: 6, BitsPerSecond: 400_000, Segments: 875, Width: 640, Height: 360},
	}
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
