package controller

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/api"
)

// ctl steers the platform as outside tests do.
func (p *platform) ctl(key string, value any) {
	p.t.Helper()
	p.anonymous().says("", 200, "POST", controlPath, map[string]any{key: value})
}

// states counts an app's containers by state, of one process type or with "" of all.
func (c *client) states(app, processType string) map[string]int {
	c.p.t.Helper()
	var l api.List[api.Container]
	c.json(&l, 200, "GET", "/v1/apps/"+app+"/containers/"+processType+"?page_size=1000", nil)
	count := map[string]int{}
	for _, i := range l.Results {
		count[i.State]++
	}
	return count
}

func (c *client) wantStates(app, processType string, states ...string) map[string]int {
	c.p.t.Helper()
	count := c.states(app, processType)
	var got []string
	for state := range count {
		got = append(got, state)
	}
	slices.Sort(got)
	if !slices.Equal(got, states) {
		c.p.t.Fatalf("%s containers are in states %v, want %v", processType, count, states)
	}
	return count
}

func (c *client) count(path string) int {
	c.p.t.Helper()
	var l api.List[any]
	c.json(&l, 200, "GET", path, nil)
	return l.Count
}

// chaotic is an app with web and worker, and the chaos scheduler.
func chaotic(t *testing.T) (*platform, *client) {
	p := newPlatform(t)
	alice := p.user("alice")
	p.ctl("chaos", map[string]int{"create": 0, "start": 0, "stop": 0, "destroy": 0})
	p.ctl("scheduler", "chaos")
	alice.app("shop", "web", "worker")
	return p, alice
}

const (
	saysCreate  = `{"detail":"aborting, failed to create some containers"}`
	saysDestroy = `{"detail":"aborting, failed to destroy some containers"}`
	saysHealth  = `{"detail":"aborting, app containers failed to respond to health check"}`
)

func TestCreateChaos(t *testing.T) {
	p, alice := chaotic(t)
	alice.want(204, "POST", "/v1/apps/shop/scale", `{"web":0}`)
	p.ctl("chaos", map[string]float64{"create": 0.5})
	resp, body := alice.do("POST", "/v1/apps/shop/scale", `{"web":20}`)
	if resp.StatusCode != 503 || body != saysCreate || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("scale = %d %s", resp.StatusCode, body)
	}
	alice.wantStates("shop", "")
	// With better luck it works.
	p.ctl("scheduler", "mock")
	alice.want(204, "POST", "/v1/apps/shop/scale", `{"web":20}`)
	if up := alice.wantStates("shop", "", "up")["up"]; up != 20 {
		t.Errorf("%d are up", up)
	}
}

func TestStartChaos(t *testing.T) {
	p, alice := chaotic(t)
	alice.want(204, "POST", "/v1/apps/shop/scale", `{"web":0}`)
	p.ctl("chaos", map[string]float64{"start": 0.5})
	alice.want(204, "POST", "/v1/apps/shop/scale", `{"web":20,"worker":20}`)
	for _, processType := range []string{"web", "worker"} {
		count := alice.wantStates("shop", processType, "crashed", "up")
		if count["crashed"]+count["up"] != 20 {
			t.Errorf("%s: %v", processType, count)
		}
	}
	if log := alice.want(200, "GET", "/v1/apps/shop/logs", nil); !strings.Contains(log, "shop[deis-controller]: warning, some containers failed to start") {
		t.Errorf("no warning in the log:\n%s", log)
	}
}

func TestRestartChaos(t *testing.T) {
	p, alice := chaotic(t)
	alice.want(204, "POST", "/v1/apps/shop/scale", `{"web":20,"worker":20}`)
	p.ctl("chaos", map[string]float64{"start": 0.5, "stop": 0.5})
	var restarted []api.Container
	alice.json(&restarted, 200, "POST", "/v1/apps/shop/containers/web/restart", nil)
	if len(restarted) != 20 {
		t.Errorf("%d restarted", len(restarted))
	}
	alice.wantStates("shop", "web", "crashed", "up")
	if up := alice.wantStates("shop", "worker", "up")["up"]; up != 20 {
		t.Errorf("%d workers are up", up)
	}
	p.ctl("chaos", map[string]float64{"start": 0, "stop": 0})
	alice.want(200, "POST", "/v1/apps/shop/containers/web/restart", nil)
	alice.wantStates("shop", "web", "up")
	p.ctl("chaos", map[string]float64{"start": 0.5, "stop": 0.5})
	alice.want(200, "POST", "/v1/apps/shop/containers/restart", nil)
	count := alice.wantStates("shop", "", "crashed", "up")
	if count["crashed"]+count["up"] != 40 {
		t.Errorf("%v", count)
	}
	// What cannot be stopped starts all the same.
	p.ctl("chaos", map[string]float64{"start": 0, "stop": 1})
	alice.want(200, "POST", "/v1/apps/shop/containers/restart", nil)
	if up := alice.wantStates("shop", "", "up")["up"]; up != 40 {
		t.Errorf("%d are up", up)
	}
}

func TestDestroyChaos(t *testing.T) {
	p, alice := chaotic(t)
	alice.want(204, "POST", "/v1/apps/shop/scale", `{"web":20}`)
	p.ctl("chaos", map[string]float64{"destroy": 0.5})
	left, tries := 20, 0
	for ; ; tries++ {
		resp, body := alice.do("POST", "/v1/apps/shop/scale", `{"web":0}`)
		if resp.StatusCode == 204 {
			break
		}
		if resp.StatusCode != 503 || body != saysDestroy {
			t.Fatalf("scale = %d %s", resp.StatusCode, body)
		}
		now := alice.wantStates("shop", "", "error")["error"]
		if now > left || tries == 100 {
			t.Fatalf("%d containers after %d, at try %d", now, left, tries)
		}
		left = now
	}
	if tries == 0 {
		t.Error("no try failed")
	}
	alice.wantStates("shop", "")
}

// A deploy that fails leaves its record, no release, and what ran.
func TestDeployChaos(t *testing.T) {
	changes := []struct{ name, path, records string }{
		{"build", "/v1/apps/shop/builds", "/v1/apps/shop/builds"},
		{"config", "/v1/apps/shop/config", ""},
		{"rollback", "/v1/apps/shop/releases/rollback", ""},
	}
	for _, change := range changes {
		t.Run(change.name, func(t *testing.T) {
			p, alice := chaotic(t)
			alice.want(201, "POST", "/v1/apps/shop/config", `{"values":{"A":"1"}}`)
			alice.want(204, "POST", "/v1/apps/shop/scale", `{"web":20}`)
			p.ctl("chaos", map[string]float64{"create": 0.5, "start": 0.5})
			var body any = build("fff1234567", "web", "worker")
			switch change.name {
			case "config":
				body = `{"values":{"NEW_URL":"http://localhost/"}}`
			case "rollback":
				body = `{"version":2}`
			}
			alice.says(saysCreate, 503, "POST", change.path, body)
			if n := alice.count("/v1/apps/shop/releases"); n != 3 {
				t.Errorf("%d releases, want 3", n)
			}
			if change.records != "" && alice.count(change.records) != 2 {
				t.Error("the record is gone")
			}
			if up := alice.wantStates("shop", "", "up")["up"]; up != 20 {
				t.Errorf("%d old ones are up", up)
			}
		})
	}
}

func TestRunChaos(t *testing.T) {
	p, alice := chaotic(t)
	p.ctl("chaos", map[string]float64{"create": 1})
	alice.says(`{"detail":"exit code 1"}`, 503, "POST", "/v1/apps/shop/run", `{"command":"ls"}`)
	p.ctl("chaos", map[string]float64{"create": 0})
	if text := alice.want(200, "POST", "/v1/apps/shop/run", `{"command":"ls"}`); !strings.HasPrefix(text, "[0,") {
		t.Errorf("run = %s", text)
	}
}

// 40 containers and 100 scale calls take seconds.
func TestManyScales(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web", "worker")
	began := time.Now()
	alice.want(204, "POST", "/v1/apps/shop/scale", `{"web":20,"worker":20}`)
	for n := range 100 {
		alice.want(204, "POST", "/v1/apps/shop/scale", fmt.Sprintf(`{"web":%d,"worker":%d}`, n%3, n%5))
	}
	if took := time.Since(began); took > 5*time.Minute {
		t.Errorf("it took %s", took)
	}
}

// No wait of a health check passes for real, and each counts.
func TestHealthControl(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	set := `{"values":{"HEALTHCHECK_URL":"/","HEALTHCHECK_INITIAL_DELAY":"600"}}`
	began := time.Now()
	for _, answer := range []any{map[string]int{"status": 404}, map[string]bool{"error": true}} {
		p.ctl("healthcheck", answer)
		alice.says(saysHealth, 503, "POST", "/v1/apps/shop/config", set)
	}
	if n := alice.count("/v1/apps/shop/releases"); n != 2 {
		t.Errorf("%d releases, want 2", n)
	}
	if log := alice.want(200, "GET", "/v1/apps/shop/logs", nil); !strings.Contains(log, "app failed health check (got '404', expected: '200')") {
		t.Errorf("the reason is not in the log:\n%s", log)
	}
	p.ctl("healthcheck", map[string]int{"status": 200})
	alice.want(201, "POST", "/v1/apps/shop/config", set)
	p.ctl("healthcheck", nil)
	alice.want(201, "POST", "/v1/apps/shop/config", set)
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it took %s", took)
	}
}

func TestLoggerControl(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	tests := []struct {
		answer any
		status int
		body   string
	}{
		{map[string]any{"status": 204}, 204, ""},
		{map[string]any{"status": 404}, 204, ""},
		{map[string]any{"status": 400}, 500, "Error accessing logs for shop"},
		{map[string]any{"status": 200, "content": "one\ntwo\n"}, 200, "one\ntwo\n"},
		{map[string]any{"content": "\n\"quoted\""}, 200, "\n\"quoted\""},
		{map[string]any{"error": true}, 500, "Error accessing logs for shop"},
	}
	for _, test := range tests {
		p.ctl("logger", test.answer)
		resp, body := alice.do("GET", "/v1/apps/shop/logs", nil)
		if resp.StatusCode != test.status || body != test.body {
			t.Errorf("%v: %d %q", test.answer, resp.StatusCode, body)
		}
		if kind := resp.Header.Get("Content-Type"); test.status != 204 && kind != "text/plain" {
			t.Errorf("%v: content type %q", test.answer, kind)
		}
	}
	p.ctl("logger", nil)
	if log := alice.want(200, "GET", "/v1/apps/shop/logs", nil); !strings.Contains(log, "alice created initial release") {
		t.Errorf("the real log: %q", log)
	}
}

func TestRegistrationModes(t *testing.T) {
	p := newPlatform(t)
	alice, bob := p.user("alice"), p.user("bob")
	somebody := map[string]string{"username": "carol", "password": "x"}
	forbidden := func(c *client, detail string) {
		t.Helper()
		c.says(`{"detail":"`+detail+`"}`, 403, "POST", "/v1/auth/register", somebody)
	}
	p.ctl("registration_mode", RegistrationDisabled)
	for _, c := range []*client{alice, bob, p.anonymous()} {
		forbidden(c, "Registration is disabled")
	}
	p.ctl("registration_mode", RegistrationAdminOnly)
	forbidden(p.anonymous(), "Authentication credentials were not provided.")
	forbidden(bob, "Authentication credentials were not provided.")
	forbidden(&client{p, http.Header{"Authorization": {"token nonsense"}}}, "Authentication credentials were not provided.")
	alice.want(201, "POST", "/v1/auth/register", somebody)
	for i, mode := range []any{RegistrationEnabled, nil} {
		p.ctl("registration_mode", mode)
		somebody["username"] = fmt.Sprint("dave", i)
		(&client{p, http.Header{"Authorization": {"token nonsense"}}}).want(201, "POST", "/v1/auth/register", somebody)
	}
	p.anonymous().want(400, "POST", controlPath, `{"registration_mode":"closed"}`)
}

func TestReservedAndRun(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.says(`{"id":["deis is a reserved name."]}`, 400, "POST", "/v1/apps", `{"id":"deis"}`)
	p.ctl("reserved_names", []string{"api", "www"})
	alice.says(`{"id":["www is a reserved name."]}`, 400, "POST", "/v1/apps", `{"id":"www"}`)

	alice.app("shop")
	p.ctl("run_enabled", false)
	alice.says(`{"detail":"Support for admin commands is not configured"}`, 400, "POST", "/v1/apps/shop/run", `{"command":"ls"}`)
	p.ctl("run_enabled", true)
	alice.says(`{"detail":"No build associated with this release to run this command"}`, 400, "POST", "/v1/apps/shop/run", `{"command":"ls"}`)
}

func TestConfigLockControl(t *testing.T) {
	p := newPlatform(t)
	p.s.configWait = 20 * time.Millisecond
	alice := p.user("alice")
	alice.app("shop")
	p.ctl("hold_config_lock", "shop")
	p.ctl("hold_config_lock", "shop")
	if text := alice.want(409, "POST", "/v1/apps/shop/config", `{}`); !strings.HasPrefix(text, `{"error":"Config changes already in progress.\n`) {
		t.Errorf("config = %s", text)
	}
	p.ctl("release_config_lock", "shop")
	p.ctl("release_config_lock", "shop")
	alice.want(201, "POST", "/v1/apps/shop/config", `{}`)
	p.anonymous().want(404, "POST", controlPath, `{"hold_config_lock":"nothing"}`)
}

func TestReset(t *testing.T) {
	p := newPlatform(t)
	for round := range 3 {
		alice := p.user("alice")
		alice.app("shop", "web", "worker")
		alice.want(204, "POST", "/v1/apps/shop/scale", `{"web":3,"worker":1}`)
		alice.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"shop.org"}`)
		alice.want(201, "POST", "/v1/keys", map[string]string{"id": "laptop", "public": sshKey(t)})
		p.ctl("hold_config_lock", "shop")
		p.ctl("registration_mode", RegistrationDisabled)
		p.ctl("reserved_names", []string{"shop"})
		p.ctl("run_enabled", false)
		p.ctl("logger", map[string]bool{"error": true})
		p.ctl("healthcheck", map[string]bool{"error": true})
		p.ctl("chaos", map[string]float64{"create": 1, "destroy": 1})

		began := time.Now()
		p.ctl("reset", true)
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("a reset took %s", took)
		}
		alice.want(401, "GET", "/v1/apps", nil)
		if list, err := p.engine.Instances(t.Context(), ""); err != nil || len(list) > 0 {
			t.Fatalf("instances after a reset: %v, %v", list, err)
		}
		if routes := p.s.routes.table().Routes; len(routes) != 1 || routes[0].Host != "deis.example.test" {
			t.Fatalf("routes after a reset: %v", routes)
		}
		root := p.user("root") // is the first again
		if text := root.want(200, "GET", "/v1/users", nil); round > 0 && strings.Contains(text, "alice") {
			t.Errorf("users after a reset: %s", text)
		}
		if n := root.count("/v1/apps"); n != 0 {
			t.Errorf("%d apps after a reset", n)
		}
		p.ctl("reset", true)
	}
}

func TestControlRefuses(t *testing.T) {
	p := newPlatform(t)
	tests := []struct {
		method, body string
		status       int
	}{
		{"GET", "", 405},
		{"POST", `{"frobnicate":1}`, 404},
		{"POST", `{}`, 400},
		{"POST", `{"run_enabled":true,"reset":true}`, 400},
		{"POST", `[]`, 400},
		{"POST", `nonsense`, 400},
		{"POST", `{"reset":false}`, 400},
		{"POST", `{"reset":"yes"}`, 400},
		{"POST", `{"scheduler":"fleet"}`, 400},
		{"POST", `{"chaos":{"create":2}}`, 400},
		{"POST", `{"chaos":{"explode":1}}`, 400},
		{"POST", `{"release_config_lock":"nothing"}`, 404},
	}
	for _, test := range tests {
		if resp, text := p.anonymous().do(test.method, controlPath, test.body); resp.StatusCode != test.status {
			t.Errorf("%s %s = %d %s, want %d", test.method, test.body, resp.StatusCode, text, test.status)
		}
	}
}

// Without the setting there is no such path, and with real instances no such setting.
func TestControlIsOff(t *testing.T) {
	p := newPlatform(t)
	p.s.cfg.TestControl = false
	off := newServer(Config{Listener: p.s.cfg.Listener, Domain: "example.test", Log: p.s.cfg.Log, Engine: EngineFake}, testKey, p.s.store, p.engine)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: off.handler, ReadHeaderTimeout: time.Second}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	p.url = "http://" + l.Addr().String()
	p.anonymous().want(404, "POST", controlPath, `{"reset":true}`)

	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "builder.key"), []byte(testKey), 0o600); err != nil {
		t.Fatal(err)
	}
	err = Run(t.Context(), Config{Root: dir, Engine: EngineContainerd, TestControl: true, Log: p.s.cfg.Log})
	if err == nil || !strings.Contains(err.Error(), "DEIS_ENGINE=fake") {
		t.Errorf("Run with containerd: %v", err)
	}
}
