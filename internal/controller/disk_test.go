package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/store"
)

// imageEngine is an engine with images, which is all that is asked of it.
type imageEngine struct {
	engine.Engine
	images map[string]time.Time // by digest
	usage  engine.Usage
}

func (e *imageEngine) Collect(_ context.Context, _ string, keep func(engine.Image) bool) error {
	for d, at := range maps.Clone(e.images) {
		if !keep(engine.Image{Name: "deis.internal/apps/x@" + d, Digest: d, Updated: at}) {
			delete(e.images, d)
		}
	}
	return nil
}

func (e *imageEngine) Usage(context.Context) (engine.Usage, error) { return e.usage, nil }

func digestOf(n int) string { return fmt.Sprintf("sha256:%064d", n) }

// postBuild posts the build of commit number n, as the builder does for alice, and wants this status.
func (c *client) postBuild(status int, app paas.App, n int) {
	c.p.t.Helper()
	c.want(status, "POST", "/v1/hooks/build", api.BuildHook{
		RepoHook: api.RepoHook{ReceiveUser: "alice", ReceiveRepo: app.ID}, SHA: fmt.Sprintf("%040d", n), Digest: digestOf(n),
		Image: fmt.Sprintf("%s%s:git-%012d", paas.LocalImages, app.UUID, n), Procfile: map[string]string{"web": "serve"}, Strategy: "dockerfile",
	})
}

// TestCollect: the images of the last releases stay, those of builds not
// released yet, and those that nobody knows while they are young.
func TestCollect(t *testing.T) {
	p := newPlatform(t)
	alice, builder := p.user("alice"), p.builder()
	alice.app("shop")
	app, err := p.s.store.AppByID(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	const builds = 6
	began := time.Now()
	for n := 1; n <= builds; n++ {
		builder.postBuild(200, app, n)
	}
	later := paas.Build{App: app.UUID, Owner: "alice", Image: paas.LocalImages + app.UUID + ":git-later", Digest: digestOf(7), SHA: "7"}
	if err := p.s.store.CreateBuild(t.Context(), &later); err != nil {
		t.Fatal(err)
	}
	e := &imageEngine{Engine: p.engine, images: map[string]time.Time{}}
	for n := 1; n <= 7; n++ {
		e.images[digestOf(n)] = began
	}
	e.images[digestOf(8)] = time.Now()                      // being posted
	e.images[digestOf(9)] = time.Now().Add(-2 * strayImage) // never was
	s := &server{cfg: Config{Disk: DiskLimits{Releases: 3}}, store: p.s.store, engine: e}
	want := func(nums ...int) {
		t.Helper()
		if err := s.collect(t.Context(), app); err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, n := range nums {
			list = append(list, digestOf(n))
		}
		if got := slices.Sorted(maps.Keys(e.images)); !slices.Equal(got, list) {
			t.Errorf("left are %v, want %v", got, list)
		}
	}
	want(4, 5, 6, 7, 8)
	// v1 has no build, v7 is the newest: a rollback makes v8 of v5's.
	alice.want(201, "POST", "/v1/apps/shop/releases/rollback", `{"version":5}`)
	want(4, 5, 6, 7, 8)
	alice.want(201, "POST", "/v1/apps/shop/config", `{"values":{"A":"1"}}`)
	alice.want(201, "POST", "/v1/apps/shop/config", `{"values":{"A":"2"}}`)
	want(4, 7, 8) // the last three releases all have build 4
}

// TestCollectFailedDeploys: their images go at once, unless the commit is being built again.
func TestCollectFailedDeploys(t *testing.T) {
	p := newPlatform(t)
	alice, builder := p.user("alice"), p.builder()
	alice.app("shop")
	app, err := p.s.store.AppByID(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	p.engine.SetFetch(func(engine.Process, func(string)) (string, error) { return "", errors.New("it breaks") })
	e := &imageEngine{Engine: p.engine, images: map[string]time.Time{}}
	s := &server{store: p.s.store, engine: e}
	for n := range 3 {
		e.images[digestOf(n)] = time.Now()
		builder.postBuild(503, app, n)
	}
	e.images[digestOf(1)] = time.Now()
	if err := s.collect(t.Context(), app); err != nil {
		t.Fatal(err)
	}
	if _, again := e.images[digestOf(1)]; len(e.images) != 1 || !again {
		t.Errorf("left are %v, want the one that was built again", e.images)
	}
}

// TestCollectIsRetried: of apps whose images could not be removed, though nobody touches them.
func TestCollectIsRetried(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("fails")
	alice.app("works")
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	calls := map[string]int{}
	err := p.s.watchApps(ctx, "a test fails", time.Millisecond, func(app paas.App) error {
		calls[app.ID]++
		switch {
		case app.ID == "works":
			return nil
		case calls[app.ID] < 3:
			return errors.New("not yet")
		}
		stop()
		return nil
	})
	if err != nil || calls["fails"] != 3 || calls["works"] != 1 {
		t.Errorf("calls %v, %v, want three of the one that failed and one of the other", calls, err)
	}
}

// TestCollectForgetsLogs: with the images of old builds their logs go.
func TestCollectForgetsLogs(t *testing.T) {
	p := newPlatform(t)
	alice, builder := p.user("alice"), p.builder()
	alice.app("shop")
	app, err := p.s.store.AppByID(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	const builds = 52
	for n := 1; n <= builds; n++ {
		builder.want(200, "POST", "/v1/hooks/build", api.BuildHook{
			RepoHook: api.RepoHook{ReceiveUser: "alice", ReceiveRepo: "shop"}, SHA: fmt.Sprintf("%040d", n), Digest: digestOf(n), Log: "a log",
			Image: fmt.Sprintf("%s%s:git-%012d", paas.LocalImages, app.UUID, n), Procfile: map[string]string{"web": "serve"}, Strategy: "dockerfile",
		})
	}
	e := &imageEngine{Engine: p.engine, images: map[string]time.Time{digestOf(1): time.Now(), digestOf(52): time.Now()}}
	s := &server{store: p.s.store, engine: e}
	if err := s.collect(t.Context(), app); err != nil {
		t.Fatal(err)
	}
	list, err := s.store.Builds(t.Context(), app.UUID, store.All)
	if err != nil || len(list.Rows) != builds {
		t.Fatalf("%d builds, %v", len(list.Rows), err)
	}
	for i, b := range list.Rows { // the newest first
		log, err := s.store.BuildLog(t.Context(), b.UUID)
		if gone := i >= builds-2; err != nil || (log != "a log") != gone {
			t.Errorf("build %d: log %q, %v", builds-i, log, err)
		}
	}
}

// TestDiskBudgets: pushes are refused before they are built.
func TestDiskBudgets(t *testing.T) {
	p := newPlatform(t)
	alice, builder := p.user("alice"), p.builder()
	alice.app("shop")
	app, err := p.s.store.AppByID(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	e := &imageEngine{Engine: p.engine, usage: engine.Usage{
		Images: 3 << 30, Apps: map[string]engine.AppUsage{app.UUID: {Images: 1 << 30, Logs: 1 << 29}},
	}}
	want := func(limits DiskLimits, text string) {
		t.Helper()
		s := &server{cfg: Config{Root: p.dir, Disk: limits}, engine: e}
		err := s.checkDisk(t.Context(), app)
		if text == "" && err != nil || text != "" && (paas.CodeOf(err) != paas.Conflict || !strings.Contains(err.Error(), text)) {
			t.Errorf("%+v: %v, want %q", limits, err, text)
		}
	}
	want(DiskLimits{}, "")
	want(DiskLimits{App: 2 << 30, Platform: 4 << 30}, "")
	want(DiskLimits{App: 1 << 30}, "shop takes 1.5G of disk, and an app may take 1.0G.")
	want(DiskLimits{Platform: 2 << 30}, "The platform's apps take 3.5G of disk, and may take 2.0G.")
	want(DiskLimits{Reserve: 1 << 60}, "The platform's disk is full: ")
	p.s.cfg.Disk.Reserve = 1 << 60
	if text := alice.want(409, "POST", "/v1/apps/shop/builds", build("", "web")); !strings.Contains(text, "The platform's disk is full: ") {
		t.Errorf("a pull says %s", text)
	}
	alice.says(`{"count":0,"next":null,"previous":null,"results":[]}`, 200, "GET", "/v1/apps/shop/builds", nil)
	alice.says(`{"images":0,"logs":0,"written":0,"limit":0}`, 200, "GET", "/v1/apps/shop/disk", nil)
	var all api.DiskHookAnswer
	builder.json(&all, 200, "GET", "/v1/hooks/disk", nil)
	if all.Size == 0 || all.Free == 0 || all.Reserve == 0 || len(all.Apps) != 1 || all.Apps[0].App != "shop" {
		t.Errorf("%+v", all)
	}
}
