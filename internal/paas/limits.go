package paas

import (
	"math"
	"regexp"
	"strconv"
	"strings"
)

var memoryPattern = regexp.MustCompile(`(?i)^([0-9]+)(MB|KB|GB|B|K|M|G)$`)

const msgMemory = "Limit format: <number><unit>, where unit = B, K, M or G"

// ParseMemory returns the bytes of a memory limit like "512M" (contract 5.2).
// Units are powers of 1024.
func ParseMemory(limit string) (int64, error) {
	m := memoryPattern.FindStringSubmatch(limit)
	if m == nil {
		return 0, FieldError("memory", msgMemory)
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	shift := map[byte]uint{'B': 0, 'K': 10, 'M': 20, 'G': 30}[strings.ToUpper(m[2])[0]]
	if err != nil || n > math.MaxInt64>>shift {
		return 0, FieldError("memory", msgMemory)
	}
	return n << shift, nil
}

// DefaultProcesses bounds the processes of an instance and of a build, threads included, unless the platform's operator says
// otherwise. Large thread pools and compilations stay below it. It is not larger because every process of a fork bomb may
// be the one that holds a lock which its neighbours wait for, such as that of a library which they all map.
const DefaultProcesses = 1024

// MaxCPUShares is the largest relative weight (contract 16).
const MaxCPUShares = 1024

// parseCPU returns the shares that a JSON value stands for.
func parseCPU(v any) (int, string) {
	n, err := pythonInt(v)
	switch {
	case err != nil || n < 0:
		return 0, "CPU shares must be an integer"
	case n > MaxCPUShares:
		return 0, "CPU shares must be between 0 and 1024"
	}
	return int(n), ""
}
