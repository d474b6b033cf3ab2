package enginetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// screen is what a one-off has written so far.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (c *screen) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *screen) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// oneOff is a job under way, with the other ends of its streams.
type oneOff struct {
	*suite
	typing io.WriteCloser
	screen *screen
	ended  chan struct{}
	code   int
	err    error
}

// begin runs a job with an open stdin.
func (s *suite) begin(ctx context.Context, command []string, terminal *engine.Terminal) *oneOff {
	stdin, typing := io.Pipe()
	s.Cleanup(func() { typing.Close() })
	j := &oneOff{suite: s, typing: typing, screen: &screen{}, ended: make(chan struct{})}
	job := engine.Job{
		App: s.app, Num: 1, Process: s.process(command),
		Stdin: stdin, Stdout: j.screen, Terminal: terminal,
	}
	go func() {
		defer close(j.ended)
		j.code, j.err = s.Engine.Run(ctx, job)
	}()
	return j
}

func (j *oneOff) say(line string) {
	j.Helper()
	said := make(chan error, 1)
	go func() {
		_, err := fmt.Fprintf(j.typing, "%s\n", line)
		said <- err
	}()
	select {
	case err := <-said:
		if err != nil {
			j.Fatalf("write to the one-off: %v", err)
		}
	case <-time.After(j.fix.Wait):
		j.Fatalf("nobody reads %q", line)
	}
}

func (j *oneOff) wantEnd() {
	j.Helper()
	select {
	case <-j.ended:
	case <-time.After(j.fix.Wait):
		j.Fatalf("the one-off goes on; it wrote %q", j.screen)
	}
}

// runLogged: what a one-off writes is in the app's log when it is asked for, and stays there.
func (s *suite) runLogged() {
	for _, stderr := range []*bytes.Buffer{nil, {}} {
		var out bytes.Buffer
		job := engine.Job{
			App: s.app, Num: 1, Process: s.process(s.fix.Job), Stdin: strings.NewReader("from stdin\n"), Stdout: &out,
			Log: engine.SetKey{App: s.app, Type: "release", Generation: 7},
		}
		if stderr != nil {
			job.Stderr, job.Log.Generation = stderr, 8
		}
		if code, err := s.Engine.Run(s.ctx, job); err != nil || code != 3 {
			s.Fatalf("Run: exit code %d and error %v, want 3", code, err)
		}
		// Without a writer of its own stderr is in there, at whatever place.
		if !strings.Contains(strings.Replace(out.String(), "oops\n", "", 1), "hello there\nfrom stdin\n") {
			s.Errorf("output %q", out.String())
		}
		var logged []string
		err := s.Engine.Logs(s.ctx, s.app, engine.LogQuery{Lines: 10, Type: "release"}, func(l engine.LogLine) error {
			if l.Generation == job.Log.Generation {
				logged = append(logged, fmt.Sprintf("%d %t %s", l.Num, l.Stderr, l.Text))
			}
			return nil
		})
		slices.Sort(logged)
		want := []string{"1 false from stdin", "1 false hello there", fmt.Sprintf("1 %t oops", stderr != nil)}
		slices.Sort(want)
		if err != nil || !slices.Equal(logged, want) {
			s.Errorf("log %q, %v, want %q", logged, err, want)
		}
	}
	s.nothingLeft(s.app)
}

// runStreams: stdout and stderr come apart where they have writers of their own.
func (s *suite) runStreams() {
	var stdout, stderr bytes.Buffer
	code, err := s.Engine.Run(s.ctx, engine.Job{
		App: s.app, Num: 1, Process: s.process(s.fix.Job),
		Stdin: strings.NewReader("from stdin\n"), Stdout: &stdout, Stderr: &stderr,
	})
	if err != nil || code != 3 {
		s.Errorf("Run: exit code %d and error %v, want 3", code, err)
	}
	if stdout.String() != "hello there\nfrom stdin\n" || stderr.String() != "oops\n" {
		s.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
	}
}

// runStdinEnds: what is typed arrives while stdin is open, and its end does too.
func (s *suite) runStdinEnds() {
	j := s.begin(s.ctx, s.fix.Job, nil)
	for _, line := range []string{"one", "two"} {
		j.say(line)
		s.soon(line+" comes back", func() bool { return strings.Contains(j.screen.String(), line+"\n") })
	}
	select {
	case <-j.ended:
		s.Fatalf("the one-off ended before its stdin: %d, %v", j.code, j.err)
	default:
	}
	j.typing.Close()
	if j.wantEnd(); j.code != 3 || j.err != nil {
		s.Errorf("Run: exit code %d and error %v, want 3", j.code, j.err)
	}
	s.nothingLeft(s.app)
}

// runTerminal: a terminal has a size from the start and follows its changes.
func (s *suite) runTerminal() {
	sizes := make(chan engine.WindowSize, 1)
	j := s.begin(s.ctx, s.fix.Terminal, &engine.Terminal{Size: engine.WindowSize{Columns: 91, Rows: 37}, Resize: sizes})
	j.say("size")
	s.soon("the first size", func() bool { return strings.Contains(j.screen.String(), "37 91\r\n") })
	sizes <- engine.WindowSize{Columns: 120, Rows: 50}
	s.soon("the second size", func() bool {
		j.say("size")
		return strings.Contains(j.screen.String(), "50 120\r\n")
	})
	j.say("end")
	if j.wantEnd(); j.code != 4 || j.err != nil {
		s.Errorf("Run: exit code %d and error %v, want 4", j.code, j.err)
	}
	s.nothingLeft(s.app)

	plain := s.begin(s.ctx, s.fix.Terminal, nil)
	if plain.wantEnd(); plain.code != 5 || plain.err != nil {
		s.Errorf("Run without a terminal: exit code %d and error %v, want 5", plain.code, plain.err)
	}
}

// runTerminalCancelled: who hangs up leaves nothing behind, and hears nothing more.
func (s *suite) runTerminalCancelled() {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	j := s.begin(ctx, s.fix.Terminal, &engine.Terminal{Size: engine.WindowSize{Columns: 80, Rows: 24}})
	j.say("size")
	s.soon("it runs", func() bool { return strings.Contains(j.screen.String(), "24 80\r\n") })
	cancel()
	if j.wantEnd(); !errors.Is(j.err, context.Canceled) {
		s.Errorf("Run that was cancelled: %v", j.err)
	}
	s.nothingLeft(s.app)
}

// fetch: an image has a digest, the same each time and with which it runs; what is not there is refused.
func (s *suite) fetch() {
	process := s.process(s.fix.Sleep)
	digest, err := s.Fetch(s.ctx, s.app, process, func(string) {})
	if err != nil || digest == "" || s.fix.Digest != "" && digest != s.fix.Digest {
		s.Fatalf("Fetch: %q, %v; want %q", digest, err, s.fix.Digest)
	}
	process.Digest = digest
	if again, err := s.Fetch(s.ctx, s.app, process, func(string) {}); again != digest || err != nil {
		s.Errorf("Fetch again: %q, %v; want %q", again, err, digest)
	}
	spec := s.set("worker", 1, s.fix.Sleep)
	spec.Process = process
	s.apply(spec)
	process.Image, process.Digest = s.fix.MissingImage, ""
	if _, err := s.Fetch(s.ctx, s.app, process, func(string) {}); paas.CodeOf(err) != paas.Unavailable {
		s.Errorf("Fetch of an image that is not there: %v, want one that is unavailable", err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.Fetch(ctx, s.app, process, func(string) {}); err == nil {
		s.Error("Fetch succeeds though its context has ended")
	}
}
