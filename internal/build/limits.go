package build

import (
	"fmt"
	"math"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deis/deis/internal/paas"
)

// Limits bound one build. Zero means no limit.
type Limits struct {
	// Memory and Disk are in bytes. Memory is that of the steps' processes, with what they keep in tmpfs
	// and in swap. Disk is what they write and leave, layers and caches alike.
	Memory, Disk int64
	// CPU is in cores. All builds together get no more than this.
	CPU float64
	// Processes is how many there may be at a time, threads counted.
	Processes int64
	// Silence ends a build that shows no output for so long.
	Silence time.Duration
}

const (
	// The least that lets a step start at all: below it, every build fails for a reason that nobody understands.
	minMemory = 32 << 20
	minDisk   = 1 << 20
	minCPU    = 0.05

	defaultDisk = 10 << 30
	// defaultSilence is longer than the slowest single compilation or download that shows nothing.
	defaultSilence = 15 * time.Minute
	// cpuShare is what builds may take of the machine's cores; the rest is always the apps'.
	cpuShare = 0.75
)

// DefaultLimits are those of a machine on which so many builds run at a time:
// half of the memory for all of them, three quarters of the cores.
func DefaultLimits(builds int) Limits {
	l := Limits{
		Disk: defaultDisk, Processes: paas.DefaultProcesses, Silence: defaultSilence,
		CPU: cpuShare * float64(runtime.NumCPU()),
	}
	var machine unix.Sysinfo_t
	if unix.Sysinfo(&machine) == nil {
		half := int64(machine.Totalram) * int64(machine.Unit) / 2
		l.Memory = max(half/int64(max(builds, 1)), minMemory)
	}
	return l
}

// The app's config values that lower the limits of its builds, and the platform's settings of the same names.
const (
	memoryName    = "DEIS_BUILD_MEMORY"
	cpuName       = "DEIS_BUILD_CPU"
	diskName      = "DEIS_BUILD_DISK"
	processesName = "DEIS_BUILD_PROCESSES"
	silenceName   = "DEIS_BUILD_SILENCE"
)

// lowered are the limits of a build of an app with this config. The app may
// not ask for more than it would get anyway.
func (l Limits) lowered(config map[string]string) (Limits, error) {
	own := l
	var err error
	if own.Memory, err = lowerSize(config, memoryName, l.Memory, minMemory); err != nil {
		return l, err
	}
	if own.Disk, err = lowerSize(config, diskName, l.Disk, minDisk); err != nil {
		return l, err
	}
	text := config[cpuName]
	if text == "" {
		return own, nil
	}
	own.CPU, err = strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(own.CPU) || own.CPU < minCPU {
		return l, userErrorf("the config value %s is not a number of cores from %v up, like 0.5; set it with 'deis config:set'", cpuName, minCPU)
	}
	if l.CPU > 0 && own.CPU > l.CPU {
		return l, tooHigh(cpuName, formatCPU(own.CPU), formatCPU(l.CPU))
	}
	return own, nil
}

func lowerSize(config map[string]string, name string, platform, least int64) (int64, error) {
	text := config[name]
	if text == "" {
		return platform, nil
	}
	n, err := paas.ParseMemory(text)
	if err != nil || n < least {
		return 0, userErrorf("the config value %s is not a size from %s up, like 512M or 2G; set it with 'deis config:set'", name, formatSize(least))
	}
	if platform > 0 && n > platform {
		return 0, tooHigh(name, formatSize(n), formatSize(platform))
	}
	return n, nil
}

func tooHigh(name, asked, platform string) error {
	return userErrorf("the app's config asks for %s=%s, but the platform's limit is %s\n"+
		"Lower it, or remove it with 'deis config:unset %s'; only the platform's operator can raise the limit.", name, asked, platform, name)
}

// formatSize writes bytes as people set them: 512M, 1G, 1536M.
func formatSize(n int64) string {
	for _, u := range []struct {
		shift uint
		name  string
	}{{30, "G"}, {20, "M"}, {10, "K"}} {
		if n >= 1<<u.shift && n%(1<<u.shift) == 0 {
			return strconv.FormatInt(n>>u.shift, 10) + u.name
		}
	}
	if n >= 1<<20 {
		return strconv.FormatInt(n>>20, 10) + "M"
	}
	return strconv.FormatInt(n, 10) + "B"
}

func formatCPU(cores float64) string { return strconv.FormatFloat(cores, 'g', 4, 64) }

// exceeded is the end of a build that went beyond a limit: what it did, the
// limit, and what helps.
func exceeded(did, limit, name, advice string, config map[string]string) error {
	raise := fmt.Sprintf("or ask the platform's operator to raise %s.", name)
	if config[name] != "" {
		raise = fmt.Sprintf("or raise the app's own limit: deis config:set %s=...", name)
	}
	return userErrorf("the build was ended: %s (limit %s, %s)\n%s, %s", did, limit, name, strings.TrimSuffix(advice, "."), raise)
}
