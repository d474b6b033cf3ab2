package build

import "time"

// Limits bound one build. Zero means no limit.
type Limits struct {
	// Memory and Disk are in bytes; Disk is what a build writes beyond the layers that it starts from.
	Memory, Disk int64
	// CPU is in cores.
	CPU float64
	// Processes is how many there may be at a time.
	Processes int64
	// Silence ends a build that shows no output for so long.
	Silence time.Duration
}
