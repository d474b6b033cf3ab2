package buildkitd

import (
	"context"
	"errors"
	"path"
	"strings"
	"syscall"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
)

// removeOrphans ends the RUN steps of a predecessor that was killed: their
// containers outlive it, and nobody waits for them any more.
func (s *Server) removeOrphans(ctx context.Context) error {
	all, err := s.containerd.Containers(ctx)
	if err != nil {
		return err
	}
	prefix := path.Join("/", s.cfg.CgroupParent) + "/"
	for _, c := range all {
		spec, err := c.Spec(ctx)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if spec.Linux == nil || !strings.HasPrefix(spec.Linux.CgroupsPath, prefix) {
			continue
		}
		s.cfg.Log.Info("removing a step of an interrupted build", "container", c.ID())
		if err := removeContainer(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func removeContainer(ctx context.Context, c containerd.Container) error {
	task, err := c.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, containerd.WithProcessKill)
	}
	if err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	if err := c.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}
