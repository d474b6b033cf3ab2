package rollout

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/deis/deis/internal/paas"
)

// metrics of a manager. Labels are kinds, outcomes and states, all from our own tables.
type metrics struct {
	rollouts  *prometheus.CounterVec
	failures  *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	steps     *prometheus.HistogramVec
	restarts  prometheus.Counter
	unhealthy prometheus.Counter
	reconcile prometheus.Histogram
	errors    prometheus.Counter
	sweeps    prometheus.Histogram

	mu     sync.Mutex
	states map[string]map[paas.InstanceState]int // by app
	desc   *prometheus.Desc
}

// kinds are those of rollouts.
var kinds = []paas.RolloutKind{
	paas.RolloutDeploy, paas.RolloutConfig, paas.RolloutRollback, paas.RolloutScale, paas.RolloutRestart,
}

func newMetrics(reg prometheus.Registerer, queue func() load) *metrics {
	m := &metrics{
		rollouts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "deis_rollouts_total", Help: "Rollouts by kind and outcome.",
		}, []string{"kind", "outcome"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "deis_rollout_duration_seconds", Help: "Time from the start of a rollout to its end.",
			Buckets: []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 1200},
		}, []string{"kind"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "deis_rollout_failures_total", Help: "Failed rollouts by kind and by the last step that they came to.",
		}, []string{"kind", "step"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "deis_rollout_step_duration_seconds", Help: "Time from the step before to this one.",
			Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 120, 1200},
		}, []string{"step"}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "deis_instance_restarts_total", Help: "Instances that were started again because they had ended or were missing.",
		}),
		unhealthy: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "deis_instance_health_failures_total", Help: "Instances that served and did not pass their health check any more.",
		}),
		reconcile: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "deis_reconcile_duration_seconds", Help: "Time of one look at engine and store for one app.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5},
		}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "deis_reconcile_errors_total", Help: "Looks that failed, and are repeated.",
		}),
		sweeps: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "deis_sweep_duration_seconds", Help: "Time of one look at all apps, which finds those to look at closely.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5},
		}),
		states: map[string]map[paas.InstanceState]int{},
		desc: prometheus.NewDesc("deis_instances", "Instances that should run or are being started, by state.",
			[]string{"state"}, nil),
	}
	for _, kind := range kinds { // what is zero and not missing can be seen to begin
		m.rollouts.WithLabelValues(string(kind), "succeeded")
		m.rollouts.WithLabelValues(string(kind), "failed")
		m.failures.WithLabelValues(string(kind), "starting")
	}
	if reg != nil {
		gauge := func(name, help string, of func(load) int64) prometheus.GaugeFunc {
			return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(of(queue())) })
		}
		reg.MustRegister(m.rollouts, m.failures, m.duration, m.steps, m.restarts, m.unhealthy, m.reconcile, m.errors, m.sweeps, m,
			gauge("deis_rollouts_running", "Rollouts under way.", func(l load) int64 { return l.running }),
			gauge("deis_rollouts_waiting", "Changes that wait for the one before them.", func(l load) int64 { return l.waiting }),
			gauge("deis_rollouts_oldest_start_timestamp_seconds", "Start of the oldest rollout under way, 0 if there is none.",
				func(l load) int64 {
					if l.oldest.IsZero() {
						return 0
					}
					return l.oldest.Unix()
				}))
	}
	return m
}

// ended counts a rollout that came to its end. step is the last one but for the end itself.
func (m *metrics) ended(kind paas.RolloutKind, step string, err error, took time.Duration) {
	outcome := "succeeded"
	switch {
	case errors.Is(err, errStopping):
		return
	case err != nil:
		outcome = "failed"
		m.failures.WithLabelValues(string(kind), step).Inc()
	}
	m.rollouts.WithLabelValues(string(kind), outcome).Inc()
	m.duration.WithLabelValues(string(kind)).Observe(took.Seconds())
}

// stepped notes that a rollout came to a step.
func (m *metrics) stepped(step string, took time.Duration) {
	m.steps.WithLabelValues(step).Observe(took.Seconds())
}

// looked notes one look at an app.
func (m *metrics) looked(began time.Time, err error) {
	m.reconcile.Observe(time.Since(began).Seconds())
	if err != nil && !errors.Is(err, context.Canceled) {
		m.errors.Inc()
	}
}

// instances replaces what is known of an app.
func (m *metrics) instances(app string, rows []paas.Instance) {
	states := map[paas.InstanceState]int{}
	for _, row := range rows {
		states[row.State]++
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.states, app)
	if len(states) > 0 {
		m.states[app] = states
	}
}

// Describe is part of prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.desc }

// Collect is part of prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, state := range []paas.InstanceState{
		paas.StateInitialized, paas.StateCreated, paas.StateUp,
		paas.StateDown, paas.StateDestroyed, paas.StateCrashed, paas.StateError,
	} {
		n := 0
		for _, states := range m.states {
			n += states[state]
		}
		ch <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, float64(n), string(state))
	}
}
