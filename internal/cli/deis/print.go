package deis

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
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
	if c.json {
		c.complainOfMore(len(page.Results), page.Count)
		return c.printJSON(page.Results)
	}
	c.heading("%s%s", title, shownOf(len(page.Results), page.Count))
	rows := [][]string{}
	for _, r := range page.Results {
		rows = append(rows, row(r))
	}
	c.table(rows)
	return nil
}

// shownOf is " (2 of 3)" where a list is not shown to its end (contract 2.4).
func shownOf(shown, count int) string {
	if shown >= count {
		return ""
	}
	return fmt.Sprintf(" (%d of %d)", shown, count)
}

// complainOfMore says so where that is not in the heading.
func (c *cli) complainOfMore(shown, count int) {
	if shown < count {
		c.complain("Not all are shown%s; --limit=%d shows them.", shownOf(shown, count), count)
	}
}

// hint tells a person, at a terminal, what usually comes next; scripts are not
// bothered.
func (c *cli) hint(format string, args ...any) {
	if isTerminal(c.err) {
		fmt.Fprintf(c.err, format+"\n", args...)
	}
}

// progress prints what is being done, does it, and adds what do returns, "done"
// if that is empty. Under --json it prints to standard error.
func (c *cli) progress(doing string, do func() (string, error)) error {
	w := c.progressTo()
	fmt.Fprint(w, doing+"...")
	done, err := withDots(w, do)
	if err != nil {
		done = "failed"
	}
	fmt.Fprintln(w, " "+cmp.Or(done, "done"))
	return err
}

// timed is progress for what takes a while: how long is said at the end, in a
// line of its own.
func (c *cli) timed(doing string, do func() error) error {
	w, start := c.progressTo(), time.Now()
	fmt.Fprint(w, doing)
	_, err := withDots(w, func() (string, error) { return "", do() })
	if err != nil {
		fmt.Fprintln(w, "\nfailed")
		return err
	}
	fmt.Fprintf(w, "\ndone in %ds\n", int(time.Since(start).Round(time.Second).Seconds()))
	return nil
}

func (c *cli) progressTo() io.Writer {
	if c.json {
		return c.err
	}
	return c.out
}

// drink is what the original offers with what takes a while; scripts look for
// the line.
func drink() string {
	return "but first, " + cmp.Or(os.Getenv("DEIS_DRINK_OF_CHOICE"), "coffee") + "!"
}

// withDots shows on a terminal, by a dot for each second, that it goes on.
func withDots(w io.Writer, do func() (string, error)) (string, error) {
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
	defer func() {
		close(stop)
		<-stopped
	}()
	return do()
}
