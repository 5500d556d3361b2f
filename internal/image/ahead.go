package image

import "io"

// aheadReader reads its source in a goroutine, a few blocks ahead, so that
// decompression and writing use two processors.
type aheadReader struct {
	blocks chan aheadBlock
	free   chan []byte
	stop   chan struct{}
	cur    aheadBlock
	rest   []byte
}

type aheadBlock struct {
	buf []byte
	n   int
	err error
}

const (
	aheadBlocks = 8
	aheadSize   = 256 << 10
)

func readAhead(r io.Reader) *aheadReader {
	a := &aheadReader{
		blocks: make(chan aheadBlock, aheadBlocks),
		free:   make(chan []byte, aheadBlocks),
		stop:   make(chan struct{}),
	}
	for range aheadBlocks {
		a.free <- make([]byte, aheadSize)
	}
	go a.run(r)
	return a
}

// run ends after r's first error, or when told to stop.
func (a *aheadReader) run(r io.Reader) {
	defer close(a.blocks)
	for {
		var b aheadBlock
		select {
		case b.buf = <-a.free:
		case <-a.stop:
			return
		}
		for b.n < aheadSize && b.err == nil {
			var n int
			n, b.err = r.Read(b.buf[b.n:])
			b.n += n
		}
		a.blocks <- b // has room for every buffer
		if b.err != nil {
			return
		}
	}
}

func (a *aheadReader) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.buf != nil {
			a.free <- a.cur.buf // has room for every buffer
		}
		a.cur = <-a.blocks
		a.rest = a.cur.buf[:a.cur.n]
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// close returns when the source is no longer being read, so after at most one
// more read of it.
func (a *aheadReader) close() {
	close(a.stop)
	for range a.blocks { // until run is over
	}
}
