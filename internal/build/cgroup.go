package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"

	// buildShares is the CPU weight of all builds together beside that of all instances together (1024): when both want
	// the CPU, builds get a third. buildWeight is the same for version 2 (default 100). It is no less, because an
	// app that takes all it can get must not keep the push that mends it from being built. balance says when it counts.
	buildShares = 512
	buildWeight = 50
	// buildIOWeight is the least that the kernel knows; only some disk schedulers heed it.
	buildIOWeight = 1

	cpuPeriod = 100_000 // microseconds; the kernel's default

	// killTime and removeTime bound how long killed processes may take to go: until the kernel is done
	// with their memory and their disk writes.
	killTime   = 10 * time.Second
	removeTime = 3 * time.Second
	cgroupPoll = 10 * time.Millisecond
)

// cgroup is a control group by its path below each controller's root
// ("/deis-1a2b3c-build/..."), in version 1 (one hierarchy a controller) or
// version 2 (one for all) of the kernel's interface.
type cgroup struct {
	path string
	lock *os.File // open while we own the group; the kernel gives it up for us when we are killed
	oom  int      // version 1: an eventfd that counts OOM kills; -1 is none
}

func cgroupV2() bool {
	_, err := os.Stat(cgroupRoot + "/cgroup.controllers")
	return err == nil
}

// cgroupHierarchies are the roots of all hierarchies.
func cgroupHierarchies() []string {
	if cgroupV2() {
		return []string{cgroupRoot}
	}
	found, _ := filepath.Glob(cgroupRoot + "/*") // the pattern is valid
	return found
}

func (c *cgroup) dir(controller string) string {
	if cgroupV2() {
		return filepath.Join(cgroupRoot, c.path)
	}
	return filepath.Join(cgroupRoot, controller, c.path)
}

func (c *cgroup) file(controller, name string) string { return filepath.Join(c.dir(controller), name) }

// make makes the group with the controllers that limits need.
func (c *cgroup) make() error {
	if cgroupV2() {
		return c.makeV2()
	}
	for _, controller := range []string{"memory", "cpu", "cpuacct", "pids", "blkio"} {
		root := filepath.Join(cgroupRoot, controller)
		if _, err := os.Stat(root); err != nil {
			if controller == "blkio" || controller == "cpuacct" { // they limit nothing
				continue
			}
			return fmt.Errorf("this kernel has no %s controller for cgroups (%w)", controller, err)
		}
		if err := os.MkdirAll(filepath.Join(root, c.path), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// makeV2 turns the controllers on in each group above, which makes them work in this one.
func (c *cgroup) makeV2() error {
	dir := cgroupRoot
	for name := range strings.SplitSeq(strings.Trim(c.path, "/"), "/") {
		for _, controller := range []string{"memory", "cpu", "pids", "io"} {
			err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
			if err != nil && controller != "io" {
				return fmt.Errorf("turn on the %s controller of cgroups: %w", controller, err)
			}
		}
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// reset gives a group that may have been used before its limits, and begins to count anew.
func (c *cgroup) reset(l Limits) error {
	if err := writeExisting(c.file("pids", "pids.max"), "max"); err != nil {
		return fmt.Errorf("limit a build: %w", err)
	}
	if err := c.limit(l); err != nil {
		return err
	}
	return c.countOOM()
}

// limit sets what is not zero.
func (c *cgroup) limit(l Limits) error {
	type setting struct{ controller, v1, v2, value string }
	var settings []setting
	if l.CPU > 0 {
		quota := strconv.FormatInt(int64(l.CPU*cpuPeriod), 10)
		if cgroupV2() {
			quota += " " + strconv.Itoa(cpuPeriod)
		}
		settings = append(settings, setting{"cpu", "cpu.cfs_quota_us", "cpu.max", quota})
	}
	if l.Processes > 0 {
		settings = append(settings, setting{"pids", "pids.max", "pids.max", strconv.FormatInt(l.Processes, 10)})
	}
	if l.Memory > 0 {
		settings = append(settings, setting{"memory", "memory.limit_in_bytes", "memory.max", strconv.FormatInt(l.Memory, 10)})
	}
	for _, s := range settings {
		name := s.v1
		if cgroupV2() {
			name = s.v2
		}
		if err := writeExisting(c.file(s.controller, name), s.value); err != nil {
			return fmt.Errorf("limit a build: %w", err)
		}
	}
	if l.Memory > 0 {
		c.denySwap(l.Memory)
	}
	return nil
}

// denySwap makes the memory limit one of memory and swap. Kernels without swap
// accounting lack the files, and then it is a limit of memory only.
func (c *cgroup) denySwap(memory int64) {
	if cgroupV2() {
		_ = writeExisting(c.file("", "memory.swap.max"), "0")
		return
	}
	_ = writeExisting(c.file("memory", "memory.memsw.limit_in_bytes"), strconv.FormatInt(memory, 10))
}

// yield makes the group give way to others. Kernels differ in what they have of
// this; nothing else depends on it.
func (c *cgroup) yield() {
	if cgroupV2() {
		_ = writeExisting(c.file("", "cpu.weight"), strconv.Itoa(buildWeight))
		_ = writeExisting(c.file("", "io.weight"), strconv.Itoa(buildIOWeight))
		return
	}
	_ = writeExisting(c.file("cpu", "cpu.shares"), strconv.Itoa(buildShares))
	for _, name := range []string{"blkio.weight", "blkio.bfq.weight"} {
		_ = writeExisting(c.file("blkio", name), strconv.Itoa(max(buildIOWeight, 10))) // the least of both
	}
}

// setIdle makes the group idle: it runs only where nobody else wants to, so a program that wakes up takes the CPU at once, not at the
// end of a slice. Or it gives the group its weight, which an idle one refuses. Kernels before Linux 5.15 do not have it.
func (c *cgroup) setIdle(idle bool) {
	if idle {
		_ = writeExisting(c.file("cpu", "cpu.idle"), "1")
		return
	}
	_ = writeExisting(c.file("cpu", "cpu.idle"), "0")
	c.yield()
}

// cpuTime is what the group and all below it have used of the CPUs.
func (c *cgroup) cpuTime() (time.Duration, error) {
	if cgroupV2() {
		return time.Duration(c.value("cpu.stat", "usage_usec")) * time.Microsecond, nil
	}
	text, err := os.ReadFile(c.file("cpuacct", "cpuacct.usage"))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return time.Duration(n), err
}

func writeExisting(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// own takes the group for this process, if no other one has it. Its lock ends
// with the process, so what a killed one left is told from what is in use.
func (c *cgroup) own() (bool, error) {
	f, err := os.Open(c.dir("memory"))
	if err != nil {
		return false, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return false, fmt.Errorf("lock cgroup %s: %w", c.path, err)
	}
	c.lock = f
	return true, nil
}

// countOOM begins to count the kills for want of memory.
func (c *cgroup) countOOM() error {
	c.oom = -1
	if cgroupV2() {
		return nil
	}
	control, err := os.Open(c.file("memory", "memory.oom_control"))
	if err != nil {
		return err
	}
	defer control.Close()
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	err = writeExisting(c.file("memory", "cgroup.event_control"), fmt.Sprintf("%d %d", event, control.Fd()))
	if err != nil {
		unix.Close(event)
		return err
	}
	c.oom = event
	return nil
}

// oomKilled reports whether the memory limit killed a process since it was asked
// last (version 1) or ever (version 2).
func (c *cgroup) oomKilled() bool {
	if cgroupV2() {
		return c.value("memory.events", "oom_kill") > 0
	}
	var count [8]byte
	n, err := unix.Read(c.oom, count[:])
	return err == nil && n == len(count)
}

// value is a number of a file of the form "key number" a line.
func (c *cgroup) value(file, key string) int64 {
	text, _ := os.ReadFile(c.file("", file)) // no file, no events
	for line := range strings.SplitSeq(string(text), "\n") {
		if k, v, _ := strings.Cut(line, " "); k == key {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}

// processes is how many there are (pids.current) or have been at a time (pids.peak,
// since Linux 6.1; 0 before).
func (c *cgroup) processes(file string) int64 {
	text, err := os.ReadFile(c.file("pids", file))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n
}

// members returns the process ids of each group at and below this one, by its directory.
func (c *cgroup) members() map[string][]int {
	all := map[string][]int{}
	root := c.dir("pids")
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() { // else it is gone meanwhile
			text, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for line := range strings.FieldsSeq(string(text)) {
				if pid, err := strconv.Atoi(line); err == nil && pid > 0 {
					all[path] = append(all[path], pid)
				}
			}
		}
		return nil
	})
	return all
}

// kill ends all processes of the group, however fast they fork, and waits
// until they are gone.
func (c *cgroup) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killTime)
	defer cancel()
	_ = writeExisting(c.file("pids", "pids.max"), "0") // no more children
	if cgroupV2() {
		_ = writeExisting(c.file("", "cgroup.kill"), "1") // since Linux 5.14
	}
	for {
		groups := c.members()
		if len(groups) == 0 {
			return nil
		}
		for _, pids := range groups {
			for _, pid := range pids {
				c.killOne(pid)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes of cgroup %s do not end: %w", c.path, ctx.Err())
		case <-time.After(cgroupPoll):
		}
	}
}

// killOne kills a process if it is still the group's: its id may be another's by now.
func (c *cgroup) killOne(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err == nil && strings.Contains(string(groups), ":"+c.path+"/") {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// release kills what is left in the group and removes it. What runc made below
// it in other hierarchies goes too.
func (c *cgroup) release(ctx context.Context) error {
	errs := []error{c.kill(ctx)}
	deadline := time.Now().Add(removeTime)
	for _, hierarchy := range cgroupHierarchies() {
		errs = append(errs, removeGroups(filepath.Join(hierarchy, c.path), deadline))
	}
	if c.oom >= 0 && !cgroupV2() {
		errs = append(errs, unix.Close(c.oom))
	}
	if c.lock != nil {
		errs = append(errs, c.lock.Close())
	}
	return errors.Join(errs...)
}

// removeGroups removes a group and all below it. The kernel says "busy" for a
// moment after the last process ended.
func removeGroups(dir string, deadline time.Time) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeGroups(filepath.Join(dir, e.Name()), deadline))
		}
	}
	err = unix.Rmdir(dir)
	for errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
		time.Sleep(cgroupPoll)
		err = unix.Rmdir(dir)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
	}
	return errors.Join(errs...)
}
