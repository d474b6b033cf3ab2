package builder

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/paas"
)

// metrics of the builder. All labels are words of ours.
type metrics struct {
	pushes   *prometheus.CounterVec
	stages   *prometheus.HistogramVec
	builds   *prometheus.CounterVec
	duration *prometheus.HistogramVec
	running  prometheus.Gauge
	waiting  prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		pushes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "deis_builder_pushes_total", Help: "Complete pushes by what became of them: deployed, stored or failed.",
		}, []string{"result"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "deis_builder_push_seconds", Help: "Time of the stages of deployed pushes: receive, wait, build, rollout, total.",
			Buckets: prometheus.ExponentialBuckets(0.01, 3, 10), // 10 ms to 3 min
		}, []string{"stage"}),
		builds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "deis_builds_total", Help: "Builds by strategy (empty: it failed before one was chosen) and outcome: built; failed, by what was pushed; error, by the platform.",
		}, []string{"strategy", "outcome"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "deis_build_duration_seconds", Help: "Time of builds by strategy and outcome, without waiting.",
			Buckets: prometheus.ExponentialBuckets(0.25, 2.5, 9), // a quarter of a second to six minutes
		}, []string{"strategy", "outcome"}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{Name: "deis_builds_running", Help: "Builds under way."}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Name: "deis_builds_waiting", Help: "Builds that wait for others to end."}),
	}
	// What is zero and not missing can be seen to begin.
	for _, result := range []string{"deployed", "stored", "failed"} {
		m.pushes.WithLabelValues(result)
	}
	for _, strategy := range []paas.Strategy{paas.StrategyDockerfile, paas.StrategyBuildpacks} {
		for _, outcome := range []string{"built", "failed", "error"} {
			m.builds.WithLabelValues(string(strategy), outcome)
		}
	}
	return m
}

// register registers them, and the size of the repositories in a directory.
func (m *metrics) register(r prometheus.Registerer, repositories string) error {
	var errs []error
	for _, c := range []prometheus.Collector{m.pushes, m.stages, m.builds, m.duration, m.running, m.waiting} {
		errs = append(errs, r.Register(c))
	}
	return errors.Join(append(errs, daemon.DiskUsage(r, "repositories", func(ctx context.Context) (int64, error) {
		return daemon.DirSize(ctx, repositories)
	}))...)
}

// built counts a build that ended.
func (m *metrics) built(strategy paas.Strategy, err error, took time.Duration) {
	outcome := "built"
	switch {
	case err != nil && paas.CodeOf(err) == paas.Invalid:
		outcome = "failed"
	case err != nil:
		outcome = "error"
	}
	m.builds.WithLabelValues(string(strategy), outcome).Inc()
	m.duration.WithLabelValues(string(strategy), outcome).Observe(took.Seconds())
}
