package deis

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

// maxProcfile bounds the Procfile that goes along with an image, in bytes; the
// builder has the same bound.
const maxProcfile = 64 << 10

func (c *cli) buildCommands() []*cobra.Command {
	list := &cobra.Command{
		Use:     "builds:list",
		Aliases: []string{"builds"},
		Short:   "List an app's builds, the newest first",
		Example: "deis builds --limit=10",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.listBuilds(cmd.Context()) },
	}
	procfile := ""
	create := &cobra.Command{
		Use:     "builds:create <image>",
		Aliases: []string{"pull"},
		Short:   "Deploy an image from a registry, without git push",
		Long: `The image's own command runs as process type cmd; other types come from the Procfile
in this directory, if there is one, or from --procfile.`,
		Example: "deis pull registry.example.com/demo:v7 --procfile='web: ./server'",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.createBuild(cmd.Context(), args[0], procfile)
		},
	}
	create.Flags().StringVarP(&procfile, "procfile", "p", "", "process types as `YAML`, instead of the file Procfile")
	c.withApp(list, create)
	c.withList(list)
	return []*cobra.Command{list, create}
}

func (c *cli) listBuilds(ctx context.Context) error {
	_, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	page, err := list[api.Build](ctx, c, appPath(app, "builds/"))
	if err != nil {
		return err
	}
	return show(c, app+" Builds", page, func(b api.Build) []string {
		return []string{b.UUID, b.Created, b.Image}
	})
}

func (c *cli) createBuild(ctx context.Context, image, procfile string) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	types, err := processTypes(procfile)
	if err != nil {
		return err
	}
	body := map[string]any{"image": image}
	if len(types) > 0 {
		body["procfile"] = types
	}
	return c.progress("Creating build", func() (string, error) {
		return s.postForRelease(ctx, appPath(app, "builds/"), body)
	})
}

// processTypes are those of a text, or else of the Procfile here.
func processTypes(procfile string) (map[string]string, error) {
	if procfile != "" {
		return parseProcfile("--procfile", procfile)
	}
	text, err := readFile("Procfile", maxProcfile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseProcfile("The Procfile here", string(text))
}

// parseProcfile reads YAML, or lines "type: command" that YAML does not take as
// such, like those with ": " in the command.
func parseProcfile(what, text string) (map[string]string, error) {
	types := map[string]string{}
	if yaml.Unmarshal([]byte(text), &types) == nil {
		return types, nil
	}
	types = map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		kind, command, ok := strings.Cut(line, ":")
		if !ok || strings.ContainsAny(kind, " \t{[\"'") || strings.TrimSpace(command) == "" {
			return nil, &failure{text: fmt.Sprintf("%s has a line that is not of the form \"web: command\": %s", what, line), status: statusUsage}
		}
		types[kind] = strings.TrimSpace(command)
	}
	return types, nil
}
