package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/gitserver"
	"github.com/deis/deis/internal/gitserver/gittest"
	"github.com/deis/deis/internal/paas"
)

const sharedKey = "shared-builder-key"

// stub is a controller with the user alice and apps whose names begin with "app".
type stub struct {
	t   *testing.T
	key string // alice's

	mu     sync.Mutex
	down   bool
	pushes []api.PushHook
	builds []api.BuildHook
	gone   map[string]bool // app UUIDs
	// launch answers a build; nil lets it succeed.
	launch func(w http.ResponseWriter, version int)
}

// with changes the stub while nobody reads it.
func (s *stub) with(do func(s *stub)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do(s)
}

// heard returns the hooks that were called so far.
func (s *stub) heard() (pushes []api.PushHook, builds []api.BuildHook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.pushes), slices.Clone(s.builds)
}

func uuidOf(app string) string {
	return fmt.Sprintf("00000000-0000-4000-8000-%012x", []byte((app + "------")[:6]))
}

func (s *stub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	read := func(v any) {
		if err := json.NewDecoder(r.Body).Decode(v); err != nil {
			s.t.Errorf("%s: %v", r.URL.Path, err)
		}
	}
	if s.down {
		panic(http.ErrAbortHandler)
	}
	if r.URL.Path == "/healthz" {
		io.WriteString(w, "OK")
		return
	}
	if r.Header.Get(api.HeaderBuilderAuth) != sharedKey {
		answer(http.StatusUnauthorized, map[string]string{"detail": "Invalid token"})
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "POST /v1/hooks/key":
		var q api.KeyHook
		if read(&q); q.Key != s.key {
			answer(http.StatusNotFound, map[string]string{"detail": "Not found"})
			return
		}
		answer(http.StatusOK, api.KeyHookAnswer{Username: "alice", Fingerprint: "54:6d"})
	case "POST /v1/hooks/access":
		var q api.AccessHook
		switch read(&q); {
		case q.ReceiveRepo == "bobs":
			answer(http.StatusForbidden, map[string]string{"detail": "You do not have permission to perform this action."})
		case !strings.HasPrefix(q.ReceiveRepo, "app") || q.ReceiveUser != "alice":
			answer(http.StatusNotFound, map[string]string{"detail": "Not found"})
		default:
			answer(http.StatusOK, api.AccessHookAnswer{App: uuidOf(q.ReceiveRepo)})
		}
	case "POST /v1/hooks/config":
		json.NewEncoder(w).Encode(api.ConfigHookAnswer{})
	case "POST /v1/hooks/push":
		var q api.PushHook
		read(&q)
		s.pushes = append(s.pushes, q)
		answer(http.StatusCreated, q)
	case "POST /v1/hooks/build":
		var q api.BuildHook
		read(&q)
		s.builds = append(s.builds, q)
		version := len(s.builds) + 1
		if s.launch != nil {
			s.launch(w, version)
			return
		}
		stream(w, api.BuildEvent{Message: "web.1 starts"}, success(q.ReceiveRepo, version))
	case "GET /v1/hooks/apps":
		all := api.AppsHookAnswer{Apps: []string{}, Caches: map[string]int64{}}
		for i := range 10 {
			if uuid := uuidOf(fmt.Sprintf("app%d", i)); !s.gone[uuid] {
				all.Apps = append(all.Apps, uuid)
				all.Caches[uuid] = int64(i)
			}
		}
		answer(http.StatusOK, all)
	default:
		s.t.Errorf("%s %s is no hook", r.Method, r.URL.Path)
	}
}

func success(app string, version int) api.BuildEvent {
	a := &api.BuildHookAnswer{Domains: []string{app + ".example.com"}}
	a.Release.Version = version
	return api.BuildEvent{Answer: a}
}

func stream(w http.ResponseWriter, events ...api.BuildEvent) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	for _, e := range events {
		_ = json.NewEncoder(w).Encode(e)
		w.(http.Flusher).Flush()
	}
}

// fixture is a running builder with its controller and a client, alice.
type fixture struct {
	*stub
	*gittest.Client
	root   string
	log    *lines
	health chan func() error
	stop   func()
}

type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// hostKeys is a directory of host keys that all builders share: making them takes a while.
var hostKeys = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "keys")
	if err == nil {
		_, err = gitserver.HostKeys(dir)
	}
	return dir, err
})

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		runRole(role)
		return
	}
	code := m.Run()
	if dir, err := hostKeys(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func start(t *testing.T, images imageBuilder) *fixture {
	t.Helper()
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{stub: &stub{t: t}, Client: gittest.New(t, l.Addr().String()), root: t.TempDir(), log: &lines{}, health: make(chan func() error, 1)}
	f.key = f.PublicKey
	controller := httptest.NewServer(f.stub)
	t.Cleanup(controller.Close)
	if err := os.WriteFile(filepath.Join(f.root, "builder.key"), []byte(sharedKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := hostKeys()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(f.root, "ssh"), os.DirFS(keys)); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Root: f.root, Engine: "fake", SSHAddr: "unused", ControllerURL: controller.URL, HTTPAddr: "127.0.0.1:8000", Builds: 2,
		Log: slog.New(slog.NewJSONHandler(f.log, nil)), Metrics: prometheus.NewRegistry(),
		Listen: func(name, addr string) (net.Listener, error) {
			if name != "ssh" || addr != "unused" {
				t.Errorf("listener %q on %q", name, addr)
			}
			return l, nil
		},
		Admin: func(ctx context.Context, health func() error) error {
			f.health <- health
			<-ctx.Done()
			return nil
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		if images == nil {
			done <- Run(ctx, cfg)
			return
		}
		done <- serve(ctx, cfg, images)
	}()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(f.stop)
	return f
}

func (f *fixture) stored(app, ref string) string {
	f.T.Helper()
	out, _ := f.Git("/", "--git-dir", filepath.Join(f.root, "repos", uuidOf(app)+".git"), "rev-parse", "-q", "--verify", ref+"^{commit}")
	return strings.TrimSpace(out)
}

// remote strips git's "remote: " and the blanks that it appends.
func remote(output string) string {
	var out []string
	for line := range strings.Lines(output) {
		if text, ok := strings.CutPrefix(line, "remote: "); ok {
			out = append(out, strings.TrimRight(text, " \n"))
		}
	}
	return strings.Join(out, "\n")
}

func TestFromRefToRelease(t *testing.T) {
	f := start(t, nil)
	w := f.Work("app1")
	sha := f.Commit(w, "Dockerfile", "FROM scratch\n")
	out := f.Must(w, "push", "deis", "master")
	want := `       recorded, not built: this platform runs no containers
-----> Launching...
       web.1 starts
       done, app1:v2 deployed to Deis

       http://app1.example.com:8000

       To learn more, use ` + "`deis help`" + ` or visit http://deis.io`
	if got := remote(out); got != want {
		t.Errorf("shown:\n%s\nwant:\n%s", got, want)
	}
	if f.stored("app1", "master") != sha {
		t.Error("not stored")
	}
	repo := api.RepoHook{ReceiveUser: "alice", ReceiveRepo: "app1"}
	pushes, builds := f.heard()
	p := pushes[0]
	if p.RepoHook != repo || p.SHA != sha || p.Fingerprint != "54:6d" || p.SSHOriginalCommand != "git-receive-pack '/app1.git'" || !strings.HasPrefix(p.SSHConnection, "127.0.0.1 ") {
		t.Errorf("push hook %+v", p)
	}
	b := builds[0]
	if b.RepoHook != repo || b.SHA != sha || b.Image != "deis.internal/apps/"+uuidOf("app1")+":git-"+sha[:12] || b.Digest != "" ||
		b.Dockerfile != "true" || b.Strategy != "dockerfile" || b.Procfile["web"] != "run app1" || !strings.Contains(b.Log, "recorded") {
		t.Errorf("build hook %+v", b)
	}
	f.stop()
	var line map[string]any
	for _, l := range strings.Split(f.log.String(), "\n") {
		if strings.Contains(l, `"msg":"push"`) {
			if err := json.Unmarshal([]byte(l), &line); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, key := range []string{"receive_ms", "build_ms", "rollout_ms", "total_ms", "app", "sha", "result"} {
		if _, ok := line[key]; !ok {
			t.Errorf("the log lacks %s: %v", key, line)
		}
	}
	t.Logf("receive %v ms, total %v ms", line["receive_ms"], line["total_ms"])
}

func TestPlainAnswer(t *testing.T) {
	f := start(t, nil)
	f.launch = func(w http.ResponseWriter, version int) {
		_ = json.NewEncoder(w).Encode(success("app1", version).Answer)
	}
	gittest.Contains(t, f.Must(f.Work("app1"), "push", "deis", "master:main"), "done, app1:v2 deployed to Deis")
}

func TestFailedLaunch(t *testing.T) {
	for name, c := range map[string]struct {
		launch func(w http.ResponseWriter, version int)
		want   []string
	}{
		"streamed": {func(w http.ResponseWriter, _ int) {
			stream(w, api.BuildEvent{Message: "web.1 starts"}, api.BuildEvent{Error: "web.1 ended with exit code 3", Status: 503})
		}, []string{"web.1 starts", " !     ERROR: Failed to launch: web.1 ended with exit code 3", "what ran before runs on"}},
		"at once": {func(w http.ResponseWriter, _ int) {
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, `{"detail":"You do not have permission to perform this action."}`)
		}, []string{" !     ERROR: Failed to launch: You do not have permission to perform this action."}},
		"fields": {func(w http.ResponseWriter, _ int) {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{"procfile":["Process types can only contain [A-Za-z0-9_-]"]}`)
		}, []string{" !     ERROR: Failed to launch: procfile: Process types can only contain [A-Za-z0-9_-]"}},
		"broken": {func(w http.ResponseWriter, _ int) {
			stream(w, api.BuildEvent{Message: "web.1 starts"})
			panic(http.ErrAbortHandler)
		}, []string{" !     The connection to the controller broke during the launch.", "'deis releases --app=app1'"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, nil)
			f.with(func(s *stub) { s.launch = c.launch })
			w := f.Work("app1")
			out := f.Fails(w, "push", "deis", "master")
			gittest.Contains(t, out, append(c.want, "[remote rejected]")...)
			if f.stored("app1", "master") != "" {
				t.Error("the ref was stored")
			}
			f.with(func(s *stub) { s.launch = nil })
			f.Must(w, "push", "deis", "master") // the same commit
		})
	}
}

func TestRefusals(t *testing.T) {
	f := start(t, nil)
	w := f.Work("nope")
	gittest.Contains(t, f.Fails(w, "push", "deis", "master"), " !     App nope not found. 'deis apps' lists yours, 'deis create nope' makes it.\n")
	gittest.Contains(t, f.Fails(w, "push", f.URL("bobs"), "master"), " !     You have no permission for bobs. Its owner gives it with 'deis perms:create alice --app=bobs'.\n")
	gittest.Contains(t, f.Fails(w, "fetch", f.URL("bobs")), " !     You have no permission for bobs.")
	stranger := gittest.New(t, f.Addr)
	gittest.Contains(t, stranger.Fails(w, "push", "deis", "master"), "Permission denied (publickey)")
}

func TestControllerDown(t *testing.T) {
	f := start(t, nil)
	health := <-f.health
	if err := health(); err != nil {
		t.Errorf("healthy: %v", err)
	}
	w := f.Work("app1")
	f.with(func(s *stub) { s.down = true })
	gittest.Contains(t, f.Fails(w, "push", "deis", "master"), " !     The controller does not answer as it should. Nothing was changed; push again in a moment.\n")
	if err := health(); err == nil {
		t.Error("healthy without a controller")
	}
	if left, _ := filepath.Glob(filepath.Join(f.root, "repos", "*.git")); len(left) != 0 {
		t.Errorf("stored: %v", left)
	}
}

func TestEveryErrorHasAMessage(t *testing.T) {
	fields := &paas.Error{Code: paas.Invalid, Fields: map[string][]string{"sha": {"too long", "too odd"}, "app": {"bad"}}}
	for _, err := range []error{ours(fields), launchError("app1", fields)} {
		e, ok := errors.AsType[*paas.Error](err)
		if !ok || !strings.Contains(e.Message, "app: bad sha: too long too odd") {
			t.Errorf("%#v", err)
		}
	}
	if err := ours(nil); err != nil {
		t.Error(err)
	}
}

func TestWrongBuilderKey(t *testing.T) {
	f := start(t, nil)
	f.stop()
	c := &controller{&api.Client{URL: httptest.NewServer(f.stub).URL, BuilderKey: "wrong"}}
	if _, err := c.keyOwner(t.Context(), f.PublicKey); paas.CodeOf(err) != paas.Unavailable {
		t.Errorf("a user is blamed for it: %v", err)
	}
}

func TestRefsThatDoNotDeploy(t *testing.T) {
	f := start(t, nil)
	w := f.Work("app1")
	out := f.Must(w, "push", "deis", "master:topic", "master:refs/tags/v1")
	gittest.Contains(t, out, "topic is stored and not deployed: only master and main are", "v1 is stored and not deployed")
	if pushes, builds := f.heard(); len(builds) != 0 || len(pushes) != 1 || f.stored("app1", "topic") == "" {
		t.Errorf("%d builds, %d pushes", len(builds), len(pushes))
	}
	out = f.Must(w, "push", "deis", "master", "master:other", ":topic")
	gittest.Contains(t, out, "other is stored and not deployed", "topic is deleted; nothing is deployed", "app1:v2 deployed")

	gittest.Contains(t, f.Fails(w, "push", "deis", ":master"), " !     master cannot be deleted")
	if f.stored("app1", "master") == "" {
		t.Error("deleted")
	}
	// master and main may be one commit; then it is deployed once.
	f.Must(w, "push", "deis", "master:main")
	f.Commit(w, "more", "x")
	gittest.Contains(t, f.Must(w, "push", "deis", "master", "master:main"), "app1:v4 deployed")
	f.Commit(w, "more", "y")
	gittest.Contains(t, f.Fails(w, "push", "deis", "master", "master~2:refs/heads/main", "-f"), " !     master and main are different commits")
	if _, builds := f.heard(); len(builds) != 3 {
		t.Errorf("%d builds", len(builds))
	}
}

func TestBrokenProcfile(t *testing.T) {
	f := start(t, nil)
	w := f.Work("app1")
	f.Commit(w, "Procfile", "web: [\n")
	out := f.Fails(w, "push", "deis", "master")
	gittest.Contains(t, out, " !     ERROR: The build failed: Procfile", "what ran before runs on")
	if _, builds := f.heard(); len(builds) != 0 || f.stored("app1", "master") != "" {
		t.Error("it was taken")
	}
}

// gate is an image builder that says when it begins and ends when told.
type gate struct {
	recorder
	begun chan string
	end   chan error
}

func newGate() gate { return gate{begun: make(chan string, 100), end: make(chan error)} }

func (g gate) Build(ctx context.Context, req build.Request) (*build.Result, error) {
	g.begun <- req.App
	req.Log("       at work")
	select {
	case err := <-g.end:
		if err != nil {
			return nil, err
		}
		return g.recorder.Build(ctx, req)
	case <-ctx.Done():
		return nil, fmt.Errorf("build ended early: %w", ctx.Err())
	}
}

func TestFailedBuild(t *testing.T) {
	g := newGate()
	f := start(t, g)
	w := f.Work("app1")
	fail := func(err error) string {
		go func() { <-g.begun; g.end <- err }()
		return f.Fails(w, "push", "deis", "master")
	}
	out := fail(paas.Errorf(paas.Invalid, "Dockerfile line 3: RUN false\nthe command failed with exit code 1"))
	want := `       at work
 !     ERROR: The build failed: Dockerfile line 3: RUN false
 !     the command failed with exit code 1
 !     Nothing was changed: what ran before runs on. Mend the cause and push again.`
	if got := remote(out); got != want {
		t.Errorf("shown:\n%s\nwant:\n%s", got, want)
	}
	out = fail(&paas.Error{Code: paas.Unavailable, Message: "the build service does not answer; try again later"})
	gittest.Contains(t, out, " !     ERROR: The build failed: the build service does not answer; try again later")
	out = fail(errors.New("inside of the machine"))
	gittest.Contains(t, out, " !     Internal error. The builder's log says more.")
	if strings.Contains(out, "inside") {
		t.Error(out)
	}
	gittest.Contains(t, f.log.String(), "inside of the machine")
	if _, builds := f.heard(); len(builds) != 0 || f.stored("app1", "master") != "" {
		t.Error("it was taken")
	}
}

func TestBuildOutlivesThePusher(t *testing.T) {
	g := newGate()
	f := start(t, g)
	w := f.Work("app1")
	sha := f.Must(w, "rev-parse", "HEAD")
	push := f.GitCmd(w, "push", "deis", "master")
	gittest.Start(t, push)
	<-g.begun
	gittest.HangUp(t, push)
	gittest.Contains(t, f.Fails(w, "push", "deis", "master"), "Another git push is ongoing. Aborting...")
	g.end <- nil
	gittest.Eventually(t, "the push is stored", func() bool { return f.stored("app1", "master") == sha })
	if _, builds := f.heard(); len(builds) != 1 {
		t.Errorf("%d builds", len(builds))
	}
}

func TestBuildsAtATime(t *testing.T) {
	g := newGate()
	f := start(t, g)
	var all sync.WaitGroup
	outputs := make([]string, 3)
	var works []string
	for i := range outputs {
		works = append(works, f.Work(fmt.Sprintf("app%d", i)))
	}
	push := func(i int) {
		all.Go(func() {
			out, err := f.GitCmd(works[i], "push", "deis", "master").CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			outputs[i] = string(out)
		})
	}
	push(0)
	push(1)
	<-g.begun
	<-g.begun
	push(2)
	gittest.Eventually(t, "the third push is there", func() bool {
		pushes, _ := f.heard()
		return len(pushes) == 3
	})
	select {
	case <-g.begun:
		t.Error("a third build began")
	case <-time.After(2 * time.Second):
	}
	for range outputs {
		g.end <- nil
	}
	all.Wait()
	gittest.Contains(t, outputs[2], "-----> Waiting for other builds to end (2 run, which is the limit)", "app2:v")
	if strings.Contains(outputs[0], "Waiting") {
		t.Error(outputs[0])
	}
}

func TestStopDuringBuild(t *testing.T) {
	g := newGate()
	f := start(t, g)
	go func() { <-g.begun; f.stop() }()
	gittest.Contains(t, f.Fails(f.Work("app1"), "push", "deis", "master"), " !     The builder is being stopped. Push again in a moment.")
}

// pruner notes what caches it is told of.
type pruner struct {
	recorder
	caches map[string]int64
	times  int
}

func (p *pruner) Prune(ctx context.Context, current func(context.Context) (map[string]int64, error)) (freed int64, err error) {
	p.times++
	p.caches, err = current(ctx)
	return 1 << 20, err
}

func TestTidy(t *testing.T) {
	f := start(t, nil)
	for _, app := range []string{"app1", "app2"} {
		f.Must(f.Work(app), "push", "deis", "master")
	}
	f.stop()
	repos, err := gitserver.OpenRepositories(filepath.Join(f.root, "repos"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(f.stub)
	defer server.Close()
	images := &pruner{}
	p := newPlatform(Config{Builds: 1, Log: slog.New(slog.DiscardHandler)}, &controller{&api.Client{URL: server.URL, BuilderKey: sharedKey}}, images, repos)
	p.pushed[uuidOf("app2")] = true

	f.with(func(s *stub) { s.gone, s.down = map[string]bool{uuidOf("app1"): true}, true })
	if err := p.tidy(t.Context()); err == nil {
		t.Error("no error without a controller")
	}
	if uuids, _ := repos.List(); len(uuids) != 2 {
		t.Errorf("removed without an answer: %v", uuids)
	}
	f.with(func(s *stub) { s.down = false })
	if err := p.tidy(t.Context()); err != nil {
		t.Error(err)
	}
	if uuids, _ := repos.List(); !slices.Equal(uuids, []string{uuidOf("app2")}) {
		t.Errorf("left: %v", uuids)
	}
	if len(p.pushed) != 0 {
		t.Error("not packed")
	}
	if _, ok := images.caches[uuidOf("app1")]; ok || images.caches[uuidOf("app2")] != 2 {
		t.Errorf("caches %v", images.caches)
	}
	// Only what changed is a reason to prune again: an app that is gone, or a push, whose app may be.
	for i, change := range []func(){
		func() {},
		func() { f.with(func(s *stub) { s.gone[uuidOf("app3")] = true }) },
		func() { p.pushed[uuidOf("app2")] = true },
	} {
		before := images.times
		change()
		if err := p.tidy(t.Context()); err != nil {
			t.Error(err)
		}
		if pruned := images.times > before; pruned != (i > 0) {
			t.Errorf("change %d: pruned %v", i, pruned)
		}
	}
}
