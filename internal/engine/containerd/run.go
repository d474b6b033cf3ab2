package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	ctd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/deis/deis/internal/engine"
)

const (
	// jobGrace is the time between TERM and KILL for a one-off whose caller is
	// gone and who waits for it to go.
	jobGrace = time.Second
	// exitNotStarted is the shells' exit code for a command that cannot be run.
	exitNotStarted = 127
)

// Run implements engine.Engine.
func (e *Engine) Run(ctx context.Context, job engine.Job) (exitCode int, err error) {
	if err := checkApp(job.App); err != nil {
		return 0, err
	}
	img, err := e.image(e.in(ctx), job.App, job.Process)
	if err != nil {
		return 0, err
	}
	r := record{
		SetKey: engine.SetKey{App: job.App, Type: "run"}, ID: newID(), Kind: kindJob, Num: job.Num,
		AppID: job.Process.AppID, Version: job.Process.Version,
	}
	defer func() { err = errors.Join(err, e.discardJob(ctx, r)) }()
	return e.runJob(e.in(ctx), img, r, job)
}

func (e *Engine) discardJob(ctx context.Context, r record) error {
	ctx, cancel := cleanup(e.in(ctx))
	defer cancel()
	return e.removeAll(ctx, []record{r}, jobGrace)
}

func (e *Engine) runJob(ctx context.Context, img *image, r record, job engine.Job) (int, error) {
	output := &lockedWriter{w: job.Output}
	var stdin io.Reader
	input := &inputEnd{r: job.Stdin, ended: make(chan struct{})}
	if job.Stdin != nil {
		stdin = input
	}
	streams := cio.NewCreator(cio.WithStreams(stdin, output, output), cio.WithFIFODir(filepath.Join(e.instanceDir(r.ID), "fifo")))
	made, err := e.create(ctx, img, r, job.Process, streams)
	if err != nil {
		return 0, err
	}
	if made.failed != "" {
		fmt.Fprintln(output, made.failed)
		return exitNotStarted, nil
	}
	// After this nobody writes to the caller's writer any more.
	defer func() { made.task.IO().Cancel(); made.task.IO().Close() }()
	exit, err := made.task.Wait(ctx)
	if err != nil {
		return 0, wrap(err, "wait for the one-off")
	}
	if err := made.start(ctx); err != nil {
		return 0, err
	}
	go closeInput(ctx, made.task, input)
	select {
	case status := <-exit:
		code, _, err := status.Result()
		if err != nil {
			return 0, wrap(native(err), "wait for the one-off")
		}
		made.task.IO().Wait()
		return int(code), nil
	case <-ctx.Done():
		output.close()
		return 0, ctx.Err()
	}
}

// closeInput passes the end of the input on: the shim holds the other end of
// the FIFO open too.
func closeInput(ctx context.Context, task ctd.Task, input *inputEnd) {
	select {
	case <-input.ended:
		_ = task.CloseIO(ctx, ctd.WithStdinCloser) // gone, if the process is
	case <-ctx.Done():
	}
}

// inputEnd tells when a reader has ended.
type inputEnd struct {
	r     io.Reader
	once  sync.Once
	ended chan struct{}
}

func (i *inputEnd) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	if err != nil {
		i.once.Do(func() { close(i.ended) })
	}
	return n, err
}

// lockedWriter joins stdout and stderr.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w == nil {
		return 0, syscall.EPIPE
	}
	return l.w.Write(p)
}

// close makes later writes fail, so that they do not reach a caller that has gone on.
func (l *lockedWriter) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w = nil
}
