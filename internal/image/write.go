package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// chunk is the unit in which files are copied and holes are found.
	chunk = 64 << 10
	// smallFile is the largest that is written beside the reading of the archive.
	smallFile = 4 * chunk
	// maxWriters: more would only wait for each other in the filesystem.
	maxWriters = 4
)

var zeros [chunk]byte

// writers put small files into the staging tree while the archive is read on:
// most of an image's files are small, and making one costs more than its
// content. Names are made, replaced and linked by the reader alone, which waits
// for the writers before it touches a name that may be theirs.
type writers struct {
	jobs    chan smallWrite
	free    chan []byte
	running sync.WaitGroup
	pending sync.WaitGroup // files handed over and not written yet

	failed atomic.Pointer[error] // the first failure
	blocks atomic.Int64          // bytes the data takes on disk
}

// smallWrite is a file to be written.
type smallWrite struct {
	dir  *stagedDir
	file *dentry
	data []byte
}

func startWriters() *writers {
	n := min(maxWriters, runtime.GOMAXPROCS(0))
	w := &writers{jobs: make(chan smallWrite, n), free: make(chan []byte, 2*n+1)}
	for range cap(w.free) {
		w.free <- make([]byte, smallFile)
	}
	for range n {
		w.running.Go(func() {
			buf := make([]byte, chunk)
			for j := range w.jobs {
				if err := w.write(j, buf); err != nil {
					w.failed.CompareAndSwap(nil, &err)
				}
				j.dir.release()
				w.free <- j.data[:smallFile]
				w.pending.Done()
			}
		})
	}
	return w
}

// write does one job, unless there is no point in it any more.
func (w *writers) write(j smallWrite, buf []byte) error {
	if w.failed.Load() != nil {
		return nil
	}
	blocks, err := j.dir.write(j.file, func(f *os.File) (int64, error) {
		return fill(f, int64(len(j.data)), bytes.NewReader(j.data), buf)
	})
	w.blocks.Add(blocks)
	return err
}

// hand takes over a file's directory and content; the latter is from free.
func (w *writers) hand(j smallWrite) error {
	w.pending.Add(1)
	w.jobs <- j
	return w.err()
}

// wait returns when everything handed over is written.
func (w *writers) wait() error {
	w.pending.Wait()
	return w.err()
}

func (w *writers) err() error {
	if err := w.failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (w *writers) close() {
	close(w.jobs)
	w.running.Wait()
}

// stagedDir is an open directory of the staging tree. It is closed when nobody
// uses it any more.
type stagedDir struct {
	*os.Root
	users atomic.Int32
}

func (d *stagedDir) hold() *stagedDir {
	d.users.Add(1)
	return d
}

func (d *stagedDir) release() {
	if d.users.Add(-1) == 0 {
		d.Close() // a directory that was only searched
	}
}

// write makes a file as it is described, as far as the staging tree shows that.
func (d *stagedDir) write(file *dentry, content func(*os.File) (blocks int64, err error)) (blocks int64, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot unpack %q: %w", file.path(), err)
		}
	}()
	f, err := d.OpenFile(file.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close() // the second time, if all went well
	if blocks, err = content(f); err != nil {
		return 0, err
	}
	if m := stagedMode(file.ino); m != 0o600 {
		err = f.Chmod(os.FileMode(m))
	}
	if err = errors.Join(err, f.Close()); err == nil {
		at := time.Unix(file.ino.mtime, 0)
		err = d.Chtimes(file.name, at, at)
	}
	return blocks, err
}

// stagedMode is what a regular file has in the staging tree: what it shall have
// in the end, as far as that does no harm there.
func stagedMode(ino *inode) uint32 { return ino.mode&0o777 | 0o600 }

// readError is a failed read of the archive.
type readError struct{ error }

// fill copies size bytes, leaving holes where there are only zeros, and returns
// what they take on disk. buf is a chunk.
func fill(f *os.File, size int64, r io.Reader, buf []byte) (blocks int64, err error) {
	hole := false
	for left := size; left > 0; {
		n := min(left, chunk)
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return 0, readError{err}
		}
		left -= n
		if hole = n == chunk && bytes.Equal(buf, zeros[:]); hole {
			if _, err := f.Seek(n, io.SeekCurrent); err != nil {
				return 0, err
			}
			continue
		}
		if _, err := f.Write(buf[:n]); err != nil {
			return 0, err
		}
		blocks += (n + blockSize - 1) &^ (blockSize - 1)
	}
	if hole {
		if err := f.Truncate(size); err != nil {
			return 0, err
		}
	}
	return blocks, nil
}
