package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// runner keeps one part running.
type runner struct {
	part    Part
	log     *slog.Logger
	changed func()
	healthy chan struct{} // closed when the part was healthy for the first time
	ended   chan struct{} // closed when it has ended for the first time
	done    chan struct{} // closed when run has returned

	firstEnd string // why it ended then; set before ended is closed

	mu       sync.Mutex
	proc     *process
	status   Status
	everGood bool
}

// run starts the part, and again whenever it dies, until ctx ends. The process
// is left as it is then.
func (r *runner) run(ctx context.Context, needs []*runner) {
	defer close(r.done)
	if r.process() == nil { // an adopted one works already
		r.awaitNeeds(ctx, needs)
	}
	pause := firstPause
	for first := true; ctx.Err() == nil; first = false {
		began := time.Now()
		reason := r.runOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > steadyTime {
			pause = firstPause
		}
		r.log.Warn("part ended", "reason", reason, "again_in", pause.String())
		r.update(func(s *Status) { s.State, s.Reason, s.PID = Restarting, reason, 0; s.Restarts++ })
		if first {
			r.firstEnd = reason
			close(r.ended)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, maxPause)
	}
}

// awaitNeeds waits until each of the needs was healthy. It does not wait for one
// that ended before it was, nor for ever: what can do something without the
// others, as the router can, must not be away with them.
func (r *runner) awaitNeeds(ctx context.Context, needs []*runner) {
	limit := time.After(needTime)
	for _, n := range needs {
		r.update(func(s *Status) { s.Reason = "waits for " + n.part.Name })
		select {
		case <-n.healthy:
		case <-n.ended:
		case <-limit:
			return
		case <-ctx.Done():
			return
		}
	}
}

// runOnce starts the process, or goes on with the adopted one, watches its
// health, and returns why it ended.
func (r *runner) runOnce(ctx context.Context) string {
	proc := r.process()
	if proc == nil || proc.exited() {
		var err error
		if proc, err = start(r.part); err != nil {
			return err.Error()
		}
		r.setProcess(proc)
	}
	r.update(func(s *Status) { s.State, s.Reason, s.PID = Starting, "", proc.pid })
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	go r.watchHealth(watch, proc)
	select {
	case <-proc.done:
		r.setProcess(nil)
		return proc.reason()
	case <-ctx.Done():
		return ""
	}
}

func (r *runner) watchHealth(ctx context.Context, proc *process) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := r.checkHealth(ctx)
		if ctx.Err() != nil {
			return
		}
		r.noteHealth(proc, err)
		timer.Reset(r.nextLook())
		if fi, statErr := os.Stat(r.part.Log); statErr == nil && fi.Size() > maxLog {
			if err := cutLog(r.part.Log); err != nil {
				r.log.Error("log not cut", "error", err.Error())
			}
		}
	}
}

func (r *runner) checkHealth(ctx context.Context) error {
	if r.part.Health == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	return r.part.Health(ctx)
}

// noteHealth notes what a look at a process found, unless it has ended meanwhile.
func (r *runner) noteHealth(proc *process, err error) {
	r.update(func(s *Status) {
		switch {
		case r.proc != proc:
		case err == nil:
			s.State, s.Reason = Running, ""
			if !r.everGood {
				r.everGood = true
				close(r.healthy)
				if s.Restarts > 0 {
					r.log.Info("part healthy", "restarts", s.Restarts)
				}
			}
		case s.State == Running || s.State == Unhealthy:
			s.State, s.Reason = Unhealthy, err.Error()
		default:
			s.Reason = err.Error()
		}
	})
}

func (r *runner) nextLook() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status.State == Running {
		return healthInterval
	}
	return startInterval
}

// waitHealthy waits for the first time. A death before that is an error, and so
// is patience that has run out; it ends with the part's last lines.
func (r *runner) waitHealthy(ctx context.Context, patience time.Duration) error {
	var reason string
	select {
	case <-r.healthy:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ended:
		reason = r.firstEnd
	case <-time.After(patience):
		reason = r.Status().Reason
	}
	if r.wasHealthy() {
		return nil
	}
	return fmt.Errorf("%s is not healthy: %s\n%s", r.part.Name, reason, lastWords(r.part.Log))
}

func (r *runner) wasHealthy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.everGood
}

// end stops the process, if it runs. run has returned before.
func (r *runner) end() {
	r.update(func(s *Status) { s.State = Stopping })
	if proc := r.process(); proc != nil {
		proc.stop(r.part.Grace)
	}
	r.setProcess(nil)
	for _, s := range r.part.Sockets {
		s.close()
	}
	r.update(func(s *Status) { s.State, s.PID, s.Reason = Stopped, 0, "" })
}

// Status returns what there is to say of the part now.
func (r *runner) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	if r.proc != nil {
		s.Uptime = int64(time.Since(r.proc.started).Seconds())
		s.Memory = residentMemory(r.proc.pid)
	}
	return s
}

func (r *runner) update(f func(*Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.status)
}

func (r *runner) process() *process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.proc
}

func (r *runner) setProcess(p *process) {
	r.mu.Lock()
	r.proc = p
	r.mu.Unlock()
	r.changed()
}

func (r *runner) record() record {
	rec := record{Sockets: map[string]string{}}
	if p := r.process(); p != nil {
		rec.PID, rec.StartTicks = p.pid, p.ticks
	}
	for _, s := range r.part.Sockets {
		rec.Sockets[s.Name] = s.Addr
	}
	return rec
}

// Tail returns the last n lines of a log without the final newline, "" if there
// are none.
func Tail(path string, n int) string {
	// Lines of daemons are short: this holds more than anybody asks for.
	const window = 1 << 20
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return ""
	}
	buf := make([]byte, min(fi.Size(), window))
	if _, err := f.ReadAt(buf, fi.Size()-int64(len(buf))); err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(buf), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// lastWords are the end of a part's log, indented, for the operator.
func lastWords(path string) string {
	const lines = 10
	return "  " + strings.ReplaceAll(Tail(path, lines), "\n", "\n  ")
}
