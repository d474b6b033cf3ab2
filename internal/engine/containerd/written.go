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
)

const (
	// writtenPause is the shortest time between two looks at what instances wrote, and writtenShare how many times
	// as long as the last look took: a file costs two microseconds, or a read of the disk.
	writtenPause = time.Minute
	writtenShare = 20
	// writtenWait is how long Usage waits for a look. When that is not enough it tells what the last one found.
	writtenWait = time.Second
	// writtenTime bounds the look at one instance; some ten million files.
	writtenTime = 5 * time.Minute
)

// writtenSizes is what the instances of each app have written to their own files. The zero value is ready.
type writtenSizes struct {
	mu    sync.Mutex
	apps  map[string]int64
	next  time.Time     // of the next look
	ended chan struct{} // closed when the look that is under way has ended; nil when none is
}

// of returns what is known, after a look if it is time for one.
func (w *writtenSizes) of(ctx context.Context, e *Engine) map[string]int64 {
	w.mu.Lock()
	if w.ended == nil && !time.Now().Before(w.next) {
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
	return w.apps // never changed, only replaced
}

func (w *writtenSizes) look(e *Engine) {
	began := time.Now()
	apps, err := e.measureWritten(e.in(e.life))
	if err != nil && e.life.Err() == nil {
		e.opts.Log.Warn("what instances have written is not known", "error", err.Error())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if apps != nil {
		w.apps = apps
	}
	w.next = time.Now().Add(max(writtenPause, writtenShare*time.Since(began)))
	close(w.ended)
	w.ended = nil
}

// measureWritten adds up the writable layers of all containers by app, one after the other. Those that cannot be
// measured are left out, and an error says so.
func (e *Engine) measureWritten(ctx context.Context) (map[string]int64, error) {
	apps := map[string]int64{}
	var errs []error
	for _, kind := range []string{kindInstance, kindJob} {
		list, err := e.records(ctx, "", kind)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			size, err := e.writtenBy(ctx, r.ID)
			apps[r.App] += size
			errs = append(errs, wrap(err, "measure the files of container %s", r.ID))
		}
	}
	return apps, errors.Join(errs...)
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
