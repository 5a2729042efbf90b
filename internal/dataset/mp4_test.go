package dataset

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// isContainer says whether a box holds nothing but boxes.
func isContainer(kind string) bool {
	return slices.Contains(strings.Fields("moov trak mdia minf dinf stbl mvex moof traf"), kind)
}

// walk lists the boxes in b with their payloads; it fails when sizes do not nest exactly.
func walk(t *testing.T, prefix string, b []byte, visit func(path string, payload []byte)) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 8 {
			t.Fatalf("%s: %d bytes behind the last box", prefix, len(b))
		}
		size := int(binary.BigEndian.Uint32(b))
		if size < 8 || size > len(b) {
			t.Fatalf("%s: box %q of %d bytes in %d", prefix, b[4:8], size, len(b))
		}
		path := strings.TrimPrefix(prefix+"/"+string(b[4:8]), "/")
		visit(path, b[8:size])
		if isContainer(string(b[4:8])) {
			walk(t, path, b[8:size], visit)
		}
		b = b[size:]
	}
}

func TestInitSegmentBoxes(t *testing.T) {
	var got []string
	walk(t, "", initSegment(Sets()[0]), func(path string, payload []byte) {
		if !isContainer(path[len(path)-4:]) {
			path = fmt.Sprintf("%s %d", path, len(payload))
		}
		got = append(got, path)
	})
	const minf = "moov/trak/mdia/minf"
	const stbl = minf + "/stbl"
	avc1 := 8 + 78 + 8 + len(avcConfiguration(Sets()[0]))
	want := []string{ // the lengths are those of ISO/IEC 14496-12
		"ftyp 24", "moov", "moov/mvhd 100", "moov/trak", "moov/trak/tkhd 84", "moov/trak/mdia", "moov/trak/mdia/mdhd 24",
		"moov/trak/mdia/hdlr 37", minf, minf + "/vmhd 12", minf + "/dinf", minf + "/dinf/dref 20", stbl,
		fmt.Sprintf(stbl+"/stsd %d", 8+avc1), stbl + "/stts 8", stbl + "/stsc 8", stbl + "/stsz 12", stbl + "/stco 8",
		"moov/mvex", "moov/mvex/trex 24",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("boxes (-want +got):\n%s", diff)
	}
}

func TestSegmentBoxes(t *testing.T) {
	dir := t.TempDir()
	m := generated(t, dir, Spec{Set: "mobile", Segments: 3})
	for i, f := range m.Segments {
		b, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil {
			t.Fatal(err)
		}
		boxes := map[string][]byte{}
		var order []string
		walk(t, "", b, func(path string, payload []byte) {
			order = append(order, path)
			boxes[path] = payload
		})
		want := []string{"styp", "moof", "moof/mfhd", "moof/traf", "moof/traf/tfhd", "moof/traf/tfdt", "moof/traf/trun", "mdat"}
		if diff := cmp.Diff(want, order); diff != "" {
			t.Fatalf("%s: boxes (-want +got):\n%s", f.Name, diff)
		}
		be := binary.BigEndian
		if got := be.Uint64(boxes["moof/traf/tfdt"][4:]); got != uint64(i)*6*timescale {
			t.Errorf("%s: decode time %d", f.Name, got)
		}
		trun := boxes["moof/traf/trun"]
		count, offset := be.Uint32(trun[4:]), be.Uint32(trun[8:])
		sum := 0
		for s := trun[16:]; len(s) > 0; s = s[4:] {
			sum += int(be.Uint32(s))
			count--
		}
		if count != 0 || sum != len(boxes["mdat"]) {
			t.Errorf("%s: %d samples too many, %d bytes in samples, %d in mdat", f.Name, int32(count), sum, len(boxes["mdat"]))
		}
		moof := bytes.Index(b, []byte("moof")) - 4
		if at := len(b) - len(boxes["mdat"]); moof+int(offset) != at {
			t.Errorf("%s: the data is said to begin at %d, it begins at %d", f.Name, moof+int(offset), at)
		}
	}
}

// bitReader reads what bitWriter writes.
type bitReader struct {
	b  []byte
	at int
}

func (r *bitReader) bit() uint32 {
	v := uint32(r.b[r.at/8]>>(7-r.at%8)) & 1
	r.at++
	return v
}

func (r *bitReader) exp() uint32 {
	n := 0
	for r.bit() == 0 {
		n++
	}
	v := uint32(1)
	for range n {
		v = v<<1 | r.bit()
	}
	return v - 1
}

func TestSequenceParametersGiveThePictureSize(t *testing.T) {
	for _, set := range Sets() {
		sps := sequenceParameters(set.Width, set.Height)
		for i := range len(sps) - 2 {
			if sps[i] == 0 && sps[i+1] == 0 && sps[i+2] <= 3 {
				t.Errorf("%s: % x needs an emulation prevention byte", set.Name, sps)
			}
		}
		r := &bitReader{b: sps, at: 32}
		skipped := []uint32{r.exp(), r.exp(), r.exp(), r.exp(), r.bit()}
		if diff := cmp.Diff([]uint32{0, 0, 2, 1, 0}, skipped); diff != "" {
			t.Errorf("%s: %s", set.Name, diff)
		}
		width, height := 16*(r.exp()+1), 16*(r.exp()+1)
		r.bit()
		r.bit()
		if r.bit() == 1 {
			r.exp()
			r.exp()
			r.exp()
			height -= 2 * r.exp()
		}
		if int(width) != set.Width || int(height) != set.Height || r.bit() != 0 || r.bit() != 1 {
			t.Errorf("%s: the SPS says %dx%d, want %dx%d", set.Name, width, height, set.Width, set.Height)
		}
	}
	// The PPS of libx264's baseline streams without weighted prediction.
	if got, want := pictureParameters(), []byte{0x68, 0xce, 0x3c, 0x80}; !bytes.Equal(got, want) {
		t.Errorf("PPS % x, want % x", got, want)
	}
}
