package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
)

func writeFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "test.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestLoadEmptyFile(t *testing.T) {
	host, err := LoadHost(writeFile(t, ""))
	if diff := cmp.Diff(DefaultHost(), host, compareAddr); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	serve, err := LoadServe(writeFile(t, ""))
	if diff := cmp.Diff(DefaultServe(), serve); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestLoadMissingFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none.toml")
	if _, err := LoadHost(file); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), file) {
		t.Errorf("LoadHost = %v, want ErrNotExist and the name", err)
	}
}

// Each VM has its own defaults, whatever the one before it says; and a value of the file goes before the default.
func TestLoadHostOverDefaults(t *testing.T) {
	got, err := LoadHost(writeFile(t, `
admin = ""
log_level = "debug"
limits.stall_timeout = "1m30s"
[[vm]]
name = "a"
max_leases = 7
[redirect]
mark = 0x100
[[vm]]
name = "b"
max_open_files = 0
`))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultHost()
	want.Admin = ""
	want.LogLevel = LogLevel(-4)
	want.Limits.StallTimeout = Duration(90 * time.Second)
	want.Redirect.Mark = 0x100
	a, b := DefaultVM(), DefaultVM()
	a.Name, a.MaxLeases = "a", 7
	b.Name, b.MaxOpenFiles = "b", 0
	want.VMs = []VM{a, b}
	if diff := cmp.Diff(want, got, compareAddr); diff != "" {
		t.Error(diff)
	}
}

func TestLoadMistakes(t *testing.T) {
	loadHost := func(file string) error { _, err := LoadHost(file); return err }
	loadServe := func(file string) error { _, err := LoadServe(file); return err }
	for _, test := range []struct {
		name string
		load func(string) error
		text string
		want string // what follows the file's name
	}{
		{
			"near key", loadHost, "log_level = \"info\"\nadmn = \"\"\n",
			`:2: admn: unknown key; did you mean "admin"?`,
		},
		{
			"near key in a table", loadServe, "[http]\nidle_timeuot = \"1s\"\n",
			`:2: http.idle_timeuot: unknown key; did you mean "http.idle_timeout"?`,
		},
		{
			"near key in a table of an array", loadHost, "[[vm]]\nname = \"a\"\n\n[[vm]]\n  chanels = [] # two\n",
			`:5: vm.chanels: unknown key; did you mean "vm.channels"?`,
		},
		{
			"key of another table", loadHost, "stall_timeout = \"1s\"\n",
			`:1: stall_timeout: unknown key; did you mean "limits.stall_timeout"?`,
		},
		{
			"key like no other", loadServe, "[offload]\nxyzzy = 1\n",
			`:2: offload.xyzzy: unknown key; the keys here are mode, channels, threshold, busy_poll`,
		},
		{
			"table", loadHost, "[[vms]]\nname = \"a\"\nchannels = []\n",
			`:1: vms: unknown key; did you mean "vm"?`,
		},
		{
			"dotted key", loadHost, "# redirect.tabel = 1\nredirect.tabel = \"x\"\n",
			`:2: redirect.tabel: unknown key; did you mean "redirect.table"?`,
		},
		{
			"inline table", loadHost, "\nredirect = {tabel = \"x\"}\n",
			`:2: redirect.tabel: unknown key; did you mean "redirect.table"?`,
		},
		{
			"array of inline tables", loadHost, "vm = [{name = \"a\", chanels = []}]\n",
			`:1: vm.chanels: unknown key; did you mean "vm.channels"?`,
		},
		{
			"case", loadHost, "Log_Level = \"info\"\n",
			`:1: Log_Level: unknown key; did you mean "log_level"?`,
		},
		{
			"duration without unit", loadHost, "[limits]\nstall_timeout = 5\n",
			`:2: limits.stall_timeout: "5" is not a duration; write it with its unit and in quotes, as "5s", "250ms" or "2m"`,
		},
		{
			"decimal size", loadServe, "[offload]\nthreshold = \"64KB\"\n",
			`:2: offload.threshold: "64KB" is not a size; write a number of bytes, or a whole number with KiB, MiB or GiB, as "64KiB"; or "auto"`,
		},
		{
			"level", loadServe, "log_level = \"INFO\"\n",
			`:1: log_level: "INFO" is not a log level; use debug, info, warn or error`,
		},
		{
			"mode", loadServe, "\n\n[offload]\nmode = \"on\"\n",
			`:4: offload.mode: "on" is not a mode; use lease, offload or off`,
		},
	} {
		file := writeFile(t, test.text)
		err := test.load(file)
		if err == nil || err.Error() != file+test.want {
			t.Errorf("%s:\n got %v\nwant %s%s", test.name, err, file, test.want)
		}
		var mistake *Error
		if !errors.As(err, &mistake) || mistake.Line == 0 || mistake.Key == "" {
			t.Errorf("%s: %v is no Error with a line and a key", test.name, err)
		}
		if got, want := errors.Is(err, ErrUnknownKey), strings.Contains(test.want, "unknown"); got != want {
			t.Errorf("%s: is ErrUnknownKey: %v", test.name, got)
		}
	}
}

// Mistakes whose words are the decoder's: place and key must be there.
func TestLoadDecoderMistakes(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"syntax", "log_level = \"info\"\nadmin = \n", ":2: "},
		{"twice", "admin = \"\"\nadmin = \"\"\n", ":2: "},
		{"type", "[redirect]\nmark = \"many\"\n", ":2: redirect.mark: "},
		{"negative", "[redirect]\nmark = -1\n", ":2: redirect.mark: "},
		{"too large", "[redirect]\nmark = 0x100000000\n", ":2: redirect.mark: "},
		{"address", "[[vm]]\naddresses = [\"10.0.0.256\"]\n", ":2: vm.addresses: "},
		{"table as value", "vm = 5\n", ":1: vm: "},
		{"second VM of three", "[[vm]]\naddresses = []\n[[vm]]\nname = \"b\"\naddresses = [\"x\"]\n[[vm]]\naddresses = []\n", ":5: vm.addresses: "},
		{"type in the first VM", "[[vm]]\nmax_leases = \"all\"\n[[vm]]\nmax_leases = 1\n", ":2: vm.max_leases: "},
		{"inline VM", "\nvm = [{addresses = [\"x\"]}]\n", ": vm.addresses: "},
	} {
		_, err := LoadHost(writeFile(t, test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

func TestSeveralUnknownKeysAreAllTold(t *testing.T) {
	_, err := LoadHost(writeFile(t, "a = 1\nb = 2\n[c]\nd = 3\n"))
	for _, want := range []string{":1: a: ", ":2: b: ", ":3: c: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if err != nil && strings.Contains(err.Error(), "c.d") {
		t.Errorf("%v tells of keys below an unknown table", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, sample := range []string{hostSample, serveSample} {
		text, err := os.ReadFile(sample)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add("a.b = {c = 1}\n[[vm]]\nx.y = 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		if h, err := parseHost("fuzz.toml", text); err == nil {
			_ = h.Validate()
		}
		if s, err := parseServe("fuzz.toml", text); err == nil {
			_ = s.Validate()
		}
	})
}

func TestEditDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "", 3}, {"", "abc", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		if got := editDistance(test.a, test.b); got != test.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", test.a, test.b, got, test.want)
		}
	}
}

func TestLineOfUnknownKeyIsZero(t *testing.T) {
	if got := lineOf("a = 1\n", toml.Key{"b"}, anyElement); got != 0 {
		t.Errorf("line %d, want 0", got)
	}
}
