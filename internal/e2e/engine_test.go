package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	ctd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/deis/deis/internal/daemon"
)

// container is an instance as its engine sees it.
type container struct {
	id, app, kind string // kind is the process type
	num           int
	version       int
	generation    int
	pid           int    // 0 unless it runs
	address       string // without port
}

func (c container) String() string {
	return fmt.Sprintf("%s_v%d.%s.%d", c.app, c.version, c.kind, c.num)
}

// id is what names things of the platform on the host.
func (p *platform) id() string { return daemon.PlatformID(p.root) }

// engine calls f with a client of the platform's containerd, and a context for calls of it.
func (p *platform) engine(f func(ctx context.Context, c *ctd.Client) error) error {
	c, err := ctd.New(filepath.Join(p.root, "run", "containerd.sock"), ctd.WithTimeout(20*time.Second))
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return f(namespaces.WithNamespace(ctx, "deis-"+p.id()), c)
}

// containers lists those of instances and one-offs.
func (p *platform) containers() (list []container, err error) {
	err = p.engine(func(ctx context.Context, c *ctd.Client) error {
		records, err := c.ContainerService().List(ctx, `labels."deis.kind"`)
		if err != nil {
			return err
		}
		for _, r := range records {
			one := container{id: r.ID, app: r.Labels["deis.app-id"], kind: r.Labels["deis.type"]}
			one.num, _ = strconv.Atoi(r.Labels["deis.num"])
			one.version, _ = strconv.Atoi(r.Labels["deis.version"])
			one.generation, _ = strconv.Atoi(r.Labels["deis.generation"])
			one.pid, one.address = p.running(r.ID)
			list = append(list, one)
		}
		return nil
	})
	return list, err
}

// running finds a container's first process by its control group, and its address.
func (p *platform) running(id string) (pid int, address string) {
	for _, base := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup"} { // version 1 and 2
		text, err := os.ReadFile(filepath.Join(base, "deis-"+p.id(), id, "cgroup.procs"))
		if err != nil {
			continue
		}
		first, _, _ := strings.Cut(string(text), "\n")
		pid, _ = strconv.Atoi(first)
		break
	}
	text, err := os.ReadFile(filepath.Join(p.root, "run", "instances", id, "start.json"))
	var start struct{ Address string }
	if err == nil && json.Unmarshal(text, &start) == nil {
		address = start.Address
	}
	return pid, address
}

// left lists everything that the engine and the builder keep on the machine besides what containers need that run:
// it is empty when nothing was leaked.
func (p *platform) left() (left []string, err error) {
	list, err := p.containers()
	if err != nil {
		return nil, err
	}
	want := map[string]bool{}
	for _, c := range list {
		want[c.id] = true
		if c.pid == 0 {
			left = append(left, "a container without process: "+c.String())
		}
	}
	compare := func(what string, have []string) {
		for _, id := range have {
			if !want[id] {
				left = append(left, what+" of no container: "+id)
			}
		}
		if len(have) < len(want) {
			left = append(left, fmt.Sprintf("%d %s for %d containers", len(have), what, len(want)))
		}
	}
	compare("network namespaces", names(filepath.Join(p.root, "run", "netns")))
	compare("directories", names(filepath.Join(p.root, "run", "instances")))
	compare("addresses", p.addressHolders())
	compare("control groups", p.cgroups())
	shims, writers := p.helpers()
	compare("shims", shims)
	if len(writers) > len(list) {
		left = append(left, fmt.Sprintf("%d log writers for %d containers", len(writers), len(list)))
	}
	left = append(left, p.tempFiles()...)
	for pid, args := range processArgs() {
		if cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); strings.HasPrefix(cwd, filepath.Join(p.root, "repos")) {
			left = append(left, fmt.Sprintf("a process of a push: %d %v", pid, args))
		}
	}
	err = p.engine(func(ctx context.Context, c *ctd.Client) error {
		var ours []string
		walk := func(_ context.Context, info snapshots.Info) error {
			ours = append(ours, info.Name)
			return nil
		}
		if err := c.SnapshotService("overlayfs").Walk(ctx, walk, `labels."deis.kind"`); err != nil {
			return err
		}
		compare("snapshots", ours)
		held, err := c.LeasesService().List(ctx)
		for _, l := range held {
			// BuildKit's cache is a lease for each record, and one for a record that it mounted to read from. Its
			// others are marked as temporary, those of containerd's clients expire: when nothing is under way there are none.
			if record, ok := strings.CutSuffix(l.ID, "-view"); ok && slices.ContainsFunc(held, func(l leases.Lease) bool { return l.ID == record }) {
				continue
			}
			_, temporary := l.Labels["buildkit/lease.temporary"]
			_, expires := l.Labels["containerd.io/gc.expire"]
			if temporary || expires {
				left = append(left, fmt.Sprintf("a lease: %s %v", l.ID, l.Labels))
			}
		}
		return err
	})
	return left, err
}

func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// addressHolders are the containers that have addresses on the instances' network.
func (p *platform) addressHolders() (ids []string) {
	files, _ := filepath.Glob(filepath.Join(p.root, "cni", "*", "*"))
	deeper, _ := filepath.Glob(filepath.Join(p.root, "cni", "*", "*", "*"))
	for _, file := range append(files, deeper...) {
		if net.ParseIP(filepath.Base(file)) == nil {
			continue
		}
		text, _ := os.ReadFile(file)
		id, _, _ := strings.Cut(string(text), "\n")
		if id = strings.TrimSpace(id); len(id) == 32 { // not those of BuildKit's pool
			ids = append(ids, id)
		}
	}
	return ids
}

// cgroups are those of the platform's instances in one hierarchy.
func (p *platform) cgroups() (ids []string) {
	for _, base := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup"} {
		dirs, _ := filepath.Glob(filepath.Join(base, "deis-"+p.id(), "*", "cgroup.procs"))
		for _, d := range dirs {
			if id := filepath.Base(filepath.Dir(d)); len(id) == 32 {
				ids = append(ids, id)
			}
		}
		if len(ids) > 0 {
			break
		}
	}
	return ids
}

// helpers lists the containers of the platform's shims, and the pids of its log writers.
func (p *platform) helpers() (shims []string, writers []int) {
	for pid, args := range processArgs() {
		switch {
		case strings.HasSuffix(args[0], "containerd-shim-runc-v2"):
			if i := slices.Index(args, "-namespace"); i < 0 || args[i+1] != "deis-"+p.id() {
				continue
			}
			// A shim is started by another process of the same program, which is gone in a moment.
			if i := slices.Index(args, "-id"); i > 0 && len(args[i+1]) == 32 && args[len(args)-1] != "start" {
				shims = append(shims, args[i+1])
			}
		case strings.HasSuffix(args[0], "deis-shimlog") && strings.Contains(strings.Join(args, " "), p.root):
			writers = append(writers, pid)
		}
	}
	return shims, writers
}

// processArgs are the command lines of all processes that have one.
func processArgs() map[int][]string {
	found := map[int][]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		args := strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if err == nil && args[0] != "" {
			found[pid] = args
		}
	}
	return found
}

// tempFiles lists what is in the platform's directory for temporary files, and what has such a name elsewhere.
func (p *platform) tempFiles() (found []string) {
	for _, name := range names(p.tmp()) {
		found = append(found, "a temporary file: "+name)
	}
	_ = filepath.WalkDir(p.root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "containerd" || d.Name() == "snapshots" || d.Name() == "netns"):
			return fs.SkipDir // containerd's own
		case strings.HasSuffix(path, ".tmp"), strings.HasPrefix(d.Name(), "tmp_"), strings.HasPrefix(d.Name(), "incoming-"):
			found = append(found, "a temporary file: "+path)
		}
		return nil
	})
	return found
}

// tmp is where the daemons put temporary files.
func (p *platform) tmp() string { return filepath.Join(p.root, "t") }

// wantNothingLeft waits until nothing is left over, and until only instances run that these numbers, by app, say.
func (p *platform) wantNothingLeft(t testing.TB, limit time.Duration, want map[string]int) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		left, err := p.left()
		list, errList := p.containers()
		count := map[string]int{}
		for _, c := range list {
			count[c.app]++
		}
		for app := range count {
			if count[app] != want[app] {
				left = append(left, fmt.Sprintf("%d instances of %s, want %d: %v", count[app], app, want[app], list))
			}
		}
		for app, n := range want {
			if n > 0 && count[app] == 0 {
				left = append(left, "no instance of "+app)
			}
		}
		if err = errors.Join(err, errList); err == nil && len(left) == 0 {
			return
		}
		if time.Since(began) > limit {
			t.Errorf("left after %v: %v\n%s", limit, err, strings.Join(left, "\n"))
			return
		}
	}
}

// kill ends a process at once; that it is gone already is good.
func kill(pid int) error {
	if pid <= 1 {
		return fmt.Errorf("no process %d to kill", pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}
