package archtest

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// layers is the structure of docs/architecture.md: a package may import what stands in a layer above it in this table, so data flows one way
// and no two packages know each other.
var layers = []struct {
	name     string
	packages []string
}{
	{"L0 words and formats", []string{
		"internal/config", "internal/evict", "internal/feature", "internal/feature/featuretest", "internal/loglimit", "internal/metrics", "internal/tcpstate",
		"internal/unixsock", "internal/wire",
	}},
	{"L1 the kernel and the machine", []string{
		"internal/channel", "internal/delayline", "internal/guestinit", "internal/neighbor", "internal/netns", "internal/nginx", "internal/origin",
		"internal/qemu", "internal/redirect", "internal/tcprepair", "internal/testkit",
	}},
	{"L2 mechanisms", []string{"internal/cache", "internal/lease", "internal/mediafs", "internal/session", "internal/share"}},
	{"L3 the two sides, and the media", []string{
		"internal/dataset", "internal/guest", "internal/host", "internal/media", "internal/media/mediatest", "internal/migrate",
	}},
	{"L4 trying it out, looking after it", []string{"internal/bench", "internal/doctor", "internal/evaluation", "internal/figures", "internal/lab", "internal/status"}},
	{"L5 programs", []string{"cmd/spillway"}},
}

// aside are packages that are outside the layers.
var aside = map[string]string{
	"internal/archtest":            "this test: it imports none of ours",
	"internal/e2e":                 "the tests of the whole: they import what they test",
	"internal/qemu/testdata/guest": "a program that a test boots in a VM",
}

// sameLayer are the imports within a layer that are allowed.
var sameLayer = map[string]string{
	"internal/wire → internal/tcpstate":               "a HANDOVER carries a connection's state",
	"internal/feature/featuretest → internal/feature": "the test helper of that package",
	"internal/qemu → internal/guestinit":              "a VM is booted with the specification that its init reads",
	"internal/cache → internal/share":                 "a cached file that is complete is served as any other one",
	"internal/testkit → internal/netns":               "the same namespaces, for tests",
	"internal/evaluation → internal/bench":            "an evaluation is a bench run in a lab",
	"internal/figures → internal/bench":               "figures are made of what benches write",
	"internal/evaluation → internal/lab":              "an evaluation is a bench run in a lab",
}

// forbidden are imports that the layers would allow.
var forbidden = []struct {
	from, to []string
	reason   string
}{
	{[]string{"internal/guest"}, []string{"internal/host"}, "guest and host meet in wire and lease only"},
	{[]string{"internal/host"}, []string{"internal/guest"}, "guest and host meet in wire and lease only"},
	{[]string{"internal/media"}, []string{"internal/guest", "internal/host", "internal/wire", "internal/lease", "internal/session"},
		"the media server knows nothing of offloading"},
	{[]string{"internal/guest", "internal/host", "internal/media"},
		[]string{"internal/lab", "internal/bench", "internal/evaluation", "internal/netns", "internal/delayline", "internal/testkit"},
		"what runs in production must not need what makes tests"},
}

// syscallers may import golang.org/x/sys/unix or syscall, each for its reason.
var syscallers = map[string]string{
	"internal/bench":           "asks whether its output is a terminal, and how wide",
	"internal/cache":           "openat2 in its directory, flock, sparse files and their times, the free space",
	"internal/channel":         "the virtio-serial port's poll, the unix socket's owner lock, vsock addresses",
	"internal/delayline":       "TUN devices: their ioctls, reads and writes, and a sleep that ends on time",
	"internal/doctor":          "looks whether paths and devices can be used",
	"internal/evaluation":      "uname, the CPU clock of a process, the limit of open files, socket options of its clients",
	"internal/feature":         "its probes are system calls",
	"internal/guest":           "reads the client's socket under the connection's lock; lends its fd to tcprepair",
	"internal/guestinit":       "mounts, reboots and reaps: it is PID 1",
	"internal/host":            "sendmsg with MSG_MORE and sendfile with offsets on the client's socket",
	"internal/lab":             "signals and process groups; a channel's socket, to cut it",
	"internal/media":           "error numbers only: which of them are a 404",
	"internal/media/mediatest": "error numbers only",
	"internal/mediafs":         "opens media without blocking on a FIFO; the fd for sendfile",
	"internal/neighbor":        "packet sockets for what it announces, error numbers of netlink",
	"internal/netns":           "a constant of netlink",
	"internal/origin":          "opens files without blocking on a FIFO; error numbers",
	"internal/qemu":            "pidfd, the tap device's ioctl, a namespace for QEMU",
	"internal/redirect":        "a lock that dies with its process, netlink constants",
	"internal/session":         "asks the channel without waiting",
	"internal/share":           "openat2 beneath the share",
	"internal/status":          "asks whether its output is a terminal, and how high; error numbers, and whose socket it is",
	"internal/tcprepair":       "the kernel's repair interface",
	"cmd/spillway":             "signals",
}

// rawCallers make system calls that package unix has no function for, or that it makes too slowly.
var rawCallers = map[string]string{
	"internal/feature":   "ioctl and getsockopt with structures that package unix does not have",
	"internal/tcprepair": "a handover is 20 socket options: neither the scheduler's hooks nor an allocation for each",
}

// longFiles may have more than maxLines, each for its reason.
var longFiles = map[string]string{}

// maxLines of a file that is not a test.
const maxLines = 400

// untested packages have no test of their own, each for its reason.
var untested = map[string]string{
	"internal/media/mediatest": "it is a conformance suite: the tests of its users run it",
}

const module = "spillway/"

// source is one package as it lies in the tree, for all build tags.
type source struct {
	dir     string
	name    string
	imports map[string]bool // without those of its tests
	docs    []string        // files with a package comment
	tested  bool
	raw     []string       // files that make raw system calls
	lines   map[string]int // of files that are not tests
}

// root is the directory of go.mod.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}

// load reads every Go package of the module.
func load(t *testing.T) map[string]*source {
	t.Helper()
	top := root(t)
	packages := map[string]*source{}
	for _, tree := range []string{"cmd", "internal", "examples"} {
		err := filepath.WalkDir(filepath.Join(top, tree), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() || filepath.Ext(path) != ".go" {
				return nil
			}
			rel, err := filepath.Rel(top, filepath.Dir(path))
			if err != nil {
				return err
			}
			p := packages[rel]
			if p == nil {
				p = &source{dir: rel, imports: map[string]bool{}, lines: map[string]int{}}
				packages[rel] = p
			}
			return p.add(path)
		})
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if len(packages) < 10 {
		t.Fatalf("found only %d packages", len(packages))
	}
	return packages
}

// rawCall matches the use of a system call by its number.
var rawCall = regexp.MustCompile(`\b(unix|syscall)\.(Raw)?Syscall[0-9A-Za-z]*\(`)

// add takes one file into account.
func (p *source) add(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return err
	}
	base := filepath.Base(path)
	if strings.HasSuffix(base, "_test.go") {
		p.tested = true
	} else {
		p.name = file.Name.Name
		for _, i := range file.Imports {
			p.imports[importPath(i)] = true
		}
		p.lines[base] = bytes.Count(text, []byte("\n"))
		if rawCall.Match(text) {
			p.raw = append(p.raw, base)
		}
	}
	if file.Doc != nil && !strings.HasSuffix(file.Name.Name, "_test") {
		p.docs = append(p.docs, base)
	}
	return nil
}

func importPath(i *ast.ImportSpec) string {
	path, err := strconv.Unquote(i.Path.Value)
	if err != nil {
		return i.Path.Value
	}
	return path
}

// layerOf returns the layer's number, or -1.
func layerOf(dir string) int {
	return slices.IndexFunc(layers, func(l struct {
		name     string
		packages []string
	}) bool {
		return slices.Contains(l.packages, dir)
	})
}

// sorted returns the packages in the order of their names.
func sorted(packages map[string]*source) []*source {
	var all []*source
	for _, p := range packages {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *source) int { return strings.Compare(a.dir, b.dir) })
	return all
}

func TestImportsPointDown(t *testing.T) {
	packages := load(t)
	used := map[string]bool{}
	for _, p := range sorted(packages) {
		if aside[p.dir] != "" || strings.HasPrefix(p.dir, "examples/") || p.name == "" {
			continue
		}
		from := layerOf(p.dir)
		if from < 0 {
			t.Errorf("%s is in no layer: add it to the table, and to docs/architecture.md", p.dir)
			continue
		}
		for i := range p.imports {
			dir, ours := strings.CutPrefix(i, module)
			if !ours {
				continue
			}
			edge := p.dir + " → " + dir
			switch to := layerOf(dir); {
			case to < 0:
				t.Errorf("%s: the imported package is in no layer", edge)
			case to > from:
				t.Errorf("%s points up: from %q to %q", edge, layers[from].name, layers[to].name)
			case to == from && sameLayer[edge] == "":
				t.Errorf("%s stays in %q: packages of a layer do not know each other", edge, layers[from].name)
			case to == from:
				used[edge] = true
			}
		}
	}
	for edge := range sameLayer {
		if !used[edge] {
			t.Errorf("the exception %q is not needed any more", edge)
		}
	}
	listed := slices.Collect(maps.Keys(aside))
	for _, l := range layers {
		listed = append(listed, l.packages...)
	}
	for _, dir := range listed {
		if packages[dir] == nil {
			t.Errorf("%s of the tables does not exist", dir)
		}
	}
}

// TestForbiddenImports looks at what is reached by way of other packages too.
func TestForbiddenImports(t *testing.T) {
	packages := load(t)
	for _, rule := range forbidden {
		for _, from := range rule.from {
			reached := map[string]string{from: from}
			queue := []string{from}
			for len(queue) > 0 {
				p := packages[queue[0]]
				queue = queue[1:]
				if p == nil {
					continue
				}
				for i := range p.imports {
					if dir, ours := strings.CutPrefix(i, module); ours && reached[dir] == "" {
						reached[dir] = reached[p.dir] + " → " + dir
						queue = append(queue, dir)
					}
				}
			}
			for _, to := range rule.to {
				if way := reached[to]; way != "" {
					t.Errorf("%s: %s", way, rule.reason)
				}
			}
		}
	}
}

func TestSystemCalls(t *testing.T) {
	used := map[string]bool{}
	for _, p := range sorted(load(t)) {
		if aside[p.dir] != "" {
			continue
		}
		if len(p.raw) > 0 && rawCallers[p.dir] == "" {
			t.Errorf("%s makes raw system calls in %v", p.dir, p.raw)
		}
		if len(p.raw) == 0 && rawCallers[p.dir] != "" {
			t.Errorf("%s is listed for raw system calls and makes none", p.dir)
		}
		for _, i := range []string{"golang.org/x/sys/unix", "syscall"} {
			if !p.imports[i] {
				continue
			}
			used[p.dir] = true
			if syscallers[p.dir] == "" {
				t.Errorf("%s imports %s: system calls belong into the packages made for them, or the list gets a reason", p.dir, i)
			}
		}
	}
	for dir := range syscallers {
		if !used[dir] {
			t.Errorf("%s is listed for system calls and imports neither package", dir)
		}
	}
}

func TestPackageComments(t *testing.T) {
	for _, p := range sorted(load(t)) {
		if p.name != "" && len(p.docs) != 1 {
			t.Errorf("%s has %d package comments %v, want one", p.dir, len(p.docs), p.docs)
		}
	}
}

func TestFileLength(t *testing.T) {
	packages := load(t)
	for _, p := range sorted(packages) {
		for base, lines := range p.lines {
			path := p.dir + "/" + base
			if lines > maxLines && longFiles[path] == "" {
				t.Errorf("%s has %d lines, more than %d: split it by what its parts do", path, lines, maxLines)
			}
		}
	}
	for path := range longFiles {
		p := packages[filepath.ToSlash(filepath.Dir(path))]
		if p == nil || p.lines[filepath.Base(path)] <= maxLines {
			t.Errorf("the exception for %s is not needed any more", path)
		}
	}
}

func TestEveryPackageHasTests(t *testing.T) {
	for _, p := range sorted(load(t)) {
		if p.name == "main" || strings.HasPrefix(p.dir, "examples/") {
			continue
		}
		if !p.tested && untested[p.dir] == "" {
			t.Errorf("%s has no test", p.dir)
		}
		if p.tested && untested[p.dir] != "" {
			t.Errorf("%s has a test and is listed as having none", p.dir)
		}
	}
}

// TestDocuments: what a reader sees first is finished.
func TestDocuments(t *testing.T) {
	top := root(t)
	paths, err := filepath.Glob(filepath.Join(top, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	paths = append(paths, filepath.Join(top, "README.md"))
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for n, line := range strings.Split(string(text), "\n") {
			for _, word := range []string{"TODO", "FIXME"} {
				if strings.Contains(line, word) {
					t.Errorf("%s:%d: %s", path, n+1, word)
				}
			}
		}
	}
}
