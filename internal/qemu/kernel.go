package qemu

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Kernel is a Debian kernel package, unpacked with dpkg-deb -x and not installed.
type Kernel struct {
	Root    string // the directory that holds boot/ and lib/modules/
	Release string // as uname -r reports it, for instance 6.1.0-56-amd64
}

// FindKernel returns the newest of the kernels that lie unpacked in dir/<package version>/.
// When there is none the error wraps ErrNoKernel.
func FindKernel(dir string) (Kernel, error) {
	const imagePrefix = "vmlinuz-"
	images, err := filepath.Glob(filepath.Join(dir, "[0-9]*", "boot", imagePrefix+"*"))
	if err != nil {
		return Kernel{}, fmt.Errorf("qemu: find kernel in %s: %w", dir, err)
	}
	if len(images) == 0 {
		return Kernel{}, fmt.Errorf("qemu: find kernel in %s: %w", dir, ErrNoKernel)
	}
	newest := slices.MaxFunc(images, func(a, b string) int {
		return compareVersions(strings.TrimPrefix(a, dir), strings.TrimPrefix(b, dir))
	})
	return Kernel{
		Root:    filepath.Dir(filepath.Dir(newest)),
		Release: strings.TrimPrefix(filepath.Base(newest), imagePrefix),
	}, nil
}

// compareVersions orders version strings: runs of digits by their value, everything else byte by byte.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		if isDigit(a[0]) && isDigit(b[0]) {
			var x, y string
			x, a = cutNumber(a)
			y, b = cutNumber(b)
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if c := strings.Compare(x, y); c != 0 {
				return c
			}
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// cutNumber cuts the run of digits at the start of s and strips its leading zeros.
func cutNumber(s string) (number, rest string) {
	end := 0
	for end < len(s) && isDigit(s[end]) {
		end++
	}
	return strings.TrimLeft(s[:end], "0"), s[end:]
}

// ELF returns the path of the kernel as an uncompressed ELF file, which QEMU boots through PVH. The first call
// decompresses it, which takes seconds, and keeps the result in the kernel's boot directory; concurrent first calls, of
// several processes too, each do the work and the last one wins.
func (k Kernel) ELF() (string, error) {
	boot := filepath.Join(k.Root, "boot")
	elf := filepath.Join(boot, "vmlinux-"+k.Release)
	if _, err := os.Stat(elf); err == nil {
		return elf, nil
	}
	image, err := os.ReadFile(filepath.Join(boot, "vmlinuz-"+k.Release))
	if err != nil {
		return "", fmt.Errorf("qemu: decompress kernel %s: %w", k.Release, err)
	}
	kernel, err := extractELF(image)
	if err != nil {
		return "", fmt.Errorf("qemu: decompress kernel %s: %w", k.Release, err)
	}
	if err := writeFileAtomically(elf, kernel); err != nil {
		return "", fmt.Errorf("qemu: decompress kernel %s: %w", k.Release, err)
	}
	return elf, nil
}

// Fields of a bzImage's setup header: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
const (
	setupSectorsOffset  = 0x1f1
	bootMagicOffset     = 0x202
	bootVersionOffset   = 0x206
	payloadOffsetOffset = 0x248
	payloadLengthOffset = 0x24c
	setupHeaderEnd      = 0x250

	bootMagic             = "HdrS"
	bootVersionPayload    = 0x0208 // the first version with payload_offset and payload_length
	sectorBytes           = 512
	setupSectorsIfZero    = 4 // "for backwards compatibility, if setup_sects is 0, the real value is 4"
	payloadSizeFieldBytes = 4 // scripts/Makefile.lib appends the uncompressed size to every payload but gzip's
)

// Magic numbers of the payload's formats: Documentation/arch/x86/boot.rst, payload_offset.
const (
	elfMagic  = "\x7fELF"
	gzipMagic = "\x1f\x8b"
	xzMagic   = "\xfd7zXZ\x00"
)

// extractELF returns the decompressed payload of a bzImage.
func extractELF(image []byte) ([]byte, error) {
	payload, err := payloadOf(image)
	if err != nil {
		return nil, err
	}
	var kernel []byte
	switch format := payloadFormat(payload); format {
	case "none":
		kernel = payload
	case "xz":
		kernel, err = decompressXZ(payload, kernelSizeHint(payload))
	case "gzip":
		kernel, err = decompressGzip(payload)
	default:
		return nil, fmt.Errorf("the payload's compression is %s; known are xz and gzip (CONFIG_KERNEL_XZ, CONFIG_KERNEL_GZIP)", format)
	}
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(kernel, []byte(elfMagic)) {
		return nil, errors.New("the decompressed payload is no ELF file")
	}
	return kernel, nil
}

// payloadOf returns the compressed kernel inside a bzImage, a slice of image.
func payloadOf(image []byte) ([]byte, error) {
	if len(image) < setupHeaderEnd || string(image[bootMagicOffset:bootMagicOffset+len(bootMagic)]) != bootMagic {
		return nil, errors.New("no bzImage: the setup header is missing")
	}
	if v := binary.LittleEndian.Uint16(image[bootVersionOffset:]); v < bootVersionPayload {
		return nil, fmt.Errorf("boot protocol %d.%02d has no payload fields", v>>8, v&0xff)
	}
	setupSectors := int64(image[setupSectorsOffset])
	if setupSectors == 0 {
		setupSectors = setupSectorsIfZero
	}
	start := (setupSectors+1)*sectorBytes + int64(binary.LittleEndian.Uint32(image[payloadOffsetOffset:]))
	end := start + int64(binary.LittleEndian.Uint32(image[payloadLengthOffset:]))
	if end > int64(len(image)) {
		return nil, fmt.Errorf("the payload's end at byte %d lies behind the file's at %d", end, len(image))
	}
	return image[start:end], nil
}

// payloadFormat names the compression of a payload.
func payloadFormat(payload []byte) string {
	for _, f := range []struct{ magic, name string }{
		{elfMagic, "none"},
		{gzipMagic, "gzip"},
		{xzMagic, "xz"},
		{"\x28\xb5\x2f\xfd", "zstd"},
		{"\x02\x21\x4c\x18", "lz4"},
		{"\x5d\x00", "lzma"},
		{"BZh", "bzip2"},
		{"\x89LZO", "lzo"},
	} {
		if bytes.HasPrefix(payload, []byte(f.magic)) {
			return f.name
		}
	}
	return fmt.Sprintf("unknown (magic % x)", payload[:min(len(payload), 6)])
}

// maxKernelBytes bounds what is allocated on the word of a file: Debian's kernels are at 60 MB.
const maxKernelBytes = 512 << 20

// kernelSizeHint reads the uncompressed size that the kernel's build appends to the payload; 0 when it makes no sense.
func kernelSizeHint(payload []byte) int {
	if len(payload) < payloadSizeFieldBytes {
		return 0
	}
	size := binary.LittleEndian.Uint32(payload[len(payload)-payloadSizeFieldBytes:])
	if size > maxKernelBytes {
		return 0
	}
	return int(size)
}

func decompressGzip(data []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	r.Multistream(false) // padding may follow
	return readBounded(r, 0)
}

// readBounded reads all of r, up to maxKernelBytes. The hint is the expected size in bytes.
func readBounded(r io.Reader, hint int) ([]byte, error) {
	buf := bytes.NewBuffer(make([]byte, 0, hint+bytes.MinRead))
	n, err := buf.ReadFrom(io.LimitReader(r, maxKernelBytes+1))
	if err != nil {
		return nil, err
	}
	if n > maxKernelBytes {
		return nil, fmt.Errorf("more than %d bytes when decompressed", maxKernelBytes)
	}
	return buf.Bytes(), nil
}

// writeFileAtomically writes a file that is complete from the moment it has its name.
func writeFileAtomically(name string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(f.Name(), 0o644); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
