package guest

import "sync"

// frames are buffers for frames that are being written: an idle connection has none.
var frames framePool

type framePool struct{ pool sync.Pool }

// get returns an empty buffer, for put.
func (p *framePool) get() *[]byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		*b = (*b)[:0]
		return b
	}
	return new([]byte)
}

func (p *framePool) put(b *[]byte) { p.pool.Put(b) }
