package deis

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/spf13/cobra"
)

// maxSSHKey bounds a private key that SSH_KEY names, in bytes.
const maxSSHKey = 64 << 10

func (c *cli) configCommands() []*cobra.Command {
	oneline := false
	list := &cobra.Command{
		Use:     "config:list",
		Aliases: []string{"config"},
		Short:   "List an app's config",
		Example: "deis config --oneline",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, app, err := c.forApp(cmd.Context())
			if err != nil {
				return err
			}
			return c.printConfig(cmd.Context(), s, app, oneline)
		},
	}
	list.Flags().BoolVar(&oneline, "oneline", false, "print NAME=value on one line, quoted for the shell where needed")
	set := &cobra.Command{
		Use:   "config:set <name>=<value>...",
		Short: "Set config, which makes a new release",
		Long: `All names in one call make one release. SSH_KEY is the file name or the text of a private
key for fetching dependencies, and is sent in base64.`,
		Example: "deis config:set --app=demo GREETING=hello 'MOTTO=push and forget'",
		Args:    atLeast(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return c.setConfig(cmd, args) },
	}
	unset := &cobra.Command{
		Use:               "config:unset <name>...",
		Short:             "Unset config, which makes a new release",
		Example:           "deis config:unset GREETING MOTTO",
		Args:              atLeast(1),
		ValidArgsFunction: c.completing(c.configNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			values, err := removals(cmd, args)
			if err != nil {
				return err
			}
			return c.changeValues(cmd.Context(), "Removing config", values)
		},
	}
	c.withApp(list, set, unset)
	c.withJSON(list, set, unset)
	return append([]*cobra.Command{list, set, unset}, c.envFileCommands()...)
}

var configPair = regexp.MustCompile(`(?s)^([A-Za-z_][A-Za-z0-9_]*)=(.*)$`) // contract 5.2

func (c *cli) setConfig(cmd *cobra.Command, args []string) error {
	values, err := c.pairs(cmd, args, configPair, func(n int, arg string) string {
		name, _, ok := strings.Cut(arg, "=")
		if !ok {
			return fmt.Sprintf("Argument %d does not match the pattern 'key=var', ex: MODE=test", n) // it may be a secret: not shown
		}
		return fmt.Sprintf("'%s=...' does not match the pattern 'key=var', ex: MODE=test", name)
	})
	if err != nil {
		return err
	}
	return c.sendConfig(cmd.Context(), values)
}

// sendConfig is the end of config:set and config:push.
func (c *cli) sendConfig(ctx context.Context, values map[string]any) error {
	if text, ok := values["SSH_KEY"].(string); ok {
		key, err := encodeSSHKey(text)
		if err != nil {
			return err
		}
		values["SSH_KEY"] = key
	}
	return c.changeValues(ctx, "Creating config", values)
}

// pairs takes arguments like "web=2" apart by a pattern of two groups. Those
// that do not match are reported, in the words of complaint (which counts from
// 1), and skipped (contract 13); if none is left, there is nothing to do.
func (c *cli) pairs(cmd *cobra.Command, args []string, pattern *regexp.Regexp, complaint func(n int, arg string) string) (map[string]any, error) {
	pairs := map[string]any{}
	for i, arg := range args {
		if m := pattern.FindStringSubmatch(arg); m != nil {
			pairs[m[1]] = m[2]
			continue
		}
		c.complain("%s", complaint(i+1, arg))
	}
	if len(pairs) == 0 {
		return nil, usage(cmd, "So nothing is left to do.")
	}
	return pairs, nil
}

// removals is a change that removes the names given.
func removals(cmd *cobra.Command, names []string) (map[string]any, error) {
	gone := map[string]any{}
	for _, name := range names {
		if strings.Contains(name, "=") {
			return nil, usage(cmd, "Give names only, without values.") // not shown: it may be a secret
		}
		gone[name] = nil
	}
	return gone, nil
}

var privateKey = regexp.MustCompile(`^-+BEGIN [A-Z ]*PRIVATE KEY-+`)

// encodeSSHKey encodes a private key, or the file that is named; what is encoded
// already, as config:pull writes it, stays.
func encodeSSHKey(text string) (string, error) {
	if info, err := os.Stat(text); err == nil && info.Mode().IsRegular() {
		content, err := readFile(text, maxSSHKey)
		if err != nil {
			return "", err
		}
		text = string(content)
	}
	if plain, err := base64.StdEncoding.DecodeString(text); err == nil && privateKey.Match(plain) {
		return text, nil
	}
	if !privateKey.MatchString(text) {
		return "", fail("SSH_KEY is neither a private key nor the name of a file with one.")
	}
	return base64.StdEncoding.EncodeToString([]byte(text)), nil
}

// changeValues changes the environment and shows it.
func (c *cli) changeValues(ctx context.Context, doing string, values map[string]any) error {
	return c.changeConfig(ctx, doing, api.Config{Values: values}, func(s *session, app string) error {
		return c.printConfig(ctx, s, app, false)
	})
}

// changeConfig posts a change (nil values remove) and has print show what came
// of it.
func (c *cli) changeConfig(ctx context.Context, doing string, change api.Config, print func(s *session, app string) error) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	err = c.progress(doing, func() (string, error) { return s.postForRelease(ctx, appPath(app, "config/"), change) })
	if err != nil {
		return err
	}
	if !c.json {
		c.say("")
	}
	return print(s, app)
}

// postForRelease posts what makes a release and returns "done, v5".
func (s *session) postForRelease(ctx context.Context, path string, body any) (string, error) {
	resp, err := s.api.Do(ctx, http.MethodPost, path, body, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	release := cmp.Or(resp.Header.Get(api.HeaderRelease), resp.Header.Get(api.HeaderReleaseOld))
	if release == "" {
		return "done", nil
	}
	return "done, v" + release, nil
}

func (s *session) config(ctx context.Context, app string) (api.Config, error) {
	config := api.Config{}
	err := s.api.Call(ctx, http.MethodGet, appPath(app, "config/"), nil, &config)
	return config, err
}

func (c *cli) printConfig(ctx context.Context, s *session, app string, oneline bool) error {
	config, err := s.config(ctx, app)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(notNil(config.Values))
	}
	if oneline {
		words := []string{}
		for _, name := range slices.Sorted(maps.Keys(config.Values)) {
			words = append(words, name+"="+shellQuote(fmt.Sprint(config.Values[name])))
		}
		c.say("%s", strings.Join(words, " "))
		return nil
	}
	c.heading("%s Config", app)
	c.table(mapRows(config.Values))
	return nil
}

// mapRows are the rows of a table for a map, sorted.
func mapRows(m map[string]any) [][]string {
	rows := [][]string{}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		rows = append(rows, []string{name, fmt.Sprint(m[name])})
	}
	return rows
}

// notNil is m, or an empty map, which JSON shows as {}.
func notNil(m map[string]any) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	return m
}

var shellSafe = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]*$`)

// shellQuote quotes what a shell would take apart.
func shellQuote(s string) string {
	if shellSafe.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
