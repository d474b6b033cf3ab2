// Package gittest drives the real git and ssh clients in tests of what they talk to.
package gittest

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Client is a user's machine: his key, and git and ssh that know nothing else of this one.
type Client struct {
	T testing.TB
	// Addr is the SSH server's.
	Addr string
	// Key is the path of the private key, PublicKey its public half in authorized_keys form.
	Key, PublicKey string
}

// New makes a client with a key of its own.
func New(t testing.TB, addr string) *Client {
	t.Helper()
	c := &Client{T: t, Addr: addr, Key: filepath.Join(t.TempDir(), "id")}
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", c.Key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	pub, err := os.ReadFile(c.Key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	c.PublicKey = strings.TrimSpace(string(pub))
	return c
}

func (c *Client) sshOptions() []string {
	_, port, err := net.SplitHostPort(c.Addr)
	if err != nil {
		c.T.Fatal(err)
	}
	return []string{
		"-F", "none", "-i", c.Key, "-p", port,
		"-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
	}
}

// SSHCmd is an ssh command; args are its further options, the host and the command.
func (c *Client) SSHCmd(args ...string) *exec.Cmd {
	return exec.CommandContext(c.T.Context(), "ssh", append(c.sshOptions(), args...)...)
}

// SSH runs SSHCmd and returns both outputs together and the status.
func (c *Client) SSH(args ...string) (output string, status int) {
	c.T.Helper()
	return c.Run(c.SSHCmd(args...))
}

// GitCmd is a git command in a directory.
func (c *Client) GitCmd(dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(c.T.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_SSH_COMMAND=ssh "+strings.Join(c.sshOptions(), " "),
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	return cmd
}

// Git runs GitCmd and returns both outputs together and the status.
func (c *Client) Git(dir string, args ...string) (output string, status int) {
	c.T.Helper()
	return c.Run(c.GitCmd(dir, args...))
}

// Must is Git where failing is a failed test; the output has no white space around it.
func (c *Client) Must(dir string, args ...string) string {
	c.T.Helper()
	out, status := c.Git(dir, args...)
	if status != 0 {
		c.T.Fatalf("git %v: %d\n%s", args, status, out)
	}
	return strings.TrimSpace(out)
}

// Fails is Git where succeeding is an error.
func (c *Client) Fails(dir string, args ...string) string {
	c.T.Helper()
	out, status := c.Git(dir, args...)
	if status == 0 {
		c.T.Errorf("git %v: status 0\n%s", args, out)
	}
	return out
}

// Run runs a command and returns both outputs together and the status.
func (c *Client) Run(cmd *exec.Cmd) (output string, status int) {
	c.T.Helper()
	out, err := cmd.CombinedOutput()
	exit := &exec.ExitError{}
	if err != nil && !errors.As(err, &exit) {
		c.T.Fatalf("%v: %v", cmd.Args, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// Work makes a repository with one commit, a Procfile that names the app, and the remote deis.
func (c *Client) Work(app string) (dir string) {
	c.T.Helper()
	dir = filepath.Join(c.T.TempDir(), "w")
	c.Must("/", "init", "-q", "-b", "master", dir)
	c.Must(dir, "remote", "add", "deis", c.URL(app))
	c.Commit(dir, "Procfile", "web: run "+app+"\n")
	return dir
}

// URL is an app's remote.
func (c *Client) URL(app string) string { return "ssh://git@" + c.Addr + "/" + app + ".git" }

// Commit writes a file, commits it and returns the commit.
func (c *Client) Commit(dir, file, text string) string {
	c.T.Helper()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
		c.T.Fatal(err)
	}
	c.Must(dir, "add", ".")
	c.Must(dir, "commit", "-q", "-m", file)
	return c.Must(dir, "rev-parse", "HEAD")
}

// Start starts a command of which HangUp will be called.
func Start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// HangUp ends a command and what it has started, at once.
func HangUp(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

// Contains reports as errors the parts that an output lacks.
func Contains(t testing.TB, output string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(output, p) {
			t.Errorf("lacks %q:\n%s", p, output)
		}
	}
}

// Eventually waits until something is so.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
