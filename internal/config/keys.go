package config

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// knownKeys lists the keys of a configuration struct, tables included, in the order of its fields.
func knownKeys(t reflect.Type) []toml.Key {
	textUnmarshaler := reflect.TypeFor[encoding.TextUnmarshaler]()
	var keys []toml.Key
	for i := range t.NumField() {
		field := t.Field(i)
		key := toml.Key{field.Tag.Get("toml")}
		keys = append(keys, key)
		inner := field.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() != reflect.Struct || reflect.PointerTo(inner).Implements(textUnmarshaler) {
			continue
		}
		for _, k := range knownKeys(inner) {
			keys = append(keys, slices.Concat(key, k))
		}
	}
	return keys
}

// suggestion names the known key that the user most likely meant. The same table is searched first: among its keys even a
// poor likeness is better than a good one elsewhere, unless nothing is alike at all.
func suggestion(key toml.Key, known []toml.Key) string {
	table := key[:len(key)-1]
	var siblings, others []toml.Key
	for _, k := range known {
		if slices.Equal(k[:len(k)-1], table) {
			siblings = append(siblings, k)
		} else {
			others = append(others, k)
		}
	}
	for _, candidates := range [][]toml.Key{siblings, others} {
		if nearest := nearestKey(key[len(key)-1], candidates); nearest != nil {
			return fmt.Sprintf("did you mean %q?", nearest.String())
		}
	}
	names := make([]string, len(siblings))
	for i, k := range siblings {
		names[i] = k[len(k)-1]
	}
	return "the keys here are " + strings.Join(names, ", ")
}

// nearestKey returns the candidate whose last part is most like name, or nil when more than half of it would have to change.
func nearestKey(name string, candidates []toml.Key) toml.Key {
	var nearest toml.Key
	least := len(name)/2 + 1
	for _, k := range candidates {
		if d := editDistance(name, k[len(k)-1]); d < least {
			nearest, least = k, d
		}
	}
	return nearest
}

// editDistance counts the letters to insert, delete or replace to make b of a (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// anyElement makes lineOf take the first line that fits, in whichever element of an array of tables.
const anyElement = -1

// lineOf finds the line of a key, or 0. The decoder does not tell it for keys that it has no use for, so this reads the
// lines by itself: it knows tables, bare and quoted keys, and dotted keys; for a key in an inline table it returns the line of the
// key that holds the inline table. element, from 0, chooses among the tables of an array. The text is known to be valid.
func lineOf(text string, key toml.Key, element int) int {
	var table toml.Key
	current, holder := -1, 0
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		if header, ok := strings.CutPrefix(line, "["); ok && !strings.Contains(line, "=") {
			table = splitKey(strings.Trim(header, "[] \t"))
			if slices.Equal(table, key[:1]) {
				current++
			}
			if slices.Equal(table, key) && (element == anyElement || element == current) {
				return i + 1
			}
			continue
		}
		name, _, ok := strings.Cut(line, "=")
		if !ok || element != anyElement && element != current {
			continue
		}
		found := slices.Concat(table, splitKey(name))
		if len(found) >= len(key) && slices.Equal(found[:len(key)], key) {
			return i + 1
		}
		if holder == 0 && len(found) < len(key) && slices.Equal(found, key[:len(found)]) {
			holder = i + 1
		}
	}
	return holder
}

// splitKey splits a dotted key. A dot within quotes is not recognized: no key of ours has one.
func splitKey(s string) toml.Key {
	parts := strings.Split(s, ".")
	for i := range parts {
		parts[i] = strings.Trim(parts[i], " \t\"'")
	}
	return parts
}
