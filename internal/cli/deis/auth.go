package deis

import (
	"context"
	"net/http"
	"strings"

	"github.com/deis/deis/internal/paas"
	"github.com/spf13/cobra"
)

// account is what register and login ask for.
type account struct {
	username, password, email string
	verify                    bool
}

func (a *account) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.username, "username", "", "`name` of the account; asked for on a terminal")
	cmd.Flags().StringVar(&a.password, "password", "", "`password`; asked for on a terminal, which is safer")
	cmd.Flags().BoolVar(&a.verify, "ssl-verify", true, "check the controller's certificate")
}

func (c *cli) authCommands() []*cobra.Command {
	whoami := &cobra.Command{
		Use:     "auth:whoami",
		Aliases: []string{"whoami"},
		Short:   "Show who you are logged in as, and where",
		Example: "deis whoami",
		Args:    exactly(0),
		RunE:    func(*cobra.Command, []string) error { return c.whoami() },
	}
	c.withJSON(whoami)
	logout := &cobra.Command{
		Use:     "auth:logout",
		Aliases: []string{"logout"},
		Short:   "Forget the login on this machine",
		Example: "deis logout",
		Args:    exactly(0),
		RunE: func(*cobra.Command, []string) error {
			if err := removeSettings(); err != nil {
				return err
			}
			c.say("Logged out")
			return nil
		},
	}
	return []*cobra.Command{c.registerCommand(), c.loginCommand(), logout, whoami, c.passwdCommand(), c.regenerateCommand(), c.cancelCommand()}
}

func (c *cli) registerCommand() *cobra.Command {
	a := account{}
	cmd := &cobra.Command{
		Use:     "auth:register <controller>",
		Aliases: []string{"register"},
		Short:   "Make an account at a controller and log in",
		Long:    "The first account of a platform is its administrator's.",
		Example: "deis register http://deis.example.com --username=alice --email=alice@example.com",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.register(cmd.Context(), args[0], a, !cmd.Flags().Changed("email"))
		},
	}
	a.flags(cmd)
	cmd.Flags().StringVar(&a.email, "email", "", "`address`; asked for on a terminal, may be empty")
	return cmd
}

func (c *cli) loginCommand() *cobra.Command {
	a := account{}
	cmd := &cobra.Command{
		Use:     "auth:login <controller>",
		Aliases: []string{"login"},
		Short:   "Log in to a controller",
		Long: `The address is http:// unless it says https://. The login is kept in ~/.deis/client.json;
with DEIS_PROFILE=<name> in ~/.deis/<name>.json, so that you can have several.`,
		Example: "deis login http://deis.example.com --username=alice",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.approach(cmd.Context(), args[0], a.verify)
			if err != nil {
				return err
			}
			if err := c.askOption(cmd.Context(), &a.username, "username", "username", false); err != nil {
				return err
			}
			if err := c.askOption(cmd.Context(), &a.password, "password", "password", true); err != nil {
				return err
			}
			return c.login(cmd.Context(), s, a)
		},
	}
	a.flags(cmd)
	return cmd
}

// approach makes a session without a user, for an address that the user typed.
func (c *cli) approach(ctx context.Context, address string, verify bool) (*session, error) {
	controller, err := parseController(address)
	if err != nil {
		return nil, err
	}
	s := c.connect(settings{Controller: controller, SSLVerify: verify, ResponseLimit: defaultLimit})
	return s, s.probe(ctx)
}

func (c *cli) register(ctx context.Context, address string, a account, askEmail bool) error {
	s, err := c.approach(ctx, address, a.verify)
	if err != nil {
		return err
	}
	if err := c.askOption(ctx, &a.username, "username", "username", false); err != nil {
		return err
	}
	if err := c.askNewPassword(ctx, &a.password, "password", "password"); err != nil {
		return err
	}
	if askEmail && isTerminal(c.in) {
		if a.email, err = c.ask(ctx, "email: "); err != nil {
			return err
		}
	}
	// Where only administrators may register others, the one who is logged in shows that he is one.
	if old, err := loadSettings(); err == nil && old.Controller == s.Controller {
		s.api.Token = old.Token
	}
	body := map[string]string{"username": a.username, "password": a.password, "email": a.email}
	err = s.api.Call(ctx, http.MethodPost, "/v1/auth/register/", body, nil)
	s.api.Token = ""
	if fieldError(err, "username", notUnique) {
		return fail("The name "+a.username+" is taken.", "deis login "+s.Controller+" --username="+a.username,
			"deis register "+s.Controller+" --username=<other name>")
	}
	if paas.CodeOf(err) == paas.Forbidden && strings.Contains(err.Error(), "credentials were not provided") {
		return fail("Only administrators may register users at "+s.Controller+".",
			"deis login "+s.Controller+"   as an administrator, then register again")
	}
	if err != nil {
		return err
	}
	c.say("Registered %s", a.username)
	if err := c.login(ctx, s, a); err != nil {
		return err
	}
	c.hint("Next: deis keys:add, then deis create in the git repository of your app")
	return nil
}

// login gets a token and keeps it.
func (c *cli) login(ctx context.Context, s *session, a account) error {
	if err := s.authenticate(ctx, a.username, a.password); err != nil {
		return err
	}
	if old, err := loadSettings(); err == nil {
		s.ResponseLimit = old.ResponseLimit
	}
	if err := s.learnGitURL(ctx); err != nil {
		return err
	}
	if err := s.save(); err != nil {
		return err
	}
	c.say("Logged in as %s", s.Username)
	return nil
}

// authenticate makes the session a user's; nothing is saved.
func (s *session) authenticate(ctx context.Context, username, password string) error {
	answer := struct {
		Token string `json:"token"`
	}{}
	body := map[string]string{"username": username, "password": password}
	if err := s.api.Call(ctx, http.MethodPost, "/v1/auth/login/", body, &answer); err != nil {
		return err
	}
	s.Username, s.Token, s.api.Token = username, answer.Token, answer.Token
	return nil
}

func (c *cli) whoami() error {
	s, err := loadSettings()
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(map[string]string{"username": s.Username, "controller": s.Controller})
	}
	c.say("You are %s at %s", s.Username, s.Controller)
	return nil
}

func (c *cli) passwdCommand() *cobra.Command {
	username, password, fresh := "", "", ""
	cmd := &cobra.Command{
		Use:     "auth:passwd",
		Aliases: []string{"passwd"},
		Short:   "Change your password",
		Long:    "An administrator may change another user's, for which only the new one is needed.",
		Example: "deis passwd",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.passwd(cmd.Context(), username, password, fresh)
		},
	}
	cmd.Flags().StringVar(&username, "username", "", "another user's `name`")
	cmd.Flags().StringVar(&password, "password", "", "the `password` until now; asked for on a terminal")
	cmd.Flags().StringVar(&fresh, "new-password", "", "the new `password`; asked for on a terminal")
	return cmd
}

func (c *cli) passwd(ctx context.Context, username, password, fresh string) error {
	s, err := c.loggedIn()
	if err != nil {
		return err
	}
	body := map[string]string{}
	if username == "" || username == s.Username {
		if err := c.askOption(ctx, &password, "password", "current password", true); err != nil {
			return err
		}
	} else {
		body["username"] = username
	}
	if err := c.askNewPassword(ctx, &fresh, "new-password", "new password"); err != nil {
		return err
	}
	if password != "" {
		body["password"] = password
	}
	body["new_password"] = fresh
	err = s.api.Call(ctx, http.MethodPost, "/v1/auth/passwd/", body, nil)
	if paas.CodeOf(err) == paas.NotFound {
		return noSuchUser(username)
	}
	if err != nil {
		return err
	}
	c.say("Password change succeeded.")
	return nil
}
