package deis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/spf13/cobra"
)

func (c *cli) appCommands() []*cobra.Command {
	list := &cobra.Command{
		Use:     "apps:list",
		Aliases: []string{"apps"},
		Short:   "List the apps that you may use",
		Example: "deis apps --json",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.listApps(cmd.Context()) },
	}
	c.withList(list)
	info := &cobra.Command{
		Use:     "apps:info",
		Aliases: []string{"info"},
		Short:   "Show an app: its address, owner, processes and domains",
		Example: "deis info --app=demo",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.appInfo(cmd.Context()) },
	}
	c.withApp(info)
	c.withJSON(info)
	open := &cobra.Command{
		Use:     "apps:open",
		Aliases: []string{"open"},
		Short:   "Print an app's address and open it in a browser",
		Long:    "The browser is $BROWSER, or what the desktop has for it.",
		Example: "deis open --app=demo",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.openApp(cmd.Context()) },
	}
	c.withApp(open)
	return []*cobra.Command{c.createCommand(), list, info, open, c.logsCommand(), c.runCommand(), c.transferCommand(), c.destroyCommand()}
}

// creation is what apps:create is told.
type creation struct {
	id, remote, buildpack string
	noRemote              bool
}

func (c *cli) createCommand() *cobra.Command {
	opt := creation{}
	cmd := &cobra.Command{
		Use:     "apps:create [<app>]",
		Aliases: []string{"create"},
		Short:   "Create an app and its git remote",
		Long:    "Without a name, the controller makes one up.",
		Example: "deis create demo",
		Args:    between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opt.id = strings.Join(args, "")
			return c.create(cmd.Context(), opt)
		},
	}
	cmd.Flags().BoolVar(&opt.noRemote, "no-remote", false, "add no git remote to this repository")
	cmd.Flags().StringVarP(&opt.remote, "remote", "r", defaultRemote, "`name` of the git remote")
	cmd.Flags().StringVarP(&opt.buildpack, "buildpack", "b", "", "`URL` of a buildpack to build it with")
	return cmd
}

func (c *cli) create(ctx context.Context, opt creation) error {
	s, err := c.loggedIn()
	if err != nil {
		return err
	}
	addRemote := !opt.noRemote && inRepository(ctx)
	if addRemote {
		if err := s.checkRemoteFree(ctx, opt); err != nil {
			return err
		}
	}
	app := api.App{}
	err = c.progress("Creating Application", func() (string, error) {
		body := map[string]string{}
		if opt.id != "" {
			body["id"] = opt.id
		}
		err := s.api.Call(ctx, http.MethodPost, "/v1/apps/", body, &app)
		return "done, created " + app.ID, err
	})
	if fieldError(err, "id", notUnique) {
		return fail("The name "+opt.id+" is taken.", "deis create <other name>", "deis git:remote --app="+opt.id+"   if the app is yours")
	}
	if err != nil {
		return err
	}
	if opt.buildpack != "" {
		change := api.Config{Values: map[string]any{"BUILDPACK_URL": opt.buildpack}}
		if err := s.api.Call(ctx, http.MethodPost, appPath(app.ID, "config/"), change, nil); err != nil {
			return err
		}
	}
	if addRemote {
		if err := c.addRemote(ctx, s, opt.remote, app.ID); err != nil {
			return err
		}
		c.warnWithoutKey(ctx)
		c.hint("Next: git push %s master", opt.remote)
		return nil
	}
	if err := s.learnGitURL(ctx); err != nil {
		return err
	}
	c.say("remote available at %s", s.remoteURL(app.ID))
	if !opt.noRemote {
		c.complain("There is no git repository here to push from.")
		c.try("git init && deis git:remote --app=" + app.ID)
	}
	return nil
}

// warnWithoutKey tells those who have no SSH key that a push would be refused.
func (c *cli) warnWithoutKey(ctx context.Context) {
	keys, err := list[api.Key](ctx, c, "/v1/keys/")
	if err != nil || keys.Count > 0 {
		return // that the app exists is what counts here
	}
	c.complain("You have given the controller no SSH key yet, so git push would be refused.")
	c.try("deis keys:add")
}

// checkRemoteFree refuses to create an app while the git remote that it would
// get belongs to another: the next push would go there.
func (s *session) checkRemoteFree(ctx context.Context, opt creation) error {
	got := remoteNamed(ctx, opt.remote)
	if got == "" {
		return nil
	}
	if err := s.learnGitURL(ctx); err != nil {
		return err
	}
	if opt.id != "" && got == s.remoteURL(opt.id) {
		return nil
	}
	again := strings.TrimSpace("deis create " + opt.id)
	return fail("A git remote "+opt.remote+" exists already, for "+got+". Nothing was created.",
		"git remote remove "+opt.remote+" && "+again, again+" --remote=<other name>", again+" --no-remote")
}

func (c *cli) listApps(ctx context.Context) error {
	if _, err := c.loggedIn(); err != nil {
		return err
	}
	page, err := list[api.App](ctx, c, "/v1/apps/")
	if err != nil {
		return err
	}
	return show(c, "Apps", page, func(a api.App) []string { return []string{a.ID} })
}

// appInfo is what apps:info shows; its JSON adds to the app's own.
type appInfo struct {
	api.App
	// WebURL is where the app is, with scheme and port.
	WebURL    string          `json:"web_url"`
	Processes []api.Container `json:"processes"`
	Domains   []api.Domain    `json:"domains"`
	// Disk is absent where the controller does not tell.
	Disk *api.AppDisk `json:"disk,omitempty"`
}

func (c *cli) appInfo(ctx context.Context) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	info := appInfo{}
	if err := s.api.Call(ctx, http.MethodGet, appPath(app, ""), nil, &info.App); err != nil {
		return err
	}
	processes, err := list[api.Container](ctx, c, appPath(app, "containers/"))
	if err != nil {
		return err
	}
	domains, err := list[api.Domain](ctx, c, appPath(app, "domains/"))
	if err != nil {
		return err
	}
	info.WebURL, info.Processes, info.Domains = s.webURL(info.URL), processes.Results, domains.Results
	disk := api.AppDisk{}
	if err := s.api.Call(ctx, http.MethodGet, appPath(app, "disk"), nil, &disk); err == nil {
		info.Disk = &disk
	}
	if c.json {
		return c.printJSON(info)
	}
	c.heading("%s Application", app)
	rows := [][]string{
		{"id:", info.ID},
		{"url:", info.WebURL},
		{"owner:", info.Owner},
		{"created:", info.Created},
		{"updated:", info.Updated},
		{"uuid:", info.UUID},
	}
	if info.Disk != nil {
		rows = append(rows, []string{"disk:", diskText(*info.Disk)})
	}
	c.table(rows)
	c.say("")
	if err := c.printProcesses(ctx, app, processes); err != nil {
		return err
	}
	c.say("")
	return c.printDomains(app, domains)
}

// diskText says what an app takes, and may take.
func diskText(d api.AppDisk) string {
	text := fmt.Sprintf("images %s, logs %s, written files %s", api.SizeText(d.Images), api.SizeText(d.Logs), api.SizeText(d.Written))
	if d.Limit > 0 {
		text += ", limit " + api.SizeText(d.Limit)
	}
	return text
}

// webURL is an app's address: reached by the same router, and so by the same
// scheme and port, as the controller.
func (s *session) webURL(host string) string {
	u, err := url.Parse(s.Controller)
	if err != nil || u.Port() == "" {
		return schemeOf(s.Controller) + "://" + host
	}
	return u.Scheme + "://" + net.JoinHostPort(host, u.Port())
}

func schemeOf(address string) string {
	scheme, _, _ := strings.Cut(address, "://")
	return scheme
}

func (c *cli) openApp(ctx context.Context) error {
	s, name, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	app := api.App{}
	if err := s.api.Call(ctx, http.MethodGet, appPath(name, ""), nil, &app); err != nil {
		return err
	}
	c.say("%s", s.webURL(app.URL))
	for _, browser := range []string{os.Getenv("BROWSER"), "xdg-open", "open"} {
		file, err := exec.LookPath(browser)
		if err != nil {
			continue
		}
		cmd := exec.CommandContext(ctx, file, s.webURL(app.URL))
		cmd.Stdin, cmd.Stdout, cmd.Stderr = c.in, c.out, c.err
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("open a browser: %s: %w", browser, err)
		}
		return nil
	}
	return nil
}

func (c *cli) transferCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "apps:transfer <user>",
		Short:   "Give an app to another user, who then owns it",
		Example: "deis apps:transfer bob --app=demo",
		Args:    exactly(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return c.transfer(cmd.Context(), args[0]) },
	}
	c.withApp(cmd)
	return cmd
}

func (c *cli) transfer(ctx context.Context, user string) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	err = c.progress("Transferring "+app+" to "+user, func() (string, error) {
		return "", s.api.Call(ctx, http.MethodPost, appPath(app, ""), map[string]string{"owner": user}, nil)
	})
	if paas.CodeOf(err) == paas.NotFound && !c.appIsMissing(ctx) {
		return noSuchUser(user)
	}
	return err
}

func (c *cli) destroyCommand() *cobra.Command {
	confirm := ""
	cmd := &cobra.Command{
		Use:     "apps:destroy",
		Aliases: []string{"destroy"},
		Short:   "Destroy an app with all that belongs to it",
		Example: "deis destroy --app=demo --confirm=demo",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.destroy(cmd.Context(), confirm) },
	}
	c.withApp(cmd)
	cmd.Flags().StringVar(&confirm, "confirm", "", "the `app`'s name again, instead of being asked")
	return cmd
}

func (c *cli) destroy(ctx context.Context, confirm string) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	if confirm == "" {
		// Before the warning, so that nobody confirms what is not there.
		if err := s.api.Call(ctx, http.MethodGet, appPath(app, ""), nil, nil); err != nil {
			return err
		}
		c.complain("WARNING: Potentially Destructive Action\nThis command will destroy the application: %s", app)
		c.complain("To proceed, type %q or re-run this command with --confirm=%s", app, app)
		if confirm, err = c.reply(ctx, "\n> "); errors.Is(err, errNoTerminal) {
			return &failure{
				text: "Not confirmed; nothing was destroyed.", status: statusUsage,
				next: []string{"deis destroy --app=" + app + " --confirm=" + app},
			}
		} else if err != nil {
			return err
		}
	}
	if confirm != app {
		return fail(fmt.Sprintf("App %s does not match confirm %s, aborting.", app, confirm))
	}
	err = c.timed("Destroying "+app+"...", func() error {
		return s.api.Call(ctx, http.MethodDelete, appPath(app, ""), nil, nil)
	})
	if err != nil {
		return err
	}
	return c.removeRemotes(ctx, s, app)
}
