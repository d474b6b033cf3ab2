package buildkitd

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"

	"github.com/deis/deis/internal/paas"
)

// sourceImages is containerd's image store as builds may read it, by FROM, COPY --from and the like: without the
// images of apps. BuildKit writes those, and reads by name only what builds ask for.
type sourceImages struct{ images.Store }

// Get is part of images.Store.
func (s sourceImages) Get(ctx context.Context, name string) (images.Image, error) {
	if strings.HasPrefix(name, paas.LocalImages) {
		return images.Image{}, fmt.Errorf("image %s: %w", name, errdefs.ErrNotFound)
	}
	return s.Store.Get(ctx, name)
}
