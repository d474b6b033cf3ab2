// Package fake is an engine without containers: instances are states in
// memory, as in the mock and chaos schedulers of Deis v1 (contract 8). Any
// image runs at once. Addresses are made up, so that routes can be published;
// nothing listens there. Nothing survives the process.
package fake

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// Engine is an engine.Engine in memory. Its methods, also those that steer
// it, may be called concurrently.
type Engine struct {
	mu        sync.Mutex
	sets      map[string]map[engine.SetKey]map[int]*instance // by app UUID
	logs      map[string]*journal                            // by app UUID
	watchers  map[*watcher]bool
	created   uint32 // number of instances ever made: the source of IDs and addresses
	chaos     Chaos
	probe     func(engine.Instance, engine.Check) error // may be nil
	programOf func(engine.Process) (Program, error)     // may be nil
	// fetch may be nil.
	fetch func(p engine.Process, say func(string)) (digest string, err error)
	room  engine.Room
}

type instance struct {
	engine.Instance
	process engine.Process
	program Program
	serial  uint32
	halted  chan struct{} // nil when the program does not end by itself
}

// New returns an engine on which everything succeeds.
func New() *Engine {
	return &Engine{
		sets:     map[string]map[engine.SetKey]map[int]*instance{},
		logs:     map[string]*journal{},
		watchers: map[*watcher]bool{},
		room:     plenty,
	}
}

// plenty is memory that nothing exhausts.
var plenty = engine.Room{Total: 1 << 50, Available: 1 << 50}

// Room is part of engine.Engine.
func (e *Engine) Room(ctx context.Context, _ string) (engine.Room, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.room
	r.Use = maps.Clone(r.Use)
	return r, ctx.Err()
}

// Fetch is part of engine.Engine. Unless SetFetch says otherwise, every image is there at once,
// and its digest is made up of its name.
func (e *Engine) Fetch(ctx context.Context, _ string, p engine.Process, say func(string)) (string, error) {
	e.mu.Lock()
	f := e.fetch
	e.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case f != nil:
		return f(p, say)
	}
	return cmp.Or(p.Digest, fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(p.Image)))), nil
}

// Apply is part of engine.Engine.
func (e *Engine) Apply(ctx context.Context, spec engine.SetSpec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	set := e.sets[spec.App][spec.SetKey]
	if set == nil {
		set = map[int]*instance{}
	}
	defer e.changed(spec.App)
	err := e.grow(set, spec)
	if err == nil {
		err = e.shrink(set, spec.Nums)
	}
	e.put(spec.SetKey, set)
	return err
}

// put makes this a set of its app; an empty one is none.
func (e *Engine) put(key engine.SetKey, set map[int]*instance) {
	of := e.sets[key.App]
	switch {
	case len(set) == 0:
		if delete(of, key); len(of) == 0 {
			delete(e.sets, key.App)
		}
	case of == nil:
		e.sets[key.App] = map[engine.SetKey]map[int]*instance{key: set}
	default:
		of[key] = set
	}
}

// grow creates and starts what spec lacks. The first error does not keep it from trying the others.
func (e *Engine) grow(set map[int]*instance, spec engine.SetSpec) error {
	var failed error
	for _, num := range spec.Nums {
		old := set[num]
		if old != nil && !ended(old.State) {
			continue
		}
		inst, err := e.create(spec, num)
		if err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		if old != nil {
			old.halt()
		}
		set[num] = inst
		e.start(inst)
	}
	return failed
}

// shrink destroys what is not in keep, youngest first. What cannot be destroyed stays.
func (e *Engine) shrink(set map[int]*instance, keep []int) error {
	var failed error
	nums := slices.Sorted(maps.Keys(set))
	slices.Reverse(nums)
	for _, num := range nums {
		if slices.Contains(keep, num) {
			continue
		}
		if err := e.destroy(set[num]); err != nil {
			failed = err
			continue
		}
		delete(set, num)
	}
	return failed
}

func ended(s paas.InstanceState) bool {
	return s == paas.StateCrashed || s == paas.StateError || s == paas.StateDown || s == paas.StateDestroyed
}

func (e *Engine) create(spec engine.SetSpec, num int) (*instance, error) {
	if roll(e.chaos.Create) {
		// As in the original there are no words about it.
		return nil, &paas.Error{Code: paas.Unavailable}
	}
	program, err := e.program(spec.Process)
	if err != nil {
		return nil, err
	}
	e.created++
	return &instance{
		process: spec.Process,
		program: program,
		serial:  e.created,
		Instance: engine.Instance{
			SetKey:  spec.SetKey,
			ID:      fmt.Sprintf("fake-%08x", e.created),
			Num:     num,
			AppID:   spec.Process.AppID,
			Version: spec.Process.Version,
			State:   paas.StateCreated,
		},
	}, nil
}

func (e *Engine) program(p engine.Process) (Program, error) {
	if e.programOf == nil {
		return Program{}, nil
	}
	return e.programOf(p)
}

func (e *Engine) start(inst *instance) {
	inst.Started = time.Now()
	if roll(e.chaos.Start) {
		inst.crash("could not be started")
		inst.Excused = true
		return
	}
	inst.State = paas.StateUp
	inst.Address = address(inst.serial, inst.process)
	program := inst.program
	for _, line := range program.Print {
		e.write(inst.SetKey, inst.Num, line)
	}
	switch {
	case program.Ends && program.After == 0:
		inst.crash(exitReason(program.Code))
	case program.Ends:
		halted := make(chan struct{})
		inst.halted = halted
		go func() {
			select {
			case <-halted:
			case <-time.After(program.After):
				e.Exit(inst.ID, exitReason(program.Code))
			}
		}()
	}
}

func (e *Engine) destroy(inst *instance) error {
	inst.halt()
	if inst.State == paas.StateUp && roll(e.chaos.Stop) {
		inst.crash("could not be stopped") // which does not keep it from being destroyed
	}
	if !roll(e.chaos.Destroy) {
		return nil
	}
	inst.State, inst.Address, inst.Reason = paas.StateError, "", "could not be destroyed"
	return paas.Errorf(paas.Unavailable, "%s: could not be destroyed", displayName(inst.process, inst.Type, inst.Num))
}

func (i *instance) crash(reason string) {
	i.State, i.Address, i.Reason = paas.StateCrashed, "", reason
}

// halt keeps the instance's program from ending it later.
func (i *instance) halt() {
	if i.halted != nil {
		close(i.halted)
		i.halted = nil
	}
}

// Remove is part of engine.Engine.
func (e *Engine) Remove(ctx context.Context, key engine.SetKey) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	set := e.sets[key.App][key]
	if set == nil {
		return nil
	}
	defer e.changed(key.App)
	err := e.shrink(set, nil)
	e.put(key, set)
	return err
}

// Instances is part of engine.Engine.
func (e *Engine) Instances(ctx context.Context, app string) ([]engine.Instance, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []engine.Instance
	add := func(sets map[engine.SetKey]map[int]*instance) {
		for _, set := range sets {
			for _, inst := range set {
				list = append(list, inst.Instance)
			}
		}
	}
	if add(e.sets[app]); app == "" {
		for _, sets := range e.sets {
			add(sets)
		}
	}
	slices.SortFunc(list, func(a, b engine.Instance) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Num, b.Num),
			cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.App, b.App))
	})
	return list, nil
}

// Probe is part of engine.Engine.
func (e *Engine) Probe(ctx context.Context, inst engine.Instance, check engine.Check) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e.mu.Lock()
	now := e.sets[inst.App][inst.SetKey][inst.Num]
	running := now != nil && now.ID == inst.ID && now.State == paas.StateUp
	deaf := running && now.program.Deaf && (paas.Routed(inst.Type) || check.Path != "")
	probe := e.probe
	e.mu.Unlock()
	switch {
	case !running:
		return paas.Errorf(paas.Unavailable, "the instance is not running")
	case deaf:
		return paas.Errorf(paas.Unavailable, "nothing listens on %s", inst.Address)
	case probe == nil:
		return nil
	}
	return probe(inst, check)
}

// Forget is part of engine.Engine.
func (e *Engine) Forget(ctx context.Context, app string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forget(app)
	return nil
}

func (e *Engine) forget(app string) {
	for _, set := range e.sets[app] {
		for _, inst := range set {
			inst.halt()
		}
	}
	delete(e.sets, app)
	if j := e.logs[app]; j != nil {
		close(j.more)
		delete(e.logs, app)
	}
	e.changed(app)
}

func roll(rate float64) bool { return rate > 0 && rand.Float64() < rate }

func exitReason(code int) string { return fmt.Sprintf("exit code %d", code) }

// displayName is what users see (contract 5.5).
func displayName(p engine.Process, processType string, num int) string {
	return fmt.Sprintf("%s_v%d.%s.%d", p.AppID, p.Version, processType, num)
}

// address makes up the n-th address in the upper half of the loopback range,
// so that no request to a fake instance ever leaves the host.
func address(n uint32, p engine.Process) string {
	port := p.Env[paas.ConfigPort]
	if port == "" {
		port = strconv.Itoa(engine.DefaultPort)
	}
	return net.JoinHostPort(net.IPv4(127, 128|byte(n>>16), byte(n>>8), byte(n)).String(), port)
}
