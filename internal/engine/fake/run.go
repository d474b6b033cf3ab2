package fake

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// Run is part of engine.Engine. As in contract 8 its output is a JSON text of
// the four arguments of the mock scheduler, and the exit code is 0. After
// SetPrograms it writes and ends as the Program says instead, and copies its stdin.
func (e *Engine) Run(ctx context.Context, job engine.Job) (int, error) {
	e.mu.Lock()
	fails := roll(e.chaos.Create)
	described := e.programOf == nil
	program, err := e.program(job.Process)
	e.mu.Unlock()
	if job.Log.Type != "" {
		job.Stdout = io.MultiWriter(job.Stdout, &logWriter{e: e, job: job})
		if job.Stderr != nil {
			job.Stderr = io.MultiWriter(job.Stderr, &logWriter{e: e, job: job, stderr: true})
		}
	}
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case fails:
		return 0, paas.Errorf(paas.Unavailable, "exit code 1")
	case err != nil:
		return 0, err
	case described:
		return 0, describe(job)
	}
	if program.Run != nil {
		return program.Run(ctx, job)
	}
	if err := output(job, program); err != nil {
		return 0, err
	}
	if !program.Ends {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(program.After):
		return program.Code, nil
	}
}

// logWriter keeps in the app's log what a one-off writes.
type logWriter struct {
	e      *Engine
	job    engine.Job
	stderr bool
	open   []byte // a line without its end
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.e.mu.Lock()
	defer w.e.mu.Unlock()
	w.open = append(w.open, p...)
	for {
		line, rest, ok := bytes.Cut(w.open, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		w.e.write(w.job.Log, w.job.Num, Line{Text: string(line), Stderr: w.stderr})
		w.open = rest
	}
}

// output writes what a program writes: stdout, a copy of stdin, stderr.
func output(job engine.Job, program Program) error {
	var stdout, stderr bytes.Buffer
	for _, line := range program.Print {
		out := &stdout
		if line.Stderr {
			out = &stderr
		}
		fmt.Fprintln(out, line.Text)
	}
	stdin, errOut := job.Stdin, job.Stderr
	if stdin == nil {
		stdin = strings.NewReader("")
	}
	if errOut == nil || job.Terminal != nil {
		errOut = job.Stdout
	}
	_, err := io.Copy(job.Stdout, io.MultiReader(&stdout, stdin))
	if err == nil {
		_, err = stderr.WriteTo(errOut)
	}
	if err != nil {
		return fmt.Errorf("copy the output of a one-off process: %w", err)
	}
	return nil
}

func describe(job engine.Job) error {
	args := struct {
		Name       string `json:"name"`
		Image      string `json:"image"`
		Entrypoint string `json:"entrypoint"`
		Command    string `json:"command"`
	}{Name: displayName(job.Process, "run", job.Num), Image: job.Process.Image}
	if cmd := job.Process.Command; len(cmd) > 0 {
		args.Entrypoint = cmd[0]
		args.Command = quote(cmd[1:])
	}
	text, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("describe a one-off process: %w", err)
	}
	if _, err := job.Stdout.Write(text); err != nil {
		return fmt.Errorf("write the output of a one-off process: %w", err)
	}
	return nil
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./=:@%+,-]+$`)

// quote joins words as one would type them in a shell (contract 5.7).
func quote(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		if !plainWord.MatchString(w) {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		quoted[i] = w
	}
	return strings.Join(quoted, " ")
}
