package wire

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"spillway/internal/tcpstate"
)

const specification = "../../docs/wire.md"

func readSpecification(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(specification)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// section gives the lines between a heading and the next one of any level.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, body, found := strings.Cut(text, "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no section %q", specification, heading)
	}
	body, _, _ = strings.Cut(body, "\n#")
	return body
}

// tableRows gives the cells of a section's only table, without its heading.
func tableRows(t *testing.T, text, heading string) [][]string {
	t.Helper()
	var rows [][]string
	for line := range strings.Lines(section(t, text, heading)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	if len(rows) < 3 || !strings.Contains(rows[1][0], "--") {
		t.Fatalf("section %q has no table", heading)
	}
	return rows[2:]
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", specification, err)
	}
	return n
}

// TestSpecifiedTypes compares number, name, flags and group of every type.
func TestSpecifiedTypes(t *testing.T) {
	type specified struct {
		Name    string
		Session bool
		Flags   Flags
	}
	text := readSpecification(t)
	flag := regexp.MustCompile(`Flag (\d+) \(([A-Z]+)\)`)
	want := map[Type]specified{}
	flagNames := map[string]Flags{}
	for _, group := range []string{"### Session", "### Files", "### Lease"} {
		for _, row := range tableRows(t, text, group) {
			s := specified{Name: row[1], Session: group == "### Session"}
			for _, m := range flag.FindAllStringSubmatch(row[3], -1) {
				s.Flags |= Flags(number(t, m[1]))
				flagNames[row[1]+" "+m[2]] = Flags(number(t, m[1]))
			}
			typ := Type(number(t, row[0]))
			if _, twice := want[typ]; twice {
				t.Errorf("type %d is specified twice", typ)
			}
			want[typ] = s
		}
	}
	got := map[Type]specified{}
	for _, typ := range knownTypes() {
		k := kindOf(typ)
		got[typ] = specified{typ.String(), k.session, k.flags}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("types (-specification +code):\n%s", diff)
	}
	names := map[string]Flags{"DATA MORE": FlagMore, "SEND RETURN": FlagReturn, "SENT STARTED": FlagStarted, "CLOSE ABORT": FlagAbort, "DRAIN MOVE": FlagMove}
	if diff := cmp.Diff(flagNames, names); diff != "" {
		t.Errorf("flags (-specification +code):\n%s", diff)
	}
}

// TestSpecifiedGroups shows that the id's meaning follows from the type's number: files are below the leases.
func TestSpecifiedGroups(t *testing.T) {
	text := readSpecification(t)
	for group, first := range map[string]Type{"### Session": TypeGreet, "### Files": TypeStat, "### Lease": TypeHandover} {
		rows := tableRows(t, text, group)
		if got := Type(number(t, rows[0][0])); got != first {
			t.Errorf("%s begins with %v, want %v", group, got, first)
		}
	}
	want := fmt.Sprintf("the lease (%d and above) or the file request (%d–%d); 0 for session messages", TypeHandover, TypeStat, TypeBytes)
	if !strings.Contains(text, want) {
		t.Errorf("%s does not say %q", specification, want)
	}
}

func TestSpecifiedReasons(t *testing.T) {
	var want, got []string
	for i, row := range tableRows(t, readSpecification(t), "### Reasons") {
		if number(t, row[0]) != i {
			t.Errorf("reason %s is in row %d", row[0], i)
		}
		want = append(want, row[1])
	}
	for r := range reasonLimit {
		got = append(got, r.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("reasons (-specification +code):\n%s", diff)
	}
}

// TestSpecifiedMagics compares the magics with the payload column.
func TestSpecifiedMagics(t *testing.T) {
	want := map[string]string{}
	magic := regexp.MustCompile("magic `([^`]+)` \\((\\d+)\\)")
	for _, row := range tableRows(t, readSpecification(t), "### Session") {
		m := magic.FindStringSubmatch(row[3])
		if m == nil {
			continue
		}
		s, err := strconv.Unquote(`"` + m[1] + `"`)
		if err != nil {
			t.Fatal(err)
		}
		if len(s) != number(t, m[2]) || len(s) != magicSize {
			t.Errorf("magic %q has %d bytes, specified are %s", s, len(s), m[2])
		}
		want[row[1]] = s
	}
	got := map[string]string{"GREET": magicGreet, "HELLO": magicHello, "READY": magicReady}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("magics (-specification +code):\n%s", diff)
	}
}

// TestSpecifiedLimits looks for each limit of the code in the words of the specification.
func TestSpecifiedLimits(t *testing.T) {
	text := readSpecification(t)
	for _, want := range []string{
		fmt.Sprintf("Version %d.", Version),
		"bytes of payload, at most " + thousands(MaxPayload),
		"1–" + thousands(MaxData) + " bytes of the client's",
		"count u32 (1–" + thousands(MaxRead) + ")",
		"then 0–" + thousands(MaxSendHeader) + " header bytes",
		"said: 0–" + thousands(MaxSaid) + " bytes",
		"str8 of 1–" + thousands(MaxShare) + " bytes",
		"str16 of 1–" + thousands(MaxPath) + " bytes",
		"congestion control's name, at most " + thousands(tcpstate.MaxCongestionName),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s does not say %q", specification, want)
		}
	}
}

// TestSpecifiedLayout compares the layouts of the golden files with the tables of the header and of STATE: where each field begins, how long
// it is, and that fields follow each other without a hole.
func TestSpecifiedLayout(t *testing.T) {
	text := readSpecification(t)
	for _, c := range []struct {
		heading, layout string
		fixed           int
		together        map[string]int // fields of the layout in one row of the table
	}{
		{"## Frame", layoutHeader, HeaderSize, nil},
		{"### STATE", layoutState, stateFixedSize, map[string]int{"snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup": 5}},
	} {
		fields := strings.Fields(c.layout)
		offset := 0
		for _, row := range tableRows(t, text, c.heading) {
			if row[1] == "n" || row[1] == "length" { // the part of free length follows the fixed one
				if number(t, row[0]) != c.fixed {
					t.Errorf("%s: the fixed part has %s bytes, in the code %d", c.heading, row[0], c.fixed)
				}
				continue
			}
			if number(t, row[0]) != offset {
				t.Errorf("%s: %s begins at %s, the fields before end at %d", c.heading, row[2], row[0], offset)
			}
			n := 1
			for words, count := range c.together {
				if strings.HasPrefix(row[2], words) {
					n = count
				}
			}
			size := 0
			for _, f := range fields[:n] {
				_, kind, _ := strings.Cut(f, ":")
				size += number(t, kind[1:])
			}
			if size != number(t, row[1]) {
				t.Errorf("%s: %s has %s bytes, %v %d", c.heading, row[2], row[1], fields[:n], size)
			}
			offset += size
			fields = fields[n:]
		}
		if offset != c.fixed || len(fields) > 0 {
			t.Errorf("%s: the table's fields have %d bytes, want %d; not in the table: %v", c.heading, offset, c.fixed, fields)
		}
	}
}

// thousands writes n as the specification does.
func thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}
