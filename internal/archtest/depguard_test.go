package archtest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// depguardRules is the part of .golangci.yml that says of the layers what depguard can say: direct imports, of what is no test. Editors show
// it at once; the tests of this package hold the rest, too.
func depguardRules() string {
	var b strings.Builder
	rule := func(name string, from []string, deny func()) {
		var files []string
		for _, dir := range from {
			files = append(files, fmt.Sprintf("%q", "**/"+dir+"/*.go"))
		}
		fmt.Fprintf(&b, "        %s:\n          files: [%s, \"!$test\"]\n          deny:\n", name, strings.Join(files, ", "))
		deny()
	}
	denied := func(to []string, reason string) {
		for _, dir := range to { // "$": this package, and not those whose names begin so
			fmt.Fprintf(&b, "            - {pkg: \"%s%s$\", desc: %q}\n", module, dir, reason)
		}
	}
	for i, l := range layers[:len(layers)-1] {
		name, _, _ := strings.Cut(l.name, " ")
		rule(name, l.packages, func() {
			for _, above := range layers[i+1:] {
				denied(above.packages, "imports point down: it is in "+above.name)
			}
		})
	}
	for _, f := range forbidden {
		var names []string
		for _, dir := range f.from {
			names = append(names, filepath.Base(dir))
		}
		rule(strings.Join(names, "-"), f.from, func() { denied(f.to, f.reason) })
	}
	return b.String()
}

var update = flag.Bool("update", false, "write depguard's rules into .golangci.yml")

// TestDepguard: the linter's rules are made from the tables of this package.
func TestDepguard(t *testing.T) {
	const begin, end = "    depguard: # made from the tables of internal/archtest: go test ./internal/archtest -run Depguard -update\n      rules:\n", "  exclusions:\n"
	text := readFile(t, ".golangci.yml")
	before, after, ok := strings.Cut(text, begin)
	got, rest, closed := strings.Cut(after, end)
	if !ok || !closed {
		t.Fatalf(".golangci.yml must have the lines\n%s and, behind them,\n%s", begin, end)
	}
	want := depguardRules()
	if *update {
		if err := os.WriteFile(filepath.Join(root(t), ".golangci.yml"), []byte(before+begin+want+end+rest), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if got != want {
		t.Error("depguard's rules in .golangci.yml differ from the tables: run go test ./internal/archtest -run Depguard -update, and read the diff")
	}
}
