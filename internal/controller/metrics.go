package controller

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/store"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	store    *prometheus.HistogramVec
}

// newMetrics registers the API's metrics, if there is where.
func newMetrics(reg prometheus.Registerer, h *hub) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "deis_controller_requests_total", Help: "API requests by route, method and status.",
		}, []string{"route", "method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "deis_controller_request_seconds", Help: "Time to answer API requests by route; streams and rollouts are as long as they last.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60, 600},
		}, []string{"route"}),
		store: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "deis_store_duration_seconds", Help: "Time of operations of the store: read is one query, write one transaction, of which wait is for other writers and commit for the disk.",
			Buckets: []float64{.0001, .0005, .001, .005, .01, .05, .1, .5, 1, 5},
		}, []string{"class"}),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.seconds, m.store, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "deis_controller_routers", Help: "Routers that follow the routing table.",
		}, func() float64 { return float64(h.connected()) }))
	}
	return m
}

// knownMethods bounds the label: a method is a stranger's text.
var knownMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

func (m *metrics) answered(route, method string, status int, took time.Duration) {
	if !slices.Contains(knownMethods, method) {
		method = "other"
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(route).Observe(took.Seconds())
}

// stored notes the time of an operation of the store (store.Observe).
func (m *metrics) stored(c store.Class, took time.Duration) {
	m.store.WithLabelValues(string(c)).Observe(took.Seconds())
}

// registerDisk registers what the platform's directory holds and has room for.
func (s *server) registerDisk(reg prometheus.Registerer) error {
	gauge := func(name, help string, of func(size, free int64) int64) error {
		return reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			size, free, err := s.fileSystem()
			if err != nil {
				return math.NaN()
			}
			return float64(of(size, free))
		}))
	}
	return errors.Join(
		daemon.DiskUsage(reg, "images", func(ctx context.Context) (int64, error) {
			usage, err := s.usage(ctx)
			return usage.Images, err
		}),
		daemon.DiskUsage(reg, "logs", s.ofApps(func(app engine.AppUsage) int64 { return app.Logs })),
		daemon.DiskUsage(reg, "written", s.ofApps(func(app engine.AppUsage) int64 { return app.Written })),
		daemon.DiskUsage(reg, "database", func(ctx context.Context) (int64, error) {
			return daemon.DirSize(ctx, filepath.Join(s.cfg.Root, "db"))
		}),
		gauge("deis_disk_size_bytes", "Size of the file system that the platform's directory is on.",
			func(size, _ int64) int64 { return size }),
		gauge("deis_disk_free_bytes", "What is free on it.", func(_, free int64) int64 { return free }),
		gauge("deis_disk_reserve_bytes", "Pushes are refused while less is free.",
			func(size, _ int64) int64 { return s.reserve(size) }))
}

// ofApps adds up something that all apps take.
func (s *server) ofApps(part func(engine.AppUsage) int64) func(context.Context) (int64, error) {
	return func(ctx context.Context) (size int64, err error) {
		usage, err := s.usage(ctx)
		for _, app := range usage.Apps {
			size += part(app)
		}
		return size, err
	}
}

const (
	// expirySoon and expiryPast bound which certificates Prometheus is told of, and
	// maxExpiries how many: users upload them.
	expirySoon, expiryPast = 30 * 24 * time.Hour, 7 * 24 * time.Hour
	maxExpiries            = 100
	// expiryTime bounds how long a scrape waits for the store.
	expiryTime = 5 * time.Second
)

var descExpiry = prometheus.NewDesc("deis_certificate_expiry_timestamp_seconds",
	"End of uploaded certificates that end within 30 days or have ended in the last 7, the first 100.", []string{"name"}, nil)

// expiries asks the store when Prometheus asks.
type expiries struct{ s *server }

// Describe implements prometheus.Collector.
func (c expiries) Describe(ch chan<- *prometheus.Desc) { ch <- descExpiry }

// Collect implements prometheus.Collector.
func (c expiries) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), expiryTime)
	defer cancel()
	now := time.Now()
	ends, err := c.s.store.CertificateEnds(ctx, now.Add(-expiryPast), now.Add(expirySoon), maxExpiries)
	if err != nil {
		c.s.cfg.Log.Warn("the ends of certificates are not known", "error", err.Error())
	}
	for name, end := range ends {
		ch <- prometheus.MustNewConstMetric(descExpiry, prometheus.GaugeValue, float64(end.Unix()), name)
	}
}
