package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	// logPoll is how late a followed line may come.
	logPoll = 100 * time.Millisecond
	// oldLogs is how much an app's instances that are no more may keep; with
	// the instances that are, two segments each, it bounds an app's logs.
	oldLogs = 64 << 20
)

// logName is the file of an instance: type, number, generation. In the type
// every byte but letters, digits, - and _ is written as %XX.
func logName(key engine.SetKey, num int) string {
	return fmt.Sprintf("%s.%d.%d.log", escape(key.Type), num, key.Generation)
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

// logSource is the log of one instance while it is read.
type logSource struct {
	*shimlog.Reader
	line engine.LogLine // type, number and generation of its lines
}

func (s *logSource) convert(lines []shimlog.Line) []engine.LogLine {
	out := make([]engine.LogLine, 0, len(lines))
	for _, l := range lines {
		line := s.line
		line.Time, line.Stderr, line.Text = l.Time, l.Stderr, strings.ToValidUTF8(l.Text, "\uFFFD")
		out = append(out, line)
	}
	return out
}

// logSet is all the logs of an app, by file name.
type logSet struct {
	dir     string
	sources map[string]*logSource
}

// scan opens what is new.
func (s *logSet) scan() ([]*logSource, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var fresh []*logSource
	for _, entry := range entries {
		processType, num, generation, ok := parseLogName(entry.Name())
		if !ok || s.sources[entry.Name()] != nil {
			continue
		}
		r, err := shimlog.Open(filepath.Join(s.dir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fresh, err
		}
		src := &logSource{r, engine.LogLine{Type: processType, Num: num, Generation: generation}}
		s.sources[entry.Name()] = src
		fresh = append(fresh, src)
	}
	return fresh, nil
}

func (s *logSet) close() {
	for _, src := range s.sources {
		src.Close()
	}
}

// more reads what was appended to all logs, by time.
func (s *logSet) more() ([]engine.LogLine, error) {
	var lines []engine.LogLine
	for name, src := range s.sources {
		for {
			got, err := src.More()
			if errors.Is(err, io.EOF) {
				src.Close()
				delete(s.sources, name)
				break
			}
			if err != nil {
				return nil, err
			}
			if len(got) == 0 {
				break
			}
			lines = append(lines, src.convert(got)...)
		}
	}
	sortLines(lines)
	return lines, nil
}

func sortLines(lines []engine.LogLine) {
	slices.SortStableFunc(lines, func(a, b engine.LogLine) int { return a.Time.Compare(b.Time) })
}

// Logs implements engine.Engine.
func (e *Engine) Logs(ctx context.Context, app string, n int, follow bool, yield func(engine.LogLine) error) error {
	if !validApp.MatchString(app) {
		return nil
	}
	set := &logSet{dir: e.logDir(app), sources: map[string]*logSource{}}
	defer set.close()
	sources, err := set.scan()
	if err != nil {
		return fmt.Errorf("read logs: %w", err)
	}
	var lines []engine.LogLine
	for _, src := range sources {
		got, err := src.Last(max(n, 0))
		if err != nil {
			return fmt.Errorf("read logs: %w", err)
		}
		lines = append(lines, src.convert(got)...)
	}
	sortLines(lines)
	lines = lines[max(0, len(lines)-max(n, 0)):]
	if follow {
		lines = append(lines, engine.LogLine{})
	}
	for {
		for _, l := range lines {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := yield(l); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-time.After(logPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
		if _, err = set.scan(); err == nil {
			lines, err = set.more()
		}
		if err != nil {
			return fmt.Errorf("read logs: %w", err)
		}
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
		if err == nil && !keep[strings.TrimSuffix(entry.Name(), ".1")] {
			old = append(old, info)
		}
	}
	slices.SortFunc(old, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	total := int64(0)
	for _, info := range old {
		if total += info.Size(); total > oldLogs {
			if err := os.Remove(filepath.Join(e.logDir(app), info.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				e.opts.Log.Warn("cannot remove an old log", "app", app, "error", err.Error())
			}
		}
	}
}
