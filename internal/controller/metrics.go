package controller

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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

// diskTime bounds how long a scrape waits for the sizes.
const diskTime = 5 * time.Second

var (
	descDisk     = prometheus.NewDesc("deis_disk_bytes", "What takes the disk, by kind.", []string{"kind"}, nil)
	descDiskSize = prometheus.NewDesc("deis_disk_size_bytes", "Size of the file system that the platform's directory is on.", nil, nil)
	descDiskFree = prometheus.NewDesc("deis_disk_free_bytes", "What is free on it.", nil, nil)
	descReserve  = prometheus.NewDesc("deis_disk_reserve_bytes", "Pushes are refused while less is free.", nil, nil)
)

// diskCollector looks at the disk when Prometheus asks.
type diskCollector struct{ s *server }

// Describe implements prometheus.Collector.
func (c diskCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descDisk, descDiskSize, descDiskFree, descReserve} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. What cannot be looked at is left out:
// that containerd is away must not hide all other metrics.
func (c diskCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), diskTime)
	defer cancel()
	if usage, err := c.s.usage(ctx); err == nil {
		logs := int64(0)
		for _, app := range usage.Apps {
			logs += app.Logs
		}
		gauge(descDisk, usage.Images, "images")
		gauge(descDisk, logs, "logs")
	}
	if size, err := c.s.databaseSize(); err == nil {
		gauge(descDisk, size, "database")
	}
	if size, free, err := c.s.fileSystem(); err == nil {
		gauge(descDiskSize, size)
		gauge(descDiskFree, free)
		gauge(descReserve, c.s.reserve(size))
	}
}

// databaseSize is that of the store's files, in bytes.
func (s *server) databaseSize() (size int64, err error) {
	entries, err := os.ReadDir(filepath.Join(s.cfg.Root, "db"))
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			size += info.Size()
		}
	}
	return size, err
}
