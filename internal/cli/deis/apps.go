package deis

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/deis/deis/internal/api"
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
	return []*cobra.Command{c.createCommand(), list, info, open, c.logsCommand(), c.runCommand(), c.destroyCommand()}
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
	err = c.progress("Creating application", func() (string, error) {
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
		return c.addRemote(ctx, s, opt.remote, app.ID)
	}
	c.say("To push to it from a git repository, use `deis git:remote --app=%s` there.", app.ID)
	return nil
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
	if c.json {
		return c.printJSON(info)
	}
	c.heading("%s Application", app)
	c.table([][]string{
		{"id:", info.ID},
		{"url:", info.WebURL},
		{"owner:", info.Owner},
		{"created:", info.Created},
		{"updated:", info.Updated},
		{"uuid:", info.UUID},
	})
	c.say("")
	c.printProcesses(app, processes)
	c.say("")
	return c.printDomains(app, domains)
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

func (c *cli) logsCommand() *cobra.Command {
	lines := 0
	cmd := &cobra.Command{
		Use:     "apps:logs",
		Aliases: []string{"logs"},
		Short:   "Show the last lines that an app and the platform wrote",
		Example: "deis logs --lines=50",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("lines") && lines < 1 {
				return usage(cmd, "--lines must be 1 or more.")
			}
			return c.logs(cmd.Context(), lines)
		},
	}
	c.withApp(cmd)
	cmd.Flags().IntVarP(&lines, "lines", "n", 0, "how `many` to show; default: 1000")
	return cmd
}

func (c *cli) logs(ctx context.Context, lines int) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	path := appPath(app, "logs")
	if lines > 0 {
		path += "?log_lines=" + strconv.Itoa(lines)
	}
	resp, err := s.api.Do(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNoContent {
		c.complain("%s has logged nothing yet.", app)
		return nil
	}
	body := bufio.NewReader(resp.Body)
	if first, err := body.Peek(1); err == nil && first[0] == '"' {
		return c.quotedLogs(body)
	}
	return c.copyLogs(body)
}

// quotedLogs is for servers up to API 1.6, which send the text as one JSON
// string (contract 5.8).
func (c *cli) quotedLogs(body io.Reader) error {
	text := ""
	if err := json.NewDecoder(body).Decode(&text); err != nil {
		return fmt.Errorf("read the logs: %w", err)
	}
	return c.copyLogs(bufio.NewReader(strings.NewReader(text)))
}

// copyLogs prints lines of any length; on a terminal the process that wrote
// one, its second word, has a colour of its own.
func (c *cli) copyLogs(body *bufio.Reader) error {
	for {
		line, err := body.ReadString('\n')
		if line != "" {
			if !strings.HasSuffix(line, "\n") {
				line += "\n"
			}
			fmt.Fprint(c.out, c.colourLog(line))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the logs: %w", err)
		}
	}
}

func (c *cli) colourLog(line string) string {
	words := strings.SplitN(line, " ", 3)
	if len(words) < 3 || !coloured(c.out) {
		return line
	}
	sum := 0
	for _, b := range []byte(words[1]) {
		sum += int(b)
	}
	return fmt.Sprintf("\x1b[%dm%s %s\x1b[0m %s", 31+sum%6, words[0], words[1], words[2])
}

func (c *cli) runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "apps:run <command>...",
		Aliases: []string{"run"},
		Short:   "Run a command once in a new instance of an app",
		Long: `Its output is shown when it is over, and its exit status becomes this one's. Options for
deis come before the command, all after it are the command's own.`,
		Example: "deis run --app=demo ls -l",
		Args:    atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.run(cmd.Context(), strings.Join(args, " "))
		},
	}
	c.withApp(cmd)
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (c *cli) run(ctx context.Context, command string) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.err, "Running `%s`...\n", command)
	answer := []json.RawMessage{}
	if err := s.api.Call(ctx, http.MethodPost, appPath(app, "run"), map[string]string{"command": command}, &answer); err != nil {
		return err
	}
	status, output := 0, ""
	if len(answer) != 2 || json.Unmarshal(answer[0], &status) != nil || json.Unmarshal(answer[1], &output) != nil {
		return errors.New("the controller's answer is not the one expected")
	}
	fmt.Fprint(c.out, output)
	if status != 0 {
		return exitStatus(status)
	}
	return nil
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
		if confirm, err = c.ask(ctx, "\n> "); errors.Is(err, errNoTerminal) {
			return &failure{text: "Not confirmed; nothing was destroyed.", status: statusUsage}
		} else if err != nil {
			return err
		}
	}
	if confirm != app {
		return fail(fmt.Sprintf("App %s does not match confirm %s, aborting.", app, confirm))
	}
	err = c.timed("Destroying "+app, func() error {
		return s.api.Call(ctx, http.MethodDelete, appPath(app, ""), nil, nil)
	})
	if err != nil {
		return err
	}
	return c.removeRemotes(ctx, s, app)
}
