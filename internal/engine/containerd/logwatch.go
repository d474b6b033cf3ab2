package containerd

import (
	"errors"
	"path/filepath"
	"strings"
	"sync"

	"github.com/fsnotify/fsnotify"

	"github.com/deis/deis/internal/engine/containerd/shimlog"
)

// logWatch tells who follows logs which files have changed, by inotify(7). All
// share one watcher: there may be few of those on a machine. The zero value is ready.
type logWatch struct {
	mu      sync.Mutex
	watcher *fsnotify.Watcher
	dirs    map[string]map[*logChanges]struct{}
}

// logChanges is what one follower has not looked at yet.
type logChanges struct {
	hub  *logWatch
	dir  string
	wake chan struct{} // capacity 1

	names map[string]struct{} // guarded by hub.mu
	all   bool                // any log may have changed
}

// follow begins to note changes of the logs in a directory.
func (w *logWatch) follow(dir string) (*logChanges, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watcher == nil {
		watcher, err := fsnotify.NewWatcher()
		if err != nil {
			return nil, err
		}
		w.watcher, w.dirs = watcher, map[string]map[*logChanges]struct{}{}
		go w.run(watcher)
	}
	if w.dirs[dir] == nil {
		if err := w.watcher.Add(dir); err != nil {
			return nil, err
		}
		w.dirs[dir] = map[*logChanges]struct{}{}
	}
	c := &logChanges{hub: w, dir: dir, wake: make(chan struct{}, 1), names: map[string]struct{}{}}
	w.dirs[dir][c] = struct{}{}
	return c, nil
}

// run ends when the watcher is closed.
func (w *logWatch) run(watcher *fsnotify.Watcher) {
	for {
		select {
		case event, ok := <-watcher.Events:
			if !ok {
				return
			}
			w.note(filepath.Dir(event.Name), shimlog.Current(filepath.Base(event.Name)))
		case err, ok := <-watcher.Errors:
			if !ok {
				return
			}
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				w.note("", "")
			}
		}
	}
}

// note marks a file as changed; with dir "" all files of all directories.
func (w *logWatch) note(dir, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for watched, followers := range w.dirs {
		if dir != "" && dir != watched {
			continue
		}
		for c := range followers {
			if dir == "" {
				c.all = true
			} else if strings.HasSuffix(name, logSuffix) {
				c.names[name] = struct{}{}
			}
			select {
			case c.wake <- struct{}{}:
			default:
			}
		}
	}
}

// take returns the names of logs that have changed since the last call; all
// says that others may have as well.
func (c *logChanges) take() (names []string, all bool) {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	for name := range c.names {
		names = append(names, name)
	}
	clear(c.names)
	all, c.all = c.all, false
	return names, all
}

// close ends the noting.
func (c *logChanges) close() {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	followers := c.hub.dirs[c.dir]
	delete(followers, c)
	if len(followers) == 0 && followers != nil {
		delete(c.hub.dirs, c.dir)
		_ = c.hub.watcher.Remove(c.dir) // it may be gone with its app
	}
}

func (w *logWatch) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watcher != nil {
		_ = w.watcher.Close()
	}
}
