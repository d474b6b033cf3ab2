package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs testdata/scripts/*.txtar: each a user with a home of his own
// who types what it says, against the shared platform. The scripts find
//
//	$URL      the controller
//	$HTTP, $HTTPS, $SSH   ports
//	$APP      a name for an app, unique to the script
//	$CA       the platform's own authority
//	$EXAMPLES the repository's examples
//
// and, beside testscript's own, the commands
//
//	user NAME          become NAME: a home and an SSH key; the first time, register
//	testapp DIR        a git repository with the tests' app
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/scripts",
		RequireExplicitExec: true,
		Setup:               setupScript,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"user":    cmdUser,
			"testapp": cmdTestApp,
		},
	})
}

func setupScript(e *testscript.Env) error {
	name := strings.ReplaceAll(filepath.Base(e.WorkDir), "_", "-")
	name = strings.TrimPrefix(name, "script-")
	port := func(addr string) string {
		_, p, _ := net.SplitHostPort(addr)
		return p
	}
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		return err
	}
	e.Setenv("PATH", bin()+":"+os.Getenv("PATH"))
	e.Setenv("URL", "http://deis.localhost:"+port(shared.http))
	e.Setenv("HTTP", port(shared.http))
	e.Setenv("HTTPS", port(shared.https))
	e.Setenv("SSH", port(shared.ssh))
	e.Setenv("APP", "e2e-"+name)
	e.Setenv("SUFFIX", name)
	e.Setenv("CA", filepath.Join(shared.root, "router", "ca.pem"))
	e.Setenv("EXAMPLES", examples)
	e.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	e.Setenv("GIT_AUTHOR_NAME", "e2e")
	e.Setenv("GIT_AUTHOR_EMAIL", "e2e@example.com")
	e.Setenv("GIT_COMMITTER_NAME", "e2e")
	e.Setenv("GIT_COMMITTER_EMAIL", "e2e@example.com")
	e.Setenv("GIT_TERMINAL_PROMPT", "0")
	return nil
}

// sshCommand makes plain git use a key and trust the platform's host key at
// first sight, as a user says yes once.
func sshCommand(home string) string {
	return fmt.Sprintf("ssh -F none -i %[1]s/.ssh/id_ed25519 -o IdentitiesOnly=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=%[1]s/.ssh/known_hosts", home)
}

func cmdUser(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: user NAME")
	}
	home := filepath.Join(ts.Getenv("WORK"), "home-"+args[0])
	ts.Setenv("HOME", home)
	ts.Setenv("GIT_SSH_COMMAND", sshCommand(home))
	if _, err := os.Stat(home); err == nil {
		return
	}
	ts.Check(os.MkdirAll(filepath.Join(home, ".ssh"), 0o700))
	name := args[0] + "-" + strings.TrimPrefix(ts.Getenv("APP"), "e2e-")
	ts.Check(ts.Exec("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", filepath.Join(home, ".ssh", "id_ed25519")))
	ts.Check(ts.Exec("deis", "register", ts.Getenv("URL"), "--username", name, "--password", "secret", "--email", name+"@example.com"))
	ts.Check(ts.Exec("deis", "keys:add", filepath.Join(home, ".ssh", "id_ed25519.pub")))
}

func cmdTestApp(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: testapp DIR")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(copyTestApp(dir))
	ts.Check(ts.Exec("git", "init", "-q", "-b", "master", dir))
	ts.Check(ts.Exec("git", "-C", dir, "add", "-A"))
	ts.Check(ts.Exec("git", "-C", dir, "commit", "-q", "-m", "first"))
}

func copyTestApp(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if out, err := exec.Command("cp", "-r", testApp, dir).CombinedOutput(); err != nil {
		return fmt.Errorf("copy test app: %w: %s", err, out)
	}
	return nil
}
