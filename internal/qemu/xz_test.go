package qemu

import (
	"bytes"
	"os"
	"testing"
)

// machineCode makes bytes that look to the BCJ filter like dense code: many CALL and JMP opcodes, operands with the sign
// bytes 00 and FF, overlapping ones included. testdata/x86.xz is its output through
//
//	xz --format=xz --check=crc32 --x86 --lzma2=dict=1MiB
func machineCode() []byte {
	alphabet := []byte{0xe8, 0xe9, 0x00, 0xff, 0x01, 0xfe, 0x90, 0x48, 0x8b, 0xc3}
	code := make([]byte, 8_000)
	state := uint32(1)
	for i := range code {
		state = state*1664525 + 1013904223 // Numerical Recipes' generator
		code[i] = alphabet[state>>16%uint32(len(alphabet))]
	}
	return code
}

func TestDecompressXZ(t *testing.T) {
	data, err := os.ReadFile("testdata/x86.xz")
	if err != nil {
		t.Fatal(err)
	}
	// The kernel's build appends the size in bytes.
	for _, suffix := range []string{"", "\x40\x1f\x00\x00"} {
		got, err := decompressXZ(append(bytes.Clone(data), suffix...), 0)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, machineCode()) {
			t.Error("the decompressed code differs")
		}
	}
}

func TestDecompressXZRefusesDamage(t *testing.T) {
	data, err := os.ReadFile("testdata/x86.xz")
	if err != nil {
		t.Fatal(err)
	}
	damaged := func(at int) []byte {
		d := bytes.Clone(data)
		d[at] ^= 0x10
		return d
	}
	const footerAndIndex = 24 // bytes behind the block; they are not read
	for name, in := range map[string][]byte{
		"empty":         nil,
		"magic":         damaged(0),
		"check type":    damaged(7),
		"block header":  damaged(14),
		"header only":   data[:12],
		"half a header": data[:15],
		"data":          damaged(len(data) / 2),
		"half the data": data[:len(data)/2],
		"checksum":      damaged(len(data) - footerAndIndex - 2),
	} {
		if _, err := decompressXZ(in, 0); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
