package containerd

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// memoryGroup are the files of a control group's memory.
type memoryGroup struct{ limit, use, stat, inactive string }

// groups are those of a control group, "/" being the one that this machine or container is, in
// version 2 and version 1.
func groups(path string) []memoryGroup {
	v2, v1 := "/sys/fs/cgroup"+path, "/sys/fs/cgroup/memory"+path
	return []memoryGroup{
		{v2 + "/memory.max", v2 + "/memory.current", v2 + "/memory.stat", "inactive_file"},
		{v1 + "/memory.limit_in_bytes", v1 + "/memory.usage_in_bytes", v1 + "/memory.stat", "total_inactive_file"},
	}
}

// Room implements engine.Engine: the least of what the machine, its own control group and that of the
// platform leave.
func (e *Engine) Room(ctx context.Context, app string) (engine.Room, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return engine.Room{}, fmt.Errorf("read the machine's memory: %w", err)
	}
	room := engine.Room{
		Total: field(string(text), "MemTotal:") << 10, Available: field(string(text), "MemAvailable:") << 10,
		Use: map[string]int64{},
	}
	for _, path := range []string{"", "/deis-" + e.opts.PlatformID} {
		for _, g := range groups(path) {
			limit, ok := number(g.limit)
			if use, known := g.used(); ok && known && limit < room.Total {
				room.Total = limit
				room.Available = min(room.Available, max(0, limit-use))
			}
		}
	}
	instances, err := e.Instances(ctx, app)
	if err != nil {
		return room, err
	}
	for _, inst := range instances {
		if inst.State != paas.StateUp {
			continue
		}
		for _, g := range groups(e.cgroup(inst.ID)) {
			if use, ok := g.used(); ok {
				room.Use[inst.Type] = max(room.Use[inst.Type], use)
			}
		}
	}
	return room, nil
}

// used is what a group uses and the kernel cannot take back at once.
func (g memoryGroup) used() (int64, bool) {
	use, ok := number(g.use)
	stat, err := os.ReadFile(g.stat)
	if err != nil || !ok {
		return 0, false
	}
	return max(0, use-field(string(stat), g.inactive)), true
}

// number reads a file that holds one; "max" is none.
func number(path string) (int64, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}

// field finds "name number" in a file's lines, 0 where it is not.
func field(text, name string) int64 {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == name {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}
