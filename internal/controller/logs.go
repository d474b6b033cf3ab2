package controller

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

const (
	// defaultLogLines is that of contract 5.8.
	defaultLogLines = 1000
	// maxLogLines bounds an answer, which is put together in memory.
	maxLogLines = 100_000
	// followBatch is how many new lines may wait to be sent together.
	followBatch = 256
)

// controllerSource is what the platform's own lines are from (contract 12).
const controllerSource = "deis-controller"

// logLine is one line as users see it.
type logLine struct {
	at     time.Time
	source string // "web.1" or controllerSource
	text   string
}

// logQuery is what a client wants to see. All but n is ours, not the contract's.
type logQuery struct {
	n      int       // the last lines
	since  time.Time // only lines of this second and later
	source string    // only those of a process type ("web") or an instance ("web.1")
	follow bool      // go on with new lines
}

// parseLogQuery reads the parameters; false means that no line can match
// (contract 5.8).
func parseLogQuery(v url.Values) (q logQuery, ok bool, err error) {
	q = logQuery{n: defaultLogLines, source: v.Get("process")}
	if text := v.Get("log_lines"); text != "" {
		if q.n, _ = strconv.Atoi(text); q.n < 1 {
			return q, false, nil
		}
	}
	q.n = min(q.n, maxLogLines)
	if text := v.Get("since"); text != "" {
		if q.since, err = time.Parse(api.TimeLayout, text); err != nil {
			return q, false, paas.FieldError("since", "This is no time like %s.", api.TimeLayout)
		}
	}
	q.follow = v.Get("follow") == "true"
	return q, true, nil
}

// wants reports whether a line is one of those asked for.
func (q logQuery) wants(l logLine) bool {
	if l.at.Before(q.since) {
		return false
	}
	return q.source == "" || q.source == l.source || strings.HasPrefix(l.source, q.source+".")
}

// engineQuery asks the engine for lines that may be wanted.
func (q logQuery) engineQuery() engine.LogQuery {
	e := engine.LogQuery{Lines: q.n, Type: q.source, Since: q.since, Follow: q.follow}
	// A process type may have dots, a number has none.
	if i := strings.LastIndexByte(q.source, '.'); i > 0 {
		if n, err := strconv.Atoi(q.source[i+1:]); err == nil && n > 0 {
			e.Type, e.Num = q.source[:i], n
		}
	}
	return e
}

// activities reads the platform's own lines that may be wanted, and in any
// case the last one: those that come after it are new.
func (c *call) activities(ctx context.Context, q logQuery) ([]paas.Activity, error) {
	n := q.n
	if q.source != "" && q.source != controllerSource {
		n = 1
	}
	return c.s.store.Activities(ctx, c.app.UUID, n)
}

// logs is contract 5.8: what the instances wrote and what was done to the app,
// in the order of time.
func (c *call) logs() error {
	q, ok, err := parseLogQuery(c.r.URL.Query())
	switch {
	case err != nil:
		return err
	case !ok:
		return c.empty(http.StatusNoContent)
	}
	if store := c.s.settings.Load().logs; store != nil {
		return c.storedLogs(store)
	}
	if q.follow {
		return c.followLogs(q)
	}
	lines, err := c.pastLines(q)
	if err != nil {
		return c.noLogs(err)
	}
	if len(lines) == 0 {
		return c.empty(http.StatusNoContent)
	}
	c.w.Header().Set("Content-Type", "text/plain")
	c.w.WriteHeader(http.StatusOK)
	_ = c.writeLines(lines) // a client that is gone cannot be told
	return nil
}

// noLogs answers that the logs cannot be read (contract 5.8).
func (c *call) noLogs(err error) error {
	c.s.cfg.Log.Error("logs cannot be read", "app", c.app.ID, "error", err.Error())
	c.w.Header().Set("Content-Type", "text/plain")
	c.w.WriteHeader(http.StatusInternalServerError)
	fmt.Fprintf(c.w, "Error accessing logs for %s", c.app.ID)
	return nil
}

func (c *call) writeLines(lines []logLine) error {
	var out bytes.Buffer
	for _, l := range lines {
		fmt.Fprintf(&out, "%s %s[%s]: %s\n", date(l.at), c.app.ID, l.source, l.text)
	}
	_, err := out.WriteTo(c.w)
	return err
}

// pastLines returns the last lines, oldest first.
func (c *call) pastLines(q logQuery) ([]logLine, error) {
	var lines []logLine
	err := c.s.engine.Logs(c.ctx, c.app.UUID, q.engineQuery(), func(l engine.LogLine) error {
		lines = append(lines, instanceLine(l))
		return nil
	})
	if err != nil {
		return nil, err
	}
	acts, err := c.activities(c.ctx, q)
	if err != nil {
		return nil, err
	}
	return q.last(append(lines, activityLines(acts)...)), nil
}

// last sorts lines by time and keeps the last ones of those that are wanted.
func (q logQuery) last(lines []logLine) []logLine {
	lines = slices.DeleteFunc(lines, func(l logLine) bool { return !q.wants(l) })
	slices.SortStableFunc(lines, func(a, b logLine) int { return a.at.Compare(b.at) })
	return lines[max(0, len(lines)-q.n):]
}

func instanceLine(l engine.LogLine) logLine {
	return logLine{l.Time, fmt.Sprintf("%s.%d", l.Type, l.Num), l.Text}
}

// activityLines makes lines of rows, which may have several each.
func activityLines(acts []paas.Activity) []logLine {
	var lines []logLine
	for _, a := range acts {
		for text := range strings.SplitSeq(a.Text, "\n") {
			lines = append(lines, logLine{a.At, controllerSource, text})
		}
	}
	return lines
}

// follower is one client that follows an app's logs.
type follower struct {
	*call
	q     logQuery
	news  <-chan struct{}
	seen  int64 // the last row of activity
	lines chan engine.LogLine
	ended chan error // why the engine's lines ended before we did
}

// followLogs is logs, and goes on with new lines as they come until the client
// hangs up or the app is not its to see any more.
func (c *call) followLogs(q logQuery) error {
	ctx, stop := context.WithCancel(c.ctx)
	defer stop()
	f := &follower{call: c, q: q, lines: make(chan engine.LogLine, followBatch), ended: make(chan error, 1)}
	f.news = c.s.store.News(c.app.UUID)
	acts, err := c.activities(ctx, q)
	if err != nil {
		return c.noLogs(err)
	}
	go func() {
		err := c.s.engine.Logs(ctx, c.app.UUID, q.engineQuery(), func(l engine.LogLine) error {
			select {
			case f.lines <- l:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if ctx.Err() == nil {
			f.ended <- err
		}
	}()
	lines, err := f.past(ctx, acts)
	if err != nil {
		return c.noLogs(err)
	}
	h := c.w.Header()
	h.Set("Content-Type", "text/plain")
	h.Set(api.HeaderFollow, "true")
	h.Set("Cache-Control", "no-store")
	c.w.WriteHeader(http.StatusOK)
	for {
		if f.send(lines) != nil {
			return nil // a client that is gone cannot be told
		}
		if lines, err = f.next(ctx); err != nil || lines == nil {
			return err
		}
	}
}

// past collects what there is already.
func (f *follower) past(ctx context.Context, acts []paas.Activity) ([]logLine, error) {
	lines := activityLines(acts)
	if len(acts) > 0 {
		f.seen = acts[len(acts)-1].ID
	}
	for {
		select {
		case l := <-f.lines:
			if l == (engine.LogLine{}) {
				return f.q.last(lines), nil
			}
			lines = append(lines, instanceLine(l))
		case err := <-f.ended:
			return nil, err
		case <-ctx.Done():
			return nil, nil
		}
	}
}

func (f *follower) send(lines []logLine) error {
	if err := f.writeLines(lines); err != nil {
		return err
	}
	return http.NewResponseController(f.w).Flush()
}

// next waits for new lines, which may turn out not to be wanted; nil is the end.
func (f *follower) next(ctx context.Context) ([]logLine, error) {
	lines := []logLine{}
	select {
	case l := <-f.lines:
		lines = append(lines, instanceLine(l))
		for len(f.lines) > 0 {
			lines = append(lines, instanceLine(<-f.lines))
		}
	case <-f.news:
		acts, err := f.done(ctx)
		if err != nil || acts == nil {
			return nil, err
		}
		lines = append(lines, activityLines(acts)...)
	case err := <-f.ended:
		return nil, fmt.Errorf("follow the instances' logs: %w", err)
	case <-f.s.stopping:
		return nil, nil
	case <-ctx.Done():
		return nil, nil
	}
	return slices.DeleteFunc(lines, func(l logLine) bool { return !f.q.wants(l) }), nil
}

// done lists what was done to the app, which may end the following: with the
// app itself, or with the right to see it.
func (f *follower) done(ctx context.Context) ([]paas.Activity, error) {
	f.news = f.s.store.News(f.app.UUID)
	app, err := f.s.store.AppByID(ctx, f.app.ID)
	if paas.CodeOf(err) == paas.NotFound || err == nil && app.UUID != f.app.UUID {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if ok, err := f.s.permits(ctx, members, f.user, app); err != nil || !ok {
		return nil, err
	}
	acts, err := f.s.store.ActivitiesAfter(ctx, f.app.UUID, f.seen)
	if len(acts) > 0 {
		f.seen = acts[len(acts)-1].ID
	}
	return append([]paas.Activity{}, acts...), err
}
