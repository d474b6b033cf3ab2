package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/paas"
)

func TestDeploy(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addBuild("b1", map[string]string{"web": "serve", "worker": "work"})
		w.addBuild("b2", map[string]string{"web": "serve", "worker": "work"})
		w.start()
		var said []string
		r, release, err := w.do(Request{
			Kind: paas.RolloutDeploy, Build: "b1", Summary: "alice deployed b1",
			Progress: func(line string) { said = append(said, line) },
		})
		if err != nil {
			t.Fatal(err)
		}
		if release.Version != 2 || release.Build != "b1" || release.Config != "blog-c1" || release.Summary != "alice deployed b1" {
			t.Errorf("release %+v", release)
		}
		if r.State != paas.RolloutSucceeded || r.Version != 2 || r.Owner != "alice" || !maps.Equal(r.Formation, map[string]int{"web": 1}) {
			t.Errorf("rollout %+v", r)
		}
		w.want("progress", said, []string{"Starting web=1"})
		w.want("instances", w.list(), []string{"web.1@1 up"})
		w.want("rows", w.rows(), []string{"web.1@1 up"})
		w.want("events", w.history(), []string{"apply web@1 [1]", "targets 1"})

		w.scale(map[string]int{"worker": 2})
		w.want("workers are not routed", w.history(), []string{"apply worker@2 [1 2]"})
		old := w.routed()
		w.drain = 3 * time.Second
		w.deploy("b2")
		w.want("rows after the second deploy", w.rows(), []string{"web.1@3 up", "worker.1@3 up", "worker.2@3 up"})
		if now := w.routed(); len(now) != 1 || now[0] == old[0] {
			t.Errorf("routed: %v after %v", now, old)
		}
		synctest.Wait()
		w.want("the old web drains, old workers have nothing to drain", w.list(), []string{"web.1@1 up", "web.1@3 up", "worker.1@3 up", "worker.2@3 up"})
		time.Sleep(w.drain)
		synctest.Wait()
		w.want("in the end", w.list(), []string{"web.1@3 up", "worker.1@3 up", "worker.2@3 up"})
	})
}

// Old instances go only after the routes have changed and the routers have drained.
func TestOrderOfAReplacement(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		w.history()
		w.mustDo(Request{Kind: paas.RolloutConfig, Config: "blog-c1"})
		time.Sleep(time.Second)
		w.want("events", w.history(), []string{"apply web@2 [1]", "targets 1", "drain", "drained", "remove web@1"})
	})
}

func TestDrainLimit(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		w.set(func() { w.drain = time.Hour })
		began := time.Now()
		w.mustDo(Request{Kind: paas.RolloutConfig})
		if took := time.Since(began); took > time.Second {
			t.Errorf("retiring delayed the change by %s", took)
		}
		time.Sleep(DefaultDrainLimit - time.Second)
		w.want("before the limit", w.list(), []string{"web.1@1 up", "web.1@2 up"})
		time.Sleep(2 * time.Second)
		w.want("after it", w.list(), []string{"web.1@2 up"})
	})
}

func TestNothingToStart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addConfig("c2", paas.Config{Values: map[string]string{"A": "b"}})
		w.start()
		release := w.mustDo(Request{Kind: paas.RolloutConfig, Config: "c2"})
		if release.Version != 2 || release.Config != "c2" || release.Build != "" {
			t.Errorf("before a build: release %+v", release)
		}
		w.addBuild("b1", map[string]string{"web": "serve"})
		w.deploy("b1")
		w.scale(map[string]int{"web": 0})
		if release := w.deploy("b1"); release.Version != 4 {
			t.Errorf("scaled to nothing: release %+v", release)
		}
		w.want("instances", w.list(), nil)
		r, latest, err := w.do(Request{Kind: paas.RolloutRestart})
		if err != nil || r.ID != 0 || latest.Version != 4 {
			t.Errorf("a restart of nothing: %+v, %+v, %v", r, latest, err)
		}
	})
}

// A release from before the first build runs nothing; the next one runs again.
func TestRollbackToBeforeTheFirstBuild(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addBuild("b1", map[string]string{"web": "serve"})
		w.start()
		w.deploy("b1")
		release := w.mustDo(Request{Kind: paas.RolloutRollback, Config: "blog-c1"})
		synctest.Wait()
		if release.Version != 3 || release.Build != "" {
			t.Errorf("release %+v", release)
		}
		w.want("instances", w.list(), nil)
		w.mustDo(Request{Kind: paas.RolloutRollback, Build: "b1", Config: "blog-c1"})
		w.want("instances of the build", w.list(), []string{"web.1@3 up"})
	})
}

func TestRefusedBeforeItBegins(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addBuild("b1", map[string]string{"web": "serve"})
		w.addConfig("bad", paas.Config{Values: map[string]string{"HEALTHCHECK_TIMEOUT": "soon"}})
		w.start()
		tests := []struct {
			req  Request
			text string
		}{
			{Request{Kind: paas.RolloutScale, Formation: map[string]int{"web": 1}}, "No build associated with this release"},
			{Request{Kind: paas.RolloutConfig, Config: "bad"}, "HEALTHCHECK_TIMEOUT must be a number"},
		}
		for _, test := range tests {
			_, _, err := w.do(test.req)
			if paas.CodeOf(err) != paas.Invalid || !strings.Contains(userText(err), test.text) {
				t.Errorf("%s: %v", test.req.Kind, err)
			}
		}
		w.deploy("b1")
		_, _, err := w.do(Request{Kind: paas.RolloutScale, Formation: map[string]int{"web": 2, "cron": 1}})
		if paas.CodeOf(err) != paas.Invalid {
			t.Errorf("an unknown type: %v", err)
		}
		if n := len(w.store.rollouts); n != 1 {
			t.Errorf("%d rollouts in the journal, want 1", n)
		}
		w.want("instances", w.list(), []string{"web.1@1 up"})
	})
}

func TestFailureKeepsTheOld(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(*world)
		texts   []string
		within  time.Duration
	}{
		{
			"create", func(w *world) { w.engine.SetChaos(fake.Chaos{Create: 1}) },
			[]string{"aborting, failed to create some containers"},
			time.Second,
		},
		{"image", func(w *world) {
			w.engine.SetPrograms(func(engine.Process) (fake.Program, error) {
				return fake.Program{}, fmt.Errorf("secret detail of the engine")
			})
		}, []string{"aborting, failed to create some containers\nw", "an internal error"}, time.Second},
		{
			"start", func(w *world) {
				w.engine.SetPrograms(func(engine.Process) (fake.Program, error) { return fake.Program{Ends: true, Code: 1}, nil })
			},
			[]string{"aborting, failed to create some containers\nw", "exit code 1", "It wrote nothing to its log."},
			tailWait + time.Second,
		},
		{"exit", func(w *world) {
			w.engine.SetPrograms(func(p engine.Process) (fake.Program, error) {
				var lines []fake.Line
				for n := range 22 {
					lines = append(lines, fake.Line{Text: fmt.Sprintf("line %d about %s", n, p.Env["TOKEN"])})
				}
				return fake.Program{Print: lines, Deaf: true, Ends: true, After: 20 * time.Second, Code: 3}, nil
			})
		}, []string{"aborting, failed to create some containers\nw", "exit code 3", "\n  line 2 about [TOKEN]", "\n  line 21"}, 20*time.Second + 2*tailPause},
		{"no port", func(w *world) {
			w.engine.SetPrograms(func(engine.Process) (fake.Program, error) { return fake.Program{Deaf: true}, nil })
		}, []string{"aborting, app containers failed to respond to health check\nweb.", "nothing listens on 127."}, DefaultStartTimeout + tailWait + time.Second},
		{"health check", func(w *world) {
			w.engine.SetProbe(func(_ engine.Instance, c engine.Check) error {
				if c.Path == "/up" {
					return fmt.Errorf("got '404', expected: '200'")
				}
				return nil
			})
		}, []string{"aborting, app containers failed to respond to health check\nweb.", "got '404', expected: '200'"}, DefaultStartTimeout + 10*time.Second},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				webApp(w).scale(map[string]int{"web": 2, "worker": 1})
				w.addConfig("c2", paas.Config{Values: map[string]string{"TOKEN": "s3cret", "HEALTHCHECK_URL": "/up", "HEALTHCHECK_INITIAL_DELAY": "5"}})
				before, routed := w.list(), w.routed()
				ids := w.ids()
				w.history()
				w.set(func() { w.drain = time.Hour }) // what never served has nothing to drain
				test.prepare(w)
				began := time.Now()
				_, _, err := w.do(Request{Kind: paas.RolloutConfig, Config: "c2"})
				w.wantFailure(err, test.texts...)
				if took := time.Since(began); took > test.within {
					t.Errorf("it took %s, want at most %s", took, test.within)
				}
				if reason := w.store.rollout().Reason; strings.Contains(reason, "s3cret") || strings.Contains(reason, "secret detail") ||
					strings.Contains(reason, "line 1 ") {
					t.Errorf("the reason tells too much: %q", reason)
				}
				w.want("rows", w.rows(), before)
				w.engine.SetChaos(fake.Chaos{})
				synctest.Wait()
				w.want("instances", w.list(), before)
				w.want("routed", w.routed(), routed)
				if now := w.ids(); !maps.Equal(now, ids) {
					t.Errorf("old instances were touched: %v, were %v", now, ids)
				}
				for _, event := range w.history() {
					if strings.HasPrefix(event, "targets") {
						t.Errorf("the routes changed: %s", event)
					}
				}
				if latest := w.store.releases[uuid]; len(latest) != 2 {
					t.Errorf("a failed rollout left a release: %+v", latest)
				}
				w.engine.SetPrograms(nil)
				w.engine.SetProbe(nil)
				if release := w.mustDo(Request{Kind: paas.RolloutConfig, Config: "c2"}); release.Version != 3 {
					t.Errorf("the next release is v%d, want the number of the failed one", release.Version)
				}
			})
		})
	}
}

// A slow start is no failure while it shows progress, but it has an end.
func TestStartTimeoutIsOnInactivity(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addBuild("b1", map[string]string{"web": "serve"})
		w.start()
		open := time.Now().Add(5 * time.Minute)
		w.engine.SetProbe(func(engine.Instance, engine.Check) error {
			if time.Now().Before(open) {
				return fmt.Errorf("nothing listens on port 5000")
			}
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for sleep(ctx, time.Minute) {
				instances, _ := w.engine.Instances(ctx, uuid)
				for _, inst := range instances {
					w.engine.Write(inst.ID, "still loading")
				}
			}
		}()
		var said []string
		release := w.mustDo(Request{Kind: paas.RolloutDeploy, Build: "b1", Progress: func(s string) { said = append(said, s) }})
		if release.Version != 2 {
			t.Errorf("release %+v", release)
		}
		if len(said) < 20 || said[1] != "Waiting for web.1: nothing listens on port 5000" {
			t.Errorf("%d lines of progress: %q", len(said), said[:min(3, len(said))])
		}
		open = time.Now().Add(10 * time.Hour)
		began := time.Now()
		_, _, err := w.do(Request{Kind: paas.RolloutDeploy, Build: "b1"})
		w.wantFailure(err, "nothing listens on port 5000", "still loading")
		if took := time.Since(began); took < maxStart || took > maxStart+time.Second {
			t.Errorf("it was given up after %s, want %s", took, maxStart)
		}
	})
}

func TestHealthCheckSettings(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addBuild("b1", map[string]string{"web": "serve", "worker": "work"})
		w.addConfig("c2", paas.Config{Values: map[string]string{
			"HEALTHCHECK_URL": "/up", "HEALTHCHECK_INITIAL_DELAY": "7", "HEALTHCHECK_TIMEOUT": "3",
		}})
		w.start()
		began := time.Now()
		w.engine.SetProbe(func(inst engine.Instance, c engine.Check) error {
			if c.Path != "" && (c.Path != "/up" || time.Since(began) < 7*time.Second) || c.Timeout != 3*time.Second {
				t.Errorf("after %s a check %+v", time.Since(began), c)
			}
			if inst.Type != "web" {
				t.Errorf("%s was asked", name(inst))
			}
			return nil
		})
		w.mustDo(Request{Kind: paas.RolloutDeploy, Build: "b1", Config: "c2"})
		if took := time.Since(began); took < 7*time.Second || took > 8*time.Second {
			t.Errorf("it took %s, want the initial delay", took)
		}
		began = time.Now()
		w.scale(map[string]int{"worker": 1})
		if took := time.Since(began); took < settle || took > 2*settle {
			t.Errorf("the worker took %s, want %s", took, settle)
		}
	})
}

func TestOneAtATime(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		w.addApp("other", "shop")
		release := make(chan struct{})
		w.engine.SetProbe(func(i engine.Instance, _ engine.Check) error {
			select {
			case <-release:
				return nil
			default:
				return errors.New("not yet")
			}
		})
		first := make(chan error, 1)
		go func() {
			_, _, err := w.do(Request{Kind: paas.RolloutConfig})
			first <- err
		}()
		synctest.Wait()

		began := time.Now()
		_, _, err := w.do(Request{Kind: paas.RolloutScale, Formation: map[string]int{"web": 2}})
		if paas.CodeOf(err) != paas.Conflict || userText(err) != "Config changes already in progress.\na config change by alice is under way." {
			t.Errorf("a second change: %v", err)
		}
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("it waited %s, want 5 s", took)
		}
		if _, _, err := w.m.Do(t.Context(), Request{Kind: paas.RolloutConfig, App: paas.App{UUID: "other"}}); err != nil {
			t.Errorf("another app: %v", err)
		}

		var said []string
		second := make(chan error, 1)
		go func() {
			_, _, err := w.do(Request{Kind: paas.RolloutDeploy, Build: "b1", Progress: func(s string) { said = append(said, s) }})
			second <- err
		}()
		time.Sleep(59 * time.Second)
		close(release)
		if err := errors.Join(<-first, <-second); err != nil {
			t.Errorf("the first change and a deploy that waited: %v", err)
		}
		if len(said) != 7 || said[0] != "Waiting: a config change by alice is under way." || said[6] != "Starting web=1" {
			t.Errorf("the deploy said %q", said)
		}
		if n := len(w.store.releases[uuid]); n != 4 {
			t.Errorf("%d releases, want 4", n)
		}
	})
}

// A client that hangs up loses its output, never its rollout.
func TestHangUp(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		var returned atomic.Bool
		open := time.Now().Add(30 * time.Second)
		w.engine.SetProbe(func(engine.Instance, engine.Check) error {
			if time.Now().Before(open) {
				return errors.New("not yet")
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		_, _, err := w.m.Do(ctx, Request{
			Kind: paas.RolloutDeploy, Build: "b1", App: paas.App{UUID: uuid},
			Progress: func(string) {
				if returned.Load() {
					t.Error("progress after Do returned")
				}
			},
		})
		returned.Store(true)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do: %v", err)
		}
		time.Sleep(time.Minute)
		w.want("rows", w.rows(), []string{"web.1@2 up"})
		if n := len(w.store.releases[uuid]); n != 3 {
			t.Errorf("%d releases, want 3", n)
		}
	})
}

func TestScale(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		first := w.ids()["web.1"]
		w.scale(map[string]int{"web": 3})
		w.want("grown", w.rows(), []string{"web.1@1 up", "web.2@2 up", "web.3@2 up"})
		if len(w.routed()) != 3 {
			t.Errorf("routed: %v", w.routed())
		}
		w.history()
		w.set(func() { w.drain = 4 * time.Second })
		began := time.Now()
		w.scale(map[string]int{"web": 2})
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("shrinking took %s, want the time to drain", took)
		}
		w.want("shrunk", w.list(), []string{"web.1@1 up", "web.2@2 up"})
		w.want("events", w.history(), []string{"targets 2", "drain", "drained", "apply web@2 [2]"})
		w.scale(map[string]int{"web": 1})
		w.want("shrunk again", w.list(), []string{"web.1@1 up"})
		w.scale(map[string]int{"web": 2})
		w.want("grown again", w.list(), []string{"web.1@1 up", "web.2@5 up"})
		if w.ids()["web.1"] != first {
			t.Error("scaling replaced web.1")
		}
		w.scale(map[string]int{"web": 0})
		w.want("nothing", w.list(), nil)
		if s := w.store.apps[uuid].Structure; !maps.Equal(s, map[string]int{"web": 0}) {
			t.Errorf("structure %v", s)
		}
		w.want("routed", w.routed(), nil)
	})
}

// What a scale keeps is the lowest numbers. Where just those have ended, they serve again before the others go.
func TestScaleToWhatHasEnded(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w).scale(map[string]int{"web": 2})
		w.engine.Exit(w.ids()["web.1"], "killed")
		synctest.Wait()
		w.set(func() { w.least = len(w.targets[uuid]) })
		w.scale(map[string]int{"web": 1})
		w.want("shrunk", w.list(), []string{"web.1@1 up"})
		if least := w.leastServed(); least != 1 {
			t.Errorf("%d instances served meanwhile", least)
		}

		w.scale(map[string]int{"web": 2})
		w.engine.SetPrograms(func(engine.Process) (fake.Program, error) { return fake.Program{Ends: true, Code: 1}, nil })
		w.engine.Exit(w.ids()["web.1"], "exit code 1")
		synctest.Wait()
		_, _, err := w.do(Request{Kind: paas.RolloutScale, Formation: map[string]int{"web": 1}})
		w.wantFailure(err, msgCreate, "web.1")
		if len(w.routed()) != 1 {
			t.Errorf("routed: %v", w.routed())
		}
		w.scale(map[string]int{"web": 0}) // what takes all away needs none
	})
}

func TestScaleWaitsOnlySoLong(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w).scale(map[string]int{"web": 2})
		w.set(func() { w.drain = time.Hour })
		began := time.Now()
		w.scale(map[string]int{"web": 1})
		if took := time.Since(began); took != removalWait {
			t.Errorf("it took %s, want %s", took, removalWait)
		}
		w.want("rows", w.rows(), []string{"web.1@1 up"})
		w.want("still draining", w.list(), []string{"web.1@1 up", "web.2@2 up"})
		time.Sleep(DefaultDrainLimit)
		w.want("in the end", w.list(), []string{"web.1@1 up"})
	})
}

func TestScaleDownThatFails(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w).scale(map[string]int{"web": 3})
		w.engine.SetChaos(fake.Chaos{Destroy: 1})
		_, _, err := w.do(Request{Kind: paas.RolloutScale, Formation: map[string]int{"web": 1}})
		if paas.CodeOf(err) != paas.Unavailable || userText(err) != "aborting, failed to destroy some containers" {
			t.Errorf("%v", err)
		}
		w.want("rows", w.rows(), []string{"web.1@1 up", "web.2@2 error", "web.3@2 error"})
		if _, _, err = w.do(Request{Kind: paas.RolloutScale, Formation: map[string]int{"web": 1}}); paas.CodeOf(err) != paas.Unavailable {
			t.Errorf("at once again: %v", err)
		}
		w.engine.SetChaos(fake.Chaos{})
		w.scale(map[string]int{"web": 1}) // which waits for no retry
		w.want("after a retry", w.rows(), []string{"web.1@1 up"})
		w.want("instances", w.list(), []string{"web.1@1 up"})

		w.scale(map[string]int{"web": 3})
		w.engine.SetChaos(fake.Chaos{Destroy: 1})
		if _, _, err = w.do(Request{Kind: paas.RolloutScale, Formation: map[string]int{"web": 1}}); err == nil {
			t.Error("no error")
		}
		w.engine.SetChaos(fake.Chaos{})
		time.Sleep(time.Minute)
		w.want("in the end", w.rows(), []string{"web.1@1 up"})
		w.want("instances in the end", w.list(), []string{"web.1@1 up"})
	})
}

// What an engine excuses is a warning (contract 7, step 4), and is repaired like any crash.
func TestExcusedStart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		w.engine.SetChaos(fake.Chaos{Start: 1})
		var said []string
		r, _, err := w.do(Request{
			Kind: paas.RolloutScale, Formation: map[string]int{"web": 2, "worker": 1},
			Progress: func(line string) { said = append(said, line) },
		})
		if err != nil || r.Reason != msgStart || !slices.Contains(said, msgStart) {
			t.Errorf("scale: %v, warning %q, progress %q", err, r.Reason, said)
		}
		w.want("rows", w.rows(), []string{"web.1@1 up", "web.2@2 crashed", "worker.1@2 crashed"})
		w.engine.SetChaos(fake.Chaos{})
		time.Sleep(time.Minute)
		w.want("in the end", w.rows(), []string{"web.1@1 up", "web.2@2 up", "worker.1@2 up"})
	})
}

// With SkipWaits no pause takes time, and each still counts.
func TestSkipWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.skipWaits = true
		began := time.Now()
		webApp(w).scale(map[string]int{"web": 1, "worker": 2})
		w.addConfig("c2", paas.Config{Values: map[string]string{"HEALTHCHECK_URL": "/", "HEALTHCHECK_INITIAL_DELAY": "600"}})
		w.engine.SetProbe(func(_ engine.Instance, c engine.Check) error {
			if c.Path == "" {
				return nil
			}
			return errors.New("no")
		})
		_, _, err := w.do(Request{Kind: paas.RolloutConfig, Config: "c2"})
		w.wantFailure(err, msgHealth, "not healthy after 2m0s")
		w.engine.SetProbe(nil)
		w.mustDo(Request{Kind: paas.RolloutConfig, Config: "c2"})
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// What is shrunk twice in a row drains twice: nothing goes with an earlier removal.
func TestShrinkWhileDraining(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addBuild("b1", map[string]string{"web": "serve"})
		w.store.set(func() {
			app := w.store.apps[uuid]
			app.Structure = map[string]int{"web": 3}
			w.store.apps[uuid] = app
		})
		w.start().deploy("b1")
		w.set(func() { w.drain = 20 * time.Second })
		w.scale(map[string]int{"web": 2}) // returns after 15 s
		w.scale(map[string]int{"web": 1})
		time.Sleep(6 * time.Second)
		w.want("web.2 still drains", w.list(), []string{"web.1@1 up", "web.2@1 up"})
		time.Sleep(20 * time.Second)
		w.want("in the end", w.list(), []string{"web.1@1 up"})
	})
}

// A deploy while part of the old set drains gives the rest its own time to drain.
func TestDeployWhileDraining(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addBuild("b1", map[string]string{"web": "serve"})
		w.store.set(func() {
			app := w.store.apps[uuid]
			app.Structure = map[string]int{"web": 3}
			w.store.apps[uuid] = app
		})
		w.start().deploy("b1")
		w.set(func() { w.drain = 20 * time.Second })
		w.scale(map[string]int{"web": 2}) // returns after 15 s
		w.deploy("b1")
		time.Sleep(19 * time.Second)
		w.want("requests go on", w.list(), []string{"web.1@1 up", "web.1@3 up", "web.2@1 up", "web.2@3 up", "web.3@1 up"})
		time.Sleep(7 * time.Second)
		w.want("in the end", w.list(), []string{"web.1@3 up", "web.2@3 up"})
	})
}

func TestRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w).scale(map[string]int{"web": 3, "worker": 1})
		before := w.ids()
		w.history()
		release := w.mustDo(Request{Kind: paas.RolloutRestart, RestartType: "web", RestartNum: 2})
		if release.Version != 2 {
			t.Errorf("a restart made release v%d", release.Version)
		}
		w.want("rows", w.rows(), []string{"web.1@1 up", "web.2@3 up", "web.3@2 up", "worker.1@2 up"})
		time.Sleep(time.Second)
		w.want("instances", w.list(), w.rows())
		w.want("events", w.history(), []string{"apply web@3 [2]", "targets 3", "drain", "drained", "apply web@2 [3]"})
		after := w.ids()
		for who := range before {
			if (before[who] != after[who]) != (who == "web.2") {
				t.Errorf("%s: %s, was %s", who, after[who], before[who])
			}
		}
		w.mustDo(Request{Kind: paas.RolloutRestart})
		time.Sleep(time.Second)
		w.want("all", w.list(), []string{"web.1@4 up", "web.2@4 up", "web.3@4 up", "worker.1@4 up"})
	})
}

func TestCrash(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w).scale(map[string]int{"web": 2})
		ids := w.ids()
		w.engine.Exit(ids["web.2"], "killed: out of memory")
		synctest.Wait()
		w.want("it is routed no more, at once", w.routed(), []string{ids["web.1"]})
		w.want("and visible", w.rows(), []string{"web.1@1 up", "web.2@2 crashed"})
		if reason := w.store.instances[uuid][1].Reason; reason != "killed: out of memory" {
			t.Errorf("reason %q", reason)
		}
		if w.metric("deis_instances", "crashed") != 1 || w.metric("deis_instances", "up") != 1 {
			t.Error("the metrics say something else")
		}
		time.Sleep(firstRepair)
		synctest.Wait()
		w.want("after the back-off", w.rows(), []string{"web.1@1 up", "web.2@2 up"})
		if now := w.routed(); len(now) != 2 || slices.Contains(now, ids["web.2"]) {
			t.Errorf("routed: %v", now)
		}
	})
}

func TestCrashBackOff(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		var starts []time.Duration
		last := time.Now()
		w.engine.SetPrograms(func(engine.Process) (fake.Program, error) {
			starts = append(starts, time.Since(last).Round(time.Second))
			last = time.Now()
			return fake.Program{Ends: true, Code: 1}, nil
		})
		w.engine.Exit(w.ids()["web.1"], "exit code 1")
		time.Sleep(25 * time.Minute)
		w.want("crashed", w.rows(), []string{"web.1@1 crashed"})
		want := []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300}
		for i := range want {
			want[i] *= time.Second
		}
		if len(starts) < len(want) || !slices.Equal(starts[:len(want)], want) {
			t.Errorf("attempts after %v, want %v", starts, want)
		}

		w.engine.SetPrograms(nil)
		time.Sleep(lastRepair)
		w.want("up again", w.rows(), []string{"web.1@1 up"})
		time.Sleep(stableAfter)
		w.engine.Exit(w.ids()["web.1"], "exit code 1")
		time.Sleep(firstRepair)
		synctest.Wait()
		w.want("the back-off has begun anew", w.rows(), []string{"web.1@1 up"})
	})
}

// One that crashes again and again does not make the others of its set wait.
func TestBackOffIsOfOneInstance(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addBuild("b1", map[string]string{"worker": "work"})
		w.store.set(func() {
			app := w.store.apps[uuid]
			app.Structure = map[string]int{"worker": 3}
			w.store.apps[uuid] = app
		})
		w.start().deploy("b1")
		for delay := firstRepair; delay < lastRepair; delay *= 2 {
			w.engine.Exit(w.ids()["worker.3"], "exit code 1")
			time.Sleep(delay)
			synctest.Wait()
			w.want("worker.3 after its pause", w.list(), []string{"worker.1@1 up", "worker.2@1 up", "worker.3@1 up"})
		}
		w.engine.Exit(w.ids()["worker.3"], "exit code 1")
		time.Sleep(time.Minute)
		w.want("it waits", w.list(), []string{"worker.1@1 up", "worker.2@1 up", "worker.3@1 crashed"})
		w.engine.Exit(w.ids()["worker.1"], "exit code 1")
		time.Sleep(firstRepair)
		synctest.Wait()
		w.want("worker.1 does not", w.list(), []string{"worker.1@1 up", "worker.2@1 up", "worker.3@1 up"})
		w.engine.Exit(w.ids()["worker.3"], "exit code 1")
		time.Sleep(lastRepair - time.Second)
		w.want("its back-off has gone on", w.list(), []string{"worker.1@1 up", "worker.2@1 up", "worker.3@1 crashed"})
		time.Sleep(time.Second)
		synctest.Wait()
		w.want("and ends", w.list(), []string{"worker.1@1 up", "worker.2@1 up", "worker.3@1 up"})
		w.scale(map[string]int{"worker": 0})
		time.Sleep(time.Second)
		w.a().mu.Lock()
		defer w.a().mu.Unlock()
		if n := len(w.a().repairs) + len(w.a().repairing); n != 0 {
			t.Errorf("%d repairs of what is not live are noted", n)
		}
	})
}

// A live instance that crashes during a rollout is started again meanwhile, and
// what drains is left alone.
func TestRepairWhileDraining(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addBuild("b1", map[string]string{"web": "serve"})
		w.store.set(func() {
			app := w.store.apps[uuid]
			app.Structure = map[string]int{"web": 3}
			w.store.apps[uuid] = app
		})
		w.start().deploy("b1")
		w.set(func() { w.drain = 20 * time.Second })
		w.scale(map[string]int{"web": 2})
		w.engine.Exit(w.ids()["web.1"], "exit code 1")
		time.Sleep(2 * time.Second)
		w.want("repaired beside one that drains", w.list(), []string{"web.1@1 up", "web.2@1 up", "web.3@1 up"})
		w.want("rows", w.rows(), []string{"web.1@1 up", "web.2@1 up"})
		time.Sleep(20 * time.Second)
		w.want("in the end", w.list(), []string{"web.1@1 up", "web.2@1 up"})
	})
}

// After a reboot the engine has nothing, and everything comes back at once.
func TestReboot(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w).scale(map[string]int{"web": 2, "worker": 1})
		w.stop()
		w.engine = fake.New()
		w.engine.SetChaos(fake.Chaos{Create: 1})
		w.start()
		synctest.Wait()
		w.want("the engine cannot yet", w.rows(), []string{"web.1@1 initialized", "web.2@2 initialized", "worker.1@2 initialized"})
		w.engine.SetChaos(fake.Chaos{})
		time.Sleep(firstRepair)
		synctest.Wait()
		w.want("instances", w.list(), []string{"web.1@1 up", "web.2@2 up", "worker.1@2 up"})
		w.want("rows", w.rows(), w.list())
		if len(w.routed()) != 2 {
			t.Errorf("routed: %v", w.routed())
		}
	})
}

func TestStopLeavesInstances(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		w.history()
		w.engine.SetProbe(func(engine.Instance, engine.Check) error { return errors.New("not yet") })
		ended := make(chan error, 1)
		go func() {
			_, _, err := w.do(Request{Kind: paas.RolloutConfig})
			ended <- err
		}()
		time.Sleep(time.Second)
		w.stop()
		if err := <-ended; paas.CodeOf(err) != paas.Unavailable {
			t.Errorf("Do: %v", err)
		}
		w.want("instances", w.list(), []string{"web.1@1 up", "web.1@2 up"})
		if r := w.store.rollout(); r.State != paas.RolloutStarting {
			t.Errorf("the journal has %s", r.State)
		}
		if _, _, err := w.do(Request{Kind: paas.RolloutConfig}); paas.CodeOf(err) != paas.Unavailable {
			t.Errorf("Do after the end: %v", err)
		}
		w.want("events", w.history(), []string{"apply web@2 [1]"})

		w.engine.SetProbe(nil)
		w.start()
		time.Sleep(time.Second)
		w.want("the next one carries on", w.list(), []string{"web.1@2 up"})
		if n := len(w.store.releases[uuid]); n != 3 {
			t.Errorf("%d releases, want 3", n)
		}
	})
}

func mustList(w *world) []engine.Instance {
	w.Helper()
	instances, err := w.engine.Instances(w.Context(), uuid)
	if err != nil {
		w.Fatal(err)
	}
	return instances
}

// Whatever the journal said when the controller died, the next one comes to the same end.
func TestResume(t *testing.T) {
	rollout := func(w *world) paas.Rollout {
		r := paas.Rollout{
			App: uuid, Kind: paas.RolloutDeploy, Owner: "alice", Build: "b1", Config: "blog-c1",
			Formation: map[string]int{"web": 2}, Version: 3,
		}
		if err := w.store.BeginRollout(t.Context(), &r); err != nil {
			w.Fatal(err)
		}
		return r
	}
	advance := func(w *world, r paas.Rollout) {
		r.State = paas.RolloutStarting
		if err := w.store.AdvanceRollout(w.Context(), r); err != nil {
			w.Fatal(err)
		}
	}
	apply := func(w *world, nums ...int) {
		spec := engine.SetSpec{SetKey: engine.SetKey{App: uuid, Type: "web", Generation: 3}, Nums: nums}
		if err := w.engine.Apply(w.Context(), spec); err != nil {
			w.Fatal(err)
		}
	}
	tests := []struct {
		name string
		died func(*world)
	}{
		{"pending", func(w *world) { rollout(w) }},
		{"starting, nothing there", func(w *world) {
			advance(w, rollout(w))
		}},
		{"starting, one there", func(w *world) {
			advance(w, rollout(w))
			apply(w, 1)
		}},
		{"starting, all there, one crashed", func(w *world) {
			advance(w, rollout(w))
			apply(w, 1, 2)
			instances, _ := w.engine.Instances(w.Context(), uuid)
			w.engine.Exit(instances[len(instances)-1].ID, "exit code 1")
		}},
		{"succeeded, old ones there", func(w *world) {
			r := rollout(w)
			apply(w, 1, 2)
			live := []paas.Set{{App: uuid, Type: "web", Generation: r.ID, Version: 3, Build: "b1", Config: "blog-c1", Nums: []int{1, 2}}}
			if _, err := w.store.FinishRollout(w.Context(), r, live); err != nil {
				w.Fatal(err)
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				webApp(w).scale(map[string]int{"web": 2})
				w.stop()
				test.died(w)
				there := w.list()
				ids := map[string]bool{}
				for _, inst := range mustList(w) {
					ids[inst.ID] = true
				}
				w.history()
				w.start()
				time.Sleep(time.Second)
				for _, inst := range mustList(w) {
					line := fmt.Sprintf("%s@%d up", name(inst), inst.Generation)
					if slices.Contains(there, line) && !ids[inst.ID] {
						t.Errorf("%s ran already and was replaced", line)
					}
				}
				w.want("instances", w.list(), []string{"web.1@3 up", "web.2@3 up"})
				w.want("rows", w.rows(), w.list())
				if r := w.store.rollout(); r.State != paas.RolloutSucceeded {
					t.Errorf("the journal has %s: %s", r.State, r.Reason)
				}
				if releases := w.store.releases[uuid]; len(releases) != 3 || releases[2].Version != 3 {
					t.Errorf("releases %+v", releases)
				}
				var want []string
				for _, id := range w.ids() {
					want = append(want, id)
				}
				slices.Sort(want)
				w.want("routed", w.routed(), want)
				events := w.history()
				for _, removal := range []string{"remove web@1", "remove web@2"} {
					if at := slices.Index(events, removal); at < 0 || slices.Index(events, "drained") > at {
						t.Errorf("%s before the routers drained: %q", removal, events)
					}
				}
				w.deploy("b1")
			})
		})
	}
}

// A failed rollout whose instances were not removed when the controller died.
func TestResumeFailed(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		w.stop()
		r := paas.Rollout{App: uuid, Kind: paas.RolloutDeploy, Build: "b1", Config: "blog-c1", Version: 3}
		w.store.BeginRollout(t.Context(), &r)
		w.engine.Apply(t.Context(), engine.SetSpec{SetKey: engine.SetKey{App: uuid, Type: "web", Generation: r.ID}, Nums: []int{1}})
		w.store.FailRollout(t.Context(), r.ID, "no", nil)
		w.start()
		synctest.Wait()
		w.want("instances", w.list(), []string{"web.1@1 up"})
	})
}

func TestStrays(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		key := engine.SetKey{App: "nobody", Type: "web", Generation: 4}
		if err := w.engine.Apply(t.Context(), engine.SetSpec{SetKey: key, Nums: []int{1, 2}}); err != nil {
			t.Fatal(err)
		}
		w.store.instances["nobody"] = []paas.Instance{{App: "nobody", Type: "web", Num: 1, State: paas.StateUp}}
		webApp(w)
		synctest.Wait()
		w.want("at the start", w.list(), []string{"web.1@1 up"})
		if rows := w.store.instances["nobody"]; len(rows) > 0 {
			t.Errorf("rows of what nobody wants: %+v", rows)
		}
		if err := w.engine.Apply(t.Context(), engine.SetSpec{SetKey: key, Nums: []int{1}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.want("later", w.list(), []string{"web.1@1 up"})
	})
}

func TestEngineDownAtStart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		w.stop()
		w.history()
		w.set(func() { w.down = true })
		w.run()
		time.Sleep(time.Minute)
		select {
		case <-w.m.Ready():
			t.Error("ready without an engine")
		default:
		}
		if events := w.history(); len(events) > 0 {
			t.Errorf("it acted without knowing: %q", events)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := w.m.Do(ctx, Request{Kind: paas.RolloutConfig, App: paas.App{UUID: uuid}}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do: %v", err)
		}
		w.set(func() { w.down = false })
		time.Sleep(maxRetry)
		<-w.m.Ready()
		w.want("instances", w.list(), []string{"web.1@1 up"})
	})
}

// While the engine is away the routes stay as they are.
func TestEngineAway(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		routed := w.routed()
		w.history()
		w.set(func() { w.down = true })
		time.Sleep(5 * time.Minute)
		w.want("routed", w.routed(), routed)
		_, _, err := w.do(Request{Kind: paas.RolloutConfig})
		w.wantFailure(err, "aborting, failed to create some containers")
		w.set(func() { w.down = false })
		time.Sleep(maxRetry)
		w.want("instances", w.list(), []string{"web.1@1 up"})
		w.mustDo(Request{Kind: paas.RolloutConfig})
	})
}

// A store that fails at the last step keeps the old release.
func TestStoreFails(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		w.engine.SetProbe(func(engine.Instance, engine.Check) error {
			w.store.set(func() { w.store.broken = errors.New("disk full at /secret/path") })
			return nil
		})
		done := make(chan error, 1)
		go func() {
			_, _, err := w.do(Request{Kind: paas.RolloutConfig})
			done <- err
		}()
		time.Sleep(time.Minute)
		w.store.set(func() { w.store.broken = nil })
		err := <-done
		if paas.CodeOf(err) != paas.Internal {
			t.Errorf("Do: %v", err)
		}
		if r := w.store.rollout(); r.State != paas.RolloutFailed || strings.Contains(r.Reason, "secret") {
			t.Errorf("rollout %+v", r)
		}
		time.Sleep(maxRetry)
		w.want("instances", w.list(), []string{"web.1@1 up"})
	})
}

// What could not be written is written soon, without waiting for the next sweep.
func TestStoreAway(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		w.store.set(func() { w.store.broken = errors.New("locked") })
		w.engine.Exit(w.ids()["web.1"], "exit code 1")
		time.Sleep(3 * time.Second)
		w.store.set(func() { w.store.broken = nil })
		time.Sleep(maxRetry)
		w.want("instances", w.list(), []string{"web.1@1 up"})
	})
}

// The log of an instance may come a little later than its end.
func TestReasonWaitsForTheLog(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addBuild("b1", map[string]string{"web": "serve"})
		w.engine.SetPrograms(func(engine.Process) (fake.Program, error) {
			return fake.Program{Print: []fake.Line{{Text: "no such file"}}, Ends: true, Code: 2}, nil
		})
		w.start()
		w.logsFrom = time.Now().Add(tailWait / 2)
		_, _, err := w.do(Request{Kind: paas.RolloutDeploy, Build: "b1"})
		w.wantFailure(err, "web.1: exit code 2\nThe last lines of its log:\n  no such file")
	})
}

func TestDestroy(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		w.engine.SetProbe(func(engine.Instance, engine.Check) error { return errors.New("not yet") })
		ended := make(chan error, 2)
		for range 2 {
			go func() {
				_, _, err := w.do(Request{Kind: paas.RolloutDeploy, Build: "b1"})
				ended <- err
			}()
		}
		time.Sleep(time.Second)
		if err := w.m.Destroy(t.Context(), paas.App{UUID: uuid}); err != nil {
			t.Errorf("Destroy: %v", err)
		}
		for range 2 {
			if err := <-ended; paas.CodeOf(err) != paas.Conflict {
				t.Errorf("a rollout under way or waiting: %v", err)
			}
		}
		w.want("instances", w.list(), nil)
		w.want("routed", w.routed(), nil)
		if r := w.store.rollout(); r.State != paas.RolloutFailed || r.Reason != "The app is being destroyed." {
			t.Errorf("the journal has %s: %s", r.State, r.Reason)
		}
		time.Sleep(time.Minute)
		w.want("it stays away while the store has it", w.list(), nil)
		if _, _, err := w.do(Request{Kind: paas.RolloutConfig}); paas.CodeOf(err) != paas.Conflict {
			t.Errorf("Do: %v", err)
		}
		if err := w.m.Destroy(t.Context(), paas.App{UUID: uuid}); err != nil {
			t.Errorf("Destroy again: %v", err)
		}
		w.store.set(func() {
			delete(w.store.apps, uuid)
			delete(w.store.live, uuid)
			delete(w.store.releases, uuid)
		})
		time.Sleep(time.Minute)
		w.m.mu.Lock()
		n := len(w.m.apps)
		w.m.mu.Unlock()
		if n != 0 {
			t.Errorf("%d apps are kept in memory", n)
		}
		if _, _, err := w.do(Request{Kind: paas.RolloutConfig}); paas.CodeOf(err) != paas.NotFound {
			t.Errorf("Do on an app that is no more: %v", err)
		}
	})
}

// A destruction that fails is the caller's to repeat: nothing goes on behind it.
func TestDestroyFails(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		w.set(func() { w.down = true })
		const attempts = 3
		for range attempts {
			if err := w.m.Destroy(t.Context(), paas.App{UUID: uuid}); paas.CodeOf(err) != paas.Unavailable {
				t.Errorf("Destroy: %v", err)
			}
			time.Sleep(time.Minute)
		}
		forgets := func() (n int) {
			for _, event := range w.history() {
				if event == "forget" {
					n++
				}
			}
			return n
		}
		if n := forgets(); n != attempts {
			t.Errorf("the engine was asked %d times, want %d", n, attempts)
		}
		w.set(func() { w.down = false })
		time.Sleep(time.Minute)
		if n := forgets(); n != 0 {
			t.Errorf("%d attempts without a caller", n)
		}
		if err := w.m.Destroy(t.Context(), paas.App{UUID: uuid}); err != nil {
			t.Errorf("Destroy in the end: %v", err)
		}
		w.want("instances", w.list(), nil)
	})
}

// 40 instances and 100 changes of scale are quick, also on a slow machine.
func TestManyScales(t *testing.T) {
	w := newWorld(t)
	webApp(w)
	began := time.Now()
	for n := range 100 {
		w.scale(map[string]int{"web": 1 + (n*7)%40})
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("100 changes of scale took %s", took)
	}
	if n := len(w.ids()); n != 1+(99*7)%40 {
		t.Errorf("%d instances", n)
	}
	if got := w.metric("deis_rollouts_total", "scale succeeded"); got != 100 {
		t.Errorf("counted %v rollouts", got)
	}
}
