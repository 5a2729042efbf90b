package channel

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
)

// Kind is the kind of a channel.
type Kind uint8

// The kinds of channels. The zero Kind is none of them.
const (
	Virtio Kind = iota + 1 // a virtio-serial port, the guest's end only
	Unix                   // a unix stream socket
	Vsock                  // a vsock stream
)

// Limits of addresses.
const (
	maxPortName = 64  // ours; QEMU sets none
	maxUnixPath = 107 // bytes, sizeof(sun_path) less the NUL, include/uapi/linux/un.h
)

const formsHint = "write virtio:NAME (the name of a virtio-serial port), unix:PATH (an absolute path) " +
	"or vsock:CID:PORT (the other side's context id, and a port)"

// ErrAddress is matched by every error of ParseAddress.
var ErrAddress = errors.New("invalid channel address")

// Address says where a channel is. Addresses are comparable: two that are equal mean the same channel.
type Address struct {
	Kind Kind
	Name string // Virtio: the port's name, as in QEMU's -device virtserialport,name=
	Path string // Unix: absolute and clean
	// CID is the context id of the other side: the guest writes 2 (the host), the host writes the guest's own
	// (-device vhost-vsock-pci,guest-cid=). A host listener refuses connections from any other CID.
	CID  uint32
	Port uint32 // Vsock
}

// String returns the address in the form that ParseAddress reads.
func (a Address) String() string {
	switch a.Kind {
	case Virtio:
		return "virtio:" + a.Name
	case Unix:
		return "unix:" + a.Path
	case Vsock:
		return fmt.Sprintf("vsock:%d:%d", a.CID, a.Port)
	}
	return "(no address)"
}

// ParseAddress reads an address: virtio:NAME, unix:PATH or vsock:CID:PORT.
func ParseAddress(s string) (Address, error) {
	kind, rest, _ := strings.Cut(s, ":")
	var a Address
	var problem string
	switch kind {
	case "virtio":
		a, problem = Address{Kind: Virtio, Name: rest}, checkPortName(rest)
	case "unix":
		a, problem = Address{Kind: Unix, Path: filepath.Clean(rest)}, checkUnixPath(rest)
	case "vsock":
		a, problem = parseVsock(rest)
	default:
		problem = "unknown kind"
	}
	if problem != "" {
		return Address{}, fmt.Errorf("%w %q: %s; %s", ErrAddress, s, problem, formsHint)
	}
	return a, nil
}

// checkPortName keeps to characters that need no quoting in QEMU's arguments.
func checkPortName(name string) string {
	if name == "" {
		return "the port's name is missing"
	}
	if len(name) > maxPortName {
		return fmt.Sprintf("the port's name has %d bytes, at most %d are allowed", len(name), maxPortName)
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-", rune(c)) {
			return "a port's name is made of letters, digits, '.', '_' and '-'"
		}
	}
	return ""
}

func checkUnixPath(path string) string {
	switch {
	case path == "":
		return "the path is missing"
	case !filepath.IsAbs(path):
		return "the path is not absolute"
	case strings.ContainsRune(path, 0):
		return "the path has a NUL byte"
	case filepath.Clean(path) == "/":
		return "the path is a directory"
	case len(filepath.Clean(path)) > maxUnixPath:
		return fmt.Sprintf("the path has %d bytes, a unix socket's at most %d", len(filepath.Clean(path)), maxUnixPath)
	}
	return ""
}

// parseVsock refuses the two values that mean "any" or "none" (include/uapi/linux/vm_sockets.h): CID 0 is reserved, and
// all ones are VMADDR_CID_ANY and VMADDR_PORT_ANY.
func parseVsock(s string) (Address, string) {
	cidText, portText, ok := strings.Cut(s, ":")
	if !ok {
		return Address{}, "the port is missing"
	}
	cid, err := strconv.ParseUint(cidText, 10, 32)
	if err != nil || cid == 0 || cid == math.MaxUint32 {
		return Address{}, fmt.Sprintf("the context id %q is not a number from 1 to %d", cidText, uint32(math.MaxUint32-1))
	}
	port, err := strconv.ParseUint(portText, 10, 32)
	if err != nil || port == 0 || port == math.MaxUint32 {
		return Address{}, fmt.Sprintf("the port %q is not a number from 1 to %d", portText, uint32(math.MaxUint32-1))
	}
	return Address{Kind: Vsock, CID: uint32(cid), Port: uint32(port)}, ""
}
