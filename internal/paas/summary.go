package paas

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// InitialSummary is that of an app's release v1.
func InitialSummary(owner string) string { return owner + " created initial release" }

// RollbackSummary is that of a release that repeats an older one.
func RollbackSummary(owner string, version int) string {
	return fmt.Sprintf("%s rolled back to v%d", owner, version)
}

// DeploySummary is that of a release with a new build (contract 5.4).
func DeploySummary(b Build) string { return b.Owner + " deployed " + b.Label() }

// RebaseSummary is that of a release whose build is an older one on another base image.
func RebaseSummary(b Build) string { return b.Owner + " rebased " + b.Label() }

// ConfigSummary is that of a release with a new config, next, made by its
// owner (contract 5.4). It names keys, never values.
func ConfigSummary(prev, next Config) string {
	var parts []string
	if s := differences("", prev.Values, next.Values); s != "" {
		parts = append(parts, next.Owner+" "+s)
	}
	var limits []string
	if !maps.Equal(prev.Memory, next.Memory) {
		limits = append(limits, "memory")
	}
	if !maps.Equal(prev.CPU, next.CPU) {
		limits = append(limits, "cpu")
	}
	if limits != nil {
		parts = append(parts, next.Owner+" changed limits for "+strings.Join(limits, ", "))
	}
	if s := differences("tag ", prev.Tags, next.Tags); s != "" {
		parts = append(parts, next.Owner+" "+s)
	}
	if parts == nil {
		return next.Owner + " changed nothing"
	}
	return strings.Join(parts, " and ")
}

// differences says what was added, changed and deleted, names in order.
func differences(noun string, prev, next map[string]string) string {
	var added, changed, deleted []string
	for _, k := range slices.Sorted(maps.Keys(next)) {
		if old, ok := prev[k]; !ok {
			added = append(added, k)
		} else if old != next[k] {
			changed = append(changed, k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(prev)) {
		if _, ok := next[k]; !ok {
			deleted = append(deleted, k)
		}
	}
	var parts []string
	for _, p := range []struct {
		verb  string
		names []string
	}{{"added ", added}, {"changed ", changed}, {"deleted ", deleted}} {
		if p.names != nil {
			parts = append(parts, p.verb+noun+strings.Join(p.names, ", "))
		}
	}
	return strings.Join(parts, ", ")
}

// ScaleSummary is the activity line of a scale: "alice scaled containers web=2".
func ScaleSummary(owner string, counts map[string]int) string {
	parts := make([]string, 0, len(counts))
	for _, t := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s=%d", t, counts[t]))
	}
	return owner + " scaled containers " + strings.Join(parts, " ")
}
