package deis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/deis/deis/internal/paas"
	"github.com/spf13/cobra"
)

func (c *cli) regenerateCommand() *cobra.Command {
	username, all := "", false
	cmd := &cobra.Command{
		Use:     "auth:regenerate",
		Short:   "Make your login's token invalid and get a new one",
		Long:    "An administrator may do that for another user, or for all, who must then log in again.",
		Example: "deis auth:regenerate",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all && username != "" {
				return usage(cmd, "Give either --username or --all.")
			}
			return c.regenerate(cmd.Context(), username, all)
		},
	}
	cmd.Flags().StringVarP(&username, "username", "u", "", "another user's `name`")
	cmd.Flags().BoolVar(&all, "all", false, "everybody's token")
	return cmd
}

func (c *cli) regenerate(ctx context.Context, username string, all bool) error {
	s, err := c.loggedIn()
	if err != nil {
		return err
	}
	body := map[string]any{}
	switch {
	case all:
		body["all"] = true
	case username != "":
		body["username"] = username
	}
	answer := json.RawMessage{}
	err = s.api.Call(ctx, http.MethodPost, "/v1/auth/tokens/", body, &answer)
	if paas.CodeOf(err) == paas.NotFound {
		return noSuchUser(username)
	}
	if err != nil {
		return err
	}
	if !all && (username == "" || username == s.Username) {
		token := struct {
			Token string `json:"token"`
		}{}
		if err := json.Unmarshal(answer, &token); err != nil || token.Token == "" {
			return fail("The controller's answer has no token; your old one may be invalid.", "deis login "+s.Controller)
		}
		s.Token = token.Token
		if err := s.save(); err != nil {
			return err
		}
	}
	c.say("Token Regenerated")
	if all {
		c.complain("Everybody has to log in again, you too.")
		c.try("deis login " + s.Controller + " --username=" + s.Username)
	}
	return nil
}

// cancellation is what auth:cancel is told.
type cancellation struct {
	username, password string
	yes                bool
}

func (c *cli) cancelCommand() *cobra.Command {
	opt := cancellation{}
	cmd := &cobra.Command{
		Use:   "auth:cancel",
		Short: "Delete your account",
		Long: `You are asked for your password and whether you mean it. Apps that you own have to be destroyed
or transferred first. An administrator may cancel another user's account, without the password.`,
		Example: "deis auth:cancel",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.cancel(cmd.Context(), opt) },
	}
	cmd.Flags().StringVar(&opt.username, "username", "", "the account's `name`; default: yours")
	cmd.Flags().StringVar(&opt.password, "password", "", "its `password`; asked for on a terminal if it is yours")
	cmd.Flags().BoolVar(&opt.yes, "yes", false, "do not ask")
	return cmd
}

func (c *cli) cancel(ctx context.Context, opt cancellation) error {
	s, err := c.loggedIn()
	if err != nil {
		return err
	}
	self, as := s.Username, s
	if opt.username == "" || opt.password != "" {
		if as, err = c.loginToCancel(ctx, s.settings, &opt); err != nil {
			return err
		}
	}
	if !opt.yes {
		yes, err := c.confirm(ctx, fmt.Sprintf("cancel account %s at %s? (y/N): ", opt.username, s.Controller))
		if errors.Is(err, errNoTerminal) {
			return &failure{text: "Not confirmed; the account is as it was.", next: []string{"deis auth:cancel --yes"}, status: statusUsage}
		}
		if err != nil {
			return err
		}
		if !yes {
			c.say("Account not changed")
			return nil
		}
	}
	body := any(nil)
	if opt.username != as.Username {
		body = map[string]string{"username": opt.username}
	}
	err = as.api.Call(ctx, http.MethodDelete, "/v1/auth/cancel/", body, nil)
	if paas.CodeOf(err) == paas.NotFound {
		return noSuchUser(opt.username)
	}
	if err != nil {
		return err
	}
	if opt.username == self {
		if err := removeSettings(); err != nil {
			return err
		}
	}
	c.say("Account cancelled")
	return nil
}

// loginToCancel makes sure that it is the account's user who asks. The login on
// this machine stays as it is.
func (c *cli) loginToCancel(ctx context.Context, at settings, opt *cancellation) (*session, error) {
	if opt.username == "" {
		opt.username = at.Username
	}
	if opt.password == "" {
		c.say("Please log in again in order to cancel this account")
		if err := c.askOption(ctx, &opt.password, "password", "password of "+opt.username, true); err != nil {
			return nil, err
		}
	}
	at.Token = ""
	s := c.connect(at)
	return s, s.authenticate(ctx, opt.username, opt.password)
}
