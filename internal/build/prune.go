package build

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/client"

	"github.com/deis/deis/internal/paas"
)

// cacheScope names one cache of one app. It is the shared key of the build's session, which makes
// it the owner of what BuildKit keeps of the build, and the namespace of a Dockerfile's cache mounts.
func cacheScope(app string, cache int64) string { return fmt.Sprintf("app/%s/%d", app, cache) }

// owner matches the end of a record's description: the session's shared key, which our BuildKit
// adds (package buildkitd), or the id of a cache mount, which BuildKit does. Both are quoted; what
// else there may be in a description, such as a command, comes before.
var owner = regexp.MustCompile(`(?: of| with id) "(?:app|deis-layers)/([^/"\\]+)/(-?\d+)(?:/(?:[^"\\]|\\.)*)?"$`)

// ownerOf says to which app's cache a record belongs.
func ownerOf(description string) (app string, cache int64, ok bool) {
	m := owner.FindStringSubmatch(description)
	if m == nil {
		return "", 0, false
	}
	cache, err := strconv.ParseInt(m[2], 10, 64)
	return m[1], cache, err == nil
}

// Prune removes what is kept for apps that are gone: images, cache mounts, sources, results of
// steps; and of the others all caches but the current one. Images of apps that exist stay, and so
// does what a build uses at the moment. It returns the bytes that were in BuildKit's records.
//
// current tells the number of the current cache (Request.Cache) of every app that exists. It is
// asked after the cache has been listed, so that an app made meanwhile does not look gone.
func (b *Builder) Prune(ctx context.Context, current func(context.Context) (map[string]int64, error)) (freed int64, err error) {
	if err := b.Ready(ctx); err != nil {
		return 0, err
	}
	images := b.images.Client().ImageService()
	made, err := images.List(ctx, "name~="+strconv.Quote("^"+regexp.QuoteMeta(paas.LocalImages)))
	if err != nil {
		return 0, fmt.Errorf("list images: %w", err)
	}
	records, err := b.client.DiskUsage(ctx)
	if err != nil {
		return 0, fmt.Errorf("list the build cache: %w", err)
	}
	caches, err := current(ctx)
	if err != nil {
		return 0, err
	}
	for _, img := range made {
		app := strings.TrimPrefix(img.Name, paas.LocalImages)
		if i := strings.IndexAny(app, ":@"); i >= 0 {
			app = app[:i]
		}
		if _, exists := caches[app]; exists {
			continue
		}
		if err := images.Delete(ctx, img.Name); err != nil && !errdefs.IsNotFound(err) {
			return 0, fmt.Errorf("remove image %s: %w", img.Name, err)
		}
	}
	var gone []string
	for _, r := range records {
		app, cache, ok := ownerOf(r.Description)
		if now, exists := caches[app]; ok && (!exists || now != cache) {
			gone = append(gone, "id=="+r.ID)
		}
	}
	return b.pruneRecords(ctx, gone)
}

// pruneRecords removes the records that match any filter. They go in one request, because BuildKit
// removes a record only after those that build on it.
func (b *Builder) pruneRecords(ctx context.Context, filters []string) (freed int64, err error) {
	if len(filters) == 0 {
		return 0, nil // no filter would match all
	}
	removed := make(chan client.UsageInfo)
	done := make(chan error, 1)
	go func() {
		defer close(removed)
		// All, because BuildKit takes what was built on a base image and is in no image for a layer of the base
		// image. Containerd keeps the layers of images, whether BuildKit knows of them or not.
		done <- b.client.Prune(ctx, removed, client.PruneAll, client.WithFilter(filters))
	}()
	for r := range removed {
		freed += max(r.Size, 0) // -1 where it is not known
	}
	if err := <-done; err != nil {
		return freed, fmt.Errorf("prune the build cache: %w", errors.Join(err, context.Cause(ctx)))
	}
	return freed, nil
}
