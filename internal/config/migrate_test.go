package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const migrateSample = "../../examples/migrate.toml"

// TestMigrateSample: the example is valid, and names every key.
func TestMigrateSample(t *testing.T) {
	m, err := LoadMigrate(migrateSample)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range m.VMs[0].Hosts {
		if h.Name == "" || h.Admin == "" || h.QMP == "" || len(h.Addresses) == 0 || h.Incoming == "" || len(h.Start) == 0 || len(h.Stop) == 0 {
			t.Errorf("%+v", h)
		}
	}
}

func TestMigrateMistakes(t *testing.T) {
	sample, err := os.ReadFile(migrateSample)
	if err != nil {
		t.Fatal(err)
	}
	for change, want := range map[[2]string]string{
		{`name = "vm0"`, `name = ""`}:       "vm[0]",
		{`qmp = "/`, `qmp = "`}:             "qmp",
		{`incoming = "tcp`, `incoming = "`}: "incoming",
		{`admin = `, `amin = `}:             "unknown key",
		{`start = [`, `start = [] #`}:       "start",
	} {
		file := filepath.Join(t.TempDir(), "migrate.toml")
		text := strings.Replace(string(sample), change[0], change[1], 1)
		if text == string(sample) {
			t.Fatalf("%q is not in the example", change[0])
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadMigrate(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", change[1], err, want)
		}
	}
}

// TestSides: a VM is where somebody answers, and nowhere twice.
func TestSides(t *testing.T) {
	m := Migrate{VMs: []MigrateVM{{Name: "vm0", Hosts: []MigrateHost{{Name: "a"}, {Name: "b"}, {Name: "c"}}}}}
	at := func(names ...string) func(MigrateHost) bool {
		return func(h MigrateHost) bool {
			for _, n := range names {
				if n == h.Name {
					return true
				}
			}
			return false
		}
	}
	if from, to, err := m.Sides("vm0", "b", at("a")); err != nil || from.Name != "a" || to.Name != "b" {
		t.Errorf("from %s to %s: %v", from.Name, to.Name, err)
	}
	for _, c := range []struct {
		vm, to string
		at     []string
		want   string
	}{
		{"vm1", "b", []string{"a"}, "no VM"}, {"vm0", "d", []string{"a"}, "no host"}, {"vm0", "b", nil, "none of its hosts"},
		{"vm0", "b", []string{"a", "b"}, "already"}, {"vm0", "b", []string{"a", "c"}, "each of [a c]"},
	} {
		if _, _, err := m.Sides(c.vm, c.to, at(c.at...)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
