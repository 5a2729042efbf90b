package channel

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	longName := strings.Repeat("n", maxPortName)
	longPath := "/" + strings.Repeat("p", maxUnixPath-1)
	for _, test := range []struct {
		in, canonical string
		want          Address
	}{
		{"virtio:spillway.0", "", Address{Kind: Virtio, Name: "spillway.0"}},
		{"virtio:org.qemu-guest_agent.0", "", Address{Kind: Virtio, Name: "org.qemu-guest_agent.0"}},
		{"virtio:" + longName, "", Address{Kind: Virtio, Name: longName}},
		{"unix:/run/spillway/vm0.sock", "", Address{Kind: Unix, Path: "/run/spillway/vm0.sock"}},
		{"unix:/run//spillway/../x:y", "unix:/run/x:y", Address{Kind: Unix, Path: "/run/x:y"}},
		{"unix:" + longPath, "", Address{Kind: Unix, Path: longPath}},
		{"vsock:2:9000", "", Address{Kind: Vsock, CID: 2, Port: 9000}},
		{"vsock:4294967294:4294967294", "", Address{Kind: Vsock, CID: 1<<32 - 2, Port: 1<<32 - 2}},
	} {
		got, err := ParseAddress(test.in)
		if err != nil || got != test.want {
			t.Errorf("ParseAddress(%q) = %+v, %v; want %+v", test.in, got, err, test.want)
			continue
		}
		canonical := test.canonical
		if canonical == "" {
			canonical = test.in
		}
		if s := got.String(); s != canonical {
			t.Errorf("ParseAddress(%q).String() = %q, want %q", test.in, s, canonical)
		}
	}
}

func TestParseAddressRefuses(t *testing.T) {
	for _, test := range []struct{ in, problem string }{
		{"", "unknown kind"},
		{"spillway.0", "unknown kind"},
		{"tcp:1.2.3.4:5", "unknown kind"},
		{"Unix:/a", "unknown kind"},
		{"virtio:", "name is missing"},
		{"virtio", "name is missing"},
		{"virtio:a,b", "letters, digits"},
		{"virtio:a/b", "letters, digits"},
		{"virtio:" + strings.Repeat("n", maxPortName+1), "65 bytes"},
		{"unix:", "path is missing"},
		{"unix:run/vm0.sock", "not absolute"},
		{"unix:@abstract", "not absolute"},
		{"unix:/a\x00b", "NUL"},
		{"unix:/", "directory"},
		{"unix:/" + strings.Repeat("p", maxUnixPath), "108 bytes"},
		{"vsock:9000", "port is missing"},
		{"vsock::9000", "context id"},
		{"vsock:0:9000", "context id"},
		{"vsock:4294967295:9000", "context id"},
		{"vsock:-1:9000", "context id"},
		{"vsock:3:0", "port"},
		{"vsock:3:4294967295", "port"},
		{"vsock:3:9000:1", "port"},
	} {
		got, err := ParseAddress(test.in)
		if err == nil {
			t.Errorf("ParseAddress(%q) = %+v, want an error", test.in, got)
			continue
		}
		if !errors.Is(err, ErrAddress) {
			t.Errorf("ParseAddress(%q): %v is not ErrAddress", test.in, err)
		}
		for _, part := range []string{test.problem, "virtio:NAME", "unix:PATH", "vsock:CID:PORT"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("ParseAddress(%q): error %q does not say %q", test.in, err, part)
			}
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"virtio:spillway.0", "unix:/run/vm0.sock", "vsock:2:9000", "unix:/a/../b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			return
		}
		again, err := ParseAddress(a.String())
		if err != nil || again != a {
			t.Fatalf("%q is %+v, whose string %q is %+v, %v", s, a, a.String(), again, err)
		}
	})
}

func TestKindsWithoutThatEnd(t *testing.T) {
	_, err := Listen(Address{Kind: Virtio, Name: "spillway.0"}, NoGroup)
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "virtserialport,chardev=spillway,name=spillway.0") {
		t.Errorf("Listen(virtio) = %v, want ErrUnsupported with QEMU's arguments", err)
	}
	if _, err := Listen(Address{}, NoGroup); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Listen(zero) = %v, want ErrUnsupported", err)
	}
	if _, err := Dial(t.Context(), Address{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Dial(zero) = %v, want ErrUnsupported", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, Address{Kind: Virtio, Name: "x"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial with a context that is over = %v, want context.Canceled", err)
	}
}
