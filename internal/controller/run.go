package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

const (
	// runType is the process type of one-offs (contract 5.7).
	runType = "run"
	// runLimit is how long a one-off process may take that nobody is attached to (contract 5.7).
	runLimit = 20 * time.Minute
	// maxRunOutput bounds what is kept of its output for the answer.
	maxRunOutput = 8 << 20
	// endRunTime bounds writing down that a one-off is over, which a client that is
	// gone must not prevent.
	endRunTime = 10 * time.Second
)

// runCommand is contract 5.7, and the same with the process attached to the
// connection for who asks for api.RunProtocol.
func (c *call) runCommand() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	line, terminal := f.required("command"), f.terminal("terminal")
	if err := f.err(); err != nil {
		return err
	}
	if err := c.mayRun(); err != nil {
		return err
	}
	attached := api.AsksUpgrade(c.r.Header, api.RunProtocol)
	if !attached {
		terminal = nil
	}
	job, err := c.newJob(line, terminal)
	if err != nil {
		return err
	}
	ctx, end := c.s.oneOffs.begin(c.ctx, c.app.UUID)
	defer end()
	c.ctx = ctx
	if job.Num, err = c.s.store.BeginRun(c.ctx, c.user.Username, c.app, job.Process.Version, line); err != nil {
		return err
	}
	if attached {
		return c.attachRun(job)
	}
	return c.plainRun(job)
}

// newJob is a one-off process of the app's latest release. It has no limits but
// those that the config sets for type run (contract 5.7).
func (c *call) newJob(line string, terminal *api.RunTerminal) (engine.Job, error) {
	latest, err := c.s.store.LatestRelease(c.ctx, c.app.UUID)
	if err != nil {
		return engine.Job{}, err
	}
	if latest.Build == "" {
		return engine.Job{}, paas.Errorf(paas.Invalid, "No build associated with this release to run this command")
	}
	build, err := c.s.store.BuildByUUID(c.ctx, latest.Build)
	if err != nil {
		return engine.Job{}, err
	}
	config, err := c.s.store.ConfigByUUID(c.ctx, latest.Config)
	if err != nil {
		return engine.Job{}, err
	}
	job := engine.Job{App: c.app.UUID, Process: engine.Process{
		AppID: c.app.ID, Version: latest.Version, Image: build.Image, Digest: build.Digest,
		Registry: engine.CredentialsOf(config.Values), ReadOnly: config.ReadOnly(),
		Command: build.OneOff(paas.ShellCommand(line)), CPUShares: int64(config.CPU[runType]),
	}}
	if limit := config.Memory[runType]; limit != "" {
		if job.Process.Memory, err = paas.ParseMemory(limit); err != nil {
			return engine.Job{}, err
		}
	}
	env := map[string]string{}
	if terminal != nil {
		env["TERM"] = terminal.Name
		job.Process.Command = build.OneOff(paas.TerminalCommand(line))
		job.Terminal = &engine.Terminal{Size: engine.WindowSize{Columns: terminal.Columns, Rows: terminal.Rows}}
	}
	maps.Copy(env, config.Environment())
	env["DEIS_APP"], env["DEIS_RELEASE"] = c.app.ID, fmt.Sprintf("v%d", latest.Version)
	job.Process.Env = env
	return job, nil
}

// runJob runs a job that is on record to its end, and records that.
func (c *call) runJob(ctx context.Context, job engine.Job) (int, error) {
	defer c.endRun(job.Num)
	return c.s.engine.Run(ctx, job)
}

func (c *call) endRun(num int) {
	ctx, cancel := context.WithTimeout(c.lasting(), endRunTime)
	defer cancel()
	if err := c.s.store.EndRun(ctx, c.app.UUID, num); err != nil {
		c.s.cfg.Log.Error("the end of a one-off is not on record", "app", c.app.ID, "num", num, "error", err.Error())
	}
}

// plainRun answers with a JSON array, exit code and output, when all is over.
func (c *call) plainRun(job engine.Job) error {
	ctx, cancel := context.WithTimeout(c.ctx, runLimit)
	defer cancel()
	out := &tail{limit: maxRunOutput}
	job.Stdout = out
	code, err := c.runJob(ctx, job)
	if ctx.Err() != nil && c.ctx.Err() == nil {
		return paas.Errorf(paas.Unavailable, "container timed out")
	}
	if errors.Is(context.Cause(ctx), errAppGone) {
		return errAppGone
	}
	if err != nil {
		return err
	}
	answer, err := json.Marshal([]any{code, out.String()})
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "text/plain") // as the original has it
	_, _ = c.w.Write(answer)                       // a client that is gone cannot be told
	return nil
}

// errAppGone ends the one-offs of an app that is destroyed.
var errAppGone = paas.Errorf(paas.Conflict, "The app is being destroyed.")

// oneOffs are the one-off processes under way: an app that goes takes its own along. The zero value is
// ready to use.
type oneOffs struct {
	mu sync.Mutex
	of map[string]map[*oneOff]bool // by app UUID
}

type oneOff struct {
	cancel context.CancelCauseFunc
	ended  chan struct{}
}

// begin makes the context of a one-off. It must be called before the store is asked whether the app is
// there, and end when nothing of the process is left.
func (o *oneOffs) begin(ctx context.Context, app string) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	one := &oneOff{cancel: cancel, ended: make(chan struct{})}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.of == nil {
		o.of = map[string]map[*oneOff]bool{}
	}
	if o.of[app] == nil {
		o.of[app] = map[*oneOff]bool{}
	}
	o.of[app][one] = true
	return ctx, func() {
		cancel(nil)
		o.mu.Lock()
		defer o.mu.Unlock()
		if delete(o.of[app], one); len(o.of[app]) == 0 {
			delete(o.of, app)
		}
		close(one.ended)
	}
}

// endAll ends the one-offs of an app that the store says is being deleted, and waits until they have.
func (o *oneOffs) endAll(ctx context.Context, app string) error {
	o.mu.Lock()
	var all []*oneOff
	for one := range o.of[app] {
		one.cancel(errAppGone)
		all = append(all, one)
	}
	o.mu.Unlock()
	for _, one := range all {
		select {
		case <-one.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// tail keeps the last bytes that were written.
type tail struct {
	buf   bytes.Buffer
	limit int
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf.Write(p)
	if over := t.buf.Len() - t.limit; over > t.limit {
		t.buf.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	b := t.buf.Bytes()
	return string(bytes.ToValidUTF8(b[max(0, len(b)-t.limit):], []byte("?")))
}
