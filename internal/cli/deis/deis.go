// Package deis is the users' command line. Each file holds the commands of one
// noun; what they share is the frame: session.go (settings and client), git.go
// (which app is meant), print.go, prompt.go and errors.go.
//
// Names, options and shortcuts are those of contract section 13.
package deis

import (
	"context"
	"io"
	"slices"

	"github.com/deis/deis/internal/api"
	"github.com/spf13/cobra"
)

// Streams are where the command line reads and writes. Those that are terminals
// get prompts, colour and progress.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Run runs one command line, without the program's name, and returns its exit
// status: 0 done, 1 failed, 2 wrong usage, 130 when ctx ended. `deis run` gives
// that of the command that it ran.
func Run(ctx context.Context, args []string, std Streams) int {
	c := &cli{in: std.In, out: std.Out, err: std.Err, args: args}
	root := c.root()
	root.SetArgs(append([]string{}, args...))
	if program, argv := plugin(root, args); program != "" {
		return c.report(ctx, becomePlugin(program, argv))
	}
	return c.report(ctx, root.ExecuteContext(ctx))
}

// cli is one run of the command line.
type cli struct {
	in       io.Reader
	out, err io.Writer
	args     []string

	// Options that several commands have.
	app   string
	limit int
	json  bool

	// session is the controller spoken to, once there is one; current the app that the command is
	// about, and guessed says that it was neither named nor found in a git remote.
	session *session
	current string
	guessed bool
	warned  bool
}

// A noun is a section of the help.
type noun struct {
	title    string
	commands []*cobra.Command
}

func (c *cli) nouns() []noun {
	return []noun{
		{"Account", c.authCommands()},
		{"SSH keys", c.keyCommands()},
		{"Apps", c.appCommands()},
		{"Config", slices.Concat(c.configCommands(), c.limitCommands(), c.tagCommands())},
		{"Processes", append(c.psCommands(), c.drainsCommand())},
		{"Builds and releases", slices.Concat(c.buildCommands(), c.releaseCommands(), c.rolloutCommands())},
		{"Domains and certificates", append(c.domainCommands(), c.certCommands()...)},
		{"People", slices.Concat(c.permCommands(), c.userCommands())},
		{"Git", c.gitCommands()},
		{"More", append(c.topics(), c.versionCommand())},
	}
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:                "deis",
		Short:              "Deploy and run apps on a Deis platform",
		Args:               func(cmd *cobra.Command, args []string) error { return c.checkName(cmd, args) },
		RunE:               c.runRoot,
		SilenceErrors:      true,
		SilenceUsage:       true,
		Version:            api.PlatformVersion,
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
		ValidArgsFunction:  completeShortcuts,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	for _, n := range c.nouns() {
		root.AddGroup(&cobra.Group{ID: n.title, Title: n.title})
		for _, cmd := range n.commands {
			cmd.GroupID = n.title
			cmd.Flags().SortFlags = false
			hideHelpFlag(cmd)
			root.AddCommand(cmd)
		}
	}
	root.SetOut(c.out)
	root.SetErr(c.err)
	root.SetHelpCommand(c.helpCommand())
	root.SetCompletionCommandGroupID("More")
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { c.help(cmd) })
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(cmd, "%s", sentence(err.Error()))
	})
	return root
}

// runRoot shows the help; it is also reached with options that only commands have.
func (c *cli) runRoot(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) > 0: // checkName has listed the noun's commands
		return nil
	case len(c.args) > 0:
		return usage(cmd, "Unknown option %s.", c.args[0])
	}
	c.help(cmd)
	return nil
}

// checkName refuses a command that does not exist and suggests those that are
// spelled like it.
func (c *cli) checkName(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if c.listNoun(root, args[0]) {
		return nil
	}
	names := &cobra.Command{SuggestionsMinimumDistance: 2}
	for _, cmd := range root.Commands() {
		for _, name := range append([]string{cmd.Name()}, cmd.Aliases...) {
			names.AddCommand(&cobra.Command{Use: name, Run: func(*cobra.Command, []string) {}})
		}
	}
	next := []string{"deis help"}
	if like := names.SuggestionsFor(args[0]); len(like) > 0 {
		slices.Sort(like)
		next = nil
		for _, name := range like {
			next = append(next, "deis "+name)
		}
	}
	return &failure{text: "Unknown command " + args[0] + ".", next: next, status: statusUsage}
}

// exactly and atLeast are the argument rules; a wrong number shows the usage.
func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return wrongCount(cmd, args)
		}
		return nil
	}
}

func between(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < low || len(args) > high {
			return wrongCount(cmd, args)
		}
		return nil
	}
}

func atLeast(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return wrongCount(cmd, args)
		}
		return nil
	}
}

func wrongCount(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usage(cmd, "Something is missing.")
	}
	return usage(cmd, "%d arguments are too many or too few.", len(args)) // not shown: they may be secret
}

// withApp declares --app for commands about one app.
func (c *cli) withApp(cmds ...*cobra.Command) {
	for _, cmd := range cmds {
		cmd.Flags().StringVarP(&c.app, "app", "a", "", "the app; default: from the git remote, or the directory's `name`")
		if err := cmd.RegisterFlagCompletionFunc("app", c.completing(c.appNames)); err != nil {
			panic(err) // --app is declared one line above
		}
	}
}

// withJSON declares --json for commands that show something.
func (c *cli) withJSON(cmds ...*cobra.Command) {
	for _, cmd := range cmds {
		cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	}
}

// withList declares the options of commands that list.
func (c *cli) withList(cmds ...*cobra.Command) {
	c.withJSON(cmds...)
	for _, cmd := range cmds {
		cmd.Flags().IntVarP(&c.limit, "limit", "l", 0, "how `many` to show at most; default: response_limit in your settings, 100")
	}
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this client",
		Example: "deis version",
		Args:    exactly(0),
		RunE: func(*cobra.Command, []string) error {
			c.say("%s", api.PlatformVersion)
			return nil
		},
	}
}
