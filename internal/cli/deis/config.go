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
		Use:     "config:unset <name>...",
		Short:   "Unset config, which makes a new release",
		Example: "deis config:unset GREETING MOTTO",
		Args:    atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			values := map[string]any{}
			for _, name := range args {
				if strings.Contains(name, "=") {
					return usage(cmd, "Give names only, without values.")
				}
				values[name] = nil
			}
			return c.changeConfig(cmd.Context(), "Removing config", values)
		},
	}
	c.withApp(list, set, unset)
	c.withJSON(list, set, unset)
	return []*cobra.Command{list, set, unset}
}

func (c *cli) setConfig(cmd *cobra.Command, args []string) error {
	values := map[string]any{}
	for _, arg := range args {
		name, value, ok := strings.Cut(arg, "=")
		if !ok || name == "" {
			return usage(cmd, "An argument is not of the form <name>=<value>.") // it may be a secret: not shown
		}
		values[name] = value
	}
	if text, ok := values["SSH_KEY"].(string); ok {
		key, err := encodeSSHKey(text)
		if err != nil {
			return err
		}
		values["SSH_KEY"] = key
	}
	return c.changeConfig(cmd.Context(), "Creating config", values)
}

var privateKey = regexp.MustCompile(`^-+BEGIN [A-Z ]*PRIVATE KEY-+`)

// encodeSSHKey encodes a private key, or the file that is named.
func encodeSSHKey(text string) (string, error) {
	if info, err := os.Stat(text); err == nil && info.Mode().IsRegular() {
		content, err := readFile(text, maxSSHKey)
		if err != nil {
			return "", err
		}
		text = string(content)
	}
	if !privateKey.MatchString(text) {
		return "", fail("SSH_KEY is neither a private key nor the name of a file with one.")
	}
	return base64.StdEncoding.EncodeToString([]byte(text)), nil
}

// changeConfig posts values (nil removes one) and shows what came of it.
func (c *cli) changeConfig(ctx context.Context, doing string, values map[string]any) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	err = c.progress(doing, func() (string, error) {
		resp, err := s.api.Do(ctx, http.MethodPost, appPath(app, "config/"), api.Config{Values: values}, nil)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		release := cmp.Or(resp.Header.Get(api.HeaderRelease), resp.Header.Get(api.HeaderReleaseOld))
		if release == "" {
			return "done", nil
		}
		return "done, v" + release, nil
	})
	if err != nil {
		return err
	}
	if !c.json {
		c.say("")
	}
	return c.printConfig(ctx, s, app, false)
}

func (c *cli) printConfig(ctx context.Context, s *session, app string, oneline bool) error {
	config := api.Config{}
	if err := s.api.Call(ctx, http.MethodGet, appPath(app, "config/"), nil, &config); err != nil {
		return err
	}
	if c.json {
		if config.Values == nil {
			config.Values = map[string]any{}
		}
		return c.printJSON(config.Values)
	}
	rows, words := [][]string{}, []string{}
	for _, name := range slices.Sorted(maps.Keys(config.Values)) {
		value := fmt.Sprint(config.Values[name])
		rows = append(rows, []string{name, value})
		words = append(words, name+"="+shellQuote(value))
	}
	if oneline {
		c.say("%s", strings.Join(words, " "))
		return nil
	}
	c.heading("%s Config", app)
	c.table(rows)
	return nil
}

var shellSafe = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]*$`)

// shellQuote quotes what a shell would take apart.
func shellQuote(s string) string {
	if shellSafe.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
