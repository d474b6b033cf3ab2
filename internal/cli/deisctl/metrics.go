package deisctl

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/supervisor"
)

// targetsFile, in run/, tells Prometheus where the daemons of this platform are
// (file_sd_config of its documentation).
const targetsFile = "prometheus.json"

// target is one element of it.
type target struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// serveMetrics serves what the supervisor knows of the parts at /metrics on a
// loopback address, until the listener that it returns is closed, and writes the
// file with the private addresses of all daemons.
func (s *settings) serveMetrics(sup *supervisor.Supervisor, parts []supervisor.Part) (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("metrics address: %w", err)
	}
	targets := []target{{[]string{l.Addr().String()}, map[string]string{"daemon": "deisctl"}}}
	for _, p := range parts {
		for _, socket := range p.Sockets {
			if socket.Name == adminSocket {
				targets = append(targets, target{[]string{socket.Addr}, map[string]string{"daemon": p.Name}})
			}
		}
	}
	if err := writeTargets(s.run(targetsFile), targets); err != nil {
		l.Close()
		return nil, fmt.Errorf("tell Prometheus where the daemons are: %w", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), partsCollector{sup})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(l) }() // ends when the caller closes the listener
	return l, nil
}

// writeTargets replaces the file at once: Prometheus reads it whenever it changes.
func writeTargets(path string, targets []target) error {
	text, err := json.MarshalIndent(targets, "", "  ")
	if err != nil {
		return err
	}
	return daemon.WriteFile(path, append(text, '\n'), 0o644)
}

// partsCollector asks the supervisor when Prometheus asks us.
type partsCollector struct{ sup *supervisor.Supervisor }

var (
	descPartUp       = prometheus.NewDesc("deis_part_up", "1 while a part of the platform runs and is healthy.", []string{"part"}, nil)
	descPartRestarts = prometheus.NewDesc("deis_part_restarts_total", "Times that a part died and was started again.", []string{"part"}, nil)
	descPartMemory   = prometheus.NewDesc("deis_part_memory_bytes", "Resident memory of a part.", []string{"part"}, nil)
)

// Describe implements prometheus.Collector.
func (c partsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descPartUp, descPartRestarts, descPartMemory} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c partsCollector) Collect(ch chan<- prometheus.Metric) {
	for _, st := range c.sup.Status() {
		up := 0.0
		if st.State == supervisor.Running {
			up = 1
		}
		ch <- prometheus.MustNewConstMetric(descPartUp, prometheus.GaugeValue, up, st.Name)
		ch <- prometheus.MustNewConstMetric(descPartRestarts, prometheus.CounterValue, float64(st.Restarts), st.Name)
		ch <- prometheus.MustNewConstMetric(descPartMemory, prometheus.GaugeValue, float64(st.Memory), st.Name)
	}
}
