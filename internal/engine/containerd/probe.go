package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// defaultProbeTimeout is for checks that name none.
const defaultProbeTimeout = 5 * time.Second

// probeClient asks each time on a new connection, and takes answers as they are.
var probeClient = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, Proxy: nil},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Probe implements engine.Engine. Its texts are those of contract 7.1.
func (e *Engine) Probe(ctx context.Context, inst engine.Instance, check engine.Check) error {
	if check.Timeout <= 0 {
		check.Timeout = defaultProbeTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, check.Timeout)
	defer cancel()
	if err := e.running(e.in(ctx), inst); err != nil {
		return err
	}
	switch {
	case !paas.Routed(inst.Type):
		return nil
	case inst.Address == "":
		return errors.New("failed to connect to container (it has no address yet)")
	case check.Path != "":
		return get(ctx, inst.Address, check.Path)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", inst.Address)
	if err != nil {
		return connectError(err)
	}
	conn.Close()
	return nil
}

// running is nil while the instance's process is there.
func (e *Engine) running(ctx context.Context, inst engine.Instance) error {
	res, err := e.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: inst.ID})
	if err = native(err); errdefs.IsNotFound(err) {
		return errors.New("failed to connect to container (it is not running)")
	}
	if errdefs.IsDeadlineExceeded(err) { // which says nothing of the instance
		err = fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	if err != nil {
		return wrap(err, "look at container %s", inst.ID)
	}
	switch res.Process.Status {
	case task.Status_RUNNING:
		return nil
	case task.Status_STOPPED:
		return fmt.Errorf("failed to connect to container (it %s)", e.reason(inst.ID, inst.App, res.Process.ExitStatus))
	}
	return errors.New("failed to connect to container (it has not started)")
}

func get(ctx context.Context, address, path string) error {
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return paas.Errorf(paas.Invalid, "health check path %q is no path", path)
	}
	req.Header.Set("User-Agent", "deis-health-check")
	res, err := probeClient.Do(req)
	if err != nil {
		return connectError(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("got '%d', expected: '200'", res.StatusCode)
	}
	return nil
}

func connectError(err error) error {
	reason := err.Error()
	var timeout net.Error
	var errno syscall.Errno
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		reason = "timed out"
	case errors.As(err, &errno):
		reason = errno.Error()
	}
	return fmt.Errorf("failed to connect to container (%s)", reason)
}
