package wire

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files from what the encoder gives; read the change before you commit it")

// The layout of each frame, written down a second time, from docs/wire.md and not from the code: a golden file gets one line
// for each field of it. A field is name:kind; the kinds are u1 u2 u4 u8 and i8 (integers of so many bytes), zN (N bytes of 0), bN (N bytes),
// tN (text of N bytes), s1 and s2 (text after its length in so many bytes), b* and t* (the rest).
const (
	layoutHeader = "length:u4 type:u1 flags:u1 reserved:z2 id:u4 session:u4"
	layoutFile   = "share:s1 path:s2 size:i8 mtime:i8"
	layoutState  = "family:u1 options:u1 shifts:b1 socket:u1 local:b16 remote:b16 local-port:u2 remote-port:u2 send-seq:u4 recv-seq:u4 " +
		"timestamp:u4 snd_wl1:u4 snd_wnd:u4 max_window:u4 rcv_wnd:u4 rcv_wup:u4 mss:u2 idle:u2 interval:u2 count:u1 tos:u1 cwnd:u4 ssthresh:u4 rtt:u4 max_pacing:u8 congestion:s1"
)

func layoutOf(t Type) string {
	return map[Type]string{
		TypeGreet: "magic:t16 version:u2",
		TypeHello: "magic:t16 version:u2 window:u4 max_leases:u4",
		TypeReady: "magic:t16 version:u2",
		TypePing:  "token:u8",
		TypePong:  "token:u8",

		TypeForget: "share:s1 path:s2",

		TypeStat:  "share:s1 path:s2",
		TypeAttr:  "reason:u2 size:i8 mtime:i8",
		TypeRead:  layoutFile + " offset:i8 count:u4",
		TypeBytes: "reason:u2 reserved:z2 bytes:t*",

		TypeHandover: layoutState,
		TypeRefused:  "reason:u2",
		TypeData:     "data:t*",
		TypeCredit:   "bytes:u4",
		TypeSend:     layoutFile + " offset:i8 count:i8 header:t*",
		TypeSent:     "reason:u2 reserved:z2 bytes:i8",
		TypeClosed:   "reason:u2",
		TypeHandback: layoutState + " data:u8 sent:i8 said:b*",
		TypeKeep:     "reason:u2",
		TypeReleased: "snd_wl1:u4 snd_wnd:u4 max_window:u4 leased:u8",
	}[t]
}

func TestGolden(t *testing.T) {
	used := map[string]bool{}
	for _, c := range messageCases() {
		path := filepath.Join("testdata", c.name+".hex")
		used[path] = true
		t.Run(c.name, func(t *testing.T) {
			text := dumpFrame(t, c)
			if *update {
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			golden, err := os.ReadFile(path)
			if err != nil {
				t.Fatalf("%v (go test -run TestGolden -update writes it)", err)
			}
			if diff := cmp.Diff(string(golden), text); diff != "" {
				t.Errorf("the encoder does not give %s (-want +got):\n%s", path, diff)
			}
			decodeGolden(t, c, readDump(t, string(golden)))
		})
	}
	files, err := filepath.Glob("testdata/*.hex")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !used[f] {
			t.Errorf("%s belongs to no case", f)
		}
	}
}

// decodeGolden reads the bytes of a golden file as they would come over a channel.
func decodeGolden(t *testing.T, c messageCase, frame []byte) {
	t.Helper()
	h, payload, err := NewHostReader(bytes.NewReader(frame)).Next()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c.header(), h); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
	m, err := Parse(h.Type, payload)
	if err != nil {
		t.Fatal(err)
	}
	if diff := diffMessage(c.msg, m); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
}

// dumpFrame writes the frame of c field by field and fails where bytes and layout do not end together.
func dumpFrame(t *testing.T, c messageCase) string {
	t.Helper()
	var out strings.Builder
	fmt.Fprintf(&out, "# %v\n", c.msg.Type())
	rest := c.frame()
	layout := strings.Fields(layoutHeader + " " + layoutOf(c.msg.Type()))
	for _, field := range layout {
		name, kind, _ := strings.Cut(field, ":")
		size, err := strconv.Atoi(kind[1:])
		if kind[1:] == "*" {
			size, err = len(rest), nil
		}
		if err != nil || size > len(rest) {
			t.Fatalf("%d bytes left at field %s", len(rest), field)
		}
		p := rest[:size]
		rest = rest[size:]
		note := ""
		switch kind[0] {
		case 'u':
			note = strconv.FormatUint(leUint(p), 10)
		case 'i':
			note = strconv.FormatInt(int64(leUint(p)), 10)
		case 't':
			note = textNote(p)
		case 'z':
			note = "reserved"
		case 's':
			n := int(leUint(p))
			writeField(&out, name+"-length", p, strconv.Itoa(n))
			if n > len(rest) {
				t.Fatalf("%d bytes left for %s of %d", len(rest), name, n)
			}
			p, rest = rest[:n], rest[n:]
			note = textNote(p)
		}
		writeField(&out, name, p, note)
	}
	if len(rest) > 0 {
		t.Fatalf("%d bytes follow the layout's last field: % x", len(rest), rest)
	}
	return out.String()
}

func leUint(p []byte) uint64 {
	var v [8]byte
	copy(v[:], p)
	return le.Uint64(v[:])
}

func textNote(p []byte) string {
	if len(p) == 0 || !utf8.Valid(p) || bytes.ContainsFunc(p, func(r rune) bool { return r == 0 }) {
		return ""
	}
	return strconv.Quote(string(p))
}

// writeField writes one line, or a line for each 16 bytes of a long field; many equal bytes are written as "61 x 1024".
func writeField(out *strings.Builder, name string, p []byte, note string) {
	if len(p) > 16 && bytes.Count(p, p[:1]) == len(p) {
		fmt.Fprintf(out, "%-18s %02x x %d\n", name+":", p[0], len(p))
		return
	}
	for first := true; first || len(p) > 0; first = false {
		line := p[:min(16, len(p))]
		p = p[len(line):]
		s := fmt.Sprintf("%-18s % x", name+":", line)
		if first && note != "" {
			s = fmt.Sprintf("%-66s ; %s", s, note)
		}
		out.WriteString(strings.TrimRightFunc(s, unicode.IsSpace) + "\n")
		name = ""
	}
}

// readDump gives the bytes of a golden file. Names and notes are for people: it skips them.
func readDump(t *testing.T, text string) []byte {
	t.Helper()
	var frame []byte
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		_, data, found := strings.Cut(line, ":")
		if !found {
			t.Fatalf("line without a field: %q", line)
		}
		data, _, _ = strings.Cut(data, ";")
		data, times, repeated := strings.Cut(data, "x")
		b, err := hex.DecodeString(strings.Join(strings.Fields(data), ""))
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		if repeated {
			n, err := strconv.Atoi(strings.TrimSpace(times))
			if err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			b = bytes.Repeat(b, n)
		}
		frame = append(frame, b...)
	}
	return frame
}
