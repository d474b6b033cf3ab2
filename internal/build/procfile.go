package build

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/deis/deis/internal/paas"
)

const (
	maxProcfile     = 64 << 10
	maxProcessTypes = 100
)

var processType = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])?$`)

// userErrorf makes an error that tells the pusher what is wrong with what was pushed.
func userErrorf(format string, args ...any) error { return paas.Errorf(paas.Invalid, format, args...) }

// ParseProcfile reads a Procfile: YAML, one flat map of process type to command
// (contract 9.3). Commands with ": " or " #" in them are taken as they stand, like
// Heroku does, where YAML would not. Errors are for the user and name the line.
func ParseProcfile(data []byte) (map[string]string, error) {
	if len(data) > maxProcfile {
		return nil, userErrorf("Procfile: %d bytes; the limit is %d", len(data), maxProcfile)
	}
	data = bytes.ReplaceAll(bytes.TrimPrefix(data, []byte("\uFEFF")), []byte("\r\n"), []byte("\n"))
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		if types, ok := plainProcfile(data); ok {
			return types, nil
		}
		return nil, userErrorf("Procfile: %s", strings.TrimPrefix(printable(err.Error()), "yaml: "))
	}
	if len(doc.Content) == 0 {
		return map[string]string{}, nil
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return map[string]string{}, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, userErrorf(`Procfile line %d: want lines like "web: command"`, root.Line)
	}
	types := map[string]string{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if err := addProcess(types, key, value, data); err != nil {
			return nil, userErrorf("Procfile line %d: %v", key.Line, err)
		}
	}
	return types, nil
}

func addProcess(types map[string]string, key, value *yaml.Node, data []byte) error {
	name := key.Value
	if key.Kind != yaml.ScalarNode || !processType.MatchString(name) {
		return fmt.Errorf("%q is no process type: want at most 63 letters, digits, - and _", clip(printable(name), maxName))
	}
	if _, ok := types[name]; ok {
		return fmt.Errorf("process type %q is there twice", name)
	}
	if len(types) == maxProcessTypes {
		return fmt.Errorf("more than %d process types", maxProcessTypes)
	}
	if value.Kind != yaml.ScalarNode {
		return fmt.Errorf("the command of %q is not one text", name)
	}
	command := value.Value
	// A plain scalar on one line is the command as it stands: YAML would cut it at " #".
	if value.Style == 0 && value.Line == key.Line {
		if rest, ok := rawCommand(data, key.Line, name); ok && strings.HasPrefix(rest, command) {
			command = rest
		}
	}
	if command = strings.TrimSpace(command); command == "" || value.Tag == "!!null" {
		return fmt.Errorf("%q has no command", name)
	}
	if strings.ContainsRune(command, 0) {
		return errors.New("a command holds a NUL character")
	}
	types[name] = command
	return nil
}

func rawCommand(data []byte, line int, name string) (string, bool) {
	lines := bytes.Split(data, []byte("\n"))
	if line < 1 || line > len(lines) {
		return "", false
	}
	rest, ok := strings.CutPrefix(string(lines[line-1]), name+":")
	return strings.TrimSpace(rest), ok
}

// plainProcfile reads what is no YAML but a Procfile all the same: every line
// that is neither empty nor a comment is "type: command".
func plainProcfile(data []byte) (map[string]string, bool) {
	types := map[string]string{}
	for line := range strings.SplitSeq(string(data), "\n") {
		line = strings.TrimRight(line, " \t")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, command, ok := strings.Cut(line, ":")
		command = strings.TrimSpace(command)
		_, twice := types[name]
		// What begins like a YAML construct is a broken one, not a command.
		if !ok || twice || !processType.MatchString(name) || command == "" || strings.ContainsAny(command[:1], "'\"|>[{&*!%@`") ||
			strings.ContainsRune(command, 0) || len(types) == maxProcessTypes {
			return nil, false
		}
		types[name] = command
	}
	return types, len(types) > 0
}
