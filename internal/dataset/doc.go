// Package dataset generates media in the shape of Table I of the seed paper (the D-DASH data sets Smart TV, Tablet and Mobile Phone):
// a DASH manifest, an initialization segment, and as many media segments of the same mean size, with a spread.
//
// It stands outside the data path: it fills the directory that the arms of an evaluation serve. Segments are well-formed fragmented
// MP4, but the samples in them are random numbers, not video: a player fetches and demultiplexes them and can show nothing. They
// must not be used where a picture is expected.
//
// A specification always gives the same bytes, no two blocks of which are equal, so that neither a compressing disk nor a
// misplaced block goes unseen.
//
// It needs no capability.
package dataset
