package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strconv"
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
	// writtenBatch is how many containers are measured by one process, which costs more than a small container does.
	// writtenTime bounds it; some ten million files.
	writtenBatch = 50
	writtenTime  = 5 * time.Minute
)

// writable is the directory of what a container has written, and what its files take on the disk, in bytes.
type writable struct {
	dir  string
	size int64
}

// writtenSizes is what containers have written to their own files. The zero value is ready.
type writtenSizes struct {
	mu    sync.Mutex
	sizes map[string]writable // by container ID; never changed, only replaced
	next  time.Time           // of the next look
	ended chan struct{}       // closed when the look that is under way has ended; nil when none is
}

// of returns what is known, after a look if it is time for one.
func (w *writtenSizes) of(ctx context.Context, e *Engine) map[string]writable {
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

// measureWritten measures the writable layers of all containers. Of those that cannot be measured it has the last size,
// and an error says so.
func (e *Engine) measureWritten(ctx context.Context, last map[string]writable) (map[string]writable, error) {
	list, err := e.containers(ctx)
	if err != nil {
		return nil, err
	}
	layers := map[string]writable{}
	var errs []error
	for _, r := range list {
		layer, known := last[r.ID]
		if !known {
			mounts, err := e.client.SnapshotService(snapshotter).Mounts(ctx, r.ID)
			if err != nil {
				errs = append(errs, wrap(unlessGone(err), "find the files of container %s", r.ID))
				continue
			}
			layer.dir = writableDir(mounts)
		}
		layers[r.ID] = layer
	}
	// The order is another each time, so that who takes all of writtenTime does not always hold up the same others.
	for batch := range slices.Chunk(slices.Collect(maps.Keys(layers)), writtenBatch) {
		errs = append(errs, e.measureLayers(ctx, layers, batch))
	}
	return layers, errors.Join(errs...)
}

// measureLayers measures some of the layers, and takes out what is gone.
func (e *Engine) measureLayers(ctx context.Context, layers map[string]writable, ids []string) error {
	dirs := make([]string, len(ids))
	for i, id := range ids {
		dirs[i] = layers[id].dir
	}
	sizes, err := dirSizes(ctx, dirs)
	var errs []error
	for i, id := range ids {
		if size, ok := sizes[dirs[i]]; ok {
			layers[id] = writable{dirs[i], size}
		} else if _, gone := e.client.SnapshotService(snapshotter).Stat(ctx, id); errdefs.IsNotFound(gone) {
			delete(layers, id)
		} else {
			errs = append(errs, wrap(cmp.Or(err, errNotMeasured), "measure the files of container %s", id))
		}
	}
	return errors.Join(errs...)
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
		a.Written += sizes[r.ID].size
		apps[r.App] = a
	}
	return err
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

var errNotMeasured = errors.New("du says nothing of them")

// dirSizes is what the files below each directory take on the disk, each once; a directory that cannot be read is left out.
// du(1) measures them, aside and with the least priority: strangers made these files, and neither their number, depth nor change
// matters to it. When it fails, what it has found so far is there.
func dirSizes(ctx context.Context, dirs []string) (map[string]int64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, writtenTime, fmt.Errorf("du was not done after %v", writtenTime))
	defer cancel()
	cmd := exec.CommandContext(ctx, "nice", "-n", "19", "du", "-sx0", "--block-size=1", "--files0-from=-")
	cmd.Stdin = strings.NewReader(strings.Join(dirs, "\x00"))
	out, err := cmd.Output()
	sizes := map[string]int64{}
	for line := range strings.SplitSeq(string(out), "\x00") {
		text, dir, _ := strings.Cut(line, "\t")
		if size, err := strconv.ParseInt(text, 10, 64); err == nil {
			sizes[dir] = size
		}
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = context.Cause(ctx) // by itself du fails for files that went meanwhile
	}
	return sizes, wrap(err, "measure files")
}
