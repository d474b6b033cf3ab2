package rollout

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/deis/deis/internal/paas"
)

// metrics of a manager. Labels are kinds, outcomes and states, all from our own tables.
type metrics struct {
	rollouts *prometheus.CounterVec
	duration *prometheus.HistogramVec
	repairs  prometheus.Counter

	mu     sync.Mutex
	states map[string]map[paas.InstanceState]int // by app
	desc   *prometheus.Desc
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		rollouts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "deis_rollouts_total", Help: "Rollouts by kind and outcome.",
		}, []string{"kind", "outcome"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "deis_rollout_duration_seconds", Help: "Time from the start of a rollout to its end.",
			Buckets: []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 1200},
		}, []string{"kind"}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "deis_set_restarts_total", Help: "Attempts to start ended or missing instances of a live set.",
		}),
		states: map[string]map[paas.InstanceState]int{},
		desc: prometheus.NewDesc("deis_instances", "Instances that should run or are being started, by state.",
			[]string{"state"}, nil),
	}
	if reg != nil {
		reg.MustRegister(m.rollouts, m.duration, m.repairs, m)
	}
	return m
}

// ended counts a rollout that came to its end.
func (m *metrics) ended(kind paas.RolloutKind, err error, took time.Duration) {
	outcome := "succeeded"
	switch {
	case errors.Is(err, errStopping):
		return
	case err != nil:
		outcome = "failed"
	}
	m.rollouts.WithLabelValues(string(kind), outcome).Inc()
	m.duration.WithLabelValues(string(kind)).Observe(took.Seconds())
}

func (m *metrics) repaired() { m.repairs.Inc() }

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
