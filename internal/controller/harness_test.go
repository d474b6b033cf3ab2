package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/store"
)

const testKey = "0123456789abcdef"

// platform is a controller at work, with a real store and the fake engine.
type platform struct {
	t      *testing.T
	dir    string
	url    string
	s      *server
	engine *fake.Engine
	stop   func()
}

// newPlatform starts a controller on an empty database.
func newPlatform(t *testing.T) *platform {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "builder.key"), []byte(testKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &platform{t: t, dir: dir, engine: fake.New()}
	p.start()
	return p
}

// start starts a controller on the platform's database; the engine goes on.
func (p *platform) start() {
	p.t.Helper()
	st, err := store.Open(p.t.Context(), filepath.Join(p.dir, "db"))
	if err != nil {
		p.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	cfg := Config{
		Listener: l, Root: p.dir, Domain: "example.test", GitURL: "ssh://git@example.test:2222",
		Log: slog.New(slog.NewTextHandler(p.t.Output(), nil)), Metrics: prometheus.NewRegistry(),
		StartTimeout: 5 * time.Second, DrainLimit: time.Second, Engine: EngineFake, TestControl: true,
		AppAllow: drainHost,
	}
	p.s = newServer(cfg, testKey, st, p.engine)
	p.s.routes.settle = 0
	p.s.handler = documented(p.t, p.s.handler)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.s.run(ctx) }()
	stopped := false
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("the controller ended: %v", err)
		}
		if err := st.Close(); err != nil {
			p.t.Error(err)
		}
	}
	p.t.Cleanup(p.stop)
	p.url = "http://" + l.Addr().String()
	select {
	case <-p.s.rollouts.Ready():
	case <-time.After(patience):
		p.t.Fatal("the controller does not get ready")
	}
}

// client calls the API as somebody.
type client struct {
	p      *platform
	header http.Header
}

func (p *platform) anonymous() *client { return &client{p, http.Header{}} }
func (p *platform) builder() *client {
	return &client{p, http.Header{api.HeaderBuilderAuth: {testKey}}}
}

// user registers somebody and logs in.
func (p *platform) user(name string) *client {
	p.t.Helper()
	p.anonymous().want(201, "POST", "/v1/auth/register", map[string]any{"username": name, "password": "secret-" + name, "email": ""})
	return p.login(name)
}

func (p *platform) login(name string) *client {
	p.t.Helper()
	var answer struct{ Token string }
	p.anonymous().json(&answer, 200, "POST", "/v1/auth/login/", map[string]any{"username": name, "password": "secret-" + name})
	return &client{p, http.Header{"Authorization": {"token " + answer.Token}}}
}

// do sends a request; body may be nil, text, or what is sent as JSON.
func (c *client) do(method, path string, body any) (*http.Response, string) {
	c.p.t.Helper()
	var payload io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		payload = strings.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			c.p.t.Fatal(err)
		}
		payload = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(c.p.t.Context(), method, c.p.url+path, payload)
	if err != nil {
		c.p.t.Fatal(err)
	}
	req.Header = c.header.Clone()
	if req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.p.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.p.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp, string(text)
}

// want is do with the status that it must have.
func (c *client) want(status int, method, path string, body any) string {
	c.p.t.Helper()
	resp, text := c.do(method, path, body)
	if resp.StatusCode != status {
		c.p.t.Fatalf("%s %s = %d %s, want %d", method, path, resp.StatusCode, text, status)
	}
	return text
}

// json is want with the answer decoded.
func (c *client) json(into any, status int, method, path string, body any) {
	c.p.t.Helper()
	text := c.want(status, method, path, body)
	if err := json.Unmarshal([]byte(text), into); err != nil {
		c.p.t.Fatalf("%s %s: %v in %s", method, path, err, text)
	}
}

// says is want with the whole answer as text.
func (c *client) says(body string, status int, method, path string, request any) {
	c.p.t.Helper()
	if text := c.want(status, method, path, request); text != body {
		c.p.t.Fatalf("%s %s says %s, want %s", method, path, text, body)
	}
}

// app creates one and gives it a first build with the process types named.
func (c *client) app(id string, types ...string) {
	c.p.t.Helper()
	c.want(201, "POST", "/v1/apps", map[string]any{"id": id})
	if len(types) > 0 {
		c.want(201, "POST", "/v1/apps/"+id+"/builds", build("abc1234567", types...))
	}
}

func build(sha string, types ...string) map[string]any {
	procfile := map[string]string{}
	for _, t := range types {
		procfile[t] = "run-" + t
	}
	return map[string]any{"image": "example/app:1", "sha": sha, "procfile": procfile}
}

// containers lists an app's instances as "type.num release state".
func (c *client) containers(app string) []string {
	c.p.t.Helper()
	var l api.List[api.Container]
	c.json(&l, 200, "GET", "/v1/apps/"+app+"/containers", nil)
	var lines []string
	for _, i := range l.Results {
		lines = append(lines, strings.Join([]string{i.Type, ".", string(rune('0' + i.Num)), " ", i.Release, " ", i.State}, ""))
	}
	return lines
}

// patience is how long a test waits for what must come, on a machine that does other things too.
const patience = 30 * time.Second

// eventually waits for background work.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func regexpMatch(pattern, s string) bool { return regexp.MustCompile(pattern).MatchString(s) }

func instances(t *testing.T, e engine.Engine) int {
	t.Helper()
	all, err := e.Instances(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func appUUID(t *testing.T, p *platform, id string) string {
	t.Helper()
	app, err := p.s.store.AppByID(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return app.UUID
}

// row is one request with the answer that it must have.
type row struct {
	who          *client
	method, path string
	body         any
	status       int
	want         string // the whole answer; "*" is any
}

// rows makes the requests of a table in turn.
func (p *platform) rows(all []row) {
	p.t.Helper()
	for _, r := range all {
		resp, got := r.who.do(r.method, r.path, r.body)
		if resp.StatusCode != r.status || r.want != "*" && got != r.want {
			p.t.Errorf("%s %s %v\n= %d %s\nwant %d %s", r.method, r.path, r.body, resp.StatusCode, got, r.status, r.want)
		}
	}
}

// with is the client with one more header.
func (c *client) with(name string, values ...string) *client {
	more := &client{c.p, c.header.Clone()}
	more.header[name] = values
	return more
}

// Answers that many rows have.
const (
	notFound      = `{"detail":"Not found"}`
	forbidden     = `{"detail":"You do not have permission to perform this action."}`
	noCredentials = `{"detail":"Authentication credentials were not provided."}`
)

// gauge is the value of one of the controller's metrics.
func gauge(t *testing.T, p *platform, name string) float64 {
	t.Helper()
	families, err := p.s.cfg.Metrics.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
