package config

import (
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"
)

// The types of this file read themselves from TOML and from a command-line flag (they are pflag.Values).

// Duration is a time span, written with its unit: "5s", "2m30s".
type Duration time.Duration

// Value returns d as the standard library has it.
func (d Duration) Value() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// UnmarshalText reads a duration.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf(`%q is not a duration; write it with its unit and in quotes, as "5s", "250ms" or "2m"`, text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText returns what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Set reads a duration from a flag.
func (d *Duration) Set(s string) error { return d.UnmarshalText([]byte(s)) }

// Type names the type in a flag's help.
func (d *Duration) Type() string { return "duration" }

// Size is a number of bytes, written as a number, or with a unit: "64KiB".
type Size int64

// Units of sizes, the largest first. There is no KB or K: half of all users would mean 1000.
var sizeUnits = [...]struct {
	name  string
	bytes int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && int64(s)%u.bytes == 0 && u.bytes > 1 {
			return fmt.Sprintf("%d%s", int64(s)/u.bytes, u.name)
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// UnmarshalText reads a size.
func (s *Size) UnmarshalText(text []byte) error {
	number, unit := string(text), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return fmt.Errorf(`%q is not a size; write a number of bytes, or a whole number with KiB, MiB or GiB, as "64KiB"`, text)
	}
	*s = Size(n * unit)
	return nil
}

// MarshalText returns what UnmarshalText reads.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Set reads a size from a flag.
func (s *Size) Set(text string) error { return s.UnmarshalText([]byte(text)) }

// Type names the type in a flag's help.
func (s *Size) Type() string { return "size" }

// Threshold is the smallest response that a connection is handed over for: a Size, or ThresholdAuto.
type Threshold Size

// ThresholdAuto is written "auto": the server finds out by itself.
const ThresholdAuto Threshold = -1

func (t Threshold) String() string {
	if t == ThresholdAuto {
		return "auto"
	}
	return Size(t).String()
}

// UnmarshalText reads a threshold.
func (t *Threshold) UnmarshalText(text []byte) error {
	if string(text) == "auto" {
		*t = ThresholdAuto
		return nil
	}
	if err := (*Size)(t).UnmarshalText(text); err != nil {
		return fmt.Errorf(`%w; or "auto"`, err)
	}
	return nil
}

// MarshalText returns what UnmarshalText reads.
func (t Threshold) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// Set reads a threshold from a flag.
func (t *Threshold) Set(text string) error { return t.UnmarshalText([]byte(text)) }

// Type names the type in a flag's help.
func (t *Threshold) Type() string { return "size" }

// LogLevel is the least important level that is logged: debug, info, warn or error. It is a slog.Leveler.
type LogLevel slog.Level

var logLevels = [...]struct {
	name  string
	level slog.Level
}{{"debug", slog.LevelDebug}, {"info", slog.LevelInfo}, {"warn", slog.LevelWarn}, {"error", slog.LevelError}}

// Level returns l as slog has it.
func (l LogLevel) Level() slog.Level { return slog.Level(l) }

func (l LogLevel) String() string {
	for _, known := range logLevels {
		if known.level == slog.Level(l) {
			return known.name
		}
	}
	return slog.Level(l).String()
}

// UnmarshalText reads a level.
func (l *LogLevel) UnmarshalText(text []byte) error {
	for _, known := range logLevels {
		if known.name == string(text) {
			*l = LogLevel(known.level)
			return nil
		}
	}
	return fmt.Errorf("%q is not a log level; use debug, info, warn or error", text)
}

// MarshalText returns what UnmarshalText reads.
func (l LogLevel) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Set reads a level from a flag.
func (l *LogLevel) Set(s string) error { return l.UnmarshalText([]byte(s)) }

// Type names the type in a flag's help.
func (l *LogLevel) Type() string { return "level" }

// Mode says when connections are handed over to the host, and for how long.
type Mode string

// The modes.
const (
	ModeLease   Mode = "lease"   // the host keeps a connection until it is over or recalled
	ModeOffload Mode = "offload" // the host hands a connection back after each response
	ModeOff     Mode = "off"     // never: everything is served locally
)

func (m Mode) String() string { return string(m) }

// UnmarshalText reads a mode.
func (m *Mode) UnmarshalText(text []byte) error {
	switch v := Mode(text); v {
	case ModeLease, ModeOffload, ModeOff:
		*m = v
		return nil
	}
	return fmt.Errorf("%q is not a mode; use lease, offload or off", text)
}

// Set reads a mode from a flag.
func (m *Mode) Set(s string) error { return m.UnmarshalText([]byte(s)) }

// Type names the type in a flag's help.
func (m *Mode) Type() string { return "mode" }
