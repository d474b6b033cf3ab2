package controller

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/paas"
)

// What is under way and what failed can be seen, with its reason and without secrets.
func TestRolloutsAreListed(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	p.engine.SetPrograms(func(engine.Process) (fake.Program, error) {
		return fake.Program{Ends: true, Code: 3, Print: []fake.Line{{Text: "no s3cret-value here"}}}, nil
	})
	alice.want(503, "POST", "/v1/apps/shop/config", `{"values":{"TOKEN":"s3cret-value"}}`)
	var l api.List[api.Rollout]
	alice.json(&l, 200, "GET", "/v1/apps/shop/rollouts?page_size=1", nil)
	if l.Count != 2 || len(l.Results) != 1 {
		t.Fatalf("rollouts %+v", l)
	}
	r := l.Results[0]
	want := "aborting, failed to create some containers\nweb.1: exit code 3\nThe last lines of its log:\n  no [TOKEN] here"
	if r.Kind != "config" || r.State != "failed" || r.Version != 3 || r.Owner != "alice" || r.Finished == nil || r.Reason != want {
		t.Errorf("rollout %+v", r)
	}
	var one api.Rollout
	alice.json(&one, 200, "GET", fmt.Sprintf("/v1/apps/shop/rollouts/%d", r.ID), nil)
	if one.ID != r.ID || one.Reason != r.Reason {
		t.Errorf("rollout %+v, in the list %+v", one, r)
	}
	bob := p.user("bob")
	p.engine.SetPrograms(nil)
	bob.app("other", "web")
	p.rows([]row{
		{alice, "GET", "/v1/apps/shop/rollouts/999", nil, 404, notFound},
		{alice, "GET", "/v1/apps/shop/rollouts/x", nil, 404, notFound},
		{bob, "GET", fmt.Sprintf("/v1/apps/other/rollouts/%d", r.ID), nil, 404, notFound},
	})
}

// Crashed instances say why, and how often they were started again.
func TestInstancesTellReasons(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	instance := func() api.Instance {
		t.Helper()
		var l api.List[api.Instance]
		alice.json(&l, 200, "GET", "/v1/apps/shop/instances", nil)
		if len(l.Results) != 1 {
			t.Fatalf("instances %+v", l)
		}
		return l.Results[0]
	}
	if i := instance(); i.State != "up" || i.Release != "v2" || i.Restarts != 0 || i.Reason != "" || i.Rollout == 0 {
		t.Errorf("instance %+v", i)
	}
	all, err := p.engine.Instances(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	p.engine.Exit(all[0].ID, "killed: out of memory")
	var i api.Instance // as it was seen: it is soon started again
	eventually(t, "it is seen", func() bool { i = instance(); return i.State == "crashed" })
	if i.Reason != "killed: out of memory" {
		t.Errorf("instance %+v", i)
	}
	eventually(t, "it is started again", func() bool { return instance().State == "up" })
	if i := instance(); i.Restarts != 1 || i.Reason != "" {
		t.Errorf("instance %+v", i)
	}
	p.stop()
	p.start()
	if i := instance(); i.Restarts != 1 {
		t.Errorf("after a restart of the controller: %+v", i)
	}
}

// The second of three pushes hears at once that it is too late.
func TestPushIsSuperseded(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	release := make(chan struct{})
	p.engine.SetProbe(func(engine.Instance, engine.Check) error {
		<-release
		return nil
	})
	type answer struct {
		status int
		text   string
	}
	answers := map[string]chan answer{}
	push := func(sha string) {
		answers[sha] = make(chan answer, 1)
		go func() {
			resp, text := p.builder().do("POST", "/v1/hooks/build", map[string]any{
				"receive_user": "alice", "receive_repo": "shop", "image": "example/app:1", "sha": sha,
				"procfile": map[string]string{"web": "x"},
			})
			answers[sha] <- answer{resp.StatusCode, text}
		}()
		eventually(t, "the build is there", func() bool {
			var l api.List[api.Build]
			alice.json(&l, 200, "GET", "/v1/apps/shop/builds?page_size=1", nil)
			return l.Results[0].SHA == sha
		})
	}
	push("1111111111")
	eventually(t, "the first is under way", func() bool {
		var l api.List[api.Rollout]
		alice.json(&l, 200, "GET", "/v1/apps/shop/rollouts", nil)
		return l.Results[0].State == "starting" && l.Results[0].Finished == nil && strings.HasPrefix(l.Results[0].Step, "starting web=1")
	})
	push("2222222222")
	eventually(t, "the second waits", func() bool { return gauge(t, p, "deis_rollouts_waiting") == 1 })
	push("3333333333")
	select {
	case a := <-answers["2222222222"]:
		if a.status != 409 || !strings.Contains(a.text, "superseded by a newer push of alice (3333333)") {
			t.Errorf("answer %+v", a)
		}
	case <-time.After(patience):
		t.Error("it waits")
	}
	close(release)
	for _, sha := range []string{"1111111111", "3333333333"} {
		if a := <-answers[sha]; a.status != 200 {
			t.Errorf("%s: %+v", sha, a)
		}
	}
}

// The release process of a build is shown to the pusher, is no container, and cannot be scaled.
func TestReleaseProcess(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	p.engine.SetPrograms(func(proc engine.Process) (fake.Program, error) {
		ends := proc.Command[len(proc.Command)-1] == "run-release"
		return fake.Program{Ends: ends, Print: []fake.Line{{Text: "this is " + proc.Env["DEIS_RELEASE"]}}}, nil
	})
	b := build("abcdefabcd", "web", "release")
	b["receive_user"], b["receive_repo"] = "alice", "shop"
	hook := p.builder().with("Accept", "application/x-ndjson")
	text := hook.want(200, "POST", "/v1/hooks/build", b)
	for _, want := range []string{`"message":"Running the release process"`, `"message":"  this is v2"`, `"version":2`} {
		if !strings.Contains(text, want) {
			t.Errorf("the pusher sees %s, which lacks %s", text, want)
		}
	}
	if got := strings.Join(alice.containers("shop"), ", "); got != "web.1 v2 up" {
		t.Errorf("containers %s", got)
	}
	alice.says(`{"detail":"Container type release runs once before each release and cannot be scaled"}`, 400,
		"POST", "/v1/apps/shop/scale", `{"release":1}`)
}

// An app that is destroyed takes its one-offs along.
func TestDestroyEndsOneOffs(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	began, ended := make(chan struct{}), make(chan struct{})
	p.engine.SetPrograms(func(engine.Process) (fake.Program, error) {
		return fake.Program{Run: func(ctx context.Context, _ engine.Job) (int, error) {
			close(began)
			<-ctx.Done()
			close(ended)
			return 0, ctx.Err()
		}}, nil
	})
	answer := make(chan string, 1)
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), "POST", p.url+"/v1/apps/shop/run", strings.NewReader(`{"command":"x"}`))
		if err != nil {
			answer <- err.Error()
			return
		}
		req.Header = alice.header.Clone()
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		answer <- fmt.Sprint(resp.StatusCode, " ", string(text))
	}()
	<-began
	alice.want(204, "DELETE", "/v1/apps/shop", nil)
	select {
	case <-ended:
	default:
		t.Error("the app is gone and its one-off is not")
	}
	if a := <-answer; a != `409 {"detail":"The app is being destroyed."}` {
		t.Errorf("answer %s", a)
	}
	if len(p.s.oneOffs.of) != 0 {
		t.Error("one-offs are kept in memory")
	}
}

// A rollout that shall wait at a step waits there, once, until the file is gone.
func TestStopAt(t *testing.T) {
	if stopAt("") != nil {
		t.Error("a step for nothing")
	}
	file := filepath.Join(t.TempDir(), "stop-at")
	step := stopAt(file)
	step(paas.RolloutDeploy, "healthy") // there is no file
	if err := os.WriteFile(file, []byte("deploy:healthy wait\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	step(paas.RolloutDeploy, "started")
	step(paas.RolloutScale, "healthy")
	if text, _ := os.ReadFile(file); len(text) == 0 {
		t.Fatal("it stopped at another step")
	}
	went := make(chan struct{})
	go func() { step(paas.RolloutDeploy, "healthy"); close(went) }()
	for text := []byte{0}; len(text) > 0; time.Sleep(time.Millisecond) {
		text, _ = os.ReadFile(file)
	}
	step(paas.RolloutDeploy, "healthy") // once is enough
	select {
	case <-went:
		t.Fatal("it did not wait")
	case <-time.After(5 * stopPoll):
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	<-went
}
