package shimlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
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
	moreSize    = 1 << 20
	missingText = "lines are missing here, because they were written faster than they could be read"
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

// Open opens the log at path, to be read from an offset in bytes.
func Open(path string, offset int64) (*Reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &Reader{path: path, file: f, off: offset}, nil
}

// Current is the name of the log that a file belongs to, which may be the
// predecessor of its file.
func Current(name string) string { return strings.TrimSuffix(name, oldSuffix) }

// Note adds a line of the platform's own to the log at path, if there is one: that the process
// behind it has ended, say. It is whole whoever else writes.
func Note(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(noteLine(text))
	return err
}

// Close releases the file.
func (r *Reader) Close() error { return r.file.Close() }

// Past returns what the log holds so far, to be read from the end. More goes on
// behind it.
func (r *Reader) Past() (*Past, error) {
	end, err := lineEnd(r.file)
	if err != nil {
		return nil, err
	}
	r.off = end
	return &Past{path: r.path, file: r.file, end: end}, nil
}

// Past is a log read backwards. It is not safe for concurrent use.
type Past struct {
	path  string
	file  *os.File
	end   int64 // what is behind it was returned, or is in lines
	lines []Line
	older bool // file is the predecessor, and ours
}

// Prev returns the line before that of the last call; false is the log's
// beginning.
func (p *Past) Prev() (Line, bool, error) {
	for len(p.lines) == 0 {
		if p.end == 0 {
			if ok, err := p.turn(); !ok || err != nil {
				return Line{}, false, err
			}
			continue
		}
		// A block from the start of a line; longer if one line is.
		start, err := newlineBefore(p.file, max(0, p.end-readBlock))
		if err != nil {
			return Line{}, false, err
		}
		block := make([]byte, p.end-start)
		if _, err := p.file.ReadAt(block, start); err != nil && err != io.EOF {
			return Line{}, false, err
		}
		p.lines, p.end = parseAll(block), start
	}
	last := p.lines[len(p.lines)-1]
	p.lines = p.lines[:len(p.lines)-1]
	return last, true, nil
}

// turn goes on with the predecessor.
func (p *Past) turn() (bool, error) {
	if p.older {
		return false, nil
	}
	before, err := openIfThere(p.path + oldSuffix)
	if before == nil || err != nil {
		return false, err
	}
	if same(before, p.file) { // turned over since Open
		return false, before.Close()
	}
	if p.end, err = lineEnd(before); err != nil {
		before.Close()
		return false, err
	}
	p.file, p.older = before, true
	return true, nil
}

// Close releases what Prev has opened.
func (p *Past) Close() {
	if p.older {
		p.file.Close()
	}
}

// More returns lines that were appended since, at most some: ask again until
// there are none. Where the log was turned over more often than its predecessor holds, a line of the platform's
// own says so. It is io.EOF when the log was removed and all was read.
func (r *Reader) More() ([]Line, error) {
	if lines, err := r.next(); len(lines) > 0 || err != nil {
		return lines, err
	}
	now, err := os.Stat(r.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	own, err := r.file.Stat()
	if err != nil {
		return nil, err
	}
	if os.SameFile(now, own) {
		return nil, nil
	}
	// Turned over or removed: first what came between the last look and that.
	if lines, err := r.next(); len(lines) > 0 || err != nil {
		return lines, err
	}
	following, err := r.following(own)
	if following == nil || err != nil {
		return nil, err
	}
	before := predecessor(following)
	r.file.Close()
	r.file, r.off = following, 0
	lines, err := r.next()
	if before != 0 && before != inode(own) && err == nil {
		lines = slices.Insert(lines, 0, Line{Time: firstTime(lines), Stderr: true, Text: notePrefix + missingText})
	}
	return lines, err
}

// following opens the oldest file that is there and younger than ours. It is nil while there will be one, and
// io.EOF when the log was removed.
func (r *Reader) following(own os.FileInfo) (*os.File, error) {
	for {
		old, err := os.Stat(r.path + oldSuffix)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		name, isOurs := r.path, os.SameFile(old, own)
		if old != nil && !isOurs {
			younger, err := r.isYounger(old, own)
			if err != nil {
				return nil, err
			}
			if younger {
				name += oldSuffix
			}
		}
		f, err := openIfThere(name)
		if err != nil {
			return nil, err
		}
		if again, _ := os.Stat(r.path + oldSuffix); old != nil && !os.SameFile(again, old) || old == nil && again != nil {
			if f != nil {
				f.Close()
			}
			continue // turned over in between
		}
		if f == nil && !isOurs {
			return nil, io.EOF
		}
		return f, nil
	}
}

// isYounger reports whether the predecessor that is there was begun after our file. The numbers of files that are gone are given
// again, so ours may name it by mistake; but who names ours follows it, and else what was written last is younger.
func (r *Reader) isYounger(old, own os.FileInfo) (bool, error) {
	f, err := openIfThere(r.path + oldSuffix)
	if f == nil || err != nil {
		return false, err
	}
	defer f.Close()
	return predecessor(f) == inode(own) || old.ModTime().After(own.ModTime()), nil
}

// openIfThere is nil if there is no such file.
func openIfThere(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return f, err
}

// predecessor is the inode number of the file that a file says it follows, 0 if it says nothing.
func predecessor(f io.ReaderAt) (number uint64) {
	_, _ = fmt.Fscanf(io.NewSectionReader(f, 0, readBlock), followsLine, &number)
	return number
}

// firstTime is that of the first line, or now.
func firstTime(lines []Line) time.Time {
	if len(lines) > 0 {
		return lines[0].Time
	}
	return time.Now().UTC()
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
