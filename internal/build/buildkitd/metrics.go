package buildkitd

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/buildkit/client"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/deis/deis/internal/daemon"
)

// register registers how large the build cache is and how large it may become.
func (s *Server) register(reg prometheus.Registerer) error {
	return errors.Join(daemon.DiskUsage(reg, "build_cache", s.cacheSize), reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "deis_build_cache_limit_bytes", Help: "What the build cache may take; then what is used least is dropped.",
	}, func() float64 { return float64(s.cfg.MaxCache) })))
}

// cacheSize adds up BuildKit's records.
func (s *Server) cacheSize(ctx context.Context) (size int64, err error) {
	records, err := s.worker.DiskUsage(ctx, client.DiskUsageInfo{})
	if err != nil {
		return 0, fmt.Errorf("size of the build cache: %w", err)
	}
	for _, r := range records {
		size += r.Size
	}
	return size, nil
}
