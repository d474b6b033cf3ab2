package containerd

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/hostnet"
	"github.com/deis/deis/internal/paas"
)

// killTime is how long a killed process may take to be gone; the kernel has to
// free its memory.
const killTime = 10 * time.Second

// attempts bounds how often a call is made while containerd ends again and again.
const attempts = 3

// Apply implements engine.Engine.
func (e *Engine) Apply(ctx context.Context, spec engine.SetSpec) error {
	if err := checkApp(spec.App); err != nil {
		return err
	}
	unlock, err := e.sets.lock(ctx, spec.SetKey)
	if err != nil {
		return err
	}
	defer unlock()
	return again(e.in(ctx), func(ctx context.Context) error { return e.apply(ctx, spec) })
}

// again repeats what is idempotent when it fails because containerd went away
// during a call. Calls wait for it to come back.
func again(ctx context.Context, do func(context.Context) error) error {
	err := do(ctx)
	for range attempts - 1 {
		if !errdefs.IsUnavailable(err) || ctx.Err() != nil {
			break
		}
		err = do(ctx)
	}
	return err
}

func (e *Engine) apply(ctx context.Context, spec engine.SetSpec) error {
	have, status, err := e.set(ctx, spec.SetKey)
	if err != nil {
		return err
	}
	running := map[int]bool{}
	var ended, extra []record
	for _, r := range have {
		p := status[r.ID]
		switch {
		case !slices.Contains(spec.Nums, r.Num) || running[r.Num]:
			extra = append(extra, r)
		case alive(p) && r.Failed == "":
			running[r.Num] = true
		default:
			ended = append(ended, r)
		}
	}
	if err := e.removeAll(ctx, ended, 0); err != nil {
		return wrap(err, "remove ended instances of %s", spec.Type)
	}
	missing := slices.DeleteFunc(slices.Clone(spec.Nums), func(n int) bool { return running[n] })
	slices.Sort(missing)
	if err := e.createAll(ctx, spec, slices.Compact(missing)); err != nil {
		return wrap(err, "start instances of %s", spec.Type)
	}
	return wrap(e.removeAll(ctx, extra, engine.StopGrace), "stop instances of %s", spec.Type)
}

// Remove implements engine.Engine.
func (e *Engine) Remove(ctx context.Context, key engine.SetKey) error {
	unlock, err := e.sets.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	err = again(e.in(ctx), func(ctx context.Context) error {
		have, _, err := e.set(ctx, key)
		if err != nil {
			return err
		}
		return wrap(e.removeAll(ctx, have, engine.StopGrace), "stop instances of %s", key.Type)
	})
	if err == nil {
		e.pruneLogs(key.App)
	}
	return err
}

// Forget implements engine.Engine.
func (e *Engine) Forget(ctx context.Context, app string) error {
	if err := checkApp(app); err != nil {
		return err
	}
	list, err := e.records(e.in(ctx), app, kindInstance)
	if err != nil {
		return err
	}
	keys := map[engine.SetKey]bool{}
	for _, r := range list {
		keys[r.SetKey] = true
	}
	var sets errgroup.Group
	for key := range keys {
		sets.Go(func() error { return e.Remove(ctx, key) })
	}
	if err := sets.Wait(); err != nil {
		return err
	}
	jobs, err := e.records(e.in(ctx), app, kindJob)
	if err != nil {
		return err
	}
	if err := e.removeAll(e.in(ctx), jobs, 0); err != nil {
		return wrap(err, "end the one-offs of app %s", app)
	}
	if err := e.forgetImages(e.in(ctx), app); err != nil {
		return err
	}
	if err := os.RemoveAll(e.logDir(app)); err != nil {
		return fmt.Errorf("remove logs: %w", err)
	}
	return nil
}

// set lists the instances of one set with their tasks, youngest first.
func (e *Engine) set(ctx context.Context, key engine.SetKey) ([]record, map[string]*task.Process, error) {
	list, err := e.records(ctx, key.App, kindInstance)
	if err != nil {
		return nil, nil, err
	}
	list = slices.DeleteFunc(list, func(r record) bool { return r.SetKey != key })
	slices.SortFunc(list, func(a, b record) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.Num, a.Num))
	})
	status, err := e.statuses(ctx, list)
	return list, status, err
}

// createAll starts instances side by side. One that cannot be does not keep the others from it.
func (e *Engine) createAll(ctx context.Context, spec engine.SetSpec, nums []int) error {
	if len(nums) == 0 {
		return nil
	}
	img, err := e.image(ctx, spec.App, spec.Process)
	if err != nil {
		return err
	}
	var group errgroup.Group
	for _, num := range nums {
		group.Go(func() error { return e.start(ctx, img, spec, num) })
	}
	return group.Wait()
}

// removeAll sends TERM to all in the given order, and then removes each as it
// ends. What is left when it fails is found and finished by the next call.
func (e *Engine) removeAll(ctx context.Context, list []record, grace time.Duration) error {
	for _, r := range list {
		e.setBusy(r.ID, r.App, paas.StateDown)
		defer e.dropNote(r)
		if grace == 0 {
			continue
		}
		if err := e.kill(ctx, r.ID, syscall.SIGTERM); err != nil {
			return err
		}
	}
	var group errgroup.Group
	for _, r := range list {
		group.Go(func() error { return e.remove(ctx, r, grace) })
	}
	return group.Wait()
}

// dropNote drops the note of what is gone; if it was not removed after all, it
// is looked up anew.
func (e *Engine) dropNote(r record) {
	e.mu.Lock()
	delete(e.notes, r.ID)
	e.mu.Unlock()
	e.watch.notify(r.App)
}

func (e *Engine) kill(ctx context.Context, id string, sig syscall.Signal) error {
	_, err := e.client.TaskService().Kill(ctx, &tasks.KillRequest{
		ContainerID: id, Signal: uint32(sig), All: sig == syscall.SIGKILL,
	})
	return wrap(unlessGone(native(err)), "signal container %s", id)
}

// remove takes a container away, once its process has ended within grace or
// was killed. The record goes last: as long as it is there, the rest is found.
func (e *Engine) remove(ctx context.Context, r record, grace time.Duration) error {
	id := r.ID
	if err := e.end(ctx, r, grace); err != nil {
		return err
	}
	if err := e.network.Detach(ctx, id, e.netns(id)); err != nil {
		return err
	}
	if err := hostnet.RemoveNamespace(e.netns(id)); err != nil {
		return err
	}
	if err := unlessGone(e.client.SnapshotService(snapshotter).Remove(ctx, id)); err != nil {
		return wrap(err, "remove snapshot of %s", id)
	}
	if err := unlessGone(e.client.ContainerService().Delete(ctx, id)); err != nil {
		return wrap(err, "remove container %s", id)
	}
	if err := os.RemoveAll(e.instanceDir(id)); err != nil {
		return fmt.Errorf("remove files of container %s: %w", id, err)
	}
	return nil
}

// end waits for the end of a container's process, kills it when grace is over,
// and deletes the task.
func (e *Engine) end(ctx context.Context, r record, grace time.Duration) error {
	id := r.ID
	ended, err := e.await(ctx, id, grace)
	if err != nil {
		return err
	}
	if !ended {
		if err := e.kill(ctx, id, syscall.SIGKILL); err != nil {
			return err
		}
		if ended, err = e.await(ctx, id, killTime); err != nil {
			return err
		}
		if !ended {
			return fmt.Errorf("container %s does not end, though killed", id)
		}
	}
	gone, err := e.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	if err == nil {
		e.logEnd(r, "stopped: "+exitText(gone.ExitStatus))
	}
	return wrap(unlessGone(native(err)), "delete task %s", id)
}

// await reports whether a container's process has ended within a time.
func (e *Engine) await(ctx context.Context, id string, limit time.Duration) (bool, error) {
	if limit == 0 {
		res, err := e.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
		if err = native(err); err != nil {
			return unlessGone(err) == nil, wrap(unlessGone(err), "look at task %s", id)
		}
		return res.Process.Status == task.Status_STOPPED, nil
	}
	// Not a deadline: containerd would get it too, and fail first.
	limited, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(limit, cancel).Stop()
	_, err := e.client.TaskService().Wait(limited, &tasks.WaitRequest{ContainerID: id})
	if err = unlessGone(native(err)); err == nil {
		return true, nil
	}
	if ctx.Err() == nil && limited.Err() != nil {
		return false, nil
	}
	return false, wrap(err, "wait for container %s", id)
}
