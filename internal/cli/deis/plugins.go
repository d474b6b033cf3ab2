package deis

import (
	"cmp"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// pluginPrefix begins the names of programs that add commands: `deis x:y` runs
// `deis-x y` (contract 13).
const pluginPrefix = "deis-"

// ownCommands are cobra's, which it adds late; plugins cannot have their names.
var ownCommands = []string{"help", "completion", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd}

// plugin is the program and the arguments for a command line that begins with
// no command of ours; "" if there is no such program. As with the original, a
// plugin that is called without a colon gets its own name as first argument.
func plugin(root *cobra.Command, args []string) (program string, argv []string) {
	if len(args) == 0 || slices.Contains(ownCommands, args[0]) || find(root, args[0]) != nil {
		return "", nil
	}
	noun, verb, _ := strings.Cut(args[0], ":")
	if noun == "" || noun[0] == '-' || strings.ContainsAny(noun, `/\`) {
		return "", nil
	}
	program, err := exec.LookPath(pluginPrefix + noun)
	if err != nil {
		return "", nil
	}
	return program, append([]string{pluginPrefix + noun, cmp.Or(verb, args[0])}, args[1:]...)
}

// find is the command of a name or an alias, nil if there is none.
func find(root *cobra.Command, name string) *cobra.Command {
	for _, cmd := range root.Commands() {
		if cmd.Name() == name || cmd.HasAlias(name) {
			return cmd
		}
	}
	return nil
}

// becomePlugin runs the plugin in place of this program, so that terminal,
// signals and exit status are its own. It returns only on failure.
func becomePlugin(program string, argv []string) error {
	return syscall.Exec(program, argv, append(os.Environ(), pluginEnvironment()...)) // #nosec G204 -- what the user typed
}

// pluginEnvironment tells a plugin how to call deis back and where the user is
// logged in. The token stays in the settings file, which has to be opened on
// purpose.
func pluginEnvironment() []string {
	env := []string{}
	if self, err := os.Executable(); err == nil {
		env = append(env, "DEIS_BINARY="+self)
	}
	if path, err := settingsPath(); err == nil {
		env = append(env, "DEIS_SETTINGS="+path)
	}
	if s, err := loadSettings(); err == nil {
		env = append(env, "DEIS_CONTROLLER="+s.Controller, "DEIS_USERNAME="+s.Username)
	}
	return env
}
