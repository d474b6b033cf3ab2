package router

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are few and cost some atomic additions a request. Labels are the
// status class and the app's id from the table; an app's counters go with it.
type metrics struct {
	inFlight atomic.Int64
	retries  prometheus.Counter
	wait     prometheus.Histogram
	// unrouted counts answers without an app, by status class.
	unrouted [6]atomic.Uint64
}

func newMetrics() *metrics {
	return &metrics{
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "deis_router_retries_total", Help: "Requests sent to another instance after one failed.",
		}),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "deis_router_wait_seconds", Help: "Time until an app's answer began.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}),
	}
}

// observe counts a request that ended.
func (m *metrics) observe(x *exchange) {
	counters := &m.unrouted
	if x.route != nil {
		counters = &x.route.app.answers
	}
	if class := x.w.status / 100; class > 0 && class < len(counters) {
		counters[class].Add(1)
	}
	if !x.reached.IsZero() {
		m.wait.Observe(x.reached.Sub(x.began).Seconds())
	}
}

var statusClasses = [6]string{"", "1xx", "2xx", "3xx", "4xx", "5xx"}

// collector reads the counters of the table when Prometheus asks.
type collector struct {
	table    *table
	metrics  *metrics
	access   *accessLog
	follower *follower
}

var (
	descRequests  = prometheus.NewDesc("deis_router_requests_total", "Requests that ended, by app (\"\": none) and status class.", []string{"app", "class"}, nil)
	descInFlight  = prometheus.NewDesc("deis_router_requests_in_flight", "Requests and upgraded connections under way.", nil, nil)
	descApplied   = prometheus.NewDesc("deis_router_table_applied_generation", "Generation that new requests follow.", nil, nil)
	descDrained   = prometheus.NewDesc("deis_router_table_drained_generation", "Generation whose removed targets have no request under way.", nil, nil)
	descConnected = prometheus.NewDesc("deis_router_sync_connected", "1 while the router follows a controller.", nil, nil)
	descDropped   = prometheus.NewDesc("deis_router_access_log_dropped_total", "Lines that a slow sink cost.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRequests, descInFlight, descApplied, descDrained, descConnected, descDropped} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	classes := func(app string, answers *[6]atomic.Uint64) {
		for i := 1; i < len(answers); i++ {
			if n := answers[i].Load(); n > 0 {
				counter(descRequests, n, app, statusClasses[i])
			}
		}
	}
	classes("", &c.metrics.unrouted)
	for _, a := range c.table.allApps() {
		classes(a.id, &a.answers)
	}
	status := c.table.status()
	gauge(descInFlight, float64(c.metrics.inFlight.Load()))
	gauge(descApplied, float64(status.Applied))
	gauge(descDrained, float64(status.Drained))
	connected := 0.0
	if c.follower != nil && c.follower.connected.Load() {
		connected = 1
	}
	gauge(descConnected, connected)
	if c.access != nil {
		counter(descDropped, c.access.dropped.Load())
	}
}
