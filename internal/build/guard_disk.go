package build

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"golang.org/x/sys/unix"

	"github.com/deis/deis/internal/paas"
)

const (
	// diskSteps is into how many parts the limit is divided: what a build wrote is counted, which takes a walk
	// through it, only when the file system has lost another part.
	diskSteps = 16
	// It is counted every diskRecount too, since others may free what this build takes, but then it may
	// take no more than one part in diskEffort of the time.
	diskRecount = time.Second
	diskEffort  = 20
	// diskReserve is what builds leave free of the disk: below it, apps and the database are at stake.
	diskReserve = 0.02
	// clockSlack is by how much the time stamps of files are behind the clock, with room.
	clockSlack = 20 * time.Millisecond
)

// disk counts what a build writes: all regular files, in the upper layers and the
// cache mounts of its steps, that changed since it started.
type disk struct {
	since   time.Time
	dirs    map[string]bool // every directory that the build could write to
	steps   map[string]bool // those that were looked at
	free    int64           // when it was counted last
	counted time.Time
	effort  time.Duration // of the last count
}

// snapshotDir is where the layers of builds and images are on the disk of this machine, "" when
// containerd does not say. A containerd that restarts is waited for.
func (b *Builder) snapshotDir(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	if _, err := b.images.Client().IsServing(ctx); err != nil {
		return "", err
	}
	plugins, err := b.images.Client().IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1,id=="+defaults.DefaultSnapshotter)
	if err != nil {
		return "", err
	}
	if len(plugins.GetPlugins()) == 0 {
		return "", nil
	}
	return plugins.GetPlugins()[0].GetExports()["root"], nil
}

// watchDisk returns an error when the build wrote too much or the disk is nearly full, or nil at the end of ctx.
func (g *guard) watchDisk(ctx context.Context) error {
	if g.group == nil || g.snapshots == "" {
		return nil
	}
	d := &disk{since: g.started.Add(-clockSlack), dirs: map[string]bool{}, steps: map[string]bool{}}
	tick := time.NewTicker(guardTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		free, err := space(g.snapshots)
		if err != nil {
			return err
		}
		d.find(g.group)
		if g.limits.Disk > 0 && d.due(free, g.limits.Disk) && d.count(ctx, free) > g.limits.Disk {
			return exceeded("it wrote more to the disk than it may", formatSize(g.limits.Disk), diskName,
				"Let it write less, for example remove what it downloads in the same step", g.config)
		}
	}
}

// space is what is free of the file system of a directory. It is an error when that is too little to build.
func space(dir string) (free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	free, total := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	if float64(free) < diskReserve*float64(total) {
		return free, paas.Errorf(paas.Unavailable, "the disk of the build machine is nearly full: %s of %s are free\n"+
			"Ask the platform's operator to make room.", formatSize(free>>20<<20), formatSize(total>>30<<30))
	}
	return free, nil
}

// due reports whether it is time to count.
func (d *disk) due(free, limit int64) bool {
	if d.counted.IsZero() {
		d.free, d.counted = free, time.Now()
	}
	return d.free-free > limit/diskSteps || time.Since(d.counted) > max(diskRecount, diskEffort*d.effort)
}

func (d *disk) count(ctx context.Context, free int64) int64 {
	start := time.Now()
	n := d.written(ctx)
	d.free, d.counted, d.effort = free, time.Now(), time.Since(start)
	return n
}

// written is the size of all files in the directories that changed since the build
// started, each counted once.
func (d *disk) written(ctx context.Context) int64 {
	var sum int64
	seen := map[[2]uint64]bool{} // files with several names
	for dir := range d.dirs {
		_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return fs.SkipAll
			}
			if err == nil && e.Type().IsRegular() { // else it is gone meanwhile
				sum += d.size(e, seen)
			}
			return nil
		})
	}
	return sum
}

// size is what a file takes, 0 when it was there before the build or is in seen.
func (d *disk) size(e fs.DirEntry, seen map[[2]uint64]bool) int64 {
	info, err := e.Info()
	if err != nil {
		return 0
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || time.Unix(st.Ctim.Unix()).Before(d.since) {
		return 0
	}
	if st.Nlink > 1 {
		id := [2]uint64{st.Dev, st.Ino}
		if seen[id] {
			return 0
		}
		seen[id] = true
	}
	return st.Blocks * 512 // stat(2): in units of 512 bytes
}

// find adds the directories of steps that are new. Each step is one group, and
// all of its processes see the same mounts.
func (d *disk) find(group *cgroup) {
	for step, pids := range group.members() {
		if !d.steps[step] && slices.ContainsFunc(pids, d.add) {
			d.steps[step] = true
		}
	}
}

// add adds the directories that a process can write to; it is false when the process
// ended, or has yet to get its root.
func (d *disk) add(pid int) bool {
	mounts := readMounts(pid)
	root := slices.IndexFunc(mounts, func(m mountPoint) bool { return m.at == "/" && m.upper != "" })
	if root < 0 {
		return false
	}
	own := readMounts(os.Getpid())
	for _, m := range mounts {
		switch {
		case m.readOnly:
		case m.upper != "":
			d.dirs[m.upper] = true
		default:
			if dir := onHost(m, own); dir != "" {
				d.dirs[dir] = true
			}
		}
	}
	return true
}

// mountPoint is a line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
type mountPoint struct {
	device   string // major:minor
	root     string // the directory of the file system that is mounted
	at       string
	readOnly bool
	upper    string // of an overlay
	onDisk   bool
}

func readMounts(pid int) []mountPoint {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil
	}
	defer f.Close()
	var mounts []mountPoint
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // overlays of many layers have long lines
	for lines.Scan() {
		left, right, ok := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 6 || len(kind) < 3 {
			continue
		}
		m := mountPoint{
			device: fields[2], root: unescape(fields[3]), at: unescape(fields[4]), onDisk: strings.HasPrefix(kind[1], "/"),
			readOnly: slices.Contains(strings.Split(fields[5], ","), "ro"),
		}
		if kind[0] == "overlay" {
			for option := range strings.SplitSeq(kind[2], ",") {
				if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
					m.upper = unescape(dir)
				}
			}
		}
		mounts = append(mounts, m)
	}
	return mounts
}

// unescape undoes what the kernel does to blanks in mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// onHost is where the directory behind a container's mount of a disk is in our own
// view, "" if it is in none of our mounts.
func onHost(m mountPoint, own []mountPoint) string {
	if !m.onDisk {
		return ""
	}
	for _, o := range own {
		rel, err := filepath.Rel(o.root, m.root)
		if o.device != m.device || err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			continue
		}
		dir := filepath.Join(o.at, rel)
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			return dir
		}
	}
	return ""
}
