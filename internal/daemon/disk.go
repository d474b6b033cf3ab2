package daemon

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// diskAge is how old a size may be that Prometheus is told: to find one out may
	// mean to look at every file. Nobody who asks, no work.
	diskAge = 5 * time.Minute
	// diskTime bounds how long a scrape waits for one.
	diskTime = 5 * time.Second
)

// DiskUsage registers deis_disk_bytes for one kind of thing on the disk. size
// returns bytes; when it fails the last known size is shown, or none, and
// the other metrics are not affected. There may be one of each kind.
func DiskUsage(reg prometheus.Registerer, kind string, size func(ctx context.Context) (int64, error)) error {
	return reg.Register(&diskUsage{size: size, desc: prometheus.NewDesc(
		"deis_disk_bytes", "What takes the disk, by kind; up to five minutes old.", nil, prometheus.Labels{"kind": kind})})
}

type diskUsage struct {
	desc *prometheus.Desc
	size func(ctx context.Context) (int64, error)

	mu    sync.Mutex
	bytes int64
	at    time.Time // zero while it is not known
}

// Describe implements prometheus.Collector.
func (d *diskUsage) Describe(ch chan<- *prometheus.Desc) { ch <- d.desc }

// Collect implements prometheus.Collector.
func (d *diskUsage) Collect(ch chan<- prometheus.Metric) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.at) > diskAge {
		ctx, cancel := context.WithTimeout(context.Background(), diskTime)
		defer cancel()
		if bytes, err := d.size(ctx); err == nil {
			d.bytes, d.at = bytes, time.Now()
		}
	}
	if !d.at.IsZero() {
		ch <- prometheus.MustNewConstMetric(d.desc, prometheus.GaugeValue, float64(d.bytes))
	}
}

// DirSize adds up what the files below a directory take on the disk. Files that go meanwhile do not
// count; it stops when ctx ends.
func DirSize(ctx context.Context, dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && !entry.IsDir() {
			var info fs.FileInfo
			if info, err = entry.Info(); err == nil {
				size += allocated(info)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return size, err
}

func allocated(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512 // stat(2): in these units, whatever the file system's are
	}
	return info.Size()
}
