package deis

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// defaultGitPort is where Deis v1 has its git server (contract 9.1).
const defaultGitPort = "2222"

const defaultRemote = "deis"

var appName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`) // contract 5.1

func (c *cli) gitCommands() []*cobra.Command {
	remote := ""
	cmd := &cobra.Command{
		Use:   "git:remote",
		Short: "Add a git remote for an app to this repository",
		Long: `After that, git push <remote> master deploys. The first push over SSH asks whether
the server's host key is the right one: that is your own ssh, as with any other host.`,
		Example: "deis git:remote --app=demo",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, app, err := c.forApp(cmd.Context())
			if err != nil {
				return err
			}
			return c.addRemote(cmd.Context(), s, remote, app)
		},
	}
	c.withApp(cmd)
	cmd.Flags().StringVarP(&remote, "remote", "r", defaultRemote, "`name` of the remote")
	return []*cobra.Command{cmd}
}

// gitHost is the host and port of a controller's git server. *.localhost is
// written as an address, since the C library, and so git, does not know it.
func (s *session) gitHost() string {
	port := defaultGitPort
	if u, err := url.Parse(s.GitURL); err == nil {
		port = cmp.Or(u.Port(), port)
	}
	host := s.host()
	if isLocal(host) {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// host is the controller's host, without port.
func (s *session) host() string {
	u, err := url.Parse(s.Controller)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// remoteURL is where an app is pushed to.
func (s *session) remoteURL(app string) string {
	return "ssh://git@" + s.gitHost() + "/" + app + ".git"
}

// learnGitURL asks the controller for the address of its git server, if the
// login did not tell. A controller that does not say has the default.
func (s *session) learnGitURL(ctx context.Context) error {
	if s.GitURL != "" {
		return nil
	}
	return s.api.Call(ctx, http.MethodGet, "/v1/", nil, nil)
}

// remote is a git remote of the repository here.
type remote struct{ name, url string }

func (r remote) app() string {
	last := r.url[strings.LastIndexAny(r.url, "/:")+1:]
	app, _, _ := strings.Cut(last, ".")
	return app
}

// rank says how surely a remote belongs to the controller; 0 is not at all.
func (r remote) rank(s *session) int {
	switch {
	case strings.HasPrefix(r.url, "ssh://git@"+s.gitHost()+"/"),
		s.GitURL != "" && strings.HasPrefix(r.url, strings.TrimSuffix(s.GitURL, "/")+"/"):
		return 3
	case s.host() != "" && strings.Contains(r.url, s.host()):
		return 2
	case r.name == defaultRemote:
		return 1
	}
	return 0
}

// findApp decides which app a command is about: the one named, else that of a
// git remote of this controller, else the directory's name (contract 13).
func (c *cli) findApp(ctx context.Context, s *session) (string, error) {
	c.current = c.app
	if c.current == "" {
		c.current = remoteApp(remotes(ctx), s)
	}
	if c.current == "" {
		dir, err := os.Getwd()
		if err != nil {
			return "", err
		}
		c.current, c.guessed = strings.ToLower(filepath.Base(dir)), true
	}
	switch {
	case appName.MatchString(c.current):
		return c.current, nil
	case c.guessed:
		return "", fail("Which app? No git remote here belongs to "+s.Controller+".",
			"deis <command> --app=<app>", "deis git:remote --app=<app>", "deis create")
	}
	return "", &failure{
		text: c.current + " is no app's name: those have only [a-z0-9-].",
		next: []string{"deis apps"}, status: statusUsage,
	}
}

func remoteApp(all []remote, s *session) string {
	best, rank := "", 0
	for _, r := range all {
		n := 2 * r.rank(s)
		if n > 0 && r.name == defaultRemote {
			n++
		}
		if n > rank && appName.MatchString(r.app()) {
			best, rank = r.app(), n
		}
	}
	return best
}

// git runs git in the working directory and returns its output.
func git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	out, errOut := &bytes.Buffer{}, &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, errOut
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fail("git is not installed.", "apt-get install git")
	}
	if err != nil {
		return "", fail("git " + args[0] + " failed.\n" + strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// remotes lists the repository's remotes: none without a repository or git.
func remotes(ctx context.Context) []remote {
	out, err := git(ctx, "config", "-z", "--get-regexp", `^remote\..*\.url$`)
	if err != nil {
		return nil
	}
	all := []remote{}
	for entry := range strings.SplitSeq(out, "\x00") {
		key, url, ok := strings.Cut(entry, "\n")
		if ok {
			all = append(all, remote{strings.TrimSuffix(strings.TrimPrefix(key, "remote."), ".url"), url})
		}
	}
	return all
}

// remoteNamed is the URL of a remote, "" if there is none.
func remoteNamed(ctx context.Context, name string) string {
	for _, r := range remotes(ctx) {
		if r.name == name {
			return r.url
		}
	}
	return ""
}

func inRepository(ctx context.Context) bool {
	_, err := git(ctx, "rev-parse", "--git-dir")
	return err == nil
}

// addRemote adds the app's remote; one that is there already must be the same.
func (c *cli) addRemote(ctx context.Context, s *session, name, app string) error {
	if strings.HasPrefix(name, "-") {
		return &failure{text: "A remote's name does not begin with a dash: git would take it for an option.", status: statusUsage}
	}
	if err := s.learnGitURL(ctx); err != nil {
		return err
	}
	want := s.remoteURL(app)
	switch got := remoteNamed(ctx, name); {
	case got == want:
		c.say("Git remote %s is there already: %s", name, want)
		return nil
	case got != "":
		return remoteTaken(name, got, app)
	case !inRepository(ctx):
		return fail("There is no git repository here.", "git init && deis git:remote --app="+app)
	}
	if _, err := git(ctx, "remote", "add", "--", name, want); err != nil {
		return err
	}
	c.say("Git remote %s added: %s", name, want)
	return nil
}

func remoteTaken(name, url, app string) error {
	again := "deis git:remote"
	if app != "" {
		again += " --app=" + app
	}
	return fail("A git remote "+name+" exists already, for "+url+".",
		"git remote remove "+name+" && "+again, again+" --remote=<other name>")
}

// removeRemotes removes the remotes of an app that is gone.
func (c *cli) removeRemotes(ctx context.Context, s *session, app string) error {
	gone := []string{}
	for _, r := range remotes(ctx) {
		if r.app() != app || r.rank(s) < 2 || slices.Contains(gone, r.name) {
			continue
		}
		if _, err := git(ctx, "remote", "remove", "--", r.name); err != nil {
			return err
		}
		gone = append(gone, r.name)
	}
	if len(gone) > 0 {
		c.say("Git remotes for app %s removed: %s", app, strings.Join(gone, ", "))
	}
	return nil
}
