package config

import (
	"encoding"
	"fmt"
	"log/slog"
	"testing"
	"time"
)

// flagValue is pflag.Value.
type flagValue interface {
	fmt.Stringer
	Set(string) error
	Type() string
}

// Each type must be all of these, or it silently reads as a plain number.
var (
	_ = []flagValue{new(Duration), new(Size), new(LogLevel), new(Mode)}
	_ = []encoding.TextUnmarshaler{new(Duration), new(Size), new(LogLevel), new(Mode)}

	_ slog.Leveler = LogLevel(0)
)

func TestValues(t *testing.T) {
	for _, test := range []struct {
		in   string
		got  flagValue
		want string // "" for an error
	}{
		{"5s", new(Duration), "5s"},
		{"1.5m", new(Duration), "1m30s"},
		{"0s", new(Duration), "0s"},
		{"5", new(Duration), ""},
		{"", new(Duration), ""},
		{"five", new(Duration), ""},

		{"0", new(Size), "0"},
		{"100", new(Size), "100"},
		{"65536", new(Size), "64KiB"},
		{"64KiB", new(Size), "64KiB"},
		{"64 KiB", new(Size), "64KiB"},
		{"1536KiB", new(Size), "1536KiB"},
		{"1024KiB", new(Size), "1MiB"},
		{"2GiB", new(Size), "2GiB"},
		{"7B", new(Size), "7"},
		{"9223372036854775807", new(Size), "9223372036854775807"},
		{"9223372036854775808", new(Size), ""},
		{"8589934592GiB", new(Size), ""},
		{"-1", new(Size), ""},
		{"1.5MiB", new(Size), ""},
		{"64KB", new(Size), ""},
		{"64k", new(Size), ""},
		{"KiB", new(Size), ""},
		{"", new(Size), ""},

		{"debug", new(LogLevel), "debug"},
		{"info", new(LogLevel), "info"},
		{"warn", new(LogLevel), "warn"},
		{"error", new(LogLevel), "error"},
		{"info+1", new(LogLevel), ""},

		{"lease", new(Mode), "lease"},
		{"offload", new(Mode), "offload"},
		{"off", new(Mode), "off"},
		{"", new(Mode), ""},
	} {
		err := test.got.Set(test.in)
		if test.want == "" {
			if err == nil {
				t.Errorf("%T %q is %v, want an error", test.got, test.in, test.got)
			}
			continue
		}
		if err != nil || test.got.String() != test.want {
			t.Errorf("%T %q is %v, %v; want %v", test.got, test.in, test.got, err, test.want)
		}
	}
}

func TestValuesInGo(t *testing.T) {
	if d := Duration(time.Minute); d.Value() != time.Minute {
		t.Error(d.Value())
	}
	var l LogLevel
	if err := l.Set("warn"); err != nil || l.Level() != slog.LevelWarn {
		t.Error(l.Level(), err)
	}
	var s Size
	if err := s.Set("64KiB"); err != nil || int64(s) != 65536 {
		t.Error(int64(s), err)
	}
}
