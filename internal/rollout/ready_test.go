package rollout

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// warmUp is how long instances of slowApp answer their health check with an error.
const warmUp = 20 * time.Second

// slowApp runs web=2, of one set, with a health check that instances pass after warmUp.
func slowApp(w *world) *world {
	w.addBuild("b1", map[string]string{"web": "serve"})
	w.addConfig("checked", paas.Config{Values: map[string]string{paas.ConfigHealthcheckURL: "/health"}})
	w.store.set(func() {
		app := w.store.apps[uuid]
		app.Structure = map[string]int{"web": 2}
		w.store.apps[uuid] = app
	})
	w.warm(warmUp)
	w.start()
	w.mustDo(Request{Kind: paas.RolloutDeploy, Build: "b1", Config: "checked"})
	return w
}

// warm makes instances pass the health check after a time; their ports are open at once.
func (w *world) warm(after time.Duration) {
	w.engine.SetProbe(func(inst engine.Instance, check engine.Check) error {
		if check.Path != "" && time.Since(inst.Started) < after {
			return errors.New("got '503', expected: '200'")
		}
		return nil
	})
}

// crash ends instances and waits until they run again, and no longer.
func (w *world) crash(names ...string) {
	w.Helper()
	ids := w.ids()
	for _, name := range names {
		w.engine.Exit(ids[name], "exit code 1")
	}
	time.Sleep(firstRepair)
	synctest.Wait()
	for _, name := range names {
		if now := w.ids()[name]; now == "" || now == ids[name] {
			w.Fatalf("%s does not run again: %q", name, w.list())
		}
	}
}

// wantRouted checks by names which instances get requests.
func (w *world) wantRouted(when string, names ...string) {
	w.Helper()
	synctest.Wait()
	routed := w.routed()
	got := []string{}
	for name, id := range w.ids() {
		if slices.Contains(routed, id) {
			got = append(got, name)
		}
	}
	slices.Sort(got)
	w.want(when, got, names)
	if len(got) != len(routed) {
		w.Errorf("%s: %d targets, of which %q are up", when, len(routed), got)
	}
}

// An instance that was started again gets requests once it passes the health check, while another serves.
func TestCheckBeforeRequests(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		slowApp(w)
		w.wantRouted("at first", "web.1", "web.2")
		w.crash("web.2")
		w.wantRouted("while web.2 warms up", "web.1")
		time.Sleep(warmUp - time.Second)
		w.wantRouted("just before it is warm", "web.1")
		time.Sleep(warmUp/3 + 2*time.Second)
		w.wantRouted("when it is warm", "web.1", "web.2")
		w.a().mu.Lock()
		if n := len(w.a().checks); n != 2 {
			t.Errorf("%d checks go on, want 2", n)
		}
		if n := len(w.a().ready); n != 2 {
			t.Errorf("%d instances are noted, want 2", n)
		}
		w.a().mu.Unlock()
	})
}

// a is the state of the app.
func (w *world) a() *app { return w.m.appOf(uuid) }

// The same with an instance whose port opens late, and no health check.
func TestCheckOfThePort(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w).scale(map[string]int{"web": 2})
		w.engine.SetProbe(func(inst engine.Instance, _ engine.Check) error {
			if time.Since(inst.Started) < 3*time.Second {
				return errors.New("connection refused")
			}
			return nil
		})
		w.crash("web.1")
		w.wantRouted("before the port is open", "web.2")
		time.Sleep(5 * time.Second)
		w.wantRouted("then", "web.1", "web.2")
	})
}

// Where no other instance serves, one that does not pass is better than none.
func TestUnreadyIsBetterThanNone(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		slowApp(w)
		w.failing("web.2") // and never passes
		w.crash("web.2")
		time.Sleep(time.Hour)
		w.wantRouted("web.1 serves", "web.1")
		w.failing("web.1", "web.2")
		w.crash("web.1")
		w.wantRouted("none serves", "web.1", "web.2")
		w.failing()
		time.Sleep(time.Hour)
		w.wantRouted("in the end", "web.1", "web.2")
		// The first that passes takes over from the others.
		w.failing("web.1")
		w.crash("web.1", "web.2")
		time.Sleep(time.Second)
		w.wantRouted("web.2 has passed", "web.2")
	})
}

// After a reboot all are started again; those that pass first get the requests.
func TestCheckAfterAReboot(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		slowApp(w)
		w.stop()
		for _, id := range w.ids() {
			w.engine.Exit(id, "the machine was off")
		}
		w.start()
		time.Sleep(firstRepair)
		w.wantRouted("none is ready", "web.1", "web.2")
		w.failing("web.2")
		time.Sleep(maxRetry)
		w.wantRouted("web.1 is ready", "web.1")
	})
}

// What serves when a controller comes goes on to, until it fails its health check like any other.
func TestChecksAfterAControllerRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		slowApp(w)
		w.failing("web.1")
		w.stop()
		w.start()
		time.Sleep(watchPause / 3)
		w.wantRouted("after the restart", "web.1", "web.2")
		time.Sleep(watchFailures * 3 * watchPause / 2)
		w.wantRouted("then", "web.2")
	})
}

// failing makes instances fail their health check, and no others.
func (w *world) failing(names ...string) {
	w.engine.SetProbe(func(inst engine.Instance, check engine.Check) error {
		if check.Path != "" && slices.Contains(names, name(inst)) {
			return errors.New("got '503', expected: '200'")
		}
		return nil
	})
}

// An instance that does not pass its health check any more gets no requests until it does.
func TestUnhealthyGetsNoRequests(t *testing.T) {
	const enough = watchFailures * 3 * watchPause / 2
	inBubble(t, func(t *testing.T, w *world) {
		slowApp(w)
		reasons := func() (list []string) {
			w.store.mu.Lock()
			defer w.store.mu.Unlock()
			for _, row := range w.store.instances[uuid] {
				list = append(list, row.Reason)
			}
			return list
		}
		w.failing("web.1")
		time.Sleep(watchPause/2 - time.Second)
		w.wantRouted("before it was asked", "web.1", "web.2")
		time.Sleep(enough)
		w.wantRouted("while web.1 fails", "web.2")
		w.want("reasons", reasons(), []string{"does not pass its health check any more: got '503', expected: '200'", ""})
		w.failing("web.1", "web.2")
		time.Sleep(enough)
		w.wantRouted("while both fail", "web.1", "web.2")
		w.failing()
		time.Sleep(2 * maxRetry)
		w.wantRouted("in the end", "web.1", "web.2")
		w.want("reasons", reasons(), []string{"", ""})
		w.failing("web.1") // again, within the hour
		time.Sleep(enough)
		var notes []string
		note := " does not pass its health check any more: got '503', expected: '200'; it gets no requests while another instance does"
		w.store.set(func() { notes = slices.Clone(w.store.notes) })
		w.want("notes", notes, []string{"web.1" + note, "web.2" + note})
	})
}

// What the engine cannot tell, and a failure now and then, are no reason to send an instance no more requests.
func TestWatchIsPatient(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		slowApp(w)
		var probes atomic.Int64
		w.engine.SetProbe(func(inst engine.Instance, _ engine.Check) error {
			if inst.Num == 1 {
				return paas.Errorf(paas.Unavailable, "the container engine does not answer")
			}
			if probes.Add(1)%watchFailures == 0 {
				return errors.New("got '503', expected: '200'")
			}
			return nil
		})
		for range 20 {
			time.Sleep(watchPause)
			w.wantRouted("all the time", "web.1", "web.2")
		}
		if n := probes.Load(); n < 18 {
			t.Errorf("%d probes of web.2", n)
		}
	})
}

// A check that hangs keeps nobody waiting, and ends with its instance.
func TestCheckHangs(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		slowApp(w)
		free := make(chan struct{})
		release := sync.OnceFunc(func() { close(free) })
		defer release()
		w.engine.SetProbe(func(engine.Instance, engine.Check) error {
			<-free
			return nil
		})
		w.crash("web.2")
		w.crash("web.1")
		time.Sleep(stableAfter)
		w.crash("web.2")
		w.wantRouted("none is ready", "web.1", "web.2")
		release()
		time.Sleep(time.Second)
		w.wantRouted("then", "web.1", "web.2")
		w.a().mu.Lock()
		defer w.a().mu.Unlock()
		if n := len(w.a().ready); n != 2 {
			t.Errorf("%d instances are noted, want the 2 that run", n)
		}
	})
}

// A scale down that would leave only an instance that is not ready waits for it.
func TestScaleToWhatIsNotReady(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		slowApp(w)
		w.crash("web.1")
		w.wantRouted("before", "web.2")
		began := time.Now()
		w.scale(map[string]int{"web": 1})
		if took := time.Since(began); took < warmUp-time.Second {
			t.Errorf("it took %s, less than web.1 needs", took)
		}
		w.wantRouted("after", "web.1")
	})
}
