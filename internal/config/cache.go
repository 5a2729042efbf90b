package config

import (
	"path"
	"strings"
	"time"
)

// ShareCache says how a share is kept that is filled from an origin. docs/cache.md tells what the numbers mean. A zero is the default, but for KeepFree, Stale, MaxRate and ReadAhead.
type ShareCache struct {
	Dir         string      `toml:"dir"`
	MaxSize     Size        `toml:"max_size"`
	MaxFiles    int         `toml:"max_files"`
	KeepFree    Size        `toml:"keep_free"`
	TTL         Duration    `toml:"ttl"`
	NegativeTTL Duration    `toml:"negative_ttl"`
	Stale       Duration    `toml:"stale"`
	Timeout     Duration    `toml:"timeout"`     // without a byte from the origin
	MaxFills    int         `toml:"max_fills"`   // at a time
	MaxRate     Size        `toml:"max_rate"`    // bytes a second
	MaxLookups  int         `toml:"max_lookups"` // names that the cache does not know, a second, for each VM
	ReadAhead   int         `toml:"read_ahead"`  // files of a series
	IgnoreETag  bool        `toml:"ignore_etag"`
	Rules       []CacheRule `toml:"rule"`
}

// CacheRule is a time-to-live for the files that a pattern matches.
type CacheRule struct {
	Pattern string   `toml:"pattern"`
	TTL     Duration `toml:"ttl"`
}

// WithDefaults returns c with defaults in place of zeros.
func (c ShareCache) WithDefaults() ShareCache {
	if c.MaxFiles == 0 {
		c.MaxFiles = 1_000_000
	}
	if c.TTL == 0 {
		c.TTL = Duration(30 * 24 * time.Hour)
	}
	if c.NegativeTTL == 0 {
		c.NegativeTTL = Duration(10 * time.Second)
	}
	if c.Timeout == 0 {
		c.Timeout = Duration(10 * time.Second)
	}
	if c.MaxFills == 0 {
		c.MaxFills = 32
	}
	if c.MaxLookups == 0 {
		c.MaxLookups = 200
	}
	return c
}

// maxReadAhead is as many files as a client that streams is ever ahead of itself: minutes.
const maxReadAhead = 32

// originForms are how origins are written.
var originForms = []string{"/", "file:///", "http://", "https://", "s3://"}

func (s HostShare) validate(p *problems, key string) {
	if s.Origin == "" {
		p.absolutePath(key+".path", s.Path, ` (or name an origin, for a cache)`)
		return
	}
	if s.Path != "" {
		p.add(key, "it has a path and an origin; a share has its files from one of them")
	}
	known := false
	for _, form := range originForms {
		known = known || strings.HasPrefix(s.Origin, form)
	}
	if !known {
		p.add(key+".origin", "%q is no origin; write an absolute path, http://…, https://… or s3://BUCKET?region=…", s.Origin)
	}
	s.Cache.validate(p, key+".cache")
}

func (c ShareCache) validate(p *problems, key string) {
	p.absolutePath(key+".dir", c.Dir, "; each share needs a directory of its own")
	if c.MaxSize < 1<<20 {
		p.add(key+".max_size", "%v is not possible; use the disk space that the cache may take, 1MiB or more", c.MaxSize)
	}
	for name, n := range map[string]int64{
		"max_files": int64(c.MaxFiles), "max_fills": int64(c.MaxFills), "max_lookups": int64(c.MaxLookups), "ttl": int64(c.TTL),
		"negative_ttl": int64(c.NegativeTTL), "stale": int64(c.Stale), "timeout": int64(c.Timeout),
	} {
		if n < 0 {
			p.add(key+"."+name, "it is negative; use a positive one, or leave it out")
		}
	}
	switch {
	case c.ReadAhead < 0 || c.ReadAhead > maxReadAhead:
		p.add(key+".read_ahead", "%d is not possible; use 0 for none, to %d", c.ReadAhead, maxReadAhead)
	case c.ReadAhead > 0 && c.MaxFills == 1:
		p.add(key+".read_ahead", "with max_fills = 1 there would be none, as one request is left for who asks; raise max_fills, or leave read_ahead out")
	}
	for _, r := range c.Rules {
		if _, err := path.Match(r.Pattern, ""); err != nil || r.Pattern == "" || r.TTL < 0 {
			p.add(key+".rule", "%q with a ttl of %v is not possible; use a pattern such as \"*.mpd\" and a duration", r.Pattern, r.TTL)
		}
	}
}
