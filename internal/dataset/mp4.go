package dataset

import "fmt"

// Properties of the one video track. Times are in units of 1/timescale s.
const (
	framesPerSecond = 25
	timescale       = 12_800
	trackID         = 1
)

// unityMatrix is the transformation of mvhd and tkhd (ISO/IEC 14496-12, section 8.2.2).
func unityMatrix() []byte { return u32(0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000) }

// initSegment is the initialization segment: ftyp and a moov without samples.
func initSegment(set Set) []byte {
	return append(
		box("ftyp", []byte("iso5"), u32(512), []byte("iso5iso6mp41dash")),
		box("moov",
			fullBox("mvhd", 0, 0, u32(0, 0, 1000, 0, 0x10000), u16(0x0100, 0), zeros(8), unityMatrix(), zeros(24), u32(trackID+1)),
			track(set),
			box("mvex", fullBox("trex", 0, 0, u32(trackID, 1, 0, 0, 0))),
		)...)
}

func track(set Set) []byte {
	const enabledInMovie = 3
	width, height := uint32(set.Width), uint32(set.Height)
	return box("trak",
		fullBox("tkhd", 0, enabledInMovie, u32(0, 0, trackID, 0, 0), zeros(8), u16(0, 0, 0, 0), unityMatrix(), u32(width<<16, height<<16)),
		box("mdia",
			fullBox("mdhd", 0, 0, u32(0, 0, timescale, 0), u16(0x55c4, 0)), // 0x55c4: language "und"
			fullBox("hdlr", 0, 0, u32(0), []byte("vide"), zeros(12), []byte("VideoHandler\x00")),
			box("minf",
				fullBox("vmhd", 0, 1, u16(0, 0, 0, 0)),
				box("dinf", fullBox("dref", 0, 0, u32(1), fullBox("url ", 0, 1))),
				box("stbl",
					fullBox("stsd", 0, 0, u32(1), sampleEntry(set)),
					fullBox("stts", 0, 0, u32(0)),
					fullBox("stsc", 0, 0, u32(0)),
					fullBox("stsz", 0, 0, u32(0, 0)),
					fullBox("stco", 0, 0, u32(0)),
				),
			),
		),
	)
}

// sampleEntry is the avc1 entry (ISO/IEC 14496-12, section 12.1, and 14496-15, section 5).
func sampleEntry(set Set) []byte {
	const dpi72 = 0x480000
	const depth24, noColorTable = 0x18, 0xffff
	return box("avc1",
		zeros(6), u16(1), zeros(16), u16(uint16(set.Width), uint16(set.Height)), u32(dpi72, dpi72, 0), u16(1), zeros(32),
		u16(depth24, noColorTable), box("avcC", avcConfiguration(set)))
}

// segmentHead is everything of a media segment before its random payload: styp, moof, and the header of an mdat that fills the
// segment up to size bytes.
func segmentHead(set Set, number int, size int64) []byte {
	frames := set.SegmentSeconds * framesPerSecond
	styp := box("styp", []byte("msdh"), u32(0), []byte("msdhmsixdash"))
	const mdatHeader = 8
	moofBytes := len(moof(number, set.SegmentSeconds, 0, make([]uint32, frames)))
	payload := size - int64(len(styp)+moofBytes+mdatHeader)

	samples := make([]uint32, frames) // equal, the first takes the rest
	for i := range samples {
		samples[i] = uint32(payload / int64(frames))
	}
	samples[0] += uint32(payload % int64(frames))

	head := append(styp, moof(number, set.SegmentSeconds, uint32(moofBytes+mdatHeader), samples)...)
	head = append(head, u32(uint32(payload+mdatHeader))...)
	return append(head, "mdat"...)
}

// moof describes the samples of one fragment, whose data begins dataOffset bytes behind its own first byte.
func moof(number, seconds int, dataOffset uint32, sampleBytes []uint32) []byte {
	const (
		defaultBaseIsMoof     = 0x020000
		defaultSampleDuration = 0x000008
		defaultSampleFlags    = 0x000020
		dataOffsetPresent     = 0x000001
		firstSampleFlags      = 0x000004
		sampleSizes           = 0x000200
		nonSync               = 0x01010000
		sync                  = 0x02000000
	)
	decodeTime := uint64(number-1) * uint64(seconds) * timescale
	return box("moof",
		fullBox("mfhd", 0, 0, u32(uint32(number))),
		box("traf",
			fullBox("tfhd", 0, defaultBaseIsMoof|defaultSampleDuration|defaultSampleFlags, u32(trackID, timescale/framesPerSecond, nonSync)),
			fullBox("tfdt", 1, 0, u64(decodeTime)),
			fullBox("trun", 0, dataOffsetPresent|firstSampleFlags|sampleSizes,
				u32(uint32(len(sampleBytes)), dataOffset, sync), u32(sampleBytes...)),
		),
	)
}

// The AVC profile and level of all sets: constrained baseline, level 4.0.
const (
	avcProfile     = 66
	avcConstraints = 0xc0
	avcLevel       = 40
)

func codecs() string { return fmt.Sprintf("avc1.%02x%02x%02x", avcProfile, avcConstraints, avcLevel) }
