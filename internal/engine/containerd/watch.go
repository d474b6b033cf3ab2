package containerd

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/typeurl/v2"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/hostnet"
)

const (
	// syncTopic is that of an event of our own, which shows that the stream of
	// events has begun.
	syncTopic = "/deis/sync"
	// retryPause is the time between two attempts at containerd; one attempt
	// waits for connectWait by itself.
	retryPause = 100 * time.Millisecond
	// sweepPause is the longest time between two attempts at removing remnants.
	sweepPause = time.Minute
	// syncTime is how long an event may take from containerd to us before it
	// is sent again.
	syncTime = 200 * time.Millisecond
)

// watchers are those who called Watch. The zero value is ready.
type watchers struct {
	mu  sync.Mutex
	all map[*watcher]struct{}
}

// watcher collects what one of them has not heard yet.
type watcher struct {
	wake    chan struct{} // capacity 1
	pending map[string]struct{}
}

func (w *watchers) notify(app string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for one := range w.all {
		one.pending[app] = struct{}{}
		select {
		case one.wake <- struct{}{}:
		default:
		}
	}
}

func (w *watchers) add() *watcher {
	one := &watcher{wake: make(chan struct{}, 1), pending: map[string]struct{}{}}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[*watcher]struct{}{}
	}
	w.all[one] = struct{}{}
	return one
}

func (w *watchers) remove(one *watcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, one)
}

// take returns what is pending; "" stands for all the others.
func (w *watchers) take(one *watcher) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var apps []string
	for app := range one.pending {
		apps = append(apps, app)
	}
	clear(one.pending)
	if slices.Contains(apps, "") {
		return []string{""}
	}
	return apps
}

// Watch implements engine.Engine.
func (e *Engine) Watch(ctx context.Context) <-chan string {
	out := make(chan string)
	one := e.watch.add()
	go func() {
		defer close(out)
		defer e.watch.remove(one)
		for {
			select {
			case <-one.wake:
			case <-ctx.Done():
				return
			}
			for _, app := range e.watch.take(one) {
				select {
				case out <- app:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

// follow turns containerd's events into messages to the watchers, for ever.
func (e *Engine) follow(ctx context.Context) {
	said := false
	for ctx.Err() == nil {
		began, err := e.session(ctx)
		if began {
			said = false
		}
		if err != nil && ctx.Err() == nil && !said {
			e.opts.Log.Warn("connection to containerd lost", "error", err.Error())
			said = true
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
		}
	}
}

// session is one stream of events, until it breaks. It reports whether it ever began.
func (e *Engine) session(ctx context.Context) (began bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mine := "namespace==" + e.ns
	stream, errs := e.client.EventService().Subscribe(ctx,
		mine+`,topic~="^/tasks/(start|exit|oom|delete)$"`, mine+`,topic=="`+syncTopic+`"`)
	if err := e.awaitSync(ctx, stream, errs); err != nil {
		return false, err
	}
	e.opts.Log.Debug("following containerd")
	e.watch.notify("")
	for {
		select {
		case ev := <-stream:
			e.heard(ctx, ev)
		case err := <-errs:
			return true, err
		case <-ctx.Done():
			return true, ctx.Err()
		}
	}
}

// awaitSync sends events to itself until one arrives. A subscription has no
// answer of its own, and what happens before it stands is not told.
func (e *Engine) awaitSync(ctx context.Context, stream <-chan *events.Envelope, errs <-chan error) error {
	for {
		if err := e.client.EventService().Publish(ctx, syncTopic, &eventtypes.NamespaceUpdate{Name: e.ns}); err != nil {
			return err
		}
		select {
		case <-stream:
			return nil
		case err := <-errs:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(syncTime):
		}
	}
}

func (e *Engine) heard(ctx context.Context, env *events.Envelope) {
	if env.Topic == syncTopic {
		return
	}
	ev, err := typeurl.UnmarshalAny(env.Event)
	if err != nil {
		e.watch.notify("")
		return
	}
	c, ok := ev.(interface{ GetContainerID() string })
	if !ok || !validID.MatchString(c.GetContainerID()) {
		return
	}
	id := c.GetContainerID()
	e.mu.Lock()
	n := e.notes[id]
	e.mu.Unlock()
	if n != nil {
		e.watch.notify(n.app)
		return
	}
	record, err := e.client.ContainerService().Get(ctx, id)
	if err != nil {
		return // gone: who removed it has said so
	}
	if r, ok := parseRecord(record); ok {
		e.watch.notify(r.App)
	}
}

// tidy sweeps when the engine begins and whenever something could not be removed, until nothing is left.
func (e *Engine) tidy(ctx context.Context) {
	for ctx.Err() == nil {
		e.sweepAll(ctx)
		select {
		case <-e.untidy:
		case <-ctx.Done():
		}
	}
}

// sweepAll sweeps until nothing is left. What cannot be removed is tried again less and less often.
func (e *Engine) sweepAll(ctx context.Context) {
	for pause := retryPause; ctx.Err() == nil; pause = min(2*pause, sweepPause) {
		err := e.sweep(ctx)
		if err == nil {
			return
		}
		if pause == sweepPause && ctx.Err() == nil {
			e.opts.Log.Warn("remnants of containers cannot be removed", "retry", pause.String(), "error", err.Error())
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// sweep removes what a crash left of containers that have no record, and one-offs
// whose caller is no more. Things are listed before the records are, so that what
// is being made at the same time is not taken for a remnant.
func (e *Engine) sweep(ctx context.Context) error {
	found := map[string]bool{}
	for _, dir := range []string{e.instancesDir(), e.netnsDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			found[entry.Name()] = true
		}
	}
	members, err := e.network.Members()
	if err != nil {
		return err
	}
	for _, id := range members {
		found[id] = true
	}
	sn := e.client.SnapshotService(snapshotter)
	walk := func(_ context.Context, info snapshots.Info) error {
		found[info.Name] = true
		return nil
	}
	if err := sn.Walk(ctx, walk, `labels."`+labelKind+`"`); err != nil {
		return err
	}
	jobs, err := e.records(ctx, "", kindJob)
	if err != nil {
		return err
	}
	e.mu.Lock()
	for id := range e.notes {
		delete(found, id)
	}
	e.mu.Unlock()
	instances, err := e.records(ctx, "", kindInstance)
	if err != nil {
		return err
	}
	for _, r := range slices.Concat(instances, jobs) {
		delete(found, r.ID)
	}
	maps.DeleteFunc(found, func(id string, _ bool) bool { return !validID.MatchString(id) })
	apps := map[string]bool{}
	for _, r := range jobs {
		apps[r.App] = true
	}
	var errs []error
	for app := range apps {
		errs = append(errs, e.sweepJobs(ctx, app))
	}
	for id := range found {
		errs = append(errs, e.sweepOne(ctx, id))
	}
	err = errors.Join(errs...)
	if n := len(found); n > 0 && err == nil {
		e.opts.Log.Info("removed remnants of containers", "count", n)
	}
	return err
}

// sweepJobs removes the one-offs of an app that this process knows nothing of: their caller is no more.
func (e *Engine) sweepJobs(ctx context.Context, app string) error {
	unlock, err := e.sets.lock(ctx, engine.SetKey{App: app}) // no set has this key
	if err != nil {
		return err
	}
	defer unlock()
	jobs, err := e.records(ctx, app, kindJob)
	if err != nil {
		return err
	}
	e.mu.Lock()
	jobs = slices.DeleteFunc(jobs, func(r record) bool { return e.notes[r.ID] != nil })
	e.mu.Unlock()
	if len(jobs) == 0 {
		return nil
	}
	if err := e.removeAll(ctx, jobs, 0); err != nil {
		return wrap(err, "remove one-offs of app %s", app)
	}
	e.opts.Log.Info("removed one-offs that nobody waits for", "app", app, "count", len(jobs))
	return nil
}

func (e *Engine) sweepOne(ctx context.Context, id string) error {
	return errors.Join(
		e.network.Detach(ctx, id, e.netns(id)),
		hostnet.RemoveNamespace(e.netns(id)),
		unlessGone(e.client.SnapshotService(snapshotter).Remove(ctx, id)),
		os.RemoveAll(e.instanceDir(id)))
}
