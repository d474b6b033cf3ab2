package paas

import (
	"maps"
	"slices"
)

// MaxInstances bounds one process type on one machine: far above what it can
// run, far below what a slip of the finger in a scale could ask for.
const MaxInstances = 1000

// ParseScale returns the counts that a scale request asks for (contract 5.5):
// decoded JSON values, numbers as json.Number.
func ParseScale(request map[string]any) (map[string]int, error) {
	counts := make(map[string]int, len(request))
	for _, processType := range slices.Sorted(maps.Keys(request)) {
		n, err := pythonInt(request[processType])
		switch {
		case err != nil:
			return nil, Errorf(Invalid, "Invalid scaling format: %v", err)
		case n < 0:
			return nil, Errorf(Invalid, "Must be greater than or equal to zero")
		case n > MaxInstances:
			return nil, Errorf(Invalid, "Must be less than or equal to %d", MaxInstances)
		}
		counts[processType] = int(n)
	}
	return counts, nil
}

// TypeRelease is the process type that runs once before each release and never as
// an instance.
const TypeRelease = "release"

// CheckScale refuses process types that a build does not have; cmd, the image's
// own command, is in every one.
func CheckScale(b Build, counts map[string]int) error {
	for _, processType := range slices.Sorted(maps.Keys(counts)) {
		if processType == TypeRelease {
			return Errorf(Invalid, "Container type %s runs once before each release and cannot be scaled", processType)
		}
		if _, ok := b.Procfile[processType]; !ok && processType != "cmd" {
			return Errorf(Invalid, "Container type %s does not exist in application", processType)
		}
	}
	return nil
}

// DefaultFormation is what a first deploy runs while the app's structure is
// still empty (contract 5.5).
func DefaultFormation(b Build) map[string]int {
	if _, web := b.Procfile["web"]; web && b.SHA != "" {
		return map[string]int{"web": 1}
	}
	return map[string]int{"cmd": 1}
}

// ShellCommand is the process for a command line: bash where the image has it,
// else sh (contract 5.5, which wants bash).
func ShellCommand(line string) []string {
	return []string{
		"/bin/sh", "-c",
		`if command -v bash >/dev/null 2>&1; then exec bash -c "$0"; else exec /bin/sh -c "$0"; fi`, line,
	}
}

// TerminalCommand is ShellCommand for a process at a terminal. The shell stays
// the first process of its container: the kernel keeps the signal of Ctrl-C from
// a first process that has no handler for it.
func TerminalCommand(line string) []string {
	return []string{
		"/bin/sh", "-c",
		`if command -v bash >/dev/null 2>&1; then bash -c "$0"; else /bin/sh -c "$0"; fi; exit $?`, line,
	}
}

// launcher starts processes in images that buildpacks made, with the environment
// that the buildpacks left (Cloud Native Buildpacks platform specification, launch).
const launcher = "/cnb/lifecycle/launcher"

// Command is what instances of a process type run: their line of the Procfile,
// or nil for the image's own command.
func (b Build) Command(processType string) []string {
	line, ok := b.Procfile[processType]
	switch {
	case !ok:
		return nil
	case b.Strategy == StrategyBuildpacks:
		return []string{"/cnb/process/" + processType}
	}
	return ShellCommand(line)
}

// OneOff is a command, as ShellCommand makes them, for a one-off process of a build.
func (b Build) OneOff(command []string) []string {
	if b.Strategy == StrategyBuildpacks {
		return append([]string{launcher, "--"}, command...)
	}
	return command
}
