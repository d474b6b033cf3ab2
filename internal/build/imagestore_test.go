package build_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/internal/build/imagestore"
)

// TestPutDuringCollections: what Put writes is not collected before the image has its name.
func TestPutDuringCollections(t *testing.T) {
	p := sharedPlatform(t)
	store := p.openStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	collected := make(chan error, 1)
	go func() { collected <- collectUntil(ctx, store) }()
	for n := range 20 {
		config := ocispec.Image{Author: fmt.Sprint(n), RootFS: ocispec.RootFS{Type: "layers"}}
		name := fmt.Sprintf("deis.internal/test/put:%d", n)
		if _, err := store.Put(t.Context(), name, config, nil, nil); err != nil {
			t.Error(err)
		} else if _, err := store.Image(t.Context(), name); err != nil {
			t.Error(err)
		}
		if err := store.Remove(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	cancel()
	if err := <-collected; err != nil {
		t.Error(err)
	}
}

// collectUntil has containerd collect garbage again and again.
func collectUntil(ctx context.Context, store *imagestore.Store) error {
	manager, always := store.Client().LeasesService(), context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		lease, err := manager.Create(always, leases.WithRandomID())
		if err == nil {
			err = manager.Delete(always, lease, leases.SynchronousDelete)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
