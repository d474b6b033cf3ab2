package buildkitd

import (
	"context"
	"runtime"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// roomShare is the part of the disk, one in so many, that must be free for BuildKit's own pace to be good enough: it looks at
// the bound of the cache once a minute, and a small disk may be full before.
const roomShare = 4

// releasePause is how long the answer to a failed build may take to be written.
const releasePause = time.Second

// collector lets go of what a failed build wrote, and brings the cache below its bound after each build while the disk is short.
type collector struct {
	server *Server
	work   sync.WaitGroup
	mu     sync.Mutex // held by the one that collects
}

// afterBuild is an interceptor. What it starts goes on after the answer; wait waits for it.
func (c *collector) afterBuild(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	answer, err := handle(ctx, req)
	failed := err != nil // err itself must not be held
	if _, build := req.(*controlapi.SolveRequest); build && (failed || c.short()) {
		c.work.Go(func() {
			if failed {
				c.release()
			}
			if c.short() {
				c.collect(context.WithoutCancel(ctx))
			}
		})
	}
	return answer, err
}

// release removes the files of a step that failed or was killed. BuildKit keeps them for the step's error, until Go's own garbage
// collector finds that nobody has that any more, which may take minutes when nothing else is built.
func (c *collector) release() {
	select {
	case <-time.After(releasePause):
	case <-c.server.stopping:
	}
	runtime.GC()
}

func (c *collector) wait() { c.work.Wait() }

func (c *collector) short() bool {
	var st unix.Statfs_t
	return unix.Statfs(c.server.cfg.Root, &st) == nil && st.Bavail < st.Blocks/roomShare
}

// collect does what BuildKit does once a minute. One that is under way already is good enough: the next build follows.
func (c *collector) collect(ctx context.Context) {
	if !c.mu.TryLock() {
		return
	}
	defer c.mu.Unlock()
	removed := make(chan client.UsageInfo)
	done := make(chan error, 1)
	go func() {
		defer close(removed)
		done <- c.server.worker.Prune(ctx, removed, gcPolicy(c.server.cfg.MaxCache)...)
	}()
	var freed int64
	for r := range removed {
		freed += max(r.Size, 0) // -1 where it is not known
	}
	if err := <-done; err != nil {
		c.server.cfg.Log.Warn("the build cache was not brought below its bound", "error", err.Error())
		return
	}
	c.server.cfg.Log.Debug("the disk is short: build cache removed", "bytes", freed)
}
