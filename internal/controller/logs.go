package controller

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deis/deis/internal/engine"
)

const (
	// defaultLogLines is that of contract 5.8.
	defaultLogLines = 1000
	// maxLogLines bounds an answer, which is put together in memory.
	maxLogLines = 100_000
)

// logLine is one line as users see it.
type logLine struct {
	at     time.Time
	source string // "web.1" or "deis-controller"
	text   string
}

// logs is contract 5.8: what the instances wrote and what was done to the app,
// in the order of time.
func (c *call) logs() error {
	n := defaultLogLines
	if text := c.r.URL.Query().Get("log_lines"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 1 {
			return c.empty(http.StatusNoContent)
		}
	}
	lines, err := c.logLines(min(n, maxLogLines))
	c.w.Header().Set("Content-Type", "text/plain")
	if err != nil {
		c.s.cfg.Log.Error("logs cannot be read", "app", c.app.ID, "error", err.Error())
		c.w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(c.w, "Error accessing logs for %s", c.app.ID)
		return nil
	}
	if len(lines) == 0 {
		return c.empty(http.StatusNoContent)
	}
	var out bytes.Buffer
	for _, l := range lines {
		fmt.Fprintf(&out, "%s %s[%s]: %s\n", date(l.at), c.app.ID, l.source, l.text)
	}
	c.w.WriteHeader(http.StatusOK)
	_, _ = out.WriteTo(c.w) // a client that is gone cannot be told
	return nil
}

// logLines returns the last n lines, oldest first.
func (c *call) logLines(n int) ([]logLine, error) {
	var lines []logLine
	err := c.s.engine.Logs(c.ctx, c.app.UUID, n, false, func(l engine.LogLine) error {
		lines = append(lines, logLine{l.Time, fmt.Sprintf("%s.%d", l.Type, l.Num), l.Text})
		return nil
	})
	if err != nil {
		return nil, err
	}
	acts, err := c.s.store.Activities(c.ctx, c.app.UUID, n)
	if err != nil {
		return nil, err
	}
	for _, a := range acts {
		for text := range strings.SplitSeq(a.Text, "\n") {
			lines = append(lines, logLine{a.At, "deis-controller", text})
		}
	}
	slices.SortStableFunc(lines, func(a, b logLine) int { return a.at.Compare(b.at) })
	return lines[max(0, len(lines)-n):], nil
}
