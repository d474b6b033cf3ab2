package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/containerd/shimlog"
)

const (
	// logPause is how late a followed line may come.
	logPause  = 20 * time.Millisecond
	logSuffix = ".log"
	// oldLogs is how much an app's instances that are no more may keep; with
	// the instances that are, two segments each, it bounds an app's logs.
	oldLogs = 64 << 20
	// oldLogFiles bounds their number: each call of Logs looks at all.
	oldLogFiles = 1000
	// fileClock is how much the time of a file may be behind that of its last line.
	fileClock = time.Second
)

// logName is the file of an instance: type, number, generation. In the type
// every byte but letters, digits, - and _ is written as %XX.
func logName(key engine.SetKey, num int) string {
	return fmt.Sprintf("%s.%d.%d"+logSuffix, escape(key.Type), num, key.Generation)
}

func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c == '-' || c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// parseLogName undoes logName; it is false for other files.
func parseLogName(name string) (processType string, num int, generation int64, ok bool) {
	f := strings.Split(name, ".")
	if len(f) != 4 || f[3] != "log" {
		return "", 0, 0, false
	}
	processType, errType := url.PathUnescape(f[0])
	num, errNum := strconv.Atoi(f[1])
	generation, errGeneration := strconv.ParseInt(f[2], 10, 64)
	return processType, num, generation, cmp.Or(errType, errNum, errGeneration) == nil
}

// openLog makes the place of an instance's log and says how its output gets
// there: through a process of the shim's.
func (e *Engine) openLog(r record) (cio.Creator, error) {
	if err := os.MkdirAll(e.logDir(r.App), 0o750); err != nil {
		return nil, fmt.Errorf("log directory: %w", err)
	}
	path := filepath.Join(e.logDir(r.App), logName(r.SetKey, r.Num))
	return cio.BinaryIO(e.opts.ShimLog, map[string]string{"-log": path}), nil
}

// logFile is the log of one instance while it is read.
type logFile struct {
	path string
	// line has type, number and generation of its lines.
	line engine.LogLine
	size int64
	// written is when the last line was.
	written time.Time
	reader  *shimlog.Reader // nil until it is needed
}

func (f *logFile) open() (err error) {
	if f.reader == nil {
		f.reader, err = shimlog.Open(f.path, f.size)
	}
	return err
}

func (f *logFile) close() {
	if f.reader != nil {
		f.reader.Close()
		f.reader = nil
	}
}

func (f *logFile) convert(l shimlog.Line) engine.LogLine {
	line := f.line
	line.Time, line.Stderr, line.Text = l.Time, l.Stderr, strings.ToValidUTF8(l.Text, "\uFFFD")
	return line
}

// logSet is the logs of an app that a query wants, by file name.
type logSet struct {
	dir   string
	query engine.LogQuery
	files map[string]*logFile
}

// scan finds what is new.
func (s *logSet) scan() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil {
			s.add(entry.Name(), info.Size(), info.ModTime())
		}
	}
	return nil
}

// add takes a file into the set, if it is a log and not in it. Its lines are new from size on.
func (s *logSet) add(name string, size int64, written time.Time) {
	processType, num, generation, ok := parseLogName(name)
	line := engine.LogLine{Time: written, Type: processType, Num: num, Generation: generation}
	q := s.query
	q.Since = time.Time{} // an old log may get new lines
	if !ok || s.files[name] != nil || !q.Wants(line) {
		return
	}
	line.Time = time.Time{}
	s.files[name] = &logFile{path: filepath.Join(s.dir, name), line: line, size: size, written: written}
}

func (s *logSet) close() {
	for _, f := range s.files {
		f.close()
	}
}

// pastLog is a log that is read backwards.
type pastLog struct {
	file *logFile
	past *shimlog.Past
	next engine.LogLine
}

// advance reads the next line; it is false when there is none that is wanted.
func (p *pastLog) advance(q engine.LogQuery) (bool, error) {
	l, ok, err := p.past.Prev()
	if !ok || err != nil {
		return false, err
	}
	p.next = p.file.convert(l)
	return q.Wants(p.next), nil
}

// past returns the last lines of all logs, oldest first. It goes through them
// from the youngest line on, and opens a log when its turn may have come.
func (s *logSet) past() ([]engine.LogLine, error) {
	closed := slices.SortedFunc(maps.Values(s.files), func(a, b *logFile) int { return b.written.Compare(a.written) })
	var open []*pastLog
	defer func() {
		for _, p := range open {
			p.past.Close()
		}
	}()
	var lines []engine.LogLine
	for bytes := 0; len(lines) < s.query.Lines && bytes < engine.MaxLogBytes; {
		for len(closed) > 0 && (len(open) == 0 || !closed[0].written.Before(open[0].next.Time)) {
			if closed[0].written.Add(fileClock).Before(s.query.Since) {
				closed = nil
				break
			}
			p, err := s.openPast(closed[0])
			if err != nil {
				return nil, err
			}
			closed = closed[1:]
			if p != nil {
				open = insertPast(open, p)
			}
		}
		if len(open) == 0 {
			break
		}
		p := open[0]
		open = open[1:]
		lines = append(lines, p.next)
		bytes += len(p.next.Text)
		more, err := p.advance(s.query)
		if err != nil || !more {
			p.past.Close()
			if err != nil {
				return nil, err
			}
			continue
		}
		open = insertPast(open, p)
	}
	slices.Reverse(lines)
	return lines, nil
}

// openPast is nil for a log without a line that is wanted.
func (s *logSet) openPast(f *logFile) (*pastLog, error) {
	if err := f.open(); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // removed meanwhile
		}
		return nil, err
	}
	past, err := f.reader.Past()
	if err != nil {
		return nil, err
	}
	p := &pastLog{file: f, past: past}
	if ok, err := p.advance(s.query); !ok || err != nil {
		past.Close()
		f.close() // it is opened again when something is appended
		return nil, err
	}
	return p, nil
}

// insertPast keeps the list in order, the youngest next line first.
func insertPast(list []*pastLog, p *pastLog) []*pastLog {
	i, _ := slices.BinarySearchFunc(list, p, func(a, b *pastLog) int {
		return cmp.Or(b.next.Time.Compare(a.next.Time), -1)
	})
	return slices.Insert(list, i, p)
}

// more reads what was appended to some logs, by time.
func (s *logSet) more(names []string) ([]engine.LogLine, error) {
	var lines []engine.LogLine
	for _, name := range names {
		s.add(name, 0, time.Time{})
		f := s.files[name]
		if f == nil {
			continue
		}
		got, err := f.more()
		if err != nil {
			return nil, err
		}
		if f.reader == nil {
			delete(s.files, name)
		}
		lines = append(lines, got...)
	}
	slices.SortStableFunc(lines, func(a, b engine.LogLine) int { return a.Time.Compare(b.Time) })
	return lines, nil
}

// more reads what was appended to one log. Afterwards the log is closed if it was removed.
func (f *logFile) more() (lines []engine.LogLine, err error) {
	if err := f.open(); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	for {
		got, err := f.reader.More()
		for _, l := range got {
			lines = append(lines, f.convert(l))
		}
		switch {
		case errors.Is(err, io.EOF):
			f.close()
			return lines, nil
		case err != nil || len(got) == 0:
			return lines, err
		}
	}
}

// Logs implements engine.Engine.
func (e *Engine) Logs(ctx context.Context, app string, q engine.LogQuery, yield func(engine.LogLine) error) error {
	if !validApp.MatchString(app) {
		return nil
	}
	set := &logSet{dir: e.logDir(app), query: q, files: map[string]*logFile{}}
	defer set.close()
	if !q.Follow {
		return wrap(e.pastLogs(ctx, set, yield), "read logs")
	}
	if err := os.MkdirAll(set.dir, 0o750); err != nil {
		return fmt.Errorf("read logs: %w", err)
	}
	changes, err := e.logWatch.follow(set.dir) // before the first look
	if err != nil {
		return fmt.Errorf("follow logs: %w", err)
	}
	defer changes.close()
	if err := e.pastLogs(ctx, set, yield); err != nil {
		return wrap(err, "read logs")
	}
	if err := yield(engine.LogLine{}); err != nil {
		return err
	}
	return wrap(set.follow(ctx, changes, yield), "follow logs")
}

func (e *Engine) pastLogs(ctx context.Context, set *logSet, yield func(engine.LogLine) error) error {
	if err := set.scan(); err != nil {
		return err
	}
	lines, err := set.past()
	if err != nil {
		return err
	}
	return yieldAll(ctx, lines, yield)
}

// follow yields what is appended until ctx ends.
func (s *logSet) follow(ctx context.Context, changes *logChanges, yield func(engine.LogLine) error) error {
	for {
		select {
		case <-changes.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
		names, all := changes.take()
		if all {
			if err := s.scan(); err != nil {
				return err
			}
			names = slices.Collect(maps.Keys(s.files))
		}
		lines, err := s.more(names)
		if err != nil {
			return err
		}
		if err := yieldAll(ctx, lines, yield); err != nil {
			return err
		}
		// Many lines together cost less than each on its own.
		select {
		case <-time.After(logPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func yieldAll(ctx context.Context, lines []engine.LogLine, yield func(engine.LogLine) error) error {
	for _, l := range lines {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := yield(l); err != nil {
			return err
		}
	}
	return nil
}

// logEnd says in the log of an instance why its process ended, once.
func (e *Engine) logEnd(r record, why string) {
	if r.Kind != kindInstance {
		return
	}
	// The mark is there as long as the container is, whichever process of ours looks.
	mark, err := os.OpenFile(filepath.Join(e.instanceDir(r.ID), "ended"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return // told already, or nothing was ever started
	}
	mark.Close()
	if err := shimlog.Note(filepath.Join(e.logDir(r.App), logName(r.SetKey, r.Num)), why); err != nil {
		e.opts.Log.Warn("the end of an instance is not in its log", "app", r.App, "error", err.Error())
	}
}

// pruneLogs removes the oldest logs of an app's former instances while there
// are too many. It is called with no set of the app growing; a file that an
// instance writes to is younger than any other.
func (e *Engine) pruneLogs(app string) {
	ctx, cancel := cleanup(context.Background())
	defer cancel()
	list, err := e.records(e.in(ctx), app, kindInstance)
	if err != nil {
		return // the next call will do it
	}
	keep := map[string]bool{}
	for _, r := range list {
		keep[logName(r.SetKey, r.Num)] = true
	}
	entries, err := os.ReadDir(e.logDir(app))
	if err != nil {
		return
	}
	var old []fs.FileInfo
	for _, entry := range entries {
		info, err := entry.Info()
		if err == nil && !keep[shimlog.Current(entry.Name())] {
			old = append(old, info)
		}
	}
	slices.SortFunc(old, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	total, count := int64(0), 0
	for _, info := range old {
		total, count = total+info.Size(), count+1
		if total > oldLogs || count > oldLogFiles {
			if err := os.Remove(filepath.Join(e.logDir(app), info.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				e.opts.Log.Warn("cannot remove an old log", "app", app, "error", err.Error())
			}
		}
	}
}
