package fake

import "context"

// watcher collects the apps that changed since its reader last looked.
type watcher struct {
	pending map[string]bool
	wake    chan struct{} // holds one token while pending is not empty
}

// changed tells all watchers. The engine's lock is held.
func (e *Engine) changed(app string) {
	for w := range e.watchers {
		w.pending[app] = true
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// Watch is part of engine.Engine.
func (e *Engine) Watch(ctx context.Context) <-chan string {
	w := &watcher{pending: map[string]bool{}, wake: make(chan struct{}, 1)}
	e.mu.Lock()
	e.watchers[w] = true
	e.mu.Unlock()
	apps := make(chan string)
	go func() {
		defer close(apps)
		defer e.unwatch(w)
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.wake:
			}
			for app := range e.take(w) {
				select {
				case <-ctx.Done():
					return
				case apps <- app:
				}
			}
		}
	}()
	return apps
}

func (e *Engine) take(w *watcher) map[string]bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	pending := w.pending
	w.pending = map[string]bool{}
	return pending
}

func (e *Engine) unwatch(w *watcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.watchers, w)
}
