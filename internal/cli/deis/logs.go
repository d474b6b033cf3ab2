package deis

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/spf13/cobra"
)

const (
	// followPause is the first time between two attempts to go on following;
	// each is twice the last, up to followPauseMax.
	followPause    = 500 * time.Millisecond
	followPauseMax = 10 * time.Second
	// followOverlap is how far back a second connection begins: lines of
	// several instances do not come in the strict order of time.
	followOverlap = 5 * time.Second
	// followCatchUp is how many lines it may get at most.
	followCatchUp = 100_000
)

// logOptions is what apps:logs is told.
type logOptions struct {
	lines   int // 0: the server's default
	follow  bool
	process string
	since   time.Time
}

func (o logOptions) query() url.Values {
	q := url.Values{}
	if o.lines > 0 {
		q.Set("log_lines", strconv.Itoa(o.lines))
	}
	if o.process != "" {
		q.Set("process", o.process)
	}
	if !o.since.IsZero() {
		q.Set("since", o.since.UTC().Format(api.TimeLayout))
		if o.lines == 0 {
			q.Set("log_lines", strconv.Itoa(followCatchUp))
		}
	}
	if o.follow {
		q.Set("follow", "true")
	}
	return q
}

func (c *cli) logsCommand() *cobra.Command {
	opt, since := logOptions{}, ""
	cmd := &cobra.Command{
		Use:     "apps:logs",
		Aliases: []string{"logs"},
		Short:   "Show the last lines that an app and the platform wrote",
		Long: `With --follow it goes on with new lines until Ctrl-C. After a broken connection it carries on
where it was.`,
		Example: "deis logs --follow --process=web",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("lines") && opt.lines < 1 {
				return usage(cmd, "--lines must be 1 or more.")
			}
			if since != "" {
				var err error
				if opt.since, err = parseSince(since, time.Now()); err != nil {
					return usage(cmd, "%v.", err)
				}
			}
			return c.logs(cmd.Context(), opt)
		},
	}
	c.withApp(cmd)
	cmd.Flags().IntVarP(&opt.lines, "lines", "n", 0, "how `many` to show; default: 1000")
	cmd.Flags().BoolVarP(&opt.follow, "follow", "f", false, "go on with new lines")
	cmd.Flags().StringVarP(&opt.process, "process", "p", "", "only those of a `type` (web) or of one instance (web.1)")
	cmd.Flags().StringVar(&since, "since", "", "only those of the last 15m or 2h, or from a `time` like 2006-01-02T15:04:05UTC on")
	return cmd
}

// parseSince reads a duration, which ends now, or a time.
func parseSince(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{api.TimeLayout, time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("--since is a duration like 15m or a time like %s, not %q", api.TimeLayout, text)
}

func (c *cli) logs(ctx context.Context, opt logOptions) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	if opt.follow {
		return c.followLogs(ctx, s, app, opt)
	}
	path := appPath(app, "logs")
	if q := opt.query(); len(q) > 0 {
		path += "?" + q.Encode()
	}
	resp, err := s.api.Do(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNoContent {
		c.complain("%s has logged nothing yet.", app)
		return nil
	}
	body := bufio.NewReader(resp.Body)
	if first, err := body.Peek(1); err == nil && first[0] == '"' {
		return c.quotedLogs(body)
	}
	return c.copyLogs(body)
}

// quotedLogs is for servers up to API 1.6, which send the text as one JSON
// string (contract 5.8).
func (c *cli) quotedLogs(body io.Reader) error {
	text := ""
	if err := json.NewDecoder(body).Decode(&text); err != nil {
		return fmt.Errorf("read the logs: %w", err)
	}
	return c.copyLogs(bufio.NewReader(strings.NewReader(text)))
}

// copyLogs prints lines of any length.
func (c *cli) copyLogs(body *bufio.Reader) error {
	for {
		line, err := body.ReadString('\n')
		if line != "" {
			if !strings.HasSuffix(line, "\n") {
				line += "\n"
			}
			fmt.Fprint(c.out, c.colourLog(line))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the logs: %w", err)
		}
	}
}

// colourLog gives, on a terminal, the process that wrote a line, its second
// word, a colour of its own (contract 12).
func (c *cli) colourLog(line string) string {
	words := strings.SplitN(line, " ", 3)
	if len(words) < 3 || !coloured(c.out) {
		return line
	}
	sum := 0
	for _, b := range []byte(words[1]) {
		sum += int(b)
	}
	return fmt.Sprintf("\x1b[%dm%s %s\x1b[0m %s", 31+sum%6, words[0], words[1], words[2])
}

// followLogs prints lines as they come, over as many connections as it takes.
func (c *cli) followLogs(ctx context.Context, s *session, app string, opt logOptions) error {
	shown := &recentLines{}
	path := appPath(app, "logs") + "?"
	pause := followPause
	for first := true; ; first = false {
		connected, err := c.followOnce(ctx, s, path+shown.resume(opt.query()).Encode(), shown)
		switch {
		case ctx.Err() != nil:
			return exitStatus(statusInterrupted)
		case !connected && (first || !passing(err)):
			return err
		case connected:
			pause = followPause
			c.complain("The connection was lost; trying again.")
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return exitStatus(statusInterrupted)
		}
		pause = min(2*pause, followPauseMax)
	}
}

// passing reports whether an error may go by itself: nobody answers, or the
// router says that the controller is away.
func passing(err error) bool {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.err != nil && passing(f.err)
	}
	code := paas.CodeOf(err)
	_, foreign := errors.AsType[*api.StatusError](err)
	_, unreachable := errors.AsType[*url.Error](err)
	return code == paas.Unavailable || foreign || unreachable
}

// followOnce prints what one connection brings, and reports whether there was one.
func (c *cli) followOnce(ctx context.Context, s *session, path string, shown *recentLines) (connected bool, err error) {
	resp, err := s.api.Do(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	body := bufio.NewReader(resp.Body)
	if resp.Header.Get(api.HeaderFollow) == "" {
		if err := c.copyLogs(body); err != nil {
			return false, err
		}
		return false, fail("This controller cannot follow logs.", "deis logs")
	}
	for {
		line, err := body.ReadString('\n')
		if err != nil {
			return true, nil // what is left of a line comes again, whole
		}
		if shown.add(line) {
			fmt.Fprint(c.out, c.colourLog(line))
		}
	}
}

// recentLines remembers the lines of the last seconds, so that none of them is
// shown twice when another connection brings them again.
type recentLines struct {
	newest time.Time
	lines  []recentLine   // in the order in which they came
	again  map[string]int // those that may come again, with their number
}

type recentLine struct {
	at   time.Time
	text string
}

// resume completes the query for a connection that goes on after these lines.
func (r *recentLines) resume(q url.Values) url.Values {
	if r.newest.IsZero() {
		return q
	}
	r.again = map[string]int{}
	for _, l := range r.lines {
		r.again[l.text]++
	}
	q.Set("since", r.newest.Add(-followOverlap).UTC().Format(api.TimeLayout))
	q.Set("log_lines", strconv.Itoa(followCatchUp))
	return q
}

// add remembers a line and reports whether it is a new one.
func (r *recentLines) add(line string) bool {
	if r.again[line] > 0 {
		r.again[line]--
		return false
	}
	word, _, _ := strings.Cut(line, " ")
	at, err := time.Parse(api.TimeLayout, word)
	if err != nil {
		at = r.newest
	}
	if at.After(r.newest) {
		r.newest = at
		r.forget()
	}
	r.lines = append(r.lines, recentLine{at, line})
	return true
}

// forget drops the lines that no further connection brings.
func (r *recentLines) forget() {
	oldest := r.newest.Add(-followOverlap)
	keep := r.lines[:0]
	for _, l := range r.lines {
		if cmp.Compare(l.at.Unix(), oldest.Unix()) >= 0 {
			keep = append(keep, l)
		}
	}
	clear(r.lines[len(keep):])
	r.lines = keep
}
