package router

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/routerconf"
)

const (
	// backoffFirst and backoffMost bound the pause between two attempts: the
	// controller is usually back at once, and a router that waits two seconds
	// at most knows about it soon enough.
	backoffFirst = 50 * time.Millisecond
	backoffMost  = 2 * time.Second
	// silence is how long the stream may be quiet (see api.RoutesHeartbeatSeconds).
	silence = 3 * api.RoutesHeartbeatSeconds * time.Second
	// reportTimeout bounds one report of the status.
	reportTimeout = 5 * time.Second
	// maxLine bounds one change: more than a snapshot of 100,000 hosts with
	// certificates.
	maxLine = 1 << 30
)

// follower keeps the table at what the controller says and tells it how far
// the table is.
type follower struct {
	client *api.Client
	table  *table
	// id names this process to the controller.
	id  string
	log *slog.Logger

	connected atomic.Bool
	// again asks for a report although nothing changed: a controller that was
	// started again knows nothing of us.
	again chan struct{}
	// snapshot makes the next stream begin with the whole table. It is used by
	// run's goroutine only.
	snapshot bool
}

func newFollower(url, key, id string, tb *table, log *slog.Logger) *follower {
	transport := &http.Transport{ // no proxy from the environment
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		ResponseHeaderTimeout: silence,
		IdleConnTimeout:       time.Minute,
	}
	return &follower{
		client: &api.Client{URL: url, BuilderKey: key, UserAgent: "deis-router", HTTP: &http.Client{Transport: transport}},
		table:  tb, id: id, log: log,
		again: make(chan struct{}, 1),
	}
}

// backoff grows from attempt to attempt, with jitter, so that many routers do
// not come at the same moment.
type backoff struct{ attempt int }

func (b *backoff) reset() { b.attempt = 0 }

func (b *backoff) next() time.Duration {
	d := min(backoffFirst<<min(b.attempt, 16), backoffMost)
	b.attempt++
	return d/2 + rand.N(d/2+1)
}

// run follows the controller until ctx ends.
func (f *follower) run(ctx context.Context) {
	var pause backoff
	lost := false
	for ctx.Err() == nil {
		heard, err := f.follow(ctx)
		f.connected.Store(false)
		if ctx.Err() != nil {
			return
		}
		if heard {
			pause.reset()
			lost = false
		}
		if !lost { // once for each time that it is away
			f.log.Warn("not following the controller; serving the last table", "error", err)
			lost = true
		}
		sleep(ctx, pause.next())
	}
}

// follow applies what one stream brings. heard says that a controller answered.
func (f *follower) follow(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	generation := f.table.status().Applied
	if f.snapshot {
		generation = 0
	}
	resp, err := f.client.Do(ctx, http.MethodGet, fmt.Sprintf("/v1/hooks/routes?generation=%d&router=%s", generation, f.id), nil, nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	f.log.Info("following the controller", "generation", generation)
	f.connected.Store(true)
	select {
	case f.again <- struct{}{}:
	default:
	}
	quiet := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer quiet.Stop()
	lines := bufio.NewReaderSize(&noticed{resp.Body, func() { quiet.Reset(silence) }}, 64<<10)
	for {
		line, err := readLine(lines)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return true, fmt.Errorf("the stream of routes ended: %w", err)
		}
		if err := f.applyLine(line); err != nil {
			return true, err
		}
	}
}

var errSilent = errors.New("the controller shows no sign of life")

// applyLine takes one line of the stream; an empty one is a sign of life.
func (f *follower) applyLine(line []byte) error {
	if len(bytes.TrimSpace(line)) == 0 {
		return nil
	}
	var change routerconf.Change
	if err := json.Unmarshal(line, &change); err != nil {
		f.snapshot = true
		// The text of the line may hold keys, and so may that of the error.
		return errors.New("the stream of routes holds a line that is no change")
	}
	err := f.table.apply(change)
	if errors.Is(err, errGap) {
		f.snapshot = true
		return err
	}
	if change.Snapshot != nil {
		f.snapshot = false
	}
	if err != nil {
		f.log.Error("part of a change was left out", "generation", change.Generation, "error", err)
	}
	return nil
}

// readLine returns the next line with its end.
func readLine(r *bufio.Reader) ([]byte, error) {
	var long []byte
	for {
		part, err := r.ReadSlice('\n')
		if err == nil && long == nil {
			return part, nil
		}
		if len(long)+len(part) > maxLine {
			return nil, fmt.Errorf("a line is longer than %d bytes", maxLine)
		}
		long = append(long, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return long, err
		}
	}
}

// noticed calls seen whenever something arrives.
type noticed struct {
	r    io.Reader
	seen func()
}

func (n *noticed) Read(p []byte) (int, error) {
	count, err := n.r.Read(p)
	if count > 0 {
		n.seen()
	}
	return count, err
}

// report tells the controller the status as soon as it changes, until ctx ends.
// What changes while a report is under way is told with the next one.
func (f *follower) report(ctx context.Context) {
	changed := f.table.watch()
	var pause backoff
	var told routerconf.Status
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-f.again:
			told = routerconf.Status{}
		}
		// Without a stream nobody waits for us; the next one asks again.
		for f.connected.Load() && ctx.Err() == nil {
			status := f.table.status()
			status.Router = f.id
			if status == told {
				break
			}
			if err := f.post(ctx, status); err != nil {
				f.log.Debug("the status was not reported", "error", err)
				sleep(ctx, pause.next())
				continue
			}
			pause.reset()
			told = status
		}
	}
}

func (f *follower) post(ctx context.Context, status routerconf.Status) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	return f.client.Call(ctx, http.MethodPost, "/v1/hooks/routers", status, nil)
}
