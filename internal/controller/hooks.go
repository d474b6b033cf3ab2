package controller

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/store"
)

var digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// keyHook says whose an SSH key is.
func (c *call) keyHook() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	text := f.required("key")
	if err := f.err(); err != nil {
		return err
	}
	blob, fault := paas.KeyBlob(text)
	if fault != "" {
		return paas.FieldError("key", "%s", fault)
	}
	k, err := c.s.store.KeyByFingerprint(c.ctx, paas.Fingerprint(blob))
	if err != nil {
		return err
	}
	// Keys can be made whose MD5 fingerprints are equal.
	if known, fault := paas.KeyBlob(k.Public); fault != "" || !bytes.Equal(known, blob) {
		return paas.Errorf(paas.NotFound, "Not found")
	}
	return c.reply(http.StatusOK, api.KeyHookAnswer{Username: k.Owner, Fingerprint: k.Fingerprint})
}

// receiver reads for whom and for which app a hook is called, and sees to it
// that he may use it.
func (c *call) receiver(f *form) (paas.User, paas.App, error) {
	username, repo := f.required("receive_user"), f.required("receive_repo")
	if f.faults["receive_user"] != nil || f.faults["receive_repo"] != nil {
		return paas.User{}, paas.App{}, f.err()
	}
	user, err := c.s.store.UserByName(c.ctx, username)
	if err != nil {
		return user, paas.App{}, err
	}
	app, err := c.s.store.AppByID(c.ctx, repo)
	if err != nil {
		return user, app, err
	}
	ok, err := c.s.permits(c.ctx, members, user, app)
	if err != nil {
		return user, app, err
	}
	return user, app, allowed(ok)
}

// received is receiver for a request that has only that.
func (c *call) received() (*form, paas.User, paas.App, error) {
	f, err := c.form()
	if err != nil {
		return nil, paas.User{}, paas.App{}, err
	}
	user, app, err := c.receiver(f)
	return f, user, app, err
}

func (c *call) accessHook() error {
	_, _, app, err := c.received()
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, api.AccessHookAnswer{App: app.UUID})
}

// push is the answer of the push hook (contract 6).
type push struct {
	api.PushHook
	UUID    string `json:"uuid"`
	Owner   string `json:"owner"`
	App     string `json:"app"`
	Created string `json:"created"`
	Updated string `json:"updated"`
}

func (c *call) pushHook() error {
	f, user, app, err := c.received()
	if err != nil {
		return err
	}
	p := store.Push{
		App: app.UUID, Owner: user.Username, SHA: f.required("sha", atMost(paas.MaxSHA)), Fingerprint: f.required("fingerprint"),
		Connection: f.required("ssh_connection"), Command: f.required("ssh_original_command"),
	}
	if err := f.err(); err != nil {
		return err
	}
	if err := c.s.checkDisk(c.ctx, app); err != nil {
		return err
	}
	if err := c.s.store.CreatePush(c.ctx, &p); err != nil {
		return err
	}
	return c.reply(http.StatusCreated, push{
		PushHook: api.PushHook{
			RepoHook: api.RepoHook{ReceiveUser: user.Username, ReceiveRepo: app.ID}, SHA: p.SHA,
			Fingerprint: p.Fingerprint, SSHConnection: p.Connection, SSHOriginalCommand: p.Command,
		},
		UUID: p.UUID, Owner: p.Owner, App: app.ID, Created: date(p.Created), Updated: date(p.Updated),
	})
}

func (c *call) configHook() error {
	_, _, app, err := c.received()
	if err != nil {
		return err
	}
	cfg, err := c.s.liveConfig(c.ctx, app)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, api.ConfigHookAnswer{Config: apiConfig(app, cfg), Cache: app.Cache})
}

// buildHook takes a finished build and brings it live, as the user who pushed.
func (c *call) buildHook() error {
	f, user, app, err := c.received()
	if err != nil {
		return err
	}
	b, err := hookBuild(f, app, user)
	if err != nil {
		return err
	}
	summary, err := c.hookSummary(f, &b)
	if err != nil {
		return err
	}
	if !strings.Contains(c.r.Header.Get("Accept"), "application/x-ndjson") {
		release, err := c.s.deploy(c.lasting(), app, &b, summary, nil)
		if err != nil {
			return err
		}
		return c.reply(http.StatusOK, c.s.buildAnswer(app, release))
	}
	c.w.Header().Set("Content-Type", "application/x-ndjson")
	c.w.WriteHeader(http.StatusOK)
	gone := false // a pusher who hangs up loses his output, not his build
	send := func(e api.BuildEvent) {
		if !gone {
			gone = c.sendLine(e) != nil
		}
	}
	release, err := c.s.deploy(c.lasting(), app, &b, summary, func(line string) { send(api.BuildEvent{Message: line}) })
	if err != nil {
		if paas.CodeOf(err) == paas.Internal {
			c.s.cfg.Log.Error("a build was not released", "app", app.ID, "error", err.Error())
		}
		send(api.BuildEvent{Error: errorText(err), Status: api.StatusOf(err)})
		return nil
	}
	answer := c.s.buildAnswer(app, release)
	send(api.BuildEvent{Answer: &answer})
	return nil
}

// hookBuild reads a build with what only our builder sends.
func hookBuild(f *form, app paas.App, user paas.User) (paas.Build, error) {
	digest := f.optional("digest", func(d string) []string {
		if !digestPattern.MatchString(d) {
			return []string{"A digest is sha256: and 64 hex digits."}
		}
		return nil
	})
	strategy := f.optional("strategy", func(s string) []string {
		switch paas.Strategy(s) {
		case paas.StrategyDockerfile, paas.StrategyBuildpacks, paas.StrategyImage:
			return nil
		}
		return []string{"Unknown strategy."}
	})
	log := f.optional("log")
	sbom, provenance := f.document("sbom"), f.document("provenance")
	b, err := buildOf(f, app, user.Username)
	b.Digest, b.SBOM, b.Provenance = digest, sbom, provenance
	b.Log = strings.ToValidUTF8(log[max(0, len(log)-api.MaxBuildLog):], "")
	if strategy != "" {
		b.Strategy = paas.Strategy(strategy)
	}
	return b, err
}

// document returns a field that holds a JSON object, as text; empty where there is none.
func (f *form) document(name string) []byte {
	fields := f.object(name)
	if fields == nil {
		return nil
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(fields); err != nil { // what was decoded from JSON always encodes
		f.fault(name, err.Error())
	}
	text := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	if len(text) > api.MaxBuildDocument {
		f.fault(name, fmt.Sprintf("Ensure this document has no more than %d bytes.", api.MaxBuildDocument))
	}
	return text
}

func (s *server) buildAnswer(app paas.App, r paas.Release) (a api.BuildHookAnswer) {
	a.Release.Version = r.Version
	a.Domains = []string{s.host(app.ID)}
	return a
}

// errorText is an error in one text for the pusher, with its details.
func errorText(err error) string {
	if e, ok := errors.AsType[*paas.Error](err); ok && e.Details != "" {
		return e.Text()
	}
	switch body := api.ErrorBody(err).(type) {
	case map[string]string:
		return body["detail"]
	case map[string][]string:
		var texts []string
		for name, messages := range body {
			texts = append(texts, name+": "+strings.Join(messages, " "))
		}
		return strings.Join(texts, "\n")
	}
	return err.Error()
}

func (c *call) appsHook() error {
	apps, err := c.s.store.AllApps(c.ctx)
	if err != nil {
		return err
	}
	answer := api.AppsHookAnswer{Apps: make([]string, 0, len(apps)), Caches: make(map[string]int64, len(apps))}
	for _, app := range apps {
		answer.Apps = append(answer.Apps, app.UUID)
		answer.Caches[app.UUID] = app.Cache
	}
	return c.reply(http.StatusOK, answer)
}
