package deis

import (
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
	c.say("Exit status: 0 done, 1 failed, 2 wrong usage; `deis run` gives that of its command.")
}

func (c *cli) helpOn(cmd *cobra.Command) {
	c.say("%s.", cmd.Short)
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
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			if !found.HasParent() {
				if err := c.checkName(found, rest); err != nil {
					return err
				}
			}
			return found.Help()
		},
	}
	hideHelpFlag(cmd)
	return cmd
}
