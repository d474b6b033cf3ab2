package fake

import (
	"context"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// Chaos holds the rates, 0 to 1, at which actions fail (contract 8). What cannot be created
// fails Apply and Run; what cannot be started is crashed at once, and excused; what cannot
// be destroyed is in state error until Apply or Remove is repeated with better luck. What cannot
// be stopped is crashed until it is destroyed: in the original, too, neither
// destroy nor start minds.
type Chaos struct {
	Create, Start, Stop, Destroy float64
}

// Reset forgets all instances and logs, and everything that the engine was told to
// do. Calls of Watch and Logs go on.
func (e *Engine) Reset() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for app := range e.sets {
		e.forget(app)
	}
	for app := range e.logs {
		e.forget(app)
	}
	e.chaos, e.probe, e.programOf, e.fetch, e.room = Chaos{}, nil, nil, nil, plenty
}

// SetChaos sets the failure rates for all actions to come.
func (e *Engine) SetChaos(c Chaos) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.chaos = c
}

// SetProbe says what running instances answer to health checks; nil is healthy.
func (e *Engine) SetProbe(f func(engine.Instance, engine.Check) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.probe = f
}

// Program is what a process does. The zero Program serves for ever in silence.
type Program struct {
	Print []Line
	// Deaf says that it never opens its port.
	Deaf bool
	// Ends says that it ends by itself with exit code Code, After its start.
	Ends  bool
	After time.Duration
	Code  int
	// Run, if set, is all that a one-off does instead: it reads, writes and
	// returns its exit code.
	Run func(ctx context.Context, job engine.Job) (int, error)
}

// Line is one line of output.
type Line struct {
	Text   string
	Stderr bool
}

// SetPrograms says what processes do that are created from now on; with nil, as
// at first, instances run the zero Program. An error says that the process
// cannot be created. f must not call the engine.
func (e *Engine) SetPrograms(f func(engine.Process) (Program, error)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.programOf = f
}

// SetFetch says what Fetch does; nil is as at first.
func (e *Engine) SetFetch(f func(p engine.Process, say func(string)) (digest string, err error)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fetch = f
}

// Exit ends the process of a running instance: it is crashed, for the reason
// given. It is false when there is no such running instance.
func (e *Engine) Exit(id, reason string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	inst := e.byID(id)
	if inst == nil || inst.State != paas.StateUp {
		return false
	}
	inst.halt()
	inst.crash(reason)
	e.changed(inst.App)
	return true
}

// Write makes a running instance write one line to stdout.
func (e *Engine) Write(id, text string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	inst := e.byID(id)
	if inst == nil || inst.State != paas.StateUp {
		return false
	}
	e.write(inst.SetKey, inst.Num, Line{Text: text})
	return true
}

func (e *Engine) byID(id string) *instance {
	for _, sets := range e.sets {
		for _, set := range sets {
			for _, inst := range set {
				if inst.ID == id {
					return inst
				}
			}
		}
	}
	return nil
}

// SetRoom says how much memory there is; at first there is more than enough.
func (e *Engine) SetRoom(r engine.Room) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.room = r
}
