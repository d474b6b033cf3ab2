package containerd

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// The labels of a container record, all the engine's knowledge of what it is.
const (
	labelKind       = "deis.kind"
	labelApp        = "deis.app"
	labelAppID      = "deis.app-id"
	labelType       = "deis.type"
	labelNum        = "deis.num"
	labelGeneration = "deis.generation"
	labelVersion    = "deis.version"
	labelPort       = "deis.port"
	// labelFailed is why the process could not be started at all.
	labelFailed = "deis.failed"
)

// The kinds.
const (
	kindInstance = "instance"
	kindJob      = "job"
)

// record is what the labels of a container say.
type record struct {
	engine.SetKey
	ID      string
	Kind    string
	AppID   string
	Num     int
	Version int
	Port    int
	Failed  string
	Created time.Time
}

func (r record) labels() map[string]string {
	return map[string]string{
		labelKind:       r.Kind,
		labelApp:        r.App,
		labelAppID:      r.AppID,
		labelType:       r.Type,
		labelNum:        strconv.Itoa(r.Num),
		labelGeneration: strconv.FormatInt(r.Generation, 10),
		labelVersion:    strconv.Itoa(r.Version),
		labelPort:       strconv.Itoa(r.Port),
	}
}

// parseRecord is false for containers that are not the engine's, builds for example.
func parseRecord(c containers.Container) (record, bool) {
	l := c.Labels
	if !validID.MatchString(c.ID) || l[labelApp] == "" || l[labelKind] == "" {
		return record{}, false
	}
	num, errNum := strconv.Atoi(l[labelNum])
	generation, errGeneration := strconv.ParseInt(l[labelGeneration], 10, 64)
	version, errVersion := strconv.Atoi(l[labelVersion])
	port, errPort := strconv.Atoi(l[labelPort])
	return record{
		SetKey:  engine.SetKey{App: l[labelApp], Type: l[labelType], Generation: generation},
		ID:      c.ID,
		Kind:    l[labelKind],
		AppID:   l[labelAppID],
		Num:     num,
		Version: version,
		Port:    port,
		Failed:  l[labelFailed],
		Created: c.CreatedAt,
	}, cmp.Or(errNum, errGeneration, errVersion, errPort) == nil
}

// records lists the containers of one app, or of all, in no order.
func (e *Engine) records(ctx context.Context, app, kind string) ([]record, error) {
	filter := fmt.Sprintf("labels.%q==%s", labelKind, kind)
	if app != "" {
		filter += fmt.Sprintf(",labels.%q==%q", labelApp, app)
	}
	list, err := e.client.ContainerService().List(ctx, filter)
	if err != nil {
		return nil, wrap(err, "list containers")
	}
	var out []record
	for _, c := range list {
		if r, ok := parseRecord(c); ok {
			out = append(out, r)
		}
	}
	return out, nil
}

const (
	// fewTasks is up to how many tasks are asked for one by one: a list costs
	// containerd one call of every shim on the machine.
	fewTasks = 100
	// askingTasks is how many are asked for at a time.
	askingTasks = 4
)

// statuses returns the tasks of some containers by id; those without one are not in it.
func (e *Engine) statuses(ctx context.Context, list []record) (map[string]*task.Process, error) {
	found := map[string]*task.Process{}
	if len(list) > fewTasks {
		res, err := e.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
		if err != nil {
			return nil, wrap(native(err), "list tasks")
		}
		for _, p := range res.Tasks {
			found[p.ID] = p
		}
		// containerd 2 leaves out whose shim is slow to answer. Of those one does not know that they are gone.
		list = slices.DeleteFunc(slices.Clone(list), func(r record) bool { return found[r.ID] != nil })
	}
	processes := make([]*task.Process, len(list))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(askingTasks)
	for i, r := range list {
		group.Go(func() error {
			res, err := e.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: r.ID})
			if err = native(err); err != nil {
				return wrap(unlessGone(err), "look at task %s", r.ID)
			}
			processes[i] = res.Process
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, r := range list {
		if processes[i] != nil {
			found[r.ID] = processes[i]
		}
	}
	return found, nil
}

// Instances implements engine.Engine.
func (e *Engine) Instances(ctx context.Context, app string) ([]engine.Instance, error) {
	if app != "" && !validApp.MatchString(app) {
		return nil, nil
	}
	ctx = e.in(ctx)
	list, err := e.records(ctx, app, kindInstance)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	// Before the tasks are: what has none yet may have one when it is judged.
	creating := e.creatingNow(list)
	status, err := e.statuses(ctx, list)
	if err != nil {
		return nil, err
	}
	out := make([]engine.Instance, 0, len(list))
	for _, r := range list {
		out = append(out, e.instance(r, status[r.ID], creating[r.ID]))
	}
	slices.SortFunc(out, func(a, b engine.Instance) int {
		return cmp.Or(
			cmp.Compare(a.Type, b.Type), cmp.Compare(a.Num, b.Num),
			cmp.Compare(a.Generation, b.Generation), a.Started.Compare(b.Started))
	})
	return out, nil
}

// note is what this process knows or has read of a container.
type note struct {
	app string
	// busy is the state while this process creates or removes it; else empty.
	busy  paas.InstanceState
	start *startInfo
	// ended is why the process is not there any more, when it was looked up already.
	ended string
	// logged says that the log tells it.
	logged bool
}

// startInfo is written when the process starts.
type startInfo struct {
	Address netip.Addr
	Started time.Time
}

func (e *Engine) startFile(id string) string {
	return filepath.Join(e.instanceDir(id), "start.json")
}

// noteOf returns the note of a container, new if need be. The caller holds e.mu.
func (e *Engine) noteOf(id, app string) *note {
	n := e.notes[id]
	if n == nil {
		n = &note{app: app}
		e.notes[id] = n
	}
	return n
}

func (e *Engine) setBusy(id, app string, state paas.InstanceState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.noteOf(id, app).busy = state
}

// creatingNow returns which of some containers this process is creating.
func (e *Engine) creatingNow(list []record) map[string]bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	creating := map[string]bool{}
	for _, r := range list {
		if n := e.notes[r.ID]; n != nil && n.busy == paas.StateCreated {
			creating[r.ID] = true
		}
	}
	return creating
}

// instance judges what a record and its task (nil if there was none) amount to,
// and whether it was being created when the task was looked for.
func (e *Engine) instance(r record, p *task.Process, creating bool) engine.Instance {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.notes[r.ID]
	switch {
	case n == nil && p == nil: // it may be gone meanwhile, and nobody would drop its note
		n = &note{app: r.App}
	case n == nil:
		n = e.noteOf(r.ID, r.App)
	}
	if n.start == nil {
		n.start = e.readStart(r.ID)
	}
	inst := engine.Instance{SetKey: r.SetKey, ID: r.ID, Num: r.Num, AppID: r.AppID, Version: r.Version, Started: r.Created}
	if n.start != nil {
		inst.Started = n.start.Started
	}
	switch {
	case n.busy == paas.StateCreated, n.busy == paas.StateDown && !alive(p):
		inst.State = n.busy
	case r.Failed != "":
		inst.State, inst.Reason = paas.StateCrashed, r.Failed
	case p == nil && creating:
		inst.State = paas.StateCreated
	case p == nil:
		inst.State, inst.Reason = paas.StateDown, "stopped, because the machine or the container engine was"
	case p.Status == task.Status_CREATED && !creating:
		inst.State, inst.Reason = paas.StateDown, "not started, because the controller ended"
	case alive(p) && n.start != nil:
		inst.State = paas.StateUp
		inst.Address = net.JoinHostPort(n.start.Address.String(), strconv.Itoa(r.Port))
	case p.Status == task.Status_STOPPED:
		inst.State, inst.Reason = paas.StateCrashed, e.reasonOf(n, r.ID, p.ExitStatus)
		if !n.logged {
			e.logEnd(r, inst.Reason)
			n.logged = true
		}
	default:
		inst.State = paas.StateCreated
	}
	return inst
}

// alive reports whether a container's process runs. When its shim is slow to answer, containerd tells no status
// after two seconds: what served goes on serving until it is known to have ended.
func alive(p *task.Process) bool {
	return p != nil && (p.Status == task.Status_RUNNING || p.Status == task.Status_UNKNOWN)
}

// readStart is nil while the process was not started.
func (e *Engine) readStart(id string) *startInfo {
	text, err := os.ReadFile(e.startFile(id))
	if err != nil {
		return nil
	}
	s := &startInfo{}
	if json.Unmarshal(text, s) != nil || !s.Address.IsValid() {
		return nil
	}
	return s
}

// reason says why a process ended.
func (e *Engine) reason(id, app string, code uint32) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.reasonOf(e.noteOf(id, app), id, code)
}

// reasonOf looks it up once. The caller holds e.mu.
func (e *Engine) reasonOf(n *note, id string, code uint32) string {
	if n.ended == "" {
		n.ended = e.endReason(id, code)
	}
	return n.ended
}

// exitKilled is the exit code of a process that a KILL ended, or of a shell whose last command one did.
const exitKilled = 128 + uint32(syscall.SIGKILL)

// endReason says in words why a process ended. The control group is there
// until the task is deleted, so that it can be asked at any time later.
func (e *Engine) endReason(id string, code uint32) string {
	reason := exitText(code)
	killed := e.oomKilled(id)
	if killed && code == exitKilled {
		e.metrics.ends.WithLabelValues("oom").Inc()
		return "killed, because " + e.memoryText(id) + "; " + reason
	}
	e.metrics.ends.WithLabelValues("exit").Inc()
	if killed { // maybe long ago: a server starts its workers again
		reason += "; before that a process of it was killed, because " + e.memoryText(id)
	}
	return reason
}

// memoryText says what memory was too little. A limit beyond what the machine has is none.
func (e *Engine) memoryText(id string) string {
	text, _ := os.ReadFile("/proc/meminfo") // without it, no limit
	for _, g := range groups(e.cgroup(id)) {
		if limit, ok := number(g.limit); ok && limit < field(string(text), "MemTotal:")<<10 {
			return "it used more memory than its limit"
		}
	}
	return "the machine had no memory left"
}

func exitText(code uint32) string {
	text := fmt.Sprintf("exited with code %d", code)
	if code > 128 {
		if name := unix.SignalName(syscall.Signal(code - 128)); name != "" {
			text += " (" + name + ")"
		}
	}
	return text
}

// oomKilled reports whether a process of the container was ever killed for want of memory, its own or the machine's.
func (e *Engine) oomKilled(id string) bool {
	for _, path := range []string{
		"/sys/fs/cgroup" + e.cgroup(id) + "/memory.events",             // version 2
		"/sys/fs/cgroup/memory" + e.cgroup(id) + "/memory.oom_control", // version 1
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "oom_kill" && f[1] != "0" {
				return true
			}
		}
	}
	return false
}
