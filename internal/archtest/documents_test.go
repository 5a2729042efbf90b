package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// readFile returns the text of a file of the repository.
func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// tableRows are the cells of the Markdown table whose header begins with these cells.
func tableRows(t *testing.T, document, header string) [][]string {
	t.Helper()
	_, after, ok := strings.Cut(readFile(t, document), "\n"+header)
	if !ok {
		t.Fatalf("%s has no table %q", document, header)
	}
	var rows [][]string
	for n, line := range strings.Split(after, "\n") {
		if n < 2 { // the header's rest, and the line below it
			continue
		}
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	return rows
}

var quoted = regexp.MustCompile("`([a-z0-9/]+)`")

// packagesIn are the names in backquotes, as directories.
func packagesIn(cell string) []string {
	var dirs []string
	for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
		dir := m[1]
		if !strings.HasPrefix(dir, "cmd/") {
			dir = "internal/" + dir
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// difference reports what is in one list only.
func difference(t *testing.T, left string, inLeft []string, right string, inRight []string) {
	t.Helper()
	for _, one := range inLeft {
		if !slices.Contains(inRight, one) {
			t.Errorf("%s is in %s and not in %s", one, left, right)
		}
	}
	for _, one := range inRight {
		if !slices.Contains(inLeft, one) {
			t.Errorf("%s is in %s and not in %s", one, right, left)
		}
	}
}

// TestLayersDocumented: docs/architecture.md shows the layers as they are. A package's test helper stands in its package's row.
func TestLayersDocumented(t *testing.T) {
	documented := map[string][]string{}
	layer := ""
	for _, row := range tableRows(t, "docs/architecture.md", "| layer | package |") {
		if row[0] != "" {
			layer = row[0]
		}
		documented[layer] = append(documented[layer], packagesIn(row[1])...)
	}
	names := map[string]string{"L5": "cmd"} // the document calls the top layer by its directory
	for _, l := range layers {
		name, _, _ := strings.Cut(l.name, " ")
		if names[name] != "" {
			name = names[name]
		}
		var packages []string
		for _, dir := range l.packages {
			if dir != "internal/feature/featuretest" && dir != "internal/media/mediatest" {
				packages = append(packages, dir)
			}
		}
		difference(t, "archtest's "+l.name, packages, "docs/architecture.md's "+name, documented[name])
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/architecture.md has a layer %q that archtest does not know", name)
	}
}

// TestTiers: docs/testing.md says of every package with tests what they need, and `make test-unit` runs those that need nothing.
func TestTiers(t *testing.T) {
	tiers := map[string][]string{}
	var listed []string
	for _, row := range tableRows(t, "docs/testing.md", "| tier | needs |") {
		name, _, _ := strings.Cut(row[0], " ")
		tiers[name] = packagesIn(row[2])
		listed = append(listed, tiers[name]...)
	}
	var tested []string
	for _, p := range sorted(load(t)) {
		if p.tested && !strings.Contains(p.dir, "testdata") {
			tested = append(tested, p.dir)
		}
	}
	difference(t, "the tree, with tests,", tested, "docs/testing.md", listed)
	unit := regexp.MustCompile(`(?m)^UNIT := (.*)$`).FindStringSubmatch(readFile(t, "Makefile"))
	if unit == nil {
		t.Fatal("the Makefile has no UNIT")
	}
	var made []string
	for _, name := range strings.Fields(unit[1]) {
		made = append(made, "internal/"+name)
	}
	difference(t, "the Makefile's UNIT", made, "docs/testing.md's tier unit", tiers["unit"])
}
