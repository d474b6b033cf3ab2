package deis

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
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
	info := c.buildCommand("info", "Show one build", c.buildInfo)
	log := c.buildCommand("log", "Show what a build printed", c.buildLog)
	sbom := c.buildCommand("sbom", "Print what is in a build's image", func(ctx context.Context, uuid string) error {
		return c.buildDocument(ctx, uuid, "sbom")
	})
	sbom.Long += "\nIt is a CycloneDX document, in JSON. Builds with buildpacks have one."
	sbom.Example = "deis builds:sbom >sbom.cdx.json"
	provenance := c.buildCommand("provenance", "Print how a build was made", func(ctx context.Context, uuid string) error {
		return c.buildDocument(ctx, uuid, "provenance")
	})
	provenance.Long += "\nIt is an in-toto statement with a SLSA v1 predicate, in JSON: the image's digest, the commit,\nthe images and buildpacks that were used. Builds of git pushes have one."
	provenance.Example = "deis builds:provenance >provenance.json"
	clear := &cobra.Command{
		Use:     "builds:cache-clear",
		Short:   "Clear an app's build cache",
		Long:    "The next build starts with an empty cache: it takes longer, and fetches all again. What runs is not touched.",
		Example: "deis builds:cache-clear",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.clearBuildCache(cmd.Context()) },
	}
	c.withApp(list, create, info, log, sbom, provenance, clear)
	c.withList(list)
	c.withJSON(info)
	return []*cobra.Command{list, create, info, log, sbom, provenance, clear}
}

// buildCommand is a command about one build, without a UUID the latest.
func (c *cli) buildCommand(name, short string, run func(ctx context.Context, uuid string) error) *cobra.Command {
	return &cobra.Command{
		Use:     "builds:" + name + " [<uuid>]",
		Short:   short,
		Long:    "Without a UUID it is the latest build.",
		Example: "deis builds:" + name,
		Args:    between(0, 1),

		ValidArgsFunction: first(c.completing(c.buildNames)),
		RunE: func(cmd *cobra.Command, args []string) error {
			uuid := ""
			if len(args) == 1 {
				uuid = args[0]
			}
			return run(cmd.Context(), uuid)
		},
	}
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
		return []string{b.UUID, b.Created, b.Image, b.SHA[:min(shortSHA, len(b.SHA))]}
	})
}

// shortSHA is how many digits of a commit are shown in lists, as in releases.
const shortSHA = 7

// aBuild finds a build by its UUID, without one the latest.
func (c *cli) aBuild(ctx context.Context, uuid string) (b api.Build, err error) {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return b, err
	}
	if uuid != "" {
		err := s.api.Call(ctx, http.MethodGet, appPath(app, "builds/"+url.PathEscape(uuid)+"/"), nil, &b)
		if paas.CodeOf(err) == paas.NotFound && !c.appIsMissing(ctx) {
			err = fail(fmt.Sprintf("%s has no build %s.", app, uuid), "deis builds --app="+app)
		}
		return b, err
	}
	page := api.List[api.Build]{}
	if err := s.api.Call(ctx, http.MethodGet, appPath(app, "builds/?page_size=1"), nil, &page); err != nil {
		return b, err
	}
	if len(page.Results) == 0 {
		return b, fail(app+" has no builds yet.", "git push deis master", "deis pull <image> --app="+app)
	}
	return page.Results[0], nil
}

func (c *cli) buildInfo(ctx context.Context, uuid string) error {
	b, err := c.aBuild(ctx, uuid)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(b)
	}
	types := []string{}
	for _, kind := range slices.Sorted(maps.Keys(b.Procfile)) {
		types = append(types, kind+": "+b.Procfile[kind])
	}
	rows := [][]string{
		{"image:", b.Image},
		{"commit:", b.SHA},
		{"processes:", strings.Join(types, "\n")},
		{"owner:", b.Owner},
		{"created:", b.Created},
		{"updated:", b.Updated},
		{"uuid:", b.UUID},
	}
	c.heading("%s Build", c.current)
	c.table(slices.DeleteFunc(rows, func(row []string) bool { return row[1] == "" }))
	return nil
}

// part opens what is kept with a build: its log or a document. The caller closes it.
func (c *cli) part(ctx context.Context, uuid, name string) (io.ReadCloser, error) {
	b, err := c.aBuild(ctx, uuid)
	if err != nil {
		return nil, err
	}
	resp, err := c.session.api.Do(ctx, http.MethodGet, appPath(c.current, "builds/"+b.UUID+"/"+name+"/"), nil, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func (c *cli) buildLog(ctx context.Context, uuid string) error {
	body, err := c.part(ctx, uuid, "log")
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.Copy(c.out, body); err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	return nil
}

func (c *cli) buildDocument(ctx context.Context, uuid, name string) error {
	body, err := c.part(ctx, uuid, name)
	if err != nil {
		return err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, api.MaxBuildDocument))
	if err != nil {
		return fmt.Errorf("read the document: %w", err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, text, "", "  "); err != nil {
		return fmt.Errorf("the controller's answer is no JSON: %w", err)
	}
	c.say("%s", indented.String())
	return nil
}

func (c *cli) clearBuildCache(ctx context.Context) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	return c.progress("Clearing the build cache", func() (string, error) {
		return "", s.api.Call(ctx, http.MethodDelete, appPath(app, "builds/cache/"), nil, nil)
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
