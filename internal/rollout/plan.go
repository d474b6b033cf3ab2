package rollout

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// Config values that say when an instance is healthy (contract 7.1).
const (
	configHealthcheckDelay = "HEALTHCHECK_INITIAL_DELAY"
	// defaultProbeTimeout is that of contract 5.2.
	defaultProbeTimeout = time.Second
)

// nextFormation is what runs after a build or config went live: what ran
// before without the process types that only the previous build had, or the default of
// contract 5.5 if nothing was ever scaled. Zeroes stay, so that what was scaled to nothing
// stays at nothing.
func nextFormation(structure map[string]int, previous, next paas.Build) map[string]int {
	formation := map[string]int{}
	for processType, count := range structure {
		if processType == paas.TypeRelease {
			continue
		}
		if count == 0 || hasType(previous, next, processType) {
			formation[processType] = count
		}
	}
	if len(formation) == 0 && next.UUID != "" {
		return paas.DefaultFormation(next)
	}
	return formation
}

// hasType reports whether a build still has a process type. cmd, the image's own
// command, is in every build, unless it came from a Procfile that had one.
func hasType(previous, next paas.Build, processType string) bool {
	if _, ok := next.Procfile[processType]; ok {
		return true
	}
	_, had := previous.Procfile[processType]
	return processType == "cmd" && !had
}

// numbers returns count instance numbers, ascending: the lowest of those that
// there are, then new ones from the highest on (contract 5.5).
func numbers(have []int, count int) []int {
	nums := slices.Sorted(slices.Values(have))
	next := 1
	if len(nums) > 0 {
		next = nums[len(nums)-1] + 1
	}
	for ; len(nums) < count; next++ {
		nums = append(nums, next)
	}
	return nums[:count]
}

// numsOf returns the live numbers of a process type.
func numsOf(live []paas.Set, processType string) []int {
	var nums []int
	for _, set := range live {
		if set.Type == processType {
			nums = append(nums, set.Nums...)
		}
	}
	return nums
}

// plan returns the sets that are live once a rollout has succeeded. Those of
// generation r.ID are new. It depends on nothing but the journal and the live
// sets, so that a rollout that is carried on has the same plan.
//
// Instances that a scale adds are a set of their own, although their inputs equal those of
// the sets that are there: to give up a rollout is then always to remove its generation.
func plan(r paas.Rollout, live []paas.Set) []paas.Set {
	var sets []paas.Set
	fresh := func(processType string, nums []int) {
		if len(nums) > 0 {
			sets = append(sets, paas.Set{
				App: r.App, Type: processType, Generation: r.ID,
				Version: r.Version, Build: r.Build, Config: r.Config, Nums: nums,
			})
		}
	}
	for processType, count := range r.Formation {
		switch have := numsOf(live, processType); {
		case r.Build == "":
		case r.Kind.MakesRelease():
			fresh(processType, numbers(have, count))
		case r.Kind == paas.RolloutScale:
			fresh(processType, without(numbers(have, count), have))
		case r.Kind == paas.RolloutRestart:
			fresh(processType, within(have, r.Restart[processType]))
		}
	}
	if !r.Kind.MakesRelease() {
		sets = append(sets, remaining(r, live)...)
	}
	slices.SortFunc(sets, func(a, b paas.Set) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Generation, b.Generation))
	})
	return sets
}

// remaining is what a scale or restart leaves of the live sets.
func remaining(r paas.Rollout, live []paas.Set) []paas.Set {
	var sets []paas.Set
	for _, set := range live {
		if count, ok := r.Formation[set.Type]; r.Kind == paas.RolloutScale && ok {
			set.Nums = within(set.Nums, numbers(numsOf(live, set.Type), count))
		}
		set.Nums = without(set.Nums, r.Restart[set.Type])
		if len(set.Nums) > 0 {
			sets = append(sets, set)
		}
	}
	return sets
}

// union returns the numbers that are in either list, ascending.
func union(nums, other []int) []int {
	return slices.Sorted(slices.Values(append(without(nums, other), other...)))
}

// within returns the numbers that are in both lists, ascending.
func within(nums, other []int) []int {
	return sortedExcept(nums, func(n int) bool { return !slices.Contains(other, n) })
}

// without returns the numbers that are in the first list only, ascending.
func without(nums, other []int) []int {
	return sortedExcept(nums, func(n int) bool { return slices.Contains(other, n) })
}

func sortedExcept(nums []int, drop func(int) bool) []int {
	kept := slices.DeleteFunc(slices.Clone(nums), drop)
	slices.Sort(kept)
	return kept
}

// restartNums returns what a restart replaces: the live instances of a type
// ("" for all) with a number (0 for all).
func restartNums(live []paas.Set, processType string, num int) map[string][]int {
	restart := map[string][]int{}
	for _, set := range live {
		if processType != "" && processType != set.Type {
			continue
		}
		for _, n := range set.Nums {
			if num == 0 || num == n {
				restart[set.Type] = append(restart[set.Type], n)
			}
		}
	}
	for _, nums := range restart {
		slices.Sort(nums)
	}
	return restart
}

// inputs are what sets run with.
type inputs struct {
	app    paas.App
	build  paas.Build
	config paas.Config
}

func (in inputs) spec(set paas.Set) (engine.SetSpec, error) {
	var memory int64
	if limit := in.config.Memory[set.Type]; limit != "" {
		var err error
		if memory, err = paas.ParseMemory(limit); err != nil {
			return engine.SetSpec{}, err
		}
	}
	env := in.config.Environment()
	env["DEIS_APP"] = in.app.ID
	env["DEIS_RELEASE"] = fmt.Sprintf("v%d", set.Version)
	return engine.SetSpec{
		SetKey: keyOf(set),
		Nums:   set.Nums,
		Process: engine.Process{
			AppID:     in.app.ID,
			Version:   set.Version,
			Image:     in.build.Image,
			Digest:    in.build.Digest,
			Registry:  engine.CredentialsOf(in.config.Values),
			ReadOnly:  in.config.ReadOnly(),
			Command:   in.build.Command(set.Type),
			Env:       env,
			Memory:    memory,
			CPUShares: int64(in.config.CPU[set.Type]),
		},
	}, nil
}

func keyOf(set paas.Set) engine.SetKey {
	return engine.SetKey{App: set.App, Type: set.Type, Generation: set.Generation}
}

// health says when a new instance of a routed type is healthy: its port is
// open, and check passes once delay has gone by since its start.
type health struct {
	check engine.Check
	delay time.Duration
}

// healthOf reads the health check of a config (contract 7.1).
func healthOf(c paas.Config) (health, error) {
	h := health{check: engine.Check{Path: c.Values[paas.ConfigHealthcheckURL]}}
	if h.check.Path != "" && !strings.HasPrefix(h.check.Path, "/") {
		h.check.Path = "/" + h.check.Path
	}
	var err error
	if h.delay, err = seconds(c, configHealthcheckDelay, 0); err != nil {
		return h, err
	}
	h.check.Timeout, err = seconds(c, paas.ConfigHealthcheckTimeout, defaultProbeTimeout)
	return h, err
}

// stopsFirst reads whether types that are not routed stop before they start again.
func stopsFirst(c paas.Config) (bool, error) {
	switch text := strings.TrimSpace(c.Values[paas.ConfigDeployStrategy]); text {
	case "", paas.DeployRolling:
		return false, nil
	case paas.DeployStopFirst:
		return true, nil
	}
	return false, paas.FieldError("values", "%s must be %s or %s", paas.ConfigDeployStrategy, paas.DeployRolling, paas.DeployStopFirst)
}

func seconds(c paas.Config, key string, def time.Duration) (time.Duration, error) {
	text := strings.TrimSpace(c.Values[key])
	if text == "" {
		return def, nil
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(n) || n < 0 || n > maxStart.Seconds() {
		return 0, paas.FieldError("values", "%s must be a number of seconds from 0 to %.0f", key, maxStart.Seconds())
	}
	if n == 0 {
		return def, nil
	}
	return time.Duration(n * float64(time.Second)), nil
}
