package kernel

import (
	"fmt"
	"io"
	"math"
	"os"
)

// cpioWriter writes the "newc" archive a kernel unpacks as its initramfs. The
// first error is kept and returned by close; inode numbers count up and times
// are zero, so that the bytes depend on names and contents only.
type cpioWriter struct {
	w   io.Writer
	ino uint32
	pos int64
	err error
}

// cpioEntry is one file; mode includes the type bits. size bytes follow it.
type cpioEntry struct {
	name         string
	mode         uint32
	size         uint32
	major, minor uint32
}

const cpioTrailer = "TRAILER!!!"

func (c *cpioWriter) entry(e cpioEntry) {
	links := 1
	if e.name == cpioTrailer {
		c.ino = 0
	} else {
		c.ino++
	}
	c.printf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.ino, e.mode, 0, 0, links, 0, e.size, 0, 0, e.major, e.minor, len(e.name)+1, 0, e.name)
	c.pad()
}

// file adds the regular file at path under name.
func (c *cpioWriter) file(name string, mode uint32, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() == 0 || st.Size() > math.MaxInt32 {
		return fmt.Errorf("%s is empty, too large or no regular file", path)
	}
	c.entry(cpioEntry{name: name, mode: mode, size: uint32(st.Size())})
	if c.err == nil {
		_, c.err = io.CopyN(c.w, f, st.Size())
		c.pos += st.Size()
	}
	c.pad()
	return c.err
}

// close ends the archive. The underlying writer stays open.
func (c *cpioWriter) close() error {
	c.entry(cpioEntry{name: cpioTrailer})
	return c.err
}

func (c *cpioWriter) printf(format string, args ...any) {
	if c.err == nil {
		var n int
		n, c.err = fmt.Fprintf(c.w, format, args...)
		c.pos += int64(n)
	}
}

// pad fills up to the next multiple of four, where names and contents end.
func (c *cpioWriter) pad() {
	if n := -c.pos & 3; n > 0 {
		c.printf("%s", "\x00\x00\x00"[:n])
	}
}
