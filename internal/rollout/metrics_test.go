package rollout

import (
	"errors"
	"testing"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// looks counts the observations of a histogram.
func (w *world) looks(name string) (n uint64) {
	w.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				n += m.GetHistogram().GetSampleCount()
			}
		}
	}
	return n
}

// A sweep looks closely only at apps that are not as they should be, and finds those without any event.
func TestSweep(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.deaf = true
		webApp(w)
		time.Sleep(sweepInterval * 3 / 2) // no sweep is at the moment of a look at the figures
		looks, sweeps := w.looks("deis_reconcile_duration_seconds"), w.looks("deis_sweep_duration_seconds")
		time.Sleep(10 * sweepInterval)
		if more := w.looks("deis_reconcile_duration_seconds") - looks; more != 0 {
			t.Errorf("%d looks at an app that is as it should be", more)
		}
		if more := w.looks("deis_sweep_duration_seconds") - sweeps; more != 10 {
			t.Errorf("%d sweeps, want 10", more)
		}
		w.engine.Exit(w.ids()["web.1"], "exit code 1")
		time.Sleep(sweepInterval + sweepSpread)
		w.want("instances", w.list(), []string{"web.1@1 up"})
		if n := w.metric("deis_instance_restarts_total", ""); n != 1 {
			t.Errorf("%v restarts, want 1", n)
		}
		// What nobody wants is found too.
		stray := engine.SetSpec{SetKey: engine.SetKey{App: uuid, Type: "web", Generation: 99}, Nums: []int{1}}
		if err := w.engine.Apply(t.Context(), stray); err != nil {
			t.Fatal(err)
		}
		time.Sleep(sweepInterval + sweepSpread)
		w.want("instances", w.list(), []string{"web.1@1 up"})
	})
}

// Rollouts are counted by kind, outcome and the step at which they failed.
func TestRolloutMetrics(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		w.engine.SetProbe(func(engine.Instance, engine.Check) error { return errors.New("not yet") })
		ended := make(chan error, 2)
		for range 2 {
			go func() {
				_, _, err := w.do(Request{Kind: paas.RolloutRestart})
				ended <- err
			}()
		}
		time.Sleep(time.Second)
		if running, waiting := w.metric("deis_rollouts_running", ""), w.metric("deis_rollouts_waiting", ""); running != 1 || waiting != 1 {
			t.Errorf("%v run and %v wait, want 1 and 1", running, waiting)
		}
		for range 2 {
			if err := <-ended; err == nil {
				t.Error("a rollout of what never serves succeeded")
			}
		}
		for name, want := range map[string]float64{"deploy succeeded": 1, "restart failed": 1, "restart succeeded": 0} {
			if n := w.metric("deis_rollouts_total", name); n != want {
				t.Errorf("%s: %v, want %v", name, n, want)
			}
		}
		if n := w.metric("deis_rollout_failures_total", "restart started"); n != 1 {
			t.Errorf("%v failed after they were started, want 1", n)
		}
		if n := w.looks("deis_rollout_step_duration_seconds"); n < 6 {
			t.Errorf("%d steps were timed", n)
		}
	})
}

// A rollout that is stuck is seen, whatever else ends meanwhile, and also behind a new controller.
func TestOldestRollout(t *testing.T) {
	const name = "deis_rollouts_oldest_start_timestamp_seconds"
	inBubble(t, func(t *testing.T, w *world) {
		const other = "22222222-2222-3333-4444-555555555555"
		webApp(w)
		w.addApp(other, "shop")
		if n := w.metric(name, ""); n != 0 {
			t.Errorf("with no rollout it is %v, want 0", n)
		}
		w.engine.SetProbe(func(inst engine.Instance, _ engine.Check) error {
			if inst.App == uuid {
				return errors.New("not yet")
			}
			return nil
		})
		began := float64(time.Now().Unix())
		ended := make(chan error, 1)
		go func() {
			_, _, err := w.do(Request{Kind: paas.RolloutRestart})
			ended <- err
		}()
		time.Sleep(10 * time.Second)
		if _, _, err := w.m.Do(t.Context(), Request{Kind: paas.RolloutDeploy, Build: "b1", App: paas.App{UUID: other}}); err != nil {
			t.Fatal(err)
		}
		if n := w.metric(name, ""); n != began {
			t.Errorf("it is %v, want %v", n, began)
		}
		w.stop()
		<-ended
		w.start()
		time.Sleep(10 * time.Second)
		if n := w.metric(name, ""); n != began {
			t.Errorf("carried on it is %v, want %v", n, began)
		}
		w.engine.SetProbe(nil)
		time.Sleep(10 * time.Second)
		if n := w.metric(name, ""); n != 0 {
			t.Errorf("in the end it is %v, want 0", n)
		}
	})
}
