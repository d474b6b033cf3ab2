package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
)

const (
	// askTimeout bounds questions, which the controller answers from its store.
	askTimeout = 10 * time.Second
	// healthTimeout is shorter: who asks for our health waits too.
	healthTimeout = 2 * time.Second
	// launchSilence ends a launch of which nothing is heard any more (contract 16).
	launchSilence = 1200 * time.Second
)

// controller asks the controller. Its errors have messages for the pusher.
type controller struct{ client *api.Client }

// ask posts a question. Whatever is not the pusher's doing is Unavailable.
func (c *controller) ask(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return ours(c.client.Call(ctx, method, path, in, out))
}

func ours(err error) error {
	switch code := paas.CodeOf(err); code {
	case "":
		return nil
	case paas.Invalid, paas.Forbidden, paas.NotFound, paas.Conflict:
		return &paas.Error{Code: code, Message: message(err), Err: err}
	}
	return &paas.Error{
		Code: paas.Unavailable, Err: err,
		Message: "The controller does not answer as it should. Nothing was changed; push again in a moment.",
	}
}

// message is the text of an error that has a code, in one line where it is about fields.
func message(err error) string {
	e, ok := errors.AsType[*paas.Error](err)
	if !ok {
		return ""
	}
	words := []string{e.Message}
	for _, field := range slices.Sorted(maps.Keys(e.Fields)) {
		words = append(words, field+": "+strings.Join(e.Fields[field], " "))
	}
	return strings.TrimSpace(strings.Join(words, " "))
}

func (c *controller) keyOwner(ctx context.Context, key string) (api.KeyHookAnswer, error) {
	var answer api.KeyHookAnswer
	err := c.ask(ctx, http.MethodPost, "/v1/hooks/key", api.KeyHook{Key: key}, &answer)
	return answer, err
}

// access returns an app's UUID for a user who may push it.
func (c *controller) access(ctx context.Context, user, app string) (string, error) {
	var answer api.AccessHookAnswer
	err := c.ask(ctx, http.MethodPost, "/v1/hooks/access", api.AccessHook{RepoHook: api.RepoHook{ReceiveUser: user, ReceiveRepo: app}}, &answer)
	switch paas.CodeOf(err) {
	case "":
		return answer.App, nil
	case paas.NotFound:
		return "", &paas.Error{
			Code: paas.NotFound, Err: err,
			Message: fmt.Sprintf("App %s not found. 'deis apps' lists yours, 'deis create %s' makes it.", app, app),
		}
	case paas.Forbidden:
		return "", &paas.Error{
			Code: paas.Forbidden, Err: err,
			Message: fmt.Sprintf("You have no permission for %s. Its owner gives it with 'deis perms:create %s --app=%s'.", app, user, app),
		}
	}
	return "", err
}

func (c *controller) recordPush(ctx context.Context, push api.PushHook) error {
	return c.ask(ctx, http.MethodPost, "/v1/hooks/push", push, nil)
}

// config returns an app's environment and the number of its build cache.
func (c *controller) config(ctx context.Context, repo api.RepoHook) (values map[string]string, cache int64, err error) {
	var answer api.ConfigHookAnswer
	if err := c.ask(ctx, http.MethodPost, "/v1/hooks/config", repo, &answer); err != nil {
		return nil, 0, err
	}
	values = make(map[string]string, len(answer.Values))
	for key, value := range answer.Values {
		values[key] = fmt.Sprint(value) // the controller sends texts only
	}
	return values, answer.Cache, nil
}

// caches returns the number of each app's build cache by the app's UUID: every app that exists has one.
func (c *controller) caches(ctx context.Context) (map[string]int64, error) {
	var answer api.AppsHookAnswer
	if err := c.ask(ctx, http.MethodGet, "/v1/hooks/apps", nil, &answer); err != nil {
		return nil, err
	}
	if answer.Caches == nil {
		return nil, errors.New("the controller's answer lists no apps, not even none")
	}
	return answer.Caches, nil
}

func (c *controller) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	if err := c.client.Call(ctx, http.MethodGet, "/healthz", nil, nil); err != nil {
		return fmt.Errorf("controller: %w", err)
	}
	return nil
}

// launch posts a finished build and follows its rollout; say gets the controller's lines.
func (c *controller) launch(ctx context.Context, hook api.BuildHook, say func(string)) (api.BuildHookAnswer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(launchSilence, cancel)
	defer silence.Stop()
	resp, err := c.client.Do(ctx, http.MethodPost, "/v1/hooks/build", hook, http.Header{"Accept": {"application/x-ndjson"}})
	if err != nil {
		return api.BuildHookAnswer{}, launchError(hook.ReceiveRepo, err)
	}
	defer resp.Body.Close()
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-ndjson") {
		var answer api.BuildHookAnswer
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxEvent)).Decode(&answer); err != nil {
			return answer, launchError(hook.ReceiveRepo, err)
		}
		return answer, nil
	}
	alive := &heartbeat{resp.Body, silence}
	for events := json.NewDecoder(alive); ; {
		var event api.BuildEvent
		if err := events.Decode(&event); err != nil {
			return api.BuildHookAnswer{}, launchError(hook.ReceiveRepo, err)
		}
		switch {
		case event.Error != "" || event.Status >= 400:
			return api.BuildHookAnswer{}, launchFailed(event.Error)
		case event.Answer != nil:
			return *event.Answer, nil
		case event.Message != "":
			say(event.Message)
		}
	}
}

// maxEvent bounds the plain answer, which is a number and some names.
const maxEvent = 1 << 20

// heartbeat puts off the end of a launch for each sign of life.
type heartbeat struct {
	r       io.Reader
	silence *time.Timer
}

func (h *heartbeat) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.silence.Reset(launchSilence)
	return n, err
}

// launchError tells a refusal from a connection that broke: then nobody knows how it ended.
func launchError(app string, err error) error {
	if paas.CodeOf(err) != paas.Internal {
		return launchFailed(message(err))
	}
	return &paas.Error{Code: paas.Unavailable, Err: err, Message: fmt.Sprintf(
		"The connection to the controller broke during the launch.\n"+
			"The release may still go live: 'deis releases --app=%s' shows it. If it does not, push again.", app)}
}

func launchFailed(reason string) error {
	if reason == "" {
		reason = "the controller does not say why."
	}
	return paas.Errorf(paas.Conflict, "ERROR: Failed to launch: %s\n"+oldStays, reason)
}

const oldStays = "Nothing was changed: what ran before runs on. Mend the cause and push again."
