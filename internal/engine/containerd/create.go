package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"time"

	ctd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/hostnet"
	"github.com/deis/deis/internal/paas"
)

// start creates and starts one instance. When it fails, nothing remains.
func (e *Engine) start(ctx context.Context, img *image, spec engine.SetSpec, num int) error {
	select {
	case e.creating <- struct{}{}:
		defer func() { <-e.creating }()
	case <-ctx.Done():
		return ctx.Err()
	}
	began := time.Now()
	r := record{
		SetKey: spec.SetKey, ID: newID(), Kind: kindInstance, Num: num,
		AppID: spec.Process.AppID, Version: spec.Process.Version,
	}
	log, err := e.openLog(r)
	if err != nil {
		return err
	}
	made, err := e.create(ctx, img, r, spec.Process, log)
	if err == nil && made.failed == "" {
		err = made.start(ctx)
	}
	if err == nil && made.failed != "" {
		err = e.setFailed(ctx, r.ID, made.failed)
	}
	if err != nil {
		return errors.Join(err, e.discard(ctx, r, 0))
	}
	e.setBusy(r.ID, r.App, "")
	e.watch.notify(r.App)
	e.metrics.start.Observe(time.Since(began).Seconds())
	return nil
}

// discard removes what is there of a container that shall not be. What it cannot remove, maybe because containerd is away, tidy
// finds.
func (e *Engine) discard(ctx context.Context, r record, grace time.Duration) error {
	ctx, cancel := cleanup(e.in(ctx))
	defer cancel()
	err := again(ctx, func(ctx context.Context) error { return e.removeAll(ctx, []record{r}, grace) })
	if err != nil {
		select {
		case e.untidy <- struct{}{}:
		default: // it will look anyway
		}
	}
	return err
}

// created is a container that is ready to start.
type created struct {
	e       *Engine
	task    ctd.Task
	address netip.Addr
	id      string
	// failed says why its process can never start: the command's fault or the
	// image's. There is no task then.
	failed string
}

// create makes all of a container but lets its process wait. The network is set
// up at the same time as the rest, since both take long. When it fails, the
// caller discards what is there.
func (e *Engine) create(ctx context.Context, img *image, r record, process engine.Process, streams cio.Creator, more ...oci.SpecOpts) (*created, error) {
	e.setBusy(r.ID, r.App, paas.StateCreated)
	port, err := choosePort(process.Env, img.config)
	if err != nil {
		return nil, err
	}
	r.Port = port
	if err := os.Mkdir(e.instanceDir(r.ID), 0o750); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	if err := e.writeNames(r, netip.Addr{}); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	if err := hostnet.NewNamespace(e.netns(r.ID)); err != nil {
		return nil, err
	}
	made := &created{e: e, id: r.ID}
	attached := make(chan error, 1)
	go func() {
		var err error
		if made.address, err = e.network.Attach(ctx, r.ID, e.netns(r.ID)); err == nil {
			err = e.writeNames(r, made.address)
		}
		attached <- err
	}()
	made.task, err = e.newTask(ctx, img, r, process, streams, more...)
	if reason := startFailure(err); reason != "" {
		made.failed, err = reason, nil
	}
	return made, errors.Join(err, <-attached)
}

// start lets the process run.
func (c *created) start(ctx context.Context) error {
	info := &startInfo{Address: c.address, Started: time.Now()}
	text, err := json.Marshal(info)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.e.startFile(c.id), text, 0o640); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	return wrap(c.task.Start(ctx), "start container %s", c.id)
}

// newTask makes snapshot, record and waiting process.
func (e *Engine) newTask(ctx context.Context, img *image, r record, process engine.Process, streams cio.Creator, more ...oci.SpecOpts) (ctd.Task, error) {
	if err := e.prepare(ctx, img, r.ID); err != nil {
		return nil, err
	}
	c := containers.Container{
		ID:          r.ID,
		Labels:      r.labels(),
		Image:       img.name,
		Runtime:     containers.RuntimeInfo{Name: runcRuntime},
		Snapshotter: snapshotter,
		SnapshotKey: r.ID,
	}
	spec, err := e.spec(ctx, img, r, process, &c, more...)
	if err != nil {
		return nil, err
	}
	if c.Spec, err = typeurl.MarshalAny(spec); err != nil {
		return nil, fmt.Errorf("encode container spec: %w", err)
	}
	if _, err := e.client.ContainerService().Create(ctx, c); err != nil {
		return nil, wrap(err, "create container")
	}
	container, err := e.client.LoadContainer(ctx, r.ID)
	if err != nil {
		return nil, wrap(err, "create container")
	}
	task, err := container.NewTask(ctx, streams)
	return task, wrap(err, "create container")
}

// prepare makes the writable layer. Its label keeps the garbage collector away
// until the record refers to it.
func (e *Engine) prepare(ctx context.Context, img *image, id string) error {
	root := snapshots.WithLabels(map[string]string{
		"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339),
		labelKind:               kindInstance,
	})
	err := e.makeSnapshot(ctx, id, img.chainID, root)
	if errdefs.IsNotFound(err) {
		if err = pastStray(func() error { return e.unpack(ctx, img) }); err == nil {
			err = e.makeSnapshot(ctx, id, img.chainID, root)
		}
	}
	return wrap(err, "create snapshot of %s", img.name)
}

// makeSnapshot makes one at a time: see pastStray.
func (e *Engine) makeSnapshot(ctx context.Context, id, parent string, opts ...snapshots.Opt) error {
	if _, err := e.client.Version(ctx); err != nil { // who waits for containerd holds up nobody
		return native(err)
	}
	e.preparing.Lock()
	defer e.preparing.Unlock()
	return pastStray(func() error {
		_, err := e.client.SnapshotService(snapshotter).Prepare(ctx, id, parent, opts...)
		return err
	})
}

// pastStray makes a snapshot, and tries again where its directory is there already. A containerd that is killed between making
// the directory and writing that down gives the number again when it is back; it fails then and removes the directory, no
// matter whether somebody else has made a snapshot of that number meanwhile.
func pastStray(do func() error) error {
	err := do()
	if err != nil && strings.Contains(err.Error(), "failed to rename") && strings.Contains(err.Error(), "file exists") {
		return do()
	}
	return err
}

func (e *Engine) setFailed(ctx context.Context, id, reason string) error {
	c := containers.Container{ID: id, Labels: map[string]string{labelFailed: reason}}
	_, err := e.client.ContainerService().Update(ctx, c, "labels."+labelFailed)
	return wrap(err, "record why container %s failed", id)
}

// commandFailure finds, in what runc says, that the command is at fault.
var commandFailure = regexp.MustCompile(`(exec|chdir to cwd)(:| \().*`)

// startFailure says in words why a task could not be created, if that is for
// the user to mend, and is empty otherwise.
func startFailure(err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	switch {
	case !strings.Contains(text, "OCI runtime create failed"):
		return ""
	case strings.Contains(text, "OOM-killed"):
		return "cannot start: its memory limit is too low"
	}
	reason := commandFailure.FindString(text)
	if reason == "" {
		return ""
	}
	return "cannot start: " + strings.TrimSuffix(reason, ": unknown")
}

// names are the files that tell a process who and where it is.
type nameFile struct{ name, path string }

func (e *Engine) nameFiles(id string) []nameFile {
	return []nameFile{
		{"hosts", "/etc/hosts"},
		{"resolv.conf", "/etc/resolv.conf"},
		{"hostname", "/etc/hostname"},
	}
}

// writeNames writes these files, in place since they may be mounted already.
func (e *Engine) writeNames(r record, address netip.Addr) error {
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if address.IsValid() {
		hosts += address.String() + "\t" + hostname(r) + "\n"
	}
	for name, text := range map[string]string{
		"hosts": hosts, "resolv.conf": resolvConf(), "hostname": hostname(r) + "\n",
	} {
		if err := os.WriteFile(e.instanceDir(r.ID)+"/"+name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// hostname is like web-1, of letters that are good in a host name.
func hostname(r record) string {
	const limit = 40 // the kernel takes 64
	word := strings.Trim(notHost.ReplaceAllString(strings.ToLower(r.Type), "-"), "-")
	if len(word) > limit {
		word = word[:limit]
	}
	return fmt.Sprintf("%s-%d", word, r.Num)
}

var notHost = regexp.MustCompile(`[^a-z0-9]+`)

// resolvConf is the host's, without name servers that a container cannot reach.
func resolvConf() string {
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var kept strings.Builder
		servers := 0
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) >= 2 && f[0] == "nameserver" {
				addr, err := netip.ParseAddr(f[1])
				if err != nil || addr.IsLoopback() || !addr.Is4() {
					continue
				}
				servers++
			}
			kept.WriteString(line)
		}
		if servers > 0 {
			return kept.String()
		}
	}
	return ""
}

// mounts of the name files into the container.
func (e *Engine) nameMounts(id string) []specs.Mount {
	var list []specs.Mount
	for _, f := range e.nameFiles(id) {
		list = append(list, specs.Mount{
			Destination: f.path, Type: "bind", Source: e.instanceDir(id) + "/" + f.name,
			Options: []string{"bind", "rprivate", "ro"},
		})
	}
	return list
}
