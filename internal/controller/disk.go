package controller

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

const (
	// strayImage is how old an image must be that no build on record has, to be removed: a push that
	// is under way has one for a moment, one that could not be posted left it. It is also how old a build must be that had no
	// rollout: a deploy may wait 20 minutes for its turn.
	strayImage = time.Hour
	// usageAge is how old an answer about the disk may be: it costs a look at every image.
	usageAge = 30 * time.Second
	// collectPause is the time between two looks at apps that changed.
	collectPause = 2 * time.Second
	// retryPauses is how many of these pass before what failed is tried again: a containerd that is started again takes less.
	// Each time that it fails again it is twice as many, up to maxRetryPauses.
	retryPauses, maxRetryPauses = 5, 100
	// maxReserve bounds the part of a large disk that is kept free.
	maxReserve = 5 << 30
)

// DiskLimits are budgets in bytes; 0 means no limit.
type DiskLimits struct {
	// Reserve is what pushes must leave free; 0 means a twentieth of the file
	// system, at most 5 GiB.
	Reserve int64
	// Platform bounds what the images and logs of all apps take, App those of one.
	Platform, App int64
	// Releases is how many releases of an app keep their images, at least 1.
	Releases int
}

// collectImages removes images that no kept release needs: of all apps at first, then of
// each app to which something was done, until ctx ends.
func (s *server) collectImages(ctx context.Context) error {
	return s.watchApps(ctx, "old images are not removed", collectPause, func(app paas.App) error {
		return s.collect(ctx, app)
	})
}

// collect keeps the images of an app's last releases, of what runs or is being brought up, and of
// builds that may be about to be. Those of failed deploys go. Logs and documents of old builds go with
// their images.
func (s *server) collect(ctx context.Context, app paas.App) error {
	// In this order: what is built meanwhile is not on the list.
	var images []engine.Image
	err := s.engine.Collect(ctx, app.UUID, func(img engine.Image) bool {
		images = append(images, img)
		return true
	})
	if err != nil || len(images) == 0 {
		return err
	}
	young := time.Now().Add(-strayImage)
	known, kept, err := s.store.ImageDigests(ctx, app.UUID, max(s.cfg.Disk.Releases, 1), young)
	if err != nil {
		return err
	}
	err = s.engine.Collect(ctx, app.UUID, func(img engine.Image) bool {
		// A commit that is pushed again may get the image that failed: it is newer than what is known of it.
		stray := img.Updated.After(known[img.Digest])
		return !slices.Contains(images, img) || kept[img.Digest] || stray && img.Updated.After(young)
	})
	if err != nil {
		return err
	}
	return s.store.ForgetDocuments(ctx, app.UUID, kept)
}

// watchApps calls f for all apps, and then for each to which something was done,
// until ctx ends. Where f fails it is called again after a pause.
func (s *server) watchApps(ctx context.Context, failure string, pause time.Duration, f func(paas.App) error) error {
	seen, failed, wait := int64(-1), map[string]bool{}, retryPauses*pause
	for {
		news := s.store.News("")
		last, err := s.eachTouched(ctx, seen, failed, f)
		seen = last
		var again <-chan time.Time
		if err == nil {
			wait = retryPauses * pause
		} else if ctx.Err() == nil {
			s.cfg.Log.Warn(failure, "retry", wait.String(), "error", err.Error())
			again = time.After(wait)
			wait = min(2*wait, maxRetryPauses*pause)
		}
		select {
		case <-news:
		case <-again:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// eachTouched calls f for the apps that rows of activity after seen are about, for all with -1, and for those in failed,
// which it brings up to date. It returns the last row and the first error.
func (s *server) eachTouched(ctx context.Context, seen int64, failed map[string]bool, f func(paas.App) error) (int64, error) {
	last, touched, err := s.store.AppsTouched(ctx, seen)
	if err != nil {
		return seen, err
	}
	apps, err := s.store.AllApps(ctx)
	if err != nil {
		return seen, err
	}
	due := func(app paas.App) bool { return seen < 0 || failed[app.UUID] || slices.Contains(touched, app.UUID) }
	apps = slices.DeleteFunc(apps, func(app paas.App) bool { return !due(app) })
	clear(failed) // also of apps that are gone
	var first error
	for _, app := range apps {
		if err := f(app); err != nil {
			failed[app.UUID] = true
			first = cmp.Or(first, fmt.Errorf("app %s: %w", app.ID, err))
		}
	}
	return last, first
}

// diskUsage remembers what the engine said.
type diskUsage struct {
	mu    sync.Mutex
	usage engine.Usage
	at    time.Time
}

func (s *server) usage(ctx context.Context) (engine.Usage, error) {
	d := &s.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.at.IsZero() && time.Since(d.at) < usageAge {
		return d.usage, nil
	}
	usage, err := s.engine.Usage(ctx)
	if err == nil {
		d.usage, d.at = usage, time.Now()
	}
	return usage, err
}

// fileSystem is the one that the platform's directory is on, in bytes.
func (s *server) fileSystem() (size, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.Root, &st); err != nil {
		return 0, 0, fmt.Errorf("look at the file system of %s: %w", filepath.Base(s.cfg.Root), err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

func (s *server) reserve(size int64) int64 {
	if s.cfg.Disk.Reserve > 0 {
		return s.cfg.Disk.Reserve
	}
	return min(size/20, maxReserve)
}

// checkDisk refuses a push or a pull for which there is no room, before anything is built or fetched.
func (s *server) checkDisk(ctx context.Context, app paas.App) error {
	size, free, err := s.fileSystem()
	if err != nil {
		return err
	}
	if reserve := s.reserve(size); free < reserve {
		return paas.Errorf(paas.Conflict, "The platform's disk is full: %s of %s are free, and %s must stay free. "+
			"Its operator has to make room: 'deisctl status' shows what takes it.", api.SizeText(free), api.SizeText(size), api.SizeText(reserve))
	}
	limits := s.cfg.Disk
	if limits.Platform == 0 && limits.App == 0 {
		return nil
	}
	usage, err := s.usage(ctx)
	if err != nil {
		return err
	}
	if used := s.appDisk(usage, app).Total(); limits.App > 0 && used > limits.App {
		return paas.Errorf(paas.Conflict, "%s takes %s of disk, and an app may take %s. Make its image smaller, or destroy what you do not need; a restart ('deis ps:restart') removes "+
			"what its instances wrote. 'deis info' shows what it takes.",
			app.ID, api.SizeText(used), api.SizeText(limits.App))
	}
	used := usage.Images
	for _, a := range usage.Apps {
		used += a.Logs + a.Written
	}
	if limits.Platform > 0 && used > limits.Platform {
		return paas.Errorf(paas.Conflict, "The platform's apps take %s of disk, and may take %s. Its operator has to make room: 'deisctl status' shows what takes it.",
			api.SizeText(used), api.SizeText(limits.Platform))
	}
	return nil
}

// appDisk is what an app takes, and may take.
func (s *server) appDisk(usage engine.Usage, app paas.App) api.AppDisk {
	own := usage.Apps[app.UUID]
	return api.AppDisk{Images: own.Images, Logs: own.Logs, Written: own.Written, Limit: s.cfg.Disk.App}
}

// getDisk shows what an app takes.
func (c *call) getDisk() error {
	usage, err := c.s.usage(c.ctx)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, c.s.appDisk(usage, c.app))
}

// diskHook tells deisctl what takes the disk.
func (c *call) diskHook() error {
	size, free, err := c.s.fileSystem()
	if err != nil {
		return err
	}
	usage, err := c.s.usage(c.ctx)
	if err != nil {
		return err
	}
	answer := api.DiskHookAnswer{
		Size: size, Free: free, Reserve: c.s.reserve(size), Images: usage.Images, Limit: c.s.cfg.Disk.Platform,
	}
	apps, err := c.s.store.AllApps(c.ctx)
	if err != nil {
		return err
	}
	for _, app := range apps {
		own := c.s.appDisk(usage, app)
		answer.Logs += own.Logs
		answer.Written += own.Written
		answer.Apps = append(answer.Apps, api.HookAppDisk{App: app.ID, AppDisk: own})
	}
	slices.SortStableFunc(answer.Apps, func(a, b api.HookAppDisk) int { return cmp.Compare(b.Total(), a.Total()) })
	return c.reply(http.StatusOK, answer)
}
