package controller

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/containerd"
	"github.com/deis/deis/internal/engine/fake"
)

// openEngine opens the engine that the settings name.
func openEngine(cfg Config) (engine.Engine, func() error, error) {
	switch cfg.Engine {
	case "fake":
		return fake.New(), func() error { return nil }, nil
	case "containerd":
		self, err := os.Executable()
		if err != nil {
			return nil, nil, fmt.Errorf("find deis-shimlog: %w", err)
		}
		root, err := filepath.Abs(cfg.Root)
		if err != nil {
			return nil, nil, err
		}
		address := cfg.ContainerdAddress
		if address == "" {
			address = filepath.Join(root, "run", "containerd.sock")
		}
		e, err := containerd.New(containerd.Options{
			Address: address, Root: root, PlatformID: platformID(root),
			ShimLog: filepath.Join(filepath.Dir(self), "deis-shimlog"), Log: cfg.Log, Metrics: cfg.Metrics,
		})
		if err != nil {
			return nil, nil, err
		}
		return e, e.Close, nil
	}
	return nil, nil, fmt.Errorf("engine %q is neither containerd nor fake", cfg.Engine)
}

// platformID tells the platforms on one machine apart: it is derived from the
// root directory, as in the other daemons.
func platformID(root string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(root)))[:6]
}
