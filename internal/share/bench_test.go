package share

import (
	"path/filepath"
	"testing"
)

func TestReuseAllocatesNothing(t *testing.T) {
	s, dir := newShare(t, Options{})
	write(t, filepath.Join(dir, "f"), "abc", 1)
	r := ref("f", 3, 1)
	acquire(t, s, r).Release()
	if n := testing.AllocsPerRun(100, func() { acquire(t, s, r).Release() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkReuse(b *testing.B) {
	s, dir := newShare(b, Options{})
	write(b, filepath.Join(dir, "f"), "abc", 1)
	r := ref("f", 3, 1)
	b.ReportAllocs()
	for b.Loop() {
		acquire(b, s, r).Release()
	}
}

func BenchmarkReuseParallel(b *testing.B) {
	s, dir := newShare(b, Options{})
	write(b, filepath.Join(dir, "f"), "abc", 1)
	r := ref("f", 3, 1)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			f, err := s.Acquire(r)
			if err != nil {
				b.Error(err)
				return
			}
			f.Release()
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	s, dir := newShare(b, Options{MaxOpenFiles: 1})
	write(b, filepath.Join(dir, "f"), "abc", 1)
	write(b, filepath.Join(dir, "g"), "abc", 1)
	b.ReportAllocs()
	for b.Loop() {
		acquire(b, s, ref("f", 3, 1)).Release()
		acquire(b, s, ref("g", 3, 1)).Release()
	}
}
