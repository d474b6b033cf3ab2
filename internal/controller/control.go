package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/paas"
)

// controlPath is where a controller with Config.TestControl is steered.
const controlPath = "/_test/ctl"

// lockTake is how long hold_config_lock waits for a change under way.
const lockTake = time.Second

// control steers a controller on the fake engine from outside, so that tests in
// any language can bring about what only the world can otherwise: chaos, a log store
// that is away, an instance that is ill. A request is a JSON object with one
// key; the answer is 200 without a body, 404 for an unknown key, 400 for a value
// that the key does not take.
type control struct {
	s      *server
	engine *fake.Engine

	mu    sync.Mutex // one request at a time
	chaos fake.Chaos // the rates; in force while they are on
	held  map[string]func()
}

func newControl(s *server, eng *fake.Engine) *control {
	return &control{s: s, engine: eng, held: map[string]func(){}}
}

// before serves the control and leaves all other paths to next.
func (t *control) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == controlPath {
			t.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// errTestControl refuses a setting that would let strangers empty a real platform.
var errTestControl = errors.New("DEIS_TEST_CONTROL=1 lets anyone reset the platform: it goes with DEIS_ENGINE=fake only")

// controls are the keys.
var controls = map[string]func(*control, context.Context, json.RawMessage) error{
	"reset":               (*control).reset,
	"registration_mode":   (*control).setRegistration,
	"reserved_names":      (*control).setReserved,
	"run_enabled":         (*control).setRun,
	"logger":              (*control).setLogger,
	"hold_config_lock":    (*control).holdLock,
	"release_config_lock": (*control).releaseLock,
	"healthcheck":         (*control).setHealth,
	"scheduler":           (*control).setScheduler,
	"chaos":               (*control).setChaos,
}

func (t *control) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeJSON(w, http.StatusMethodNotAllowed, map[string]string{"detail": fmt.Sprintf("Method '%s' not allowed.", r.Method)})
		return
	}
	if err := t.obey(w, r); err != nil {
		writeJSON(w, api.StatusOf(err), map[string]string{"detail": err.Error()})
		return
	}
	w.WriteHeader(http.StatusOK)
}

func (t *control) obey(w http.ResponseWriter, r *http.Request) error {
	var request map[string]json.RawMessage
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&request); err != nil {
		return paas.Errorf(paas.Invalid, "JSON parse error - %v", err)
	}
	if len(request) != 1 {
		return paas.Errorf(paas.Invalid, "Send an object with one key, not %d.", len(request))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, value := range request {
		do := controls[key]
		if do == nil {
			return paas.Errorf(paas.NotFound, "Nothing is called %q.", key)
		}
		if err := do(t, context.WithoutCancel(r.Context()), value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// decode reads a value strictly; null leaves into as it is.
func decode(value json.RawMessage, into any) error {
	dec := json.NewDecoder(bytes.NewReader(value))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return paas.Errorf(paas.Invalid, "%v", err)
	}
	return nil
}

// change replaces the settings.
func (t *control) change(f func(*settings)) {
	next := *t.s.settings.Load()
	f(&next)
	t.s.settings.Store(&next)
}

// reset brings everything back to a first start: no users, no apps, no
// instances, no routes, default settings.
func (t *control) reset(ctx context.Context, value json.RawMessage) error {
	yes := false
	if err := decode(value, &yes); err != nil || !yes {
		return errors.Join(err, paas.Errorf(paas.Invalid, "only true resets"))
	}
	for id, release := range t.held {
		release()
		delete(t.held, id)
	}
	apps, err := t.s.store.AllApps(ctx)
	if err != nil {
		return err
	}
	deleting, err := t.s.store.DeletingApps(ctx)
	if err != nil {
		return err
	}
	for _, app := range append(apps, deleting...) {
		if err := t.s.rollouts.Destroy(ctx, app); err != nil {
			return err
		}
		t.s.routes.dropApp(app.UUID)
	}
	if err := t.s.store.Reset(ctx); err != nil {
		return err
	}
	t.engine.Reset()
	t.chaos = fake.Chaos{}
	t.s.settings.Store(t.s.cfg.defaults())
	return t.s.loadRoutes(ctx)
}

// setRegistration takes a mode, or null for none configured.
func (t *control) setRegistration(_ context.Context, value json.RawMessage) error {
	mode := RegistrationEnabled
	if err := decode(value, &mode); err != nil {
		return err
	}
	if !validMode(mode) {
		return paas.Errorf(paas.Invalid, "no mode %q", mode)
	}
	t.change(func(s *settings) { s.registration = mode })
	return nil
}

func (t *control) setReserved(_ context.Context, value json.RawMessage) error {
	names := t.s.cfg.defaults().reserved
	if err := decode(value, &names); err != nil {
		return err
	}
	t.change(func(s *settings) { s.reserved = names })
	return nil
}

func (t *control) setRun(_ context.Context, value json.RawMessage) error {
	enabled := t.s.cfg.defaults().run
	if err := decode(value, &enabled); err != nil {
		return err
	}
	t.change(func(s *settings) { s.run = enabled })
	return nil
}

// logAnswer is what a log store of Deis v1 answers to a request for lines (contract 12).
type logAnswer struct {
	Status  int    `json:"status"`
	Content string `json:"content"`
	// Error says that it cannot be reached.
	Error bool `json:"error"`
}

func (t *control) setLogger(_ context.Context, value json.RawMessage) error {
	var answer *logAnswer
	if err := decode(value, &answer); err != nil {
		return err
	}
	if answer != nil && answer.Status == 0 {
		answer.Status = http.StatusOK
	}
	t.change(func(s *settings) { s.logs = answer })
	return nil
}

// storedLogs answers with what a log store said (contract 5.8).
func (c *call) storedLogs(a *logAnswer) error {
	switch {
	case !a.Error && a.Status == http.StatusOK:
		c.w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(c.w, a.Content) // a client that is gone cannot be told
		return nil
	case !a.Error && (a.Status == http.StatusNoContent || a.Status == http.StatusNotFound):
		return c.empty(http.StatusNoContent)
	}
	c.w.Header().Set("Content-Type", "text/plain")
	c.w.WriteHeader(http.StatusInternalServerError)
	fmt.Fprintf(c.w, "Error accessing logs for %s", c.app.ID)
	return nil
}

func (t *control) holdLock(ctx context.Context, value json.RawMessage) error {
	app, err := t.app(ctx, value)
	if err != nil || t.held[app.UUID] != nil {
		return err
	}
	release, err := t.s.changes.acquire(ctx, app.UUID, lockTake)
	if err != nil {
		return err
	}
	t.held[app.UUID] = release
	return nil
}

func (t *control) releaseLock(ctx context.Context, value json.RawMessage) error {
	app, err := t.app(ctx, value)
	if err != nil {
		return err
	}
	if release := t.held[app.UUID]; release != nil {
		release()
		delete(t.held, app.UUID)
	}
	return nil
}

// app reads an app's id.
func (t *control) app(ctx context.Context, value json.RawMessage) (paas.App, error) {
	id := ""
	if err := decode(value, &id); err != nil {
		return paas.App{}, err
	}
	return t.s.store.AppByID(ctx, id)
}

// setHealth says what instances answer to health checks; null is 200. Their ports stay open.
func (t *control) setHealth(_ context.Context, value json.RawMessage) error {
	var answer struct {
		Status int  `json:"status"`
		Error  bool `json:"error"`
	}
	answer.Status = http.StatusOK
	if err := decode(value, &answer); err != nil {
		return err
	}
	t.engine.SetProbe(func(_ engine.Instance, check engine.Check) error {
		switch {
		case check.Path == "":
			return nil
		case answer.Error:
			return paas.Errorf(paas.Unavailable, "failed to connect to container")
		case answer.Status != http.StatusOK:
			return paas.Errorf(paas.Unavailable, "app failed health check (got '%d', expected: '200')", answer.Status)
		}
		return nil
	})
	return nil
}

// setScheduler turns chaos on and off.
func (t *control) setScheduler(_ context.Context, value json.RawMessage) error {
	name := ""
	if err := decode(value, &name); err != nil {
		return err
	}
	switch name {
	case "mock":
		t.engine.SetChaos(fake.Chaos{})
	case "chaos":
		t.engine.SetChaos(t.chaos)
	default:
		return paas.Errorf(paas.Invalid, "no scheduler %q", name)
	}
	return nil
}

// setChaos sets the rates that it names and puts all of them in force.
func (t *control) setChaos(_ context.Context, value json.RawMessage) error {
	rates := t.chaos
	if err := decode(value, &rates); err != nil {
		return err
	}
	for _, rate := range []float64{rates.Create, rates.Start, rates.Stop, rates.Destroy} {
		if rate < 0 || rate > 1 {
			return paas.Errorf(paas.Invalid, "a rate is from 0 to 1, not %v", rate)
		}
	}
	t.chaos = rates
	t.engine.SetChaos(rates)
	return nil
}
