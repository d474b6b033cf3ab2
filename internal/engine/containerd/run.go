package containerd

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	ctd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/containerd/shimlog"
	"github.com/deis/deis/internal/paas"
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
	if err := e.endRemnants(ctx, job.App); err != nil {
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
	defer func() {
		if err := e.discard(ctx, r, jobGrace); err != nil {
			e.opts.Log.Warn("a one-off cannot be removed", "app", job.App, "error", err.Error())
		}
	}()
	if job.Log.Type != "" {
		kept, err := e.keepOutput(&job)
		if err != nil {
			return 0, err
		}
		defer kept()
	}
	return e.runJob(e.in(ctx), img, r, job)
}

// keepOutput has what a one-off writes copied into the app's log; kept waits until all of it is there.
func (e *Engine) keepOutput(job *engine.Job) (kept func(), err error) {
	if err := os.MkdirAll(e.logDir(job.App), 0o750); err != nil {
		return nil, fmt.Errorf("log directory: %w", err)
	}
	path := filepath.Join(e.logDir(job.App), logName(job.Log, job.Num))
	stdout, out := io.Pipe()
	stderr, errOut := io.Pipe()
	job.Stdout = io.MultiWriter(job.Stdout, out)
	if job.Stderr != nil {
		job.Stderr = io.MultiWriter(job.Stderr, errOut)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		shimlog.Copy(context.Background(), path, stdout, stderr)
	}()
	return func() {
		out.Close()
		errOut.Close()
		<-ended
	}, nil
}

// endRemnants removes what an earlier process left behind of an app's one-offs: two of
// its kind must not run at once, where the first was killed.
func (e *Engine) endRemnants(ctx context.Context, app string) error {
	err := again(e.in(ctx), func(ctx context.Context) error { return e.sweepJobs(ctx, app) })
	if err == nil || ctx.Err() != nil || paas.CodeOf(err) != paas.Internal {
		return err
	}
	return &paas.Error{
		Code: paas.Unavailable, Err: err,
		Message: "an earlier one-off process of this app cannot be removed yet. Please try again; if it stays so, the platform's operator finds why in 'deisctl logs controller'",
	}
}

func (e *Engine) runJob(ctx context.Context, img *image, r record, job engine.Job) (int, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	out := &output{stdout: job.Stdout, stderr: job.Stderr}
	defer out.close()
	in := &input{r: job.Stdin, terminal: job.Terminal != nil, ended: make(chan struct{}), done: ctx.Done()}
	made, err := e.create(ctx, img, r, job.Process, e.streams(r, job, in, out), terminalSpec(job.Terminal)...)
	if err != nil {
		return 0, err
	}
	if made.failed != "" {
		fmt.Fprintln(out, made.failed)
		return exitNotStarted, nil
	}
	defer func() { made.task.IO().Cancel(); made.task.IO().Close() }()
	exit, err := made.task.Wait(ctx)
	if err != nil {
		return 0, wrap(err, "wait for the one-off")
	}
	if err := made.start(ctx); err != nil {
		return 0, err
	}
	go in.passEnd(ctx, made.task)
	if job.Terminal != nil {
		go resize(ctx, made.task, job.Terminal.Resize)
	}
	code, err := awaitExit(ctx, made.task, exit)
	if err != nil {
		return 0, err
	}
	made.task.IO().Wait()
	return code, nil
}

// streams are FIFOs, copied by goroutines of this process.
func (e *Engine) streams(r record, job engine.Job, in *input, out *output) cio.Creator {
	var stdin io.Reader
	if job.Stdin != nil {
		stdin = in
	}
	opts := []cio.Opt{
		cio.WithStreams(stdin, out, (*errorOutput)(out)),
		cio.WithFIFODir(filepath.Join(e.instanceDir(r.ID), "fifo")),
	}
	if job.Terminal != nil {
		opts = append(opts, cio.WithTerminal)
	}
	return cio.NewCreator(opts...)
}

// terminalSpec gives the process a terminal of the right size from the start.
func terminalSpec(t *engine.Terminal) []oci.SpecOpts {
	if t == nil {
		return nil
	}
	return []oci.SpecOpts{func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		s.Process.Terminal = true
		s.Process.ConsoleSize = &specs.Box{Width: uint(t.Size.Columns), Height: uint(t.Size.Rows)}
		return nil
	}}
}

// awaitExit waits for the end of a process, also of one that outlives containerd.
func awaitExit(ctx context.Context, task ctd.Task, exit <-chan ctd.ExitStatus) (int, error) {
	for try := 1; ; try++ {
		select {
		case status := <-exit:
			code, _, err := status.Result()
			if err == nil {
				return int(code), nil
			}
			if err = native(err); ctx.Err() != nil || try == attempts || !errdefs.IsUnavailable(err) {
				return 0, wrap(err, "wait for the one-off")
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		var err error
		if exit, err = task.Wait(ctx); err != nil {
			return 0, wrap(err, "wait for the one-off")
		}
	}
}

func resize(ctx context.Context, task ctd.Task, sizes <-chan engine.WindowSize) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			_ = task.Resize(ctx, uint32(size.Columns), uint32(size.Rows)) // gone, if the process is
		case <-ctx.Done():
			return
		}
	}
}

// input tells when the caller's reader has ended. At a terminal that is
// nothing to pass on, as the shim would hang up.
type input struct {
	r        io.Reader
	terminal bool
	once     sync.Once
	ended    chan struct{}
	done     <-chan struct{}
}

func (i *input) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	if err == nil || n > 0 {
		return n, nil
	}
	if i.terminal {
		<-i.done
	}
	i.once.Do(func() { close(i.ended) })
	return 0, err
}

// passEnd passes the end of the input on: the shim holds the other end of the
// FIFO open too.
func (i *input) passEnd(ctx context.Context, task ctd.Task) {
	select {
	case <-i.ended:
		_ = task.CloseIO(ctx, ctd.WithStdinCloser) // gone, if the process is
	case <-ctx.Done():
	}
}

// output is what a one-off writes, one Write at a time. It is stdout itself.
type output struct {
	mu             sync.Mutex
	stdout, stderr io.Writer // stderr may be nil
	closed         bool
}

// errorOutput is the stderr of an output.
type errorOutput output

func (o *output) Write(p []byte) (int, error) { return o.write(o.stdout, p) }

func (o *errorOutput) Write(p []byte) (int, error) {
	if o.stderr == nil {
		return (*output)(o).Write(p)
	}
	return (*output)(o).write(o.stderr, p)
}

func (o *output) write(w io.Writer, p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return 0, syscall.EPIPE
	}
	return w.Write(p)
}

// close makes later writes fail, so that they do not reach a caller that has gone on.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
}
