package controller

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

func TestTwoConfigChangesAtOnce(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	p.s.configWait = time.Minute // all eight take their turns, however slow the machine
	var work sync.WaitGroup
	for i := range 8 {
		work.Go(func() { alice.want(201, "POST", "/v1/apps/shop/config", fmt.Sprintf(`{"values":{"K%d":"x"}}`, i)) })
	}
	work.Wait()
	var c api.Config
	alice.json(&c, 200, "GET", "/v1/apps/shop/config", nil)
	if len(c.Values) != 8 {
		t.Errorf("values = %v, want all 8", c.Values)
	}
	// One that lasts keeps the next one out, after a while.
	p.s.configWait = 50 * time.Millisecond
	release, err := p.s.changes.acquire(t.Context(), appUUID(t, p, "shop"), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if body := alice.want(409, "POST", "/v1/apps/shop/config", `{}`); !strings.HasPrefix(body, `{"error":"Config changes already in progress.\n`) {
		t.Errorf("answer = %s", body)
	}
}

// TestHangUp: a client that goes away does not stop its rollout.
func TestHangUp(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	release := make(chan struct{})
	impatient, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	p.engine.SetProbe(func(engine.Instance, engine.Check) error {
		hangUp()
		select {
		case <-release:
		case <-t.Context().Done():
		}
		return nil
	})
	req, err := http.NewRequestWithContext(impatient, "POST", p.url+"/v1/apps/shop/builds", strings.NewReader(`{"image":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = alice.header.Clone()
	if resp, err := http.DefaultClient.Do(req); err == nil {
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		t.Fatalf("answered early: %d %s", resp.StatusCode, text)
	}
	close(release)
	eventually(t, "the release is there", func() bool {
		resp, _ := alice.do("GET", "/v1/apps/shop/releases/v2", nil)
		return resp.StatusCode == 200
	})
}

func TestRestartOfTheController(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	alice.app("gone", "web")
	alice.want(201, "POST", "/v1/apps/shop/config", `{"values":{"CANARY":"correct-horse-battery"}}`)
	before := alice.containers("shop")
	doomed, err := p.s.store.AppByID(t.Context(), "gone")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.s.store.MarkDeleting(t.Context(), "alice", doomed); err != nil {
		t.Fatal(err)
	}
	generation := p.s.routes.generation
	p.stop()
	for _, name := range []string{"deis.db", "deis.db-wal"} {
		text, err := os.ReadFile(filepath.Join(p.dir, "db", name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, secret := range []string{"correct-horse-battery", "secret-alice", strings.TrimPrefix(alice.header.Get("Authorization"), "token ")} {
			if strings.Contains(string(text), secret) {
				t.Errorf("%s holds a secret in clear", name)
			}
		}
	}
	p.start()
	if p.s.routes.generation <= generation {
		t.Errorf("generation %d after %d", p.s.routes.generation, generation)
	}
	if after := alice.containers("shop"); !slices.Equal(before, after) {
		t.Errorf("containers = %q, before %q", after, before)
	}
	var c api.Config
	alice.json(&c, 200, "GET", "/v1/apps/shop/config", nil)
	if c.Values["CANARY"] != "correct-horse-battery" {
		t.Errorf("values = %v", c.Values)
	}
	eventually(t, "the deletion is finished", func() bool {
		_, err := p.s.store.AppByUUID(t.Context(), doomed.UUID)
		return paas.CodeOf(err) == paas.NotFound && instances(t, p.engine) == 1
	})
}

// TestOneFirstUser: of those who register at once on an empty platform, one
// becomes superuser.
func TestOneFirstUser(t *testing.T) {
	p := newPlatform(t)
	var supers atomic.Int32
	var work sync.WaitGroup
	for i := range 6 {
		work.Go(func() {
			var u api.User
			p.anonymous().json(&u, 201, "POST", "/v1/auth/register", fmt.Sprintf(`{"username":"u%d","password":"x"}`, i))
			if u.IsSuperuser {
				supers.Add(1)
			}
		})
	}
	work.Wait()
	if n := supers.Load(); n != 1 {
		t.Errorf("%d superusers, want 1", n)
	}
}

// TestOneName: of those who want one name at once, one gets it and the others
// are told so; nothing else happens.
func TestOneName(t *testing.T) {
	p := newPlatform(t)
	root := p.user("root")
	public := sshKey(t)
	for path, body := range map[string]any{
		"/v1/apps":          `{"id":"shop"}`,
		"/v1/auth/register": `{"username":"twin","password":"x"}`,
		"/v1/keys":          map[string]any{"id": "k", "public": public},
	} {
		var made atomic.Int32
		var work sync.WaitGroup
		for range 8 {
			work.Go(func() {
				resp, text := root.do("POST", path, body)
				switch {
				case resp.StatusCode == 201:
					made.Add(1)
				case resp.StatusCode != 400 || !strings.Contains(text, paas.MsgUnique):
					t.Errorf("POST %s = %d %s", path, resp.StatusCode, text)
				}
			})
		}
		work.Wait()
		if n := made.Load(); n != 1 {
			t.Errorf("POST %s: %d made, want 1", path, n)
		}
	}
}

// TestDeleteDuringARollout: the deletion wins, the rollout ends, and nothing of
// the app is left.
func TestDeleteDuringARollout(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	probed, release := make(chan struct{}, 100), make(chan struct{})
	p.engine.SetProbe(func(engine.Instance, engine.Check) error {
		probed <- struct{}{}
		select {
		case <-release:
		case <-t.Context().Done():
		}
		return nil
	})
	answers := make(chan int, 1)
	go func() {
		resp, _ := alice.do("POST", "/v1/apps/shop/builds", build("def", "web"))
		answers <- resp.StatusCode
	}()
	<-probed
	go func() { // the new instances get healthy once the deletion has begun
		defer close(release)
		for t.Context().Err() == nil {
			if _, err := p.s.store.AppByID(t.Context(), "shop"); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	alice.want(204, "DELETE", "/v1/apps/shop", nil)
	if status := <-answers; status != 404 && status != 409 && status != 503 {
		t.Errorf("the rollout is answered %d", status)
	}
	eventually(t, "nothing is left", func() bool { return instances(t, p.engine) == 0 })
	p.engine.SetProbe(nil)
	alice.app("shop", "web") // the name is free
	if got := alice.containers("shop"); !slices.Equal(got, []string{"web.1 v2 up"}) {
		t.Errorf("containers of the new app = %q", got)
	}
}

// TestScaleAndConfigAtOnce: changes of different kinds take turns too.
func TestScaleAndConfigAtOnce(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	p.s.configWait = time.Minute
	// Who waits five seconds for others is told so, and asks again.
	ask := func(status int, path string, body any) {
		for {
			resp, text := alice.do("POST", "/v1/apps/shop/"+path, body)
			if resp.StatusCode != 409 {
				if resp.StatusCode != status {
					t.Errorf("%s: %d %s", path, resp.StatusCode, text)
				}
				return
			}
		}
	}
	var work sync.WaitGroup
	for i := range 4 {
		work.Go(func() { ask(201, "config", fmt.Sprintf(`{"values":{"K%d":"x"}}`, i)) })
		work.Go(func() { ask(204, "scale", `{"web":3}`) })
		work.Go(func() { ask(200, "containers/restart", nil) })
	}
	work.Wait()
	want := []string{"web.1 v6 up", "web.2 v6 up", "web.3 v6 up"}
	eventually(t, "all run the last release", func() bool {
		got := alice.containers("shop")
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}
