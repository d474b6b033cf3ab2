// Package shimlog keeps the output of instances in files: the writing half is
// the program deis-shimlog, which containerd's shim starts for each instance,
// the reading half is the engine's. A log is a file and its predecessor
// (".1"); one line of it is
//
//	2006-01-02T15:04:05.000000000Z o text
//
// with the time in UTC at which it was read, and o or e for stdout or stderr. A file
// that has a predecessor begins with "follows" and its inode number, so that who reads along knows when
// files were dropped that it has not seen.
package shimlog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// SegmentSize bounds a file; with its predecessor a log takes twice that.
	// 8 MiB hold about 100,000 lines.
	SegmentSize = 8 << 20
	// MaxLine is where longer lines are cut into several; it is also the size
	// of a pipe.
	MaxLine = 64 << 10

	// batchSize and queueLength bound what waits for the disk, 1 MiB in all.
	batchSize   = 128 << 10
	queueLength = 8

	timeLayout = "2006-01-02T15:04:05.000000000Z"
	// head is the length of time, stream and the spaces around.
	head = len(timeLayout) + 3

	oldSuffix   = ".1"
	followsLine = "follows %d\n"
)

// stallTime is how long the instance may be held up by a disk that is slow,
// once; after that lines are dropped until the disk has caught up. Tests of other things have more.
var stallTime = 100 * time.Millisecond

const (
	streamOut = 'o'
	streamErr = 'e'
	// notePrefix begins the lines that no instance wrote (engine.Engine, Logs).
	notePrefix = "deis: "
)

// batch is some whole lines in the form of the file.
type batch struct {
	text  []byte
	lines int
}

// Copy writes what it reads from stdout and stderr to the log at path until
// both have ended, or ctx has. The instance behind the two is never held up for
// long: what cannot be written (a full or slow disk) is dropped, and a line
// in the log says how many lines were, as soon as one can be written again.
func Copy(ctx context.Context, path string, stdout, stderr io.Reader) {
	queue := make(chan batch, queueLength)
	w := &writer{path: path}
	var pumps sync.WaitGroup
	for stream, r := range map[byte]io.Reader{streamOut: stdout, streamErr: stderr} {
		p := &pump{stream: stream, queue: queue, dropped: &w.dropped}
		pumps.Go(func() { p.run(r) })
	}
	ended := make(chan struct{})
	go func() { pumps.Wait(); close(ended) }()
	defer w.close()
	for running := true; running; {
		select {
		case b := <-queue:
			w.write(b)
		case <-ended:
			running = false
		case <-ctx.Done():
			running = false
		}
	}
	for len(queue) > 0 {
		w.write(<-queue)
	}
	w.note()
}

// pump cuts one stream into lines.
type pump struct {
	stream  byte
	queue   chan<- batch
	dropped *atomic.Int64
	stalled bool
	pending batch
}

func (p *pump) run(r io.Reader) {
	buf := make([]byte, MaxLine)
	fill := 0
	for {
		n, err := r.Read(buf[fill:])
		now := time.Now().UTC().AppendFormat(nil, timeLayout)
		rest, seen := buf[:fill+n], fill
		for {
			i := bytes.IndexByte(rest[seen:], '\n')
			if i < 0 {
				break
			}
			p.add(now, rest[:seen+i])
			rest, seen = rest[seen+i+1:], 0
		}
		if len(rest) == len(buf) || (err != nil && len(rest) > 0) {
			p.add(now, rest)
			rest = nil
		}
		p.send()
		fill = copy(buf, rest)
		if err != nil {
			return
		}
	}
}

func (p *pump) add(now, text []byte) {
	text = bytes.TrimSuffix(text, []byte{'\r'})
	b := append(p.pending.text, now...)
	b = append(b, ' ', p.stream, ' ')
	p.pending.text = append(append(b, text...), '\n')
	p.pending.lines++
	if len(p.pending.text) >= batchSize {
		p.send()
	}
}

func (p *pump) send() {
	b := p.pending
	p.pending = batch{}
	if b.lines == 0 {
		return
	}
	select {
	case p.queue <- b:
		p.stalled = false
		return
	default:
	}
	if !p.stalled {
		select {
		case p.queue <- b:
			return
		case <-time.After(stallTime):
			p.stalled = true
		}
	}
	p.dropped.Add(int64(b.lines))
}

// writer appends to the file and turns it over. Others may append to the same
// file: the instance that this one replaces.
type writer struct {
	path    string
	file    *os.File
	size    int64
	torn    bool // the file ends within a line
	dropped atomic.Int64
}

func (w *writer) write(b batch) {
	w.note()
	if w.append(b.text) != nil {
		w.dropped.Add(int64(b.lines))
	}
}

// note says in the log what is missing there.
func (w *writer) note() {
	n := w.dropped.Swap(0)
	if n == 0 {
		return
	}
	if w.append(noteLine(fmt.Sprintf("%d lines are missing here, because the log could not be written", n))) != nil {
		w.dropped.Add(n)
	}
}

func noteLine(text string) []byte {
	return fmt.Appendf(nil, "%s %c %s%s\n", time.Now().UTC().Format(timeLayout), streamErr, notePrefix, text)
}

func (w *writer) append(text []byte) error {
	if w.file != nil && w.size+int64(len(text)) > SegmentSize {
		w.close()
		if err := os.Rename(w.path, w.path+oldSuffix); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	if w.file == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	if w.torn {
		text = append([]byte{'\n'}, text...)
	}
	n, err := w.file.Write(text)
	w.size += int64(n)
	w.torn = n > 0 && text[n-1] != '\n' || n == 0 && w.torn
	return err
}

func (w *writer) open() error {
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	w.file, w.size = f, st.Size()
	if before, err := os.Stat(w.path + oldSuffix); err == nil && w.size == 0 {
		n, err := fmt.Fprintf(f, followsLine, inode(before))
		w.size, w.torn = int64(n), err != nil && n > 0
		return err
	}
	return nil
}

// inode is a file's number, which it shares with no other as long as somebody has it open.
func inode(file os.FileInfo) uint64 { return file.Sys().(*syscall.Stat_t).Ino }

func (w *writer) close() {
	if w.file != nil {
		w.file.Close()
		w.file = nil
	}
}
