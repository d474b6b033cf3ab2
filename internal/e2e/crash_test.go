package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ctd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"

	"github.com/deis/deis/internal/hosttest"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/rollout"
)

const (
	// crashRate is requests a second to the app that nothing is done to.
	crashRate = 50
	// crashLimit is how long the platform may take to be as it should be, on a machine that does other things too.
	crashLimit = 60 * time.Second
	// crashImage is a name that the tests' app has in containerd's store.
	crashImage = "docker.io/library/crash:v1"
)

// TestCrashMatrix kills daemons with SIGKILL while a rollout stands at a step of its journal: the controller, each
// of the others, all at once. The change that was under way must then be live, without a hand of anybody but whoever starts
// deisctl again where that was killed. Exactly the instances run that should, of one release, and nothing else is left
// on the machine. Another app is under load all the time; its requests may fail only where the router itself is killed:
// those that it had in hand, and without deisctl, which holds its sockets, those that come before it is back.
//
// It takes a few steps of each kind of rollout; with DEIS_CRASH=all every step of each, times every daemon, or the cases that DEIS_CRASH
// lists as CHANGE/STEP/DAEMON, with blanks between.
func TestCrashMatrix(t *testing.T) {
	m := newCrashMatrix(t)
	cases := parseCrashes(strings.Fields(envOr("DEIS_CRASH", fewCrashes)))
	if os.Getenv("DEIS_CRASH") == "all" {
		cases = m.all(t)
	}
	for _, c := range cases { // here, because what a case makes goes with it
		switch c.change {
		case "release":
			m.staged(t)
		case "batches", "undone":
			m.large(t)
		}
	}
	began := time.Now()
	for _, c := range cases {
		t.Run(c.String(), func(t *testing.T) { m.run(t, c) })
	}
	t.Logf("%d cases in %v; without the router's own deaths %d requests to the other app, %d failed; around these %d, %d failed",
		len(cases), time.Since(began).Round(time.Second), m.requests[false], m.failed[false], m.requests[true], m.failed[true])
}

// crash is one case: a change, the step at which it stands, and who is killed then.
type crash struct{ change, step, victim string }

func (c crash) String() string { return c.change + "/" + c.step + "/" + c.victim }

// routerDies says that requests in hand cannot be saved.
func (c crash) routerDies() bool { return c.victim == "router" || c.victim == "all" }

type crashMatrix struct {
	p     *platform
	u     *user
	stop  string // the file that says where a rollout stops
	dirs  map[string]string
	state map[string]*crashState // by app
	n     int                    // makes names and values that were not there before
	kills map[string]int         // since deisctl began

	requests, failed map[bool]int // by whether the router was killed
}

// crashState is what an app should be.
type crashState struct {
	message, greeting string
	count             map[string]int // by process type
	gone              bool
	// former are containers that must not be there any more.
	former []string
}

// instances is how many run.
func (s *crashState) instances() (n int) {
	for _, count := range s.count {
		n += count
	}
	return n
}

// victims of the whole matrix; "all" is all of the daemons. TestReboot kills shims and instances as well.
var victims = []string{"controller", "builder", "router", "buildkitd", "containerd", "deisctl", "all"}

// changes that a case can be, by name.
func (m *crashMatrix) changes() map[string]crashChange {
	return map[string]crashChange{
		"deploy": {kind: paas.RolloutDeploy, do: m.push}, "config": {kind: paas.RolloutConfig, do: m.config},
		"rollback": {kind: paas.RolloutRollback, do: m.rollback}, "restart": {kind: paas.RolloutRestart, do: m.restart},
		"up": {kind: paas.RolloutScale, do: m.up}, "down": {kind: paas.RolloutScale, do: m.down},
		"image":   {kind: paas.RolloutDeploy, do: m.image},
		"destroy": {kind: rollout.KindDestroy, do: m.destroy},
		"release": {kind: paas.RolloutConfig, do: m.release}, "batches": {kind: paas.RolloutConfig, do: m.batches},
		"failing": {kind: paas.RolloutConfig, do: m.failing}, "undone": {kind: paas.RolloutConfig, do: m.undone},
	}
}

// crashChange is a kind of change.
type crashChange struct {
	kind paas.RolloutKind
	// do prepares one, notes what the app should be after it, and returns the change itself.
	do func(t *testing.T) (app string, change func(context.Context) error)
}

// fewCrashes is what fits into an ordinary test run.
const fewCrashes = `
	deploy/starting/controller deploy/succeeded/controller config/started/controller rollback/healthy/controller
	up/started/controller down/succeeded/controller restart/healthy/controller image/pending/controller
	failing/failed/controller destroy/destroying/controller destroy/forgotten/controller
	deploy/started/builder deploy/starting/buildkitd config/starting/containerd restart/healthy/router
	config/healthy/deisctl config/started/all`

func parseCrashes(texts []string) (list []crash) {
	for _, text := range texts {
		f := append(strings.Split(text, "/"), "", "")
		list = append(list, crash{f[0], f[1], f[2]})
	}
	return list
}

// all is every step that a change comes to, times everybody.
func (m *crashMatrix) all(t *testing.T) (list []crash) {
	plain := []string{"pending", "starting", "started", "healthy", "succeeded"}
	steps := map[string][]string{
		"deploy": plain, "config": plain, "rollback": plain, "up": plain, "restart": plain, "image": plain,
		"down":    {"pending", "succeeded"},
		"destroy": rollout.DestroySteps,
		"release": {"releasing", "released", "stopping", "stopped"},
		"batches": {"switched", "replaced"}, "failing": {"failed"}, "undone": {"undoing", "undone"},
	}
	missing := slices.Clone(rollout.Steps)
	for change, of := range steps {
		missing = slices.DeleteFunc(missing, func(s string) bool { return change != "destroy" && slices.Contains(of, s) })
	}
	if len(missing) > 0 {
		t.Fatalf("no change comes to %v", missing)
	}
	for _, victim := range victims {
		for _, change := range slices.Sorted(maps.Keys(steps)) {
			for _, step := range steps[change] {
				list = append(list, crash{change, step, victim})
			}
		}
	}
	return list
}

func newCrashMatrix(t *testing.T) *crashMatrix {
	p, err := newPlatform("containerd")
	if err != nil {
		t.Fatal(err)
	}
	m := &crashMatrix{
		p: p, stop: filepath.Join(p.root, "stop-at"), dirs: map[string]string{}, state: map[string]*crashState{},
		kills: map[string]int{}, requests: map[bool]int{}, failed: map[bool]int{},
	}
	p.env = append(p.env, "DEIS_TEST=1", "DEIS_TEST_STOP_AT="+m.stop, "DEIS_DRAIN_LIMIT=1s")
	p.startFor(t)
	m.u = p.newUser(t, "crash")
	m.app(t, "crash-v", 2)
	m.app(t, "crash-other", 1)
	err = p.engine(func(ctx context.Context, c *ctd.Client) error {
		list, err := c.ImageService().List(ctx, `name~="@sha256:"`)
		if err != nil || len(list) == 0 {
			return errors.Join(err, errors.New("no image of an app"))
		}
		_, err = c.ImageService().Create(ctx, images.Image{Name: crashImage, Target: list[0].Target})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// app makes one, pushes it and scales it.
func (m *crashMatrix) app(t *testing.T, name string, count int) {
	t.Helper()
	m.dirs[name] = m.u.newApp(t, name)
	m.u.push(t, m.dirs[name], "one")
	m.state[name] = &crashState{message: "one", count: map[string]int{"cmd": count}}
	if count != 1 {
		m.u.must(t, m.dirs[name], "deis", "scale", fmt.Sprintf("cmd=%d", count))
	}
}

// next is a word that no app has said so far.
func (m *crashMatrix) next() string {
	m.n++
	return fmt.Sprintf("n%d", m.n)
}

func (m *crashMatrix) deis(app string, args ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := m.u.run(ctx, m.dirs[app], "deis", args...)
		return err
	}
}

func (m *crashMatrix) push(t *testing.T) (string, func(context.Context) error) {
	const app = "crash-v"
	s := m.state[app]
	s.message = m.next()
	writeFile(t, m.dirs[app], "message", s.message)
	m.u.must(t, m.dirs[app], "git", "commit", "-q", "-a", "-m", s.message)
	return app, func(ctx context.Context) error {
		_, err := m.u.run(ctx, m.dirs[app], "git", "push", "-q", "-f", "deis", "master")
		return err
	}
}

func (m *crashMatrix) config(*testing.T) (string, func(context.Context) error) {
	const app = "crash-v"
	m.state[app].greeting = m.next()
	return app, m.deis(app, "config:set", "GREETING="+m.state[app].greeting)
}

// rollback goes back to what was there before a change of the config.
func (m *crashMatrix) rollback(t *testing.T) (string, func(context.Context) error) {
	const app = "crash-v"
	m.u.must(t, m.dirs[app], "deis", "config:set", "GREETING="+m.next())
	return app, m.deis(app, "rollback")
}

// restart gives every instance a successor.
func (m *crashMatrix) restart(t *testing.T) (string, func(context.Context) error) {
	const app = "crash-v"
	list, err := m.p.containers()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if c.app == app {
			m.state[app].former = append(m.state[app].former, c.id)
		}
	}
	return app, m.deis(app, "ps:restart")
}

func (m *crashMatrix) scale(app string, count int) (string, func(context.Context) error) {
	m.state[app].count["cmd"] = count
	return app, m.deis(app, "scale", fmt.Sprintf("cmd=%d", count))
}

func (m *crashMatrix) up(t *testing.T) (string, func(context.Context) error) {
	m.u.must(t, m.dirs["crash-v"], "deis", "scale", "cmd=1")
	return m.scale("crash-v", 2)
}

func (m *crashMatrix) down(t *testing.T) (string, func(context.Context) error) {
	m.u.must(t, m.dirs["crash-v"], "deis", "scale", "cmd=3")
	return m.scale("crash-v", 2)
}

func (m *crashMatrix) image(*testing.T) (string, func(context.Context) error) {
	const app = "crash-v"
	m.state[app].message = "one"
	return app, m.deis(app, "pull", crashImage)
}

// destroy makes an app for it.
func (m *crashMatrix) destroy(t *testing.T) (string, func(context.Context) error) {
	app := "crash-" + m.next()
	m.dirs[app] = t.TempDir()
	m.u.must(t, m.dirs[app], "deis", "create", app, "--no-remote")
	m.u.must(t, m.dirs[app], "deis", "pull", crashImage, "-a", app)
	m.state[app] = &crashState{gone: true}
	return app, m.deis(app, "destroy", "-a", app, "--confirm="+app)
}

// staged is an app with a release process and a worker of which no two may run at once.
func (m *crashMatrix) staged(t *testing.T) string {
	const app = "crash-w"
	if m.state[app] == nil {
		dir := m.u.newApp(t, app)
		m.dirs[app] = dir
		writeFile(t, dir, "Dockerfile", "FROM scratch\nCOPY app /app\nCOPY app /bin/sh\nCOPY message /message\nEXPOSE 5000\nCMD [\"/app\"]\n")
		writeFile(t, dir, "Procfile", "web: /app\nworker: /app work\nrelease: /app ok\n")
		m.u.must(t, dir, "git", "add", "-A")
		m.u.must(t, dir, "deis", "config:set", "DEIS_DEPLOY_STRATEGY=stop-first")
		m.u.push(t, dir, "one")
		m.u.must(t, dir, "deis", "scale", "web=1", "worker=1")
		m.state[app] = &crashState{message: "one", count: map[string]int{"web": 1, "worker": 1}}
	}
	return app
}

func (m *crashMatrix) release(t *testing.T) (string, func(context.Context) error) {
	app := m.staged(t)
	m.state[app].greeting = m.next()
	return app, m.deis(app, "config:set", "GREETING="+m.state[app].greeting)
}

// large is an app of which old and new instances do not fit into the machine's memory side by side.
func (m *crashMatrix) large(t *testing.T) string {
	const app = "crash-l"
	if m.state[app] == nil {
		m.app(t, app, 2)
		text, err := os.ReadFile("/proc/meminfo")
		if err != nil {
			t.Fatal(err)
		}
		m.u.must(t, m.dirs[app], "deis", "limits:set", fmt.Sprintf("cmd=%dM", kilobytes(text, "MemTotal:")*7/10>>20))
	}
	return app
}

func (m *crashMatrix) batches(t *testing.T) (string, func(context.Context) error) {
	app := m.large(t)
	m.state[app].greeting = m.next()
	return app, m.deis(app, "config:set", "GREETING="+m.state[app].greeting)
}

// failing is a change whose second instance does not run: nothing may come of it.
func (m *crashMatrix) failing(*testing.T) (string, func(context.Context) error) {
	const app = "crash-v"
	return app, m.deis(app, "config:set", "CRASH=cmd-2", "GREETING="+m.next())
}

// undone is the same where the first instance has been replaced by then.
func (m *crashMatrix) undone(t *testing.T) (string, func(context.Context) error) {
	app := m.large(t)
	return app, m.deis(app, "config:set", "CRASH=cmd-2", "GREETING="+m.next())
}

// run is one case from a good state to a good state.
func (m *crashMatrix) run(t *testing.T, c crash) {
	change, ok := m.changes()[c.change]
	if !ok {
		t.Fatal("no such change")
	}
	m.calm(t, c.victim)
	app, do := change.do(t)
	l := m.p.startLoad(t, "crash-other.localhost", "/", crashRate)
	before := m.p.pids(t)
	how := ""
	if c.victim != "controller" {
		how = " wait"
	}
	if err := os.WriteFile(m.stop, []byte(fmt.Sprintf("%s:%s%s", change.kind, c.step, how)), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), crashLimit)
	defer cancel()
	told := make(chan error, 1)
	go func() { told <- do(ctx) }()
	reached := time.Now()
	for ; ; time.Sleep(2 * time.Millisecond) {
		if text, err := os.ReadFile(m.stop); err == nil && len(text) == 0 {
			break
		}
		if time.Since(reached) > crashLimit {
			t.Fatalf("the step was not reached: %v", <-told)
		}
	}
	began := time.Now()
	m.kill(t, c.victim, before)
	if err := os.Remove(m.stop); err != nil {
		t.Fatal(err)
	}
	m.awaitParts(t, c.victim, before)
	m.wantState(t, app)
	took := time.Since(began)
	err := <-told // a change may be lost to who asked for it; it must not hang
	if errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who asked for the change was never answered: %v", err)
	}
	m.wantNothingLeft(t)
	l.cancel()
	l.done.Wait()
	m.requests[c.routerDies()] += l.count
	m.failed[c.routerDies()] += len(l.failures)
	if !c.routerDies() && len(l.failures) > 0 {
		t.Errorf("%d of %d requests to another app failed: %s", len(l.failures), l.count, l.failures[0])
	}
	l.wantOnly(t, "app=crash-other")
	t.Logf("as it should be after %v", took.Round(10*time.Millisecond))
}

// calm gives deisctl a successor before it waits for long: it starts again what dies often after ever longer pauses.
func (m *crashMatrix) calm(t *testing.T, victim string) {
	t.Helper()
	if m.kills[victim]++; m.kills[victim] <= 2 {
		return
	}
	clear(m.kills)
	m.kill(t, "deisctl", m.p.pids(t))
	m.awaitParts(t, "", nil)
}

// kill ends daemons; the controller does it itself.
func (m *crashMatrix) kill(t *testing.T, victim string, pids map[string]int) {
	t.Helper()
	var dead []string
	switch victim {
	case "controller":
	case "all":
		dead = []string{"deisctl", "controller", "router", "builder", "buildkitd", "containerd"} // deisctl would start them again
	default:
		dead = []string{victim}
	}
	for _, part := range dead {
		if err := kill(pids[part]); err != nil {
			t.Fatal(err)
		}
	}
	for _, part := range dead {
		if !hosttest.Ended(pids[part], time.Minute) {
			t.Fatalf("%s does not end", part)
		}
	}
	if slices.Contains(dead, "deisctl") {
		if err := m.p.start(); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitParts waits until all parts run and the killed ones are others.
func (m *crashMatrix) awaitParts(t *testing.T, victim string, before map[string]int) {
	t.Helper()
	began := time.Now()
	for ; ; time.Sleep(20 * time.Millisecond) {
		good := true
		now := m.p.status(t)
		for name, part := range now {
			good = good && part.State == "running" && (name != victim && victim != "all" || part.PID != before[name])
		}
		if good && len(now) > 0 {
			return
		}
		if time.Since(began) > crashLimit {
			t.Fatalf("the parts are not back: %+v", now)
		}
	}
}

// wantState waits until an app is as it should be, for several requests in a row.
func (m *crashMatrix) wantState(t *testing.T, app string) {
	t.Helper()
	s := m.state[app]
	client := m.p.client(false)
	began := time.Now()
	var last string
	for good := 0; good < 8; time.Sleep(10 * time.Millisecond) {
		status, body, err := m.p.get(t.Context(), client, app+".localhost", "/")
		want := fmt.Sprintf("message=%s ", s.message)
		switch {
		case err == nil && s.gone && status == 404,
			err == nil && status == 200 && strings.Contains(body, want) && field(body, "greeting=") == s.greeting && field(body, "app=") == app:
			good++
			continue
		}
		good, last = 0, fmt.Sprintf("%d %.200s %v", status, body, err)
		if time.Since(began) > crashLimit {
			t.Fatalf("%s should say %+v, and says %s\n%s", app, *s, last, m.releases(t, app))
		}
	}
}

func (m *crashMatrix) releases(t *testing.T, app string) string {
	list, err := m.u.run(t.Context(), m.dirs[app], "deis", "releases", "-a", app)
	ps, errPs := m.u.run(t.Context(), m.dirs[app], "deis", "ps", "-a", app)
	return fmt.Sprintf("%s\n%s%v", list, ps, errors.Join(err, errPs))
}

// wantNothingLeft wants exactly the instances that there should be, each app's of one release, and nothing else.
func (m *crashMatrix) wantNothingLeft(t *testing.T) {
	t.Helper()
	want := map[string]int{}
	for app, s := range m.state {
		want[app] = s.instances()
	}
	m.p.wantNothingLeft(t, crashLimit, want)
	list, err := m.p.containers()
	if err != nil {
		t.Fatal(err)
	}
	version := map[string]int{}
	count := map[string]map[string]int{}
	for _, c := range list {
		if v, ok := version[c.app]; ok && v != c.version {
			t.Errorf("instances of two releases run: %v", list)
		}
		version[c.app] = c.version
		if slices.Contains(m.state[c.app].former, c.id) {
			t.Errorf("%v was to be replaced", c)
		}
		if count[c.app] == nil {
			count[c.app] = map[string]int{}
		}
		count[c.app][c.kind]++
	}
	for app, s := range m.state {
		if !s.gone && !maps.Equal(count[app], s.count) {
			t.Errorf("%s has %v, and should have %v", app, count[app], s.count)
		}
	}
}
