package controller

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/containerd"
	"github.com/deis/deis/internal/engine/fake"
)

// openEngine opens the engine that the settings name.
func openEngine(cfg Config) (engine.Engine, func() error, error) {
	switch cfg.Engine {
	case EngineFake:
		return fake.New(), func() error { return nil }, nil
	case EngineContainerd:
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
			Address: address, Root: root, PlatformID: daemon.PlatformID(root), Namespace: cfg.ContainerdNamespace,
			ShimLog: filepath.Join(filepath.Dir(self), "deis-shimlog"), Log: cfg.Log, Metrics: cfg.Metrics,
		})
		if err != nil {
			return nil, nil, err
		}
		return e, e.Close, nil
	}
	return nil, nil, fmt.Errorf("engine %q is neither containerd nor fake", cfg.Engine)
}
