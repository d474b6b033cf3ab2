package rollout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

const (
	// releaseSilence ends a release process that shows no sign of life: migrations of large tables say
	// nothing for long.
	releaseSilence = 20 * time.Minute
	// releaseLines is how many lines of its output the pusher is shown.
	releaseLines = 1000
	// saySilent is the time between two words about one that writes nothing. Streams to the pusher must not fall
	// silent for long.
	saySilent = 30 * time.Second
	// maxLine is where an endless line is cut, in bytes.
	maxLine = 4 << 10
)

const msgRelease = "aborting, the release process failed"

var errSilent = errors.New("silent")

// release runs the release process of a build, before anything is started: with each new build or config, and
// with rollbacks. After a crash of the controller during it, it runs again.
func (w *work) release(ctx context.Context) error {
	_, has := w.in.build.Procfile[paas.TypeRelease]
	if !has || !w.r.Kind.MakesRelease() || w.r.State == paas.RolloutStarting {
		return nil
	}
	if err := w.journal(ctx, paas.RolloutReleasing, "running the release process"); err != nil {
		return err
	}
	w.step("releasing")
	w.say("Running the release process")
	spec, err := w.in.spec(paas.Set{
		App: w.r.App, Type: paas.TypeRelease, Generation: w.r.ID, Version: w.r.Version, Build: w.r.Build, Config: w.r.Config,
	})
	if err != nil {
		return err
	}
	if err := w.runRelease(ctx, spec.Process); err != nil {
		return err
	}
	w.step("released")
	return nil
}

func (w *work) runRelease(ctx context.Context, process engine.Process) error {
	limited, end := context.WithCancelCause(ctx)
	defer end(nil)
	out := &releaseOutput{say: w.say, redact: w.redact, silence: time.AfterFunc(releaseSilence, func() { end(errSilent) })}
	defer out.silence.Stop()
	stop := out.keepSaying(limited)
	code, err := w.m.opt.Engine.Run(limited, engine.Job{
		App: w.r.App, Num: 1, Process: process, Stdout: out,
		Log: engine.SetKey{App: w.r.App, Type: paas.TypeRelease, Generation: w.r.ID},
	})
	stop()
	out.flush()
	var reason string
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(context.Cause(limited), errSilent):
		reason = fmt.Sprintf("it wrote nothing for %s and was ended", releaseSilence)
	case err != nil:
		if reason = w.redact(userText(err)); reason == "" {
			reason = "it could not be run"
		}
	case code > 128 && code < 128+65:
		reason = fmt.Sprintf("exited with code %d (signal %d)", code, code-128)
	case code != 0:
		reason = fmt.Sprintf("exited with code %d", code)
	default:
		return nil
	}
	return &paas.Error{Code: paas.Unavailable, Message: msgRelease, Details: "release: " + reason + out.tail(), Err: err}
}

// releaseOutput shows lines to the pusher and keeps the last ones. Engines write to it one at a time.
type releaseOutput struct {
	say     func(string)
	redact  func(string) string
	silence *time.Timer

	mu    sync.Mutex
	wrote time.Time
	open  []byte // a line without its end
	shown int
	last  []string
}

func (o *releaseOutput) Write(p []byte) (int, error) {
	o.silence.Reset(releaseSilence)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wrote = time.Now()
	o.open = append(o.open, p...)
	for {
		line, rest, ok := bytes.Cut(o.open, []byte("\n"))
		if !ok && len(o.open) < maxLine {
			return len(p), nil
		}
		if !ok {
			line, rest = o.open, nil
		}
		o.show(string(line))
		o.open = bytes.Clone(rest)
	}
}

// flush shows a last line that has no end.
func (o *releaseOutput) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.open) > 0 {
		o.show(string(o.open))
		o.open = nil
	}
}

// show takes one line. o.mu is held.
func (o *releaseOutput) show(line string) {
	line = cut(o.redact(strings.ToValidUTF8(strings.TrimRight(line, "\r"), "?")), tailWidth)
	o.last = append(o.last, line)
	o.last = o.last[max(0, len(o.last)-tailLines):]
	switch o.shown++; {
	case o.shown <= releaseLines:
		o.say("  " + line)
	case o.shown == releaseLines+1:
		o.say("  (more of its output is not shown)")
	}
}

// keepSaying gives a sign of life while there is nothing to show, until stop is called.
func (o *releaseOutput) keepSaying(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	began := time.Now()
	work.Go(func() {
		for sleep(ctx, saySilent) {
			o.mu.Lock()
			if time.Since(o.wrote) >= saySilent || o.shown > releaseLines {
				o.say(fmt.Sprintf("The release process runs since %s", time.Since(began).Round(time.Second)))
			}
			o.mu.Unlock()
		}
	})
	return func() {
		cancel()
		work.Wait()
	}
}

// tail is the end of a reason.
func (o *releaseOutput) tail() string {
	if len(o.last) == 0 {
		return "\nIt wrote nothing."
	}
	return "\nThe last lines that it wrote:\n  " + strings.Join(o.last, "\n  ")
}
