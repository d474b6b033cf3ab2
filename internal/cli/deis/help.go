package deis

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// help prints the help of one command, or the list of all for the root.
func (c *cli) help(cmd *cobra.Command) {
	if cmd.HasParent() {
		c.helpOn(cmd)
		return
	}
	c.say("Usage: deis <command> [<option>...]")
	for _, group := range cmd.Groups() {
		rows := [][]string{}
		for _, sub := range cmd.Commands() {
			if sub.GroupID == group.ID {
				rows = append(rows, []string{"  " + sub.Name(), shortcut(sub), sub.Short})
			}
		}
		c.say("\n%s", c.bold(group.Title))
		c.table(rows)
	}
	c.say("\n`deis help <command>` says more about one. Start with `deis register <controller>`,")
	c.say("then `deis keys:add`, `deis create`, `git push deis master`.")
}

// topics are what `deis help` explains besides commands.
func (c *cli) topics() []*cobra.Command {
	shortcuts := &cobra.Command{
		Use:     "shortcuts",
		Short:   "List the shorter names of commands",
		Example: "deis shortcuts",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows := [][]string{}
			for _, sub := range cmd.Root().Commands() {
				for _, name := range sub.Aliases {
					rows = append(rows, []string{name, sub.Name()})
				}
			}
			slices.SortFunc(rows, slices.Compare)
			c.table(rows)
			return nil
		},
	}
	// Without RunE these are no commands but texts.
	return []*cobra.Command{shortcuts, {
		Use:   "exit-codes",
		Short: "What the exit status of deis means",
		Long: `  0    done
  1    failed: the controller refused, could not be reached, or the deploy failed;
       standard error says why and what to type next
  2    wrong usage: nothing was sent
  130  interrupted (Ctrl-C)

deis run and plugins give the exit status of what they ran.`,
	}, {
		Use:   "plugins",
		Short: "How to add commands of your own",
		Long: `A command x:y that deis does not have runs the program deis-x on your path with y as its first
argument, followed by all that comes after; x alone runs deis-x with x. The program takes the
place of deis: it has the terminal, and its exit status counts. It finds in its environment

  DEIS_BINARY      this program, to call other commands
  DEIS_SETTINGS    the file with your login: controller, username, token, ssl_verify
  DEIS_CONTROLLER  the controller's address, if you are logged in
  DEIS_USERNAME    your name there

and DEIS_PROFILE if you have set it, so that it works as the same user.`,
	}}
}

// listNoun lists the commands of a noun ("auth"); false if there are none.
func (c *cli) listNoun(root *cobra.Command, noun string) bool {
	rows := [][]string{}
	for _, cmd := range root.Commands() {
		if strings.HasPrefix(cmd.Name(), noun+":") {
			rows = append(rows, []string{"  " + cmd.Name(), shortcut(cmd), cmd.Short})
		}
	}
	if len(rows) == 0 {
		return false
	}
	c.say("Usage: deis %s:<command> [<option>...]\n", noun)
	c.table(rows)
	c.say("\n`deis help <command>` says more about one.")
	return true
}

func (c *cli) helpOn(cmd *cobra.Command) {
	c.say("%s.", cmd.Short)
	if !cmd.Runnable() && !cmd.HasSubCommands() {
		c.say("\n%s", cmd.Long)
		return
	}
	if cmd.Long != "" {
		c.say("\n%s", strings.TrimSpace(cmd.Long))
	}
	c.say("\nUsage: %s", useLine(cmd))
	if s := shortcut(cmd); s != "" {
		c.say("Shortcut: deis %s", s)
	}
	if cmd.HasAvailableLocalFlags() {
		c.say("\nOptions:\n%s", strings.TrimRight(cmd.LocalFlags().FlagUsages(), "\n"))
	}
	if cmd.Example != "" {
		c.say("\nExample:\n  %s", cmd.Example)
	}
	for _, sub := range cmd.Commands() {
		c.say("  deis %s %s: %s", cmd.Name(), sub.Name(), sub.Short)
	}
	if others := siblings(cmd); len(others) > 0 {
		c.say("\nSee also: %s", strings.Join(others, ", "))
	}
}

// siblings are the other commands of the same noun.
func siblings(cmd *cobra.Command) []string {
	noun, _, ok := strings.Cut(cmd.Name(), ":")
	names := []string{}
	for _, sub := range cmd.Root().Commands() {
		if ok && sub != cmd && strings.HasPrefix(sub.Name(), noun+":") {
			names = append(names, sub.Name())
		}
	}
	return names
}

// useLine is "deis config:set <name>=<value>... [options]".
func useLine(cmd *cobra.Command) string {
	if !cmd.HasParent() {
		return "deis <command>"
	}
	line := cmd.Parent().CommandPath() + " " + cmd.Use
	if cmd.HasAvailableLocalFlags() {
		line += " [options]"
	}
	return line
}

// shortcut is a command's shorter name, if it has one.
func shortcut(cmd *cobra.Command) string {
	if len(cmd.Aliases) == 0 || strings.Contains(cmd.Aliases[0], ":") {
		return ""
	}
	return cmd.Aliases[0]
}

// hideHelpFlag leaves -h out of the lists of options: all commands have it.
func hideHelpFlag(cmd *cobra.Command) {
	cmd.InitDefaultHelpFlag()
	cmd.Flags().Lookup("help").Hidden = true
}

// helpCommand replaces cobra's, which lets unknown commands pass.
func (c *cli) helpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "help [<command>]",
		Short:   "List the commands, or say more about one",
		Example: "deis help create",
		GroupID: "More",
		Args:    between(0, 2),

		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			found, directive := completeShortcuts(cmd.Root(), args, begun)
			for _, sub := range cmd.Root().Commands() {
				if len(args) == 0 && strings.HasPrefix(sub.Name(), begun) && !sub.Hidden {
					found = append(found, cobra.CompletionWithDesc(sub.Name(), sub.Short))
				}
			}
			return found, directive
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			if !found.HasParent() {
				if err := c.checkName(found, rest); err != nil || len(rest) > 0 {
					return err
				}
			}
			return found.Help()
		},
	}
	hideHelpFlag(cmd)
	return cmd
}
