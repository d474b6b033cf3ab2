package deis

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/spf13/cobra"
)

// completionTime bounds what a press of the tab key waits for.
const completionTime = 2 * time.Second

// completer is how cobra asks for what may come next.
type completer = func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective)

// completing makes a completer of a function that lists names about an app
// ("" if none is known), some of which may have been typed already. Whatever
// goes wrong, there is just nothing to complete.
func (c *cli) completing(names func(ctx context.Context, s *session, app string) ([]string, error)) completer {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		directive := cobra.ShellCompDirectiveNoFileComp
		s, err := c.loggedIn()
		if err != nil {
			return nil, directive
		}
		c.warned = true // nobody reads warnings now
		app, _ := c.findApp(ctx, s)
		all, err := names(ctx, s, app)
		if err != nil {
			return nil, directive
		}
		found := []cobra.Completion{}
		for _, name := range all {
			if strings.HasPrefix(name, begun) && !slices.Contains(args, name) {
				found = append(found, name)
			}
			if strings.HasSuffix(name, "=") {
				directive |= cobra.ShellCompDirectiveNoSpace
			}
		}
		return found, directive
	}
}

// first is a completer for commands of one argument.
func first(complete completer) completer {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return complete(cmd, args, begun)
	}
}

// namesIn lists one field of each element of a list of the controller's.
func namesIn[T any](ctx context.Context, c *cli, path string, name func(T) string) ([]string, error) {
	page, err := list[T](ctx, c, path)
	names := []string{}
	for _, r := range page.Results {
		names = append(names, name(r))
	}
	return names, err
}

func (c *cli) appNames(ctx context.Context, _ *session, _ string) ([]string, error) {
	return namesIn(ctx, c, "/v1/apps/", func(a api.App) string { return a.ID })
}

func (c *cli) keyNames(ctx context.Context, _ *session, _ string) ([]string, error) {
	return namesIn(ctx, c, "/v1/keys/", func(k api.Key) string { return k.ID })
}

func (c *cli) certNames(ctx context.Context, _ *session, _ string) ([]string, error) {
	return namesIn(ctx, c, "/v1/certs/", func(cert api.Cert) string { return cert.CommonName })
}

func (c *cli) domainNames(ctx context.Context, _ *session, app string) ([]string, error) {
	return namesIn(ctx, c, appPath(app, "domains/"), func(d api.Domain) string { return d.Domain })
}

func (c *cli) releaseNames(ctx context.Context, _ *session, app string) ([]string, error) {
	return namesIn(ctx, c, appPath(app, "releases/"), func(r api.Release) string { return fmt.Sprintf("v%d", r.Version) })
}

func (c *cli) buildNames(ctx context.Context, _ *session, app string) ([]string, error) {
	return namesIn(ctx, c, appPath(app, "builds/"), func(b api.Build) string { return b.UUID })
}

// processNames are the types and, after them, the processes.
func (c *cli) processNames(ctx context.Context, s *session, app string) ([]string, error) {
	types, err := c.processTypesWith("")(ctx, s, app)
	if err != nil {
		return nil, err
	}
	running, err := namesIn(ctx, c, appPath(app, "containers/"), func(p api.Container) string {
		return fmt.Sprintf("%s.%d", p.Type, p.Num)
	})
	return append(types, running...), err
}

// processTypesWith lists an app's process types, each with a suffix.
func (c *cli) processTypesWith(suffix string) func(context.Context, *session, string) ([]string, error) {
	return func(ctx context.Context, s *session, app string) ([]string, error) {
		info := api.App{}
		if err := s.api.Call(ctx, http.MethodGet, appPath(app, ""), nil, &info); err != nil {
			return nil, err
		}
		types := []string{}
		for _, kind := range slices.Sorted(maps.Keys(info.Structure)) {
			types = append(types, kind+suffix)
		}
		return types, nil
	}
}

func (c *cli) configNames(ctx context.Context, s *session, app string) ([]string, error) {
	config, err := s.config(ctx, app)
	return slices.Sorted(maps.Keys(config.Values)), err
}

func (c *cli) tagNames(ctx context.Context, s *session, app string) ([]string, error) {
	config, err := s.config(ctx, app)
	return slices.Sorted(maps.Keys(config.Tags)), err
}

func (c *cli) collaboratorNames(ctx context.Context, s *session, app string) ([]string, error) {
	return s.collaborators(ctx, app)
}

// completeShortcuts adds to the commands, which cobra knows, their shorter names
// and the plugins on the path.
func completeShortcuts(root *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	found := []cobra.Completion{}
	if len(args) > 0 {
		return found, cobra.ShellCompDirectiveNoFileComp
	}
	for _, cmd := range root.Commands() {
		for _, name := range cmd.Aliases {
			if strings.HasPrefix(name, begun) {
				found = append(found, cobra.CompletionWithDesc(name, cmd.Short))
			}
		}
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		files, _ := filepath.Glob(filepath.Join(dir, pluginPrefix+"*")) // the pattern is never bad but for an odd PATH
		for _, file := range files {
			if name := strings.TrimPrefix(filepath.Base(file), pluginPrefix); strings.HasPrefix(name, begun) {
				found = append(found, cobra.CompletionWithDesc(name, "plugin "+file))
			}
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}
