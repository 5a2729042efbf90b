package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// Limits of names, in bytes.
const (
	maxName      = 64 // docs/wire.md: a share is a str8 of 1 to 64 bytes
	maxTableName = 64 // as in package redirect
)

const (
	nameRunes  = "abcdefghijklmnopqrstuvwxyz0123456789-"
	tableRunes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
)

// word checks that s is made of the given characters, which inWords describes.
func (p *problems) word(key, s string, maxLen int, runes, inWords string) {
	if s == "" || len(s) > maxLen || strings.Trim(s, runes) != "" {
		p.add(key, "%q is not a name; use 1 to %d of %s", s, maxLen, inWords)
	}
}

// name checks the name of element i of an array of tables, whose earlier names are in seen.
func (p *problems) name(table, name string, seen map[string]int, i int) {
	key := table + ".name"
	p.word(key, name, maxName, nameRunes, "a to z, 0 to 9 and '-'")
	if j, ok := seen[name]; ok {
		array, _, _ := strings.Cut(table, "[")
		p.add(key, "%q is also the name of %s[%d]; names must differ", name, array, j)
		return
	}
	seen[name] = i
}

// unique checks that value does not occur at an earlier key.
func unique[T comparable](p *problems, key string, value T, seen map[T]string, reason string) {
	if first, ok := seen[value]; ok {
		p.add(key, "%v is in %s already; remove one of them, %s", value, first, reason)
		return
	}
	seen[value] = key
}

func (p *problems) unique(key, value string, seen map[string]string, reason string) {
	unique(p, key, value, seen, reason)
}

func (p *problems) absolutePath(key, path, alternative string) {
	if !filepath.IsAbs(path) {
		p.add(key, "%q is not an absolute path; write it from \"/\" on%s", path, alternative)
	}
}

// channel checks the kind of a channel address, and a unix channel's path. The rest is for package channel.
func (p *problems) channel(key, address string, kinds ...string) {
	i := slices.IndexFunc(kinds, func(kind string) bool { return strings.HasPrefix(address, kind) && address != kind })
	if i < 0 {
		forms := map[string]string{"virtio:": "virtio:NAME", "unix:": "unix:/PATH", "vsock:": "vsock:CID:PORT"}
		var allowed []string
		for _, kind := range kinds {
			allowed = append(allowed, forms[kind])
		}
		p.add(key, "%q is not a channel of this side; write %s", address, strings.Join(allowed, " or "))
		return
	}
	if path, ok := strings.CutPrefix(address, "unix:"); ok && !filepath.IsAbs(path) {
		p.add(key, "%q has no absolute path; write it as unix:/PATH", address)
	}
}

// listensAt is what two channels of the host have in common that cannot both be listened at: a path, however it is written, or a vsock port, which
// is one for all VMs.
func listensAt(address string) string {
	kind, rest, _ := strings.Cut(address, ":")
	switch kind {
	case "unix":
		return kind + ":" + filepath.Clean(rest)
	case "vsock":
		if i := strings.LastIndexByte(rest, ':'); i >= 0 {
			return "vsock port " + rest[i+1:]
		}
	}
	return address
}

func (p *problems) positive(key string, d Duration) {
	if d <= 0 {
		p.add(key, "%v is not possible; use a duration above 0", d)
	}
}

func (p *problems) maxAge(key string, d Duration) {
	if d < 0 {
		p.add(key, `%v is negative; use a duration, or "0s" to send no Cache-Control`, d)
	}
}

func (p *problems) atLeastOne(key string, n int) {
	if n < 1 {
		p.add(key, "%d is not possible; use at least 1", n)
	}
}

// notUnicast says why a cannot be an address of a VM, or "".
func notUnicast(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return "missing"
	case a.Is4In6():
		return fmt.Sprintf("an IPv4 address written as IPv6 (write %v)", a.Unmap())
	case a.IsUnspecified():
		return "the unspecified address"
	case a.IsLoopback():
		return "a loopback address"
	case a.IsMulticast():
		return "a multicast address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "the broadcast address"
	case a.Zone() != "" || a.Is6() && a.IsLinkLocalUnicast():
		return "a link-local address"
	}
	return ""
}
