package fake

import (
	"context"
	"slices"
	"time"

	"github.com/deis/deis/internal/engine"
)

// maxLines is how many lines of an app are kept, the default of the logger of
// Deis v1 (contract 12).
const maxLines = 1000

// journal is what the instances of one app wrote.
type journal struct {
	lines []engine.LogLine
	first int           // number of lines dropped before lines[0]
	more  chan struct{} // closed by the next line
}

func (e *Engine) journalOf(app string) *journal {
	j := e.logs[app]
	if j == nil {
		j = &journal{more: make(chan struct{})}
		e.logs[app] = j
	}
	return j
}

// write adds a line to an app's journal. e.mu is held.
func (e *Engine) write(key engine.SetKey, num int, line Line) {
	j := e.journalOf(key.App)
	j.lines = append(j.lines, engine.LogLine{
		Time: time.Now(), Type: key.Type, Num: num, Generation: key.Generation,
		Stderr: line.Stderr, Text: line.Text,
	})
	if over := len(j.lines) - maxLines; over > 0 {
		j.lines = slices.Clone(j.lines[over:])
		j.first += over
	}
	close(j.more)
	j.more = make(chan struct{})
}

// after returns the lines with number next and later, and a channel that is
// closed by the first one that comes then.
func (j *journal) after(next int) ([]engine.LogLine, int, <-chan struct{}) {
	lines := j.lines[min(max(next-j.first, 0), len(j.lines)):]
	return slices.Clone(lines), j.first + len(j.lines), j.more
}

// Logs is part of engine.Engine. Of an app the last 1000 lines are kept. A
// call that follows an app goes on after Forget with what comes then.
func (e *Engine) Logs(ctx context.Context, app string, q engine.LogQuery, yield func(engine.LogLine) error) error {
	e.mu.Lock()
	j := e.logs[app]
	if j == nil && q.Follow {
		j = e.journalOf(app)
	}
	if j == nil {
		e.mu.Unlock()
		return ctx.Err()
	}
	lines, next, more := j.after(0)
	e.mu.Unlock()
	lines = slices.DeleteFunc(lines, func(l engine.LogLine) bool { return !q.Wants(l) })
	lines = lines[max(0, len(lines)-max(q.Lines, 0)):]
	if q.Follow {
		lines = append(lines, engine.LogLine{})
	}
	for {
		for _, line := range lines {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := yield(line); err != nil {
				return err
			}
		}
		if !q.Follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-more:
		}
		e.mu.Lock()
		if now := e.journalOf(app); now != j { // it was forgotten and begins again
			j, next = now, 0
		}
		lines, next, more = j.after(next)
		e.mu.Unlock()
		lines = slices.DeleteFunc(lines, func(l engine.LogLine) bool { return !q.Wants(l) })
	}
}

// Collect is part of engine.Engine: there are no images here.
func (e *Engine) Collect(context.Context, string, func(engine.Image) bool) error { return nil }

// Usage is part of engine.Engine: nothing is on the disk.
func (e *Engine) Usage(context.Context) (engine.Usage, error) {
	return engine.Usage{Apps: map[string]engine.AppUsage{}}, nil
}
