package deis

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
)

// defaultLimit is how many results a list shows (contract 13).
const defaultLimit = 100

// settings is the file that logging in writes and logging out removes. All but
// GitURL are the original client's, which can read the file too.
type settings struct {
	Username      string `json:"username"`
	SSLVerify     bool   `json:"ssl_verify"`
	Controller    string `json:"controller"`
	Token         string `json:"token"`
	ResponseLimit int    `json:"response_limit"`
	// GitURL is what the controller says of its git server ("ssh://git@host:port").
	GitURL string `json:"git_url,omitempty"`
}

// settingsPath is ~/.deis/client.json; DEIS_PROFILE names another file there.
func settingsPath() (string, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fail("HOME is not set, so there is no place for your settings.")
	}
	profile := cmp.Or(os.Getenv("DEIS_PROFILE"), "client")
	if profile != filepath.Base(profile) || profile == ".." {
		return "", fail("DEIS_PROFILE must be a plain name, not a path: " + profile)
	}
	return filepath.Join(home, ".deis", profile+".json"), nil
}

func loadSettings() (settings, error) {
	path, err := settingsPath()
	if err != nil {
		return settings{}, err
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return settings{}, fail("Not logged in.", "deis login <controller>      for example deis login http://deis.example.com",
			"deis register <controller>   if you have no account")
	}
	if err != nil {
		return settings{}, err
	}
	s := settings{}
	if err := json.Unmarshal(text, &s); err != nil || s.Controller == "" || s.Token == "" {
		return settings{}, fail("Your settings in "+path+" cannot be read.", "deis login <controller>")
	}
	return s, nil
}

// save writes the settings for the user's eyes only, all or nothing.
func (s settings) save() error {
	path, err := settingsPath()
	if err != nil {
		return err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".settings-*") // created with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(text, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

// removeSettings forgets the login; there may be none.
func removeSettings() error {
	path, err := settingsPath()
	if err != nil {
		return err
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// session is a controller to talk to, as somebody or (without a token) nobody.
type session struct {
	settings
	api *api.Client
	// version is the API version that the last answer named, "" if it named none.
	version string
}

// connect makes a session from settings; nothing is sent yet.
func (c *cli) connect(s settings) *session {
	se := &session{settings: s}
	se.api = &api.Client{
		URL:       s.Controller,
		Token:     s.Token,
		UserAgent: "Deis Client v" + api.PlatformVersion,
		HTTP:      httpClient(s.SSLVerify),
		OnAnswer: func(h http.Header) {
			se.version = cmp.Or(h.Get(api.HeaderAPIVersion), h.Get(api.HeaderAPIVersionOld))
			c.checkVersion(se.version)
			se.GitURL = cmp.Or(h.Get(api.HeaderGitURL), se.GitURL)
		},
	}
	c.session = se
	return se
}

// loggedIn is the session of the settings file.
func (c *cli) loggedIn() (*session, error) {
	s, err := loadSettings()
	if err != nil {
		return nil, err
	}
	return c.connect(s), nil
}

// forApp is loggedIn for commands about one app, which it finds too.
func (c *cli) forApp(ctx context.Context) (*session, string, error) {
	s, err := c.loggedIn()
	if err != nil {
		return nil, "", err
	}
	app, err := c.findApp(ctx, s)
	return s, app, err
}

// checkVersion warns once when the controller speaks another API version (contract 13).
func (c *cli) checkVersion(server string) {
	if server == "" || server == api.Version || c.warned {
		return
	}
	c.warned = true
	c.complain("WARNING: Client and server API versions do not match. Please consider upgrading.")
	c.complain("Client version: %s  Server version: %s", api.Version, server)
	c.try(upgrade(server))
}

// upgrade is what to type where client and server do not go together.
func upgrade(server string) string {
	if apiNumber(server) > apiNumber(api.Version) {
		return "deis version   and get the client of the server's version: this one is older"
	}
	return "deisctl status   on the server, and upgrade it: it is older than this client"
}

// apiNumber makes versions comparable: 1007 for "1.7", 0 for what is none.
func apiNumber(version string) int {
	major, minor, _ := strings.Cut(version, ".")
	a, err := strconv.Atoi(major)
	if err != nil {
		return 0
	}
	b, _ := strconv.Atoi(minor)
	return 1000*a + b
}

// probe makes sure, for a session without token, that a controller is at the
// address: it must refuse those who do not say who they are (contract 2.1).
func (s *session) probe(ctx context.Context) error {
	err := s.api.Call(ctx, http.MethodGet, "/v1/", nil, nil)
	_, unreachable := errors.AsType[*url.Error](err)
	switch {
	case paas.CodeOf(err) == paas.Unauthorized && s.version != "":
		return nil
	case unreachable, strings.Contains(fmt.Sprint(err), "HTTPS server"):
		return err
	case s.version != "" && apiNumber(s.version) != apiNumber(api.Version):
		return fail(s.Controller+" is a Deis controller, but this client cannot talk to it.", upgrade(s.version))
	case paas.CodeOf(err) == paas.Unavailable, s.version != "":
		return fail(s.Controller+" does not work at the moment.", "deisctl status   on the server, to see why", otherController)
	}
	return fail(s.Controller+" does not appear to be a valid Deis controller.\n"+
		"Make sure that the Controller URI is correct and the server is running.", otherController)
}

// parseController makes "http://host:port" of what the user typed.
func parseController(text string) (string, error) {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.User != nil || (u.Scheme != "http" && u.Scheme != "https") {
		return "", &failure{
			text: "That is not the address of a controller.",
			next: []string{"deis login http://deis.example.com"}, status: statusUsage,
		}
	}
	return u.Scheme + "://" + strings.ToLower(u.Host), nil
}

// appPath is "/v1/apps/<app>/<rest>".
func appPath(app, rest string) string { return "/v1/apps/" + url.PathEscape(app) + "/" + rest }

// list gets one page of a list, as long as --limit or the settings say.
func list[T any](ctx context.Context, c *cli, path string) (api.List[T], error) {
	limit := cmp.Or(max(c.limit, 0), max(c.session.ResponseLimit, 0), defaultLimit)
	page := api.List[T]{}
	err := c.session.api.Call(ctx, http.MethodGet, path+"?page_size="+strconv.Itoa(limit), nil, &page)
	if page.Results == nil {
		page.Results = []T{}
	}
	return page, err
}
