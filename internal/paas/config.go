package paas

import (
	"maps"
	"regexp"
	"slices"
)

// Special config values (contract 5.2).
const (
	ConfigPort               = "PORT"
	ConfigHealthcheckURL     = "HEALTHCHECK_URL"
	ConfigHealthcheckTimeout = "HEALTHCHECK_TIMEOUT"
	// ConfigLogDrain lists where the app's log lines go as well (package drain).
	ConfigLogDrain = "DEIS_LOG_DRAIN"
	// ConfigDeployStrategy is DeployRolling or DeployStopFirst.
	ConfigDeployStrategy = "DEIS_DEPLOY_STRATEGY"
	// ConfigRegistryUsername and ConfigRegistryPassword are shown to the registry of an image that is
	// pulled: to that which ConfigRegistry names, or else to whichever the image is in. Instances
	// do not get these three.
	ConfigRegistry         = "DEIS_REGISTRY"
	ConfigRegistryUsername = "DEIS_REGISTRY_USERNAME"
	ConfigRegistryPassword = "DEIS_REGISTRY_PASSWORD"
	// ConfigReadOnly, "1", makes the files of the image read-only for the app's processes; "0" and "" do not.
	ConfigReadOnly = "DEIS_READ_ONLY"
)

// The values of ConfigDeployStrategy.
const (
	// DeployRolling, the default, starts new instances before the old ones go.
	DeployRolling = "rolling"
	// DeployStopFirst ends the old instances of types that are not routed before
	// the new ones start, so that two generations of them never run together.
	DeployStopFirst = "stop-first"
)

// Environment is the values that the app's processes get. The map is a new one.
func (c Config) Environment() map[string]string {
	env := maps.Clone(c.Values)
	if env == nil {
		env = map[string]string{}
	}
	for _, key := range []string{ConfigRegistry, ConfigRegistryUsername, ConfigRegistryPassword} {
		delete(env, key)
	}
	return env
}

// ReadOnly says what ConfigReadOnly does.
func (c Config) ReadOnly() bool { return c.Values[ConfigReadOnly] == "1" }

// ConfigChange is a request to change a config: decoded JSON values (numbers as
// json.Number), nil to remove a key.
type ConfigChange struct {
	Values, Memory, CPU, Tags map[string]any
}

// With returns the config overlaid with a change: each of the four maps merges
// on its own (contract 5.2). The error names every bad field. Identity, owner
// and times are left to the caller.
func (c Config) With(change ConfigChange) (Config, error) {
	faults := map[string][]string{}
	next := Config{
		App:    c.App,
		Values: merge(faults, "values", c.Values, change.Values, configValue),
		Memory: merge(faults, "memory", c.Memory, change.Memory, memoryValue),
		CPU:    merge(faults, "cpu", c.CPU, change.CPU, cpuValue),
		Tags:   merge(faults, "tags", c.Tags, change.Tags, tagValue),
	}
	if len(faults) > 0 {
		return Config{}, &Error{Code: Invalid, Fields: faults}
	}
	return next, nil
}

// merge overlays base with change; parse checks a key and converts its value,
// and is asked about the key alone, with nil, when it is removed.
func merge[V any](faults map[string][]string, field string, base map[string]V, change map[string]any,
	parse func(key string, v any) (V, string),
) map[string]V {
	merged := map[string]V{}
	maps.Copy(merged, base)
	for _, key := range slices.Sorted(maps.Keys(change)) {
		v, fault := parse(key, change[key])
		switch {
		case fault != "":
			if !slices.Contains(faults[field], fault) {
				faults[field] = append(faults[field], fault)
			}
		case change[key] == nil:
			delete(merged, key)
		default:
			merged[key] = v
		}
	}
	return merged
}

var (
	configKeyPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	limitKeyPattern  = regexp.MustCompile(`^[a-z]`)
	tagKeyPattern    = regexp.MustCompile(`^[A-Za-z]+$`)
	tagValuePattern  = regexp.MustCompile(`^\w+$`)
)

const msgLimitKey = "Process types can only contain [a-z]"

func configValue(key string, v any) (string, string) {
	if !configKeyPattern.MatchString(key) {
		return "", "Config keys must start with a letter or underscore and only contain [A-z0-9_]"
	}
	if v == nil {
		return "", ""
	}
	text := Text(v)
	switch {
	case hasNull(text):
		return "", MsgNullCharacter
	case key == ConfigReadOnly && text != "" && text != "0" && text != "1":
		return "", ConfigReadOnly + " must be 1 or 0"
	}
	return text, ""
}

func memoryValue(key string, v any) (string, string) {
	if !limitKeyPattern.MatchString(key) {
		return "", msgLimitKey
	}
	if v == nil {
		return "", ""
	}
	text := Text(v)
	if _, err := ParseMemory(text); err != nil {
		return "", msgMemory
	}
	return text, ""
}

func cpuValue(key string, v any) (int, string) {
	if !limitKeyPattern.MatchString(key) {
		return 0, msgLimitKey
	}
	if v == nil {
		return 0, ""
	}
	return parseCPU(v)
}

func tagValue(key string, v any) (string, string) {
	if !tagKeyPattern.MatchString(key) {
		return "", "Tag keys can only contain [a-z]"
	}
	if v != nil && !tagValuePattern.MatchString(Text(v)) {
		return "", "Invalid tag value"
	}
	return Text(v), ""
}
