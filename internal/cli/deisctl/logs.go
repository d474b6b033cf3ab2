package deisctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/deis/deis/internal/supervisor"
)

// followInterval is how often logs --follow looks for more.
const followInterval = 200 * time.Millisecond

func logsCommand(s *settings) *cobra.Command {
	var lines int
	var follow bool
	cmd := &cobra.Command{
		Use:     "logs [part...]",
		Short:   "Show the logs of the parts",
		Example: "  deisctl logs controller -n 50 --follow",
		RunE: func(cmd *cobra.Command, parts []string) error {
			known := append([]string{"deisctl"}, stopOrder...)
			if len(parts) == 0 {
				parts = known
			}
			for _, p := range parts {
				if !slices.Contains(known, p) {
					return &exitError{ExitUsage, fmt.Sprintf("no part is called %q; there are %s", p, strings.Join(known, ", "))}
				}
			}
			return s.showLogs(cmd.Context(), cmd.OutOrStdout(), parts, lines, follow)
		},
	}
	cmd.Flags().IntVarP(&lines, "lines", "n", 20, "lines of each part")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new lines")
	return cmd
}

// showLogs prints the last lines of each part's log, prefixed by its name, and
// then what is added.
func (s *settings) showLogs(ctx context.Context, out io.Writer, parts []string, n int, follow bool) error {
	offsets := map[string]int64{}
	for _, part := range parts {
		path := s.logFile(part)
		if fi, err := os.Stat(path); err == nil {
			offsets[part] = fi.Size()
		}
		if text := supervisor.Tail(path, n); text != "" {
			for line := range strings.SplitSeq(text, "\n") {
				fmt.Fprintf(out, "%-10s | %s\n", part, line)
			}
		}
	}
	for follow {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followInterval):
		}
		for _, part := range parts {
			end, err := copyFrom(s.logFile(part), offsets[part], part, out)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			offsets[part] = end
		}
	}
	return nil
}

// copyFrom prints whole lines from an offset on and returns the next offset. A
// file that became shorter was cut: it is read from its beginning.
func copyFrom(path string, offset int64, part string, out io.Writer) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return offset, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return offset, err
	}
	if fi.Size() < offset {
		offset = 0
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return offset, err
	}
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return offset, nil // the rest of the line is not written yet
		}
		offset += int64(len(line))
		fmt.Fprintf(out, "%-10s | %s", part, line)
	}
}
