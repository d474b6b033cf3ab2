package deis

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/deis/deis/internal/api"
)

// say prints one line, or several, of the answer.
func (c *cli) say(format string, args ...any) { fmt.Fprintf(c.out, format+"\n", args...) }

// complain prints lines marked as errors and warnings are.
func (c *cli) complain(format string, args ...any) {
	mark := " !    "
	if coloured(c.err) {
		mark = " \x1b[1;31m!\x1b[0m    "
	}
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintf(c.err, "%s%s\n", mark, strings.TrimRight(line, "\n"))
	}
}

// coloured reports whether w shows colours (https://no-color.org).
func coloured(w any) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func (c *cli) bold(s string) string {
	if coloured(c.out) {
		return "\x1b[1m" + s + "\x1b[0m"
	}
	return s
}

// heading prints "=== demo Releases".
func (c *cli) heading(format string, args ...any) {
	c.say("%s", c.bold("=== "+fmt.Sprintf(format, args...)))
}

// table prints rows with aligned columns. A cell of several lines keeps them in
// its column; so only the last cell of a row may have them.
func (c *cli) table(rows [][]string) {
	widths := []int{}
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		line, indent := "", 0
		for i, cell := range row {
			if i == len(row)-1 {
				line += strings.ReplaceAll(cell, "\n", "\n"+strings.Repeat(" ", indent))
				break
			}
			if widths[i] > 0 {
				line += cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
				indent += widths[i] + 2
			}
		}
		c.say("%s", strings.TrimRight(line, " "))
	}
}

// printJSON prints v for programs.
func (c *cli) printJSON(v any) error {
	enc := json.NewEncoder(c.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// show prints a page of results: under --json the bare array, else a heading
// and one row for each.
func show[T any](c *cli, title string, page api.List[T], row func(T) []string) error {
	count := fmt.Sprintf(" (%d of %d)", len(page.Results), page.Count)
	if len(page.Results) >= page.Count {
		count = ""
	}
	if c.json {
		if count != "" {
			c.complain("Not all are shown%s; --limit=%d shows them.", count, page.Count)
		}
		return c.printJSON(page.Results)
	}
	c.heading("%s%s", title, count)
	rows := [][]string{}
	for _, r := range page.Results {
		rows = append(rows, row(r))
	}
	c.table(rows)
	return nil
}

// progress prints what is being done, does it, and adds what do returns, "done"
// if that is empty; on a terminal a dot for each second shows that it goes on.
// Under --json it prints to standard error.
func (c *cli) progress(doing string, do func() (string, error)) error {
	w := c.out
	if c.json {
		w = c.err
	}
	fmt.Fprint(w, doing+"...")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if isTerminal(w) {
					fmt.Fprint(w, ".")
				}
			}
		}
	}()
	done, err := do()
	close(stop)
	<-stopped
	switch {
	case err != nil:
		done = "failed"
	case done == "":
		done = "done"
	}
	fmt.Fprintln(w, " "+done)
	return err
}

// timed is progress that says at the end how long it took.
func (c *cli) timed(doing string, do func() error) error {
	start := time.Now()
	return c.progress(doing, func() (string, error) {
		err := do()
		return fmt.Sprintf("done in %ds", int(time.Since(start).Round(time.Second).Seconds())), err
	})
}
