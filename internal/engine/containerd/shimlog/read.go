package shimlog

import (
	"bytes"
	"errors"
	"io"
	"os"
	"time"
)

// Line is one line of a log.
type Line struct {
	Time   time.Time // UTC
	Stderr bool
	Text   string // without newline; not always UTF-8
}

const (
	// readBlock is the unit of reading backwards.
	readBlock = 64 << 10
	// moreSize bounds the memory of one More; it holds any line.
	moreSize = 1 << 20
)

// parse reads a line without its newline. It is false for what is no line of a
// log, such as the rest of one that did not fit on the disk.
func parse(b []byte) (Line, bool) {
	if len(b) < head || b[head-1] != ' ' || b[head-3] != ' ' {
		return Line{}, false
	}
	at, err := time.Parse(timeLayout, string(b[:len(timeLayout)]))
	if err != nil || b[head-2] != streamOut && b[head-2] != streamErr {
		return Line{}, false
	}
	return Line{at, b[head-2] == streamErr, string(b[head:])}, true
}

func parseAll(b []byte) (lines []Line) {
	for text := range bytes.Lines(b) {
		if l, ok := parse(bytes.TrimSuffix(text, []byte{'\n'})); ok {
			lines = append(lines, l)
		}
	}
	return lines
}

// Reader follows one log. It is not safe for concurrent use.
type Reader struct {
	path string
	file *os.File
	off  int64
}

// Open opens the log at path, to be read from its start.
func Open(path string) (*Reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &Reader{path: path, file: f}, nil
}

// Close releases the file.
func (r *Reader) Close() error { return r.file.Close() }

// Last returns the last n lines, oldest first, and goes to the end.
func (r *Reader) Last(n int) ([]Line, error) {
	end, err := lineEnd(r.file)
	if err != nil {
		return nil, err
	}
	r.off = end
	lines, err := lastLines(r.file, end, n)
	if err != nil || len(lines) == n {
		return lines, err
	}
	before, err := os.Open(r.path + oldSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return lines, nil
	}
	if err != nil {
		return nil, err
	}
	defer before.Close()
	if same(before, r.file) { // turned over since Open
		return lines, nil
	}
	if end, err = lineEnd(before); err != nil {
		return nil, err
	}
	older, err := lastLines(before, end, n-len(lines))
	return append(older, lines...), err
}

// More returns lines that were appended since, at most some: ask again until
// there are none. It is io.EOF when the log was removed and all was read.
func (r *Reader) More() ([]Line, error) {
	if lines, err := r.next(); len(lines) > 0 || err != nil {
		return lines, err
	}
	now, err := os.Stat(r.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	own, ownErr := r.file.Stat()
	if ownErr != nil {
		return nil, ownErr
	}
	if err == nil && os.SameFile(now, own) {
		return nil, nil
	}
	// Turned over or removed: first what came between the last look and that.
	if lines, err := r.next(); len(lines) > 0 || err != nil {
		return lines, err
	}
	fresh, err := os.Open(r.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, io.EOF
	}
	if err != nil {
		return nil, err
	}
	r.file.Close()
	r.file, r.off = fresh, 0
	return r.next()
}

func (r *Reader) next() ([]Line, error) {
	for {
		buf := make([]byte, moreSize)
		n, err := r.file.ReadAt(buf, r.off)
		if err != nil && err != io.EOF {
			return nil, err
		}
		whole := bytes.LastIndexByte(buf[:n], '\n') + 1
		if whole == 0 && n == len(buf) {
			whole = n // no log has such a line: skip it
		}
		r.off += int64(whole)
		if lines := parseAll(buf[:whole]); len(lines) > 0 || whole == 0 {
			return lines, nil
		}
	}
}

func same(a, b *os.File) bool {
	x, errX := a.Stat()
	y, errY := b.Stat()
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// lineEnd is the offset behind the last whole line.
func lineEnd(f *os.File) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	return newlineBefore(f, size)
}

// newlineBefore is the offset behind the last newline in front of end, or 0.
func newlineBefore(f io.ReaderAt, end int64) (int64, error) {
	buf := make([]byte, readBlock)
	for end > 0 {
		start := max(0, end-readBlock)
		block := buf[:end-start]
		if _, err := f.ReadAt(block, start); err != nil && err != io.EOF {
			return 0, err
		}
		if i := bytes.LastIndexByte(block, '\n'); i >= 0 {
			return start + int64(i) + 1, nil
		}
		end = start
	}
	return 0, nil
}

// lastLines returns the last n lines in front of end, which is behind a newline.
func lastLines(f io.ReaderAt, end int64, n int) ([]Line, error) {
	var lines []Line
	for end > 0 && len(lines) < n {
		// A block from the start of a line; longer if one line is.
		start, err := newlineBefore(f, max(0, end-readBlock))
		if err != nil {
			return nil, err
		}
		block := make([]byte, end-start)
		if _, err := f.ReadAt(block, start); err != nil && err != io.EOF {
			return nil, err
		}
		lines = append(parseAll(block), lines...)
		end = start
	}
	return lines[max(0, len(lines)-n):], nil
}
