package containerd

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/deis/deis/internal/engine"
)

const (
	// writtenPause is the shortest time between two looks at what instances wrote, and writtenShare how many times
	// as long as the last look took: a file costs two microseconds, or a read of the disk. longestPause bounds that.
	writtenPause = time.Minute
	writtenShare = 20
	longestPause = 10 * time.Minute
	// writtenWait is how long Usage waits for a look. When that is not enough it tells what the last one found.
	writtenWait = time.Second
	// writtenTime bounds the look at one instance; some ten million files.
	writtenTime = 5 * time.Minute
)

// writtenSizes is what containers have written to their own files. The zero value is ready.
type writtenSizes struct {
	mu    sync.Mutex
	sizes map[string]int64 // by container ID; never changed, only replaced
	next  time.Time        // of the next look
	ended chan struct{}    // closed when the look that is under way has ended; nil when none is
}

// of returns what is known, after a look if it is time for one.
func (w *writtenSizes) of(ctx context.Context, e *Engine) map[string]int64 {
	w.mu.Lock()
	if w.ended == nil && !time.Now().Before(w.next) && e.life.Err() == nil {
		w.ended = make(chan struct{})
		e.done.Go(func() { w.look(e) })
	}
	ended := w.ended
	w.mu.Unlock()
	if ended != nil {
		select {
		case <-ended:
		case <-time.After(writtenWait):
		case <-ctx.Done():
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sizes
}

func (w *writtenSizes) look(e *Engine) {
	began := time.Now()
	w.mu.Lock()
	last := w.sizes
	w.mu.Unlock()
	sizes, err := e.measureWritten(e.in(e.life), last)
	if err != nil && e.life.Err() == nil {
		e.opts.Log.Warn("what instances have written is not known", "error", err.Error())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if sizes != nil {
		w.sizes = sizes
	}
	w.next = time.Now().Add(min(max(writtenPause, writtenShare*time.Since(began)), longestPause))
	close(w.ended)
	w.ended = nil
}

// measureWritten measures the writable layers of all containers, one after the other. Of those that cannot be
// measured it has the last size, and an error says so.
func (e *Engine) measureWritten(ctx context.Context, last map[string]int64) (map[string]int64, error) {
	list, err := e.containers(ctx)
	if err != nil {
		return nil, err
	}
	sizes := map[string]int64{}
	var errs []error
	for _, r := range list {
		size, err := e.writtenBy(ctx, r.ID)
		if err != nil {
			errs = append(errs, wrap(err, "measure the files of container %s", r.ID))
			size = last[r.ID]
		}
		sizes[r.ID] = size
	}
	return sizes, errors.Join(errs...)
}

// containers are the records of all instances and one-offs.
func (e *Engine) containers(ctx context.Context) ([]record, error) {
	instances, err := e.records(ctx, "", kindInstance)
	if err != nil {
		return nil, err
	}
	jobs, err := e.records(ctx, "", kindJob)
	return append(instances, jobs...), err
}

// writtenUsage adds what the containers that are there have written.
func (e *Engine) writtenUsage(ctx context.Context, apps map[string]engine.AppUsage) error {
	sizes := e.written.of(ctx, e)
	list, err := e.containers(ctx)
	for _, r := range list {
		a := apps[r.App]
		a.Written += sizes[r.ID]
		apps[r.App] = a
	}
	return err
}

// writtenBy is 0 for a container that is gone.
func (e *Engine) writtenBy(ctx context.Context, id string) (int64, error) {
	mounts, err := e.client.SnapshotService(snapshotter).Mounts(ctx, id)
	if err != nil {
		return 0, unlessGone(err)
	}
	size, err := dirSize(ctx, writableDir(mounts))
	if err != nil {
		if _, gone := e.client.SnapshotService(snapshotter).Stat(ctx, id); errdefs.IsNotFound(gone) {
			return 0, nil
		}
	}
	return size, err
}

// writableDir is where the writes of a container go: the upper directory of an overlay, or all of what has no layers.
func writableDir(mounts []mount.Mount) string {
	for _, m := range mounts {
		if m.Type == "bind" {
			return m.Source
		}
		for _, option := range m.Options {
			if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
				return dir
			}
		}
	}
	return ""
}

// dirSize is what the files below a directory take on the disk, each once. du(1) measures it, aside and with the least
// priority: a stranger made these files, and neither their number, depth nor change matters to it.
func dirSize(ctx context.Context, dir string) (size int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, writtenTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nice", "-n", "19", "du", "-sx", "--block-size=1", "--", dir).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && len(out) > 0 {
		err = nil // files that went meanwhile
	}
	if err == nil {
		_, err = fmt.Sscan(string(out), &size)
	}
	if err != nil {
		return 0, fmt.Errorf("du %s: %w", dir, err)
	}
	return size, nil
}
