package guest

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func TestInbox(t *testing.T) {
	var b inbox
	if b.len() != 0 || b.take(make([]byte, 3)) != 0 {
		t.Error("a new inbox is not empty")
	}
	b.add([]byte("one"))
	b.add([]byte("two"))
	p := make([]byte, 4)
	if n := b.take(p); n != 4 || string(p) != "onet" || b.len() != 2 {
		t.Errorf("took %d %q, %d are left", n, p, b.len())
	}
	b.add([]byte("three"))
	if n := b.take(make([]byte, 0)); n != 0 || b.len() != 7 {
		t.Errorf("took %d into nothing, %d are left", n, b.len())
	}
	p = make([]byte, 10)
	if n := b.take(p); string(p[:n]) != "wothree" || b.len() != 0 {
		t.Errorf("took %q, %d are left", p[:n], b.len())
	}
}

// TestInboxOrder adds and takes at random: the bytes come out in order, each once.
func TestInboxOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var b inbox
	var in, out []byte
	for range 20_000 {
		if random.IntN(2) == 0 {
			p := make([]byte, random.IntN(100))
			for i := range p {
				p[i] = byte(random.Uint32())
			}
			b.add(p)
			in = append(in, p...)
		} else {
			p := make([]byte, random.IntN(110))
			out = append(out, p[:b.take(p)]...)
		}
		if b.len() != len(in)-len(out) {
			t.Fatalf("len is %d, want %d", b.len(), len(in)-len(out))
		}
	}
	if !bytes.Equal(out, in[:len(out)]) {
		t.Fatal("other bytes came out than went in")
	}
}

// TestInboxMemory: what grew in a burst does not stay with an idle connection, nor grows an inbox that never runs quite empty.
func TestInboxMemory(t *testing.T) {
	var b inbox
	b.add(make([]byte, 256<<10))
	for b.len() > 0 {
		b.take(make([]byte, 1000))
	}
	if c := cap(b.buf); c > 4<<10 {
		t.Errorf("an empty inbox keeps %d bytes", c)
	}
	b.add(make([]byte, 100))
	for range 100_000 {
		b.add(make([]byte, 1000))
		b.take(make([]byte, 1000))
	}
	if c := cap(b.buf); c > 64<<10 {
		t.Errorf("an inbox of %d bytes keeps %d", b.len(), c)
	}
}
