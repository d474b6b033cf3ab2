package deis

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// envFile is where config:pull writes to and config:push reads from unless told
// otherwise (contract 13); foreman and its like read it too.
const envFile = ".env"

// maxEnvFile bounds such a file, in bytes: the controller takes 4 MB at most.
const maxEnvFile = 4 << 20

func (c *cli) envFileCommands() []*cobra.Command {
	interactive, overwrite, path := false, false, envFile
	pull := &cobra.Command{
		Use:   "config:pull",
		Short: "Write an app's config to the file .env",
		Long: `An existing file is left alone, unless you ask for it to be overwritten or to be asked for
each value that differs. Keep the file out of git: it has all of the app's secrets.`,
		Example: "deis config:pull --interactive",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.pullConfig(cmd.Context(), interactive, overwrite)
		},
	}
	pull.Flags().BoolVarP(&interactive, "interactive", "i", false, "keep what only the file has, and ask for each value that differs")
	pull.Flags().BoolVarP(&overwrite, "overwrite", "o", false, "overwrite the file")
	push := &cobra.Command{
		Use:   "config:push",
		Short: "Set config from a file of NAME=value lines",
		Long: `Empty lines and those that begin with # are skipped. Values may be in quotes: in double
ones, \n, \" and \\ mean what they do elsewhere. All of them make one release.`,
		Example: "deis config:push --path=production.env",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.pushConfig(cmd, path) },
	}
	push.Flags().StringVarP(&path, "path", "p", envFile, "the `file`")
	c.withApp(pull, push)
	return []*cobra.Command{pull, push}
}

func (c *cli) pullConfig(ctx context.Context, interactive, overwrite bool) error {
	local := map[string]any{}
	switch text, err := readFile(envFile, maxEnvFile); {
	case err == nil && interactive:
		local, _ = parseEnv(string(text))
	case err == nil && !overwrite:
		return fail(envFile+" already exists, pass -o to overwrite", "deis config:pull --overwrite", "deis config:pull --interactive")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	config, err := s.config(ctx, app)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(config.Values)) {
		value := fmt.Sprint(config.Values[name])
		if old, there := local[name]; there && old != value {
			yes, err := c.confirm(ctx, fmt.Sprintf("%s: overwrite %s with %s? (y/N) ", name, old, value))
			if err != nil {
				return err
			}
			if !yes {
				continue
			}
		}
		local[name] = value
	}
	if err := os.WriteFile(envFile, []byte(formatEnv(local)), 0o600); err != nil {
		return err
	}
	c.say("Config of %s written to %s", app, envFile)
	return nil
}

func (c *cli) pushConfig(cmd *cobra.Command, path string) error {
	text, err := readFile(path, maxEnvFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fail("There is no file "+path+".", "deis config:pull", "deis config:push --path=<file>")
	}
	if err != nil {
		return err
	}
	values, bad := parseEnv(string(text))
	for _, n := range bad {
		c.complain("%s: line %d does not match the pattern 'key=var', ex: MODE=test", path, n)
	}
	if len(values) == 0 {
		return fail(path + " sets nothing.")
	}
	return c.sendConfig(cmd.Context(), values)
}

// parseEnv reads lines of NAME=value and returns the numbers of those that are
// something else.
func parseEnv(text string) (values map[string]any, bad []int) {
	values = map[string]any{}
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		m := configPair.FindStringSubmatch(strings.TrimPrefix(line, "export "))
		if m == nil {
			bad = append(bad, n)
			continue
		}
		values[m[1]] = unquoteEnv(m[2])
	}
	return values, bad
}

var (
	envQuoter   = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", `\r`)
	envUnquoter = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\n`, "\n", `\r`, "\r")
)

// unquoteEnv takes the quotes off a value that is in quotes as a whole.
func unquoteEnv(value string) string {
	if len(value) < 2 || value[0] != value[len(value)-1] {
		return value
	}
	inner := value[1 : len(value)-1]
	switch value[0] {
	case '"':
		return envUnquoter.Replace(inner)
	case '\'':
		return inner
	}
	return value
}

// formatEnv is what parseEnv reads: sorted, and quoted only where that is needed
// to read the value back.
func formatEnv(values map[string]any) string {
	text := &strings.Builder{}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		value := fmt.Sprint(values[name])
		if strings.ContainsAny(value, "\n\r") || strings.TrimSpace(value) != value || unquoteEnv(value) != value {
			value = `"` + envQuoter.Replace(value) + `"`
		}
		fmt.Fprintf(text, "%s=%s\n", name, value)
	}
	return text.String()
}
