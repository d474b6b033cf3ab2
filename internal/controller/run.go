package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

const (
	// runLimit is how long a one-off process may take (contract 5.7).
	runLimit = 20 * time.Minute
	// maxRunOutput bounds what is kept of its output for the answer.
	maxRunOutput = 8 << 20
)

// runCommand is contract 5.7: a JSON array with exit code and output.
func (c *call) runCommand() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	line := f.required("command")
	if err := f.err(); err != nil {
		return err
	}
	latest, err := c.s.store.LatestRelease(c.ctx, c.app.UUID)
	if err != nil {
		return err
	}
	if latest.Build == "" {
		return paas.Errorf(paas.Invalid, "No build associated with this release to run this command")
	}
	build, err := c.s.store.BuildByUUID(c.ctx, latest.Build)
	if err != nil {
		return err
	}
	config, err := c.s.store.ConfigByUUID(c.ctx, latest.Config)
	if err != nil {
		return err
	}
	num, err := c.s.store.BeginRun(c.ctx, c.user.Username, c.app, line)
	if err != nil {
		return err
	}
	env := maps.Clone(config.Values)
	env["DEIS_APP"], env["DEIS_RELEASE"] = c.app.ID, fmt.Sprintf("v%d", latest.Version)
	ctx, cancel := context.WithTimeout(c.ctx, runLimit)
	defer cancel()
	out := &tail{limit: maxRunOutput}
	code, err := c.s.engine.Run(ctx, engine.Job{App: c.app.UUID, Num: num, Output: out, Process: engine.Process{
		AppID: c.app.ID, Version: latest.Version, Image: build.Image, Digest: build.Digest,
		Command: paas.ShellCommand(line), Env: env,
	}})
	if ctx.Err() != nil && c.ctx.Err() == nil {
		return paas.Errorf(paas.Unavailable, "container timed out")
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
