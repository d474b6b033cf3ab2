package router

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/hosttest"
	"github.com/deis/deis/routerconf"
)

// controller is the other end of the two hooks. Its table outlives its server,
// as a store would.
type controller struct {
	t       testing.TB
	addr    string
	mu      sync.Mutex
	server  *httptest.Server
	table   routerconf.Table
	history []routerconf.Change // the newest ones
	changed chan struct{}
	asked   []uint64
	reports []routerconf.Status
	refuse  bool // answer 503
	gap     bool // lose all changes but the newest
}

func newController(t testing.TB) *controller {
	c := &controller{t: t, addr: hosttest.Addr(t), table: routerconf.Table{Generation: 1, Domain: "test"}, changed: make(chan struct{})}
	c.up()
	t.Cleanup(c.down)
	return c
}

// up serves, on the same address as before.
func (c *controller) up() {
	l, err := net.Listen("tcp", c.addr)
	if err != nil {
		c.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/hooks/routes", c.stream)
	mux.HandleFunc("POST /v1/hooks/routers", c.report)
	server := httptest.NewUnstartedServer(mux)
	server.Listener.Close()
	server.Listener = l
	server.Start()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server = server
}

// down ends the controller as SIGKILL would.
func (c *controller) down() {
	c.mu.Lock()
	server := c.server
	c.server = nil
	c.mu.Unlock()
	if server != nil {
		server.CloseClientConnections()
		server.Close()
	}
}

func (c *controller) stream(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get(api.HeaderBuilderAuth) != "secret" || r.URL.Query().Get("router") == "" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	generation, err := strconv.ParseUint(r.URL.Query().Get("generation"), 10, 64)
	if err != nil {
		c.t.Errorf("generation: %v", err)
	}
	c.mu.Lock()
	c.asked = append(c.asked, generation)
	refuse := c.refuse
	c.mu.Unlock()
	if refuse {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	lines := json.NewEncoder(w)
	for {
		c.mu.Lock()
		changes, changed := c.after(generation), c.changed
		c.mu.Unlock()
		for _, change := range changes {
			if lines.Encode(change) != nil {
				return
			}
			generation = change.Generation
		}
		fmt.Fprintln(w)
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// after lists what came after a generation, or the whole table.
func (c *controller) after(generation uint64) []routerconf.Change {
	if generation == c.table.Generation {
		return nil
	}
	if c.gap && generation != 0 {
		return c.history[len(c.history)-1:]
	}
	for i, change := range c.history {
		if change.Generation == generation+1 {
			return append([]routerconf.Change(nil), c.history[i:]...)
		}
	}
	whole := c.table
	whole.Routes = append([]routerconf.Route(nil), whole.Routes...)
	return []routerconf.Change{{Generation: whole.Generation, Snapshot: &whole}}
}

func (c *controller) report(w http.ResponseWriter, r *http.Request) {
	var s routerconf.Status
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil || s.Router == "" {
		c.t.Errorf("status: %+v %v", s, err)
	}
	c.mu.Lock()
	c.reports = append(c.reports, s)
	c.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

// set changes routes and returns the generation.
func (c *controller) set(routes ...routerconf.Route) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.table.Generation++
	for _, r := range routes {
		found := false
		for i := range c.table.Routes {
			if c.table.Routes[i].Host == r.Host {
				c.table.Routes[i], found = r, true
			}
		}
		if !found {
			c.table.Routes = append(c.table.Routes, r)
		}
	}
	c.history = append(c.history, routerconf.Change{Generation: c.table.Generation, SetRoutes: routes})
	close(c.changed)
	c.changed = make(chan struct{})
	return c.table.Generation
}

// kill ends the controller and forgets what it knew of routers.
func (c *controller) kill() {
	c.down()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reports, c.asked = nil, nil
}

func (c *controller) last() routerconf.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.reports) == 0 {
		return routerconf.Status{}
	}
	return c.reports[len(c.reports)-1]
}

func (c *controller) lastAsked() (generation uint64, times int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.asked) == 0 {
		return 0, 0
	}
	return c.asked[len(c.asked)-1], len(c.asked)
}

func (c *controller) url() string { return "http://" + c.addr }

func TestFollowsTheController(t *testing.T) {
	c := newController(t)
	c.refuse = true
	r := start(t, Config{Root: rootWithKey(t), ControllerURL: c.url()})
	eventually(t, "the router asks again", func() bool { _, n := c.lastAsked(); return n > 2 })
	c.mu.Lock()
	c.refuse = false
	c.mu.Unlock()
	eventually(t, "healthy", func() bool { return r.health() == nil })

	a, b := named(t, "first"), named(t, "second")
	g := c.set(routeTo("a.test", "a", addrOf(a)))
	eventually(t, "applied and drained", func() bool { s := c.last(); return s.Applied == g && s.Drained == g })
	if _, body := fetch(t, r.client(t), "http://a.test/"); body != "first" {
		t.Error(body)
	}

	// The controller is killed. Routes go on; what changed meanwhile comes after
	// its start, as changes where it has them.
	c.kill()
	if _, body := fetch(t, r.client(t), "http://a.test/"); body != "first" {
		t.Error(body)
	}
	eventually(t, "not connected", func() bool { return metric(t, r, "deis_router_sync_connected") == 0 })
	g = c.set(routeTo("a.test", "a", addrOf(b)))
	c.up()
	eventually(t, "the stream resumes", func() bool { return c.last().Drained == g })
	if asked, _ := c.lastAsked(); asked != g-1 {
		t.Errorf("asked for what came after %d, want %d", asked, g-1)
	}
	if _, body := fetch(t, r.client(t), "http://a.test/"); body != "second" {
		t.Error(body)
	}

	// Without history: a snapshot. A controller that starts again is told the
	// status although nothing changed.
	c.kill()
	c.mu.Lock()
	c.history = nil
	c.table.Generation += 10
	c.table.Routes = []routerconf.Route{routeTo("b.test", "b", addrOf(a))}
	g = c.table.Generation
	c.mu.Unlock()
	c.up()
	eventually(t, "the snapshot is applied", func() bool { return c.last().Drained == g })
	if resp, _ := fetch(t, r.client(t), "http://a.test/"); resp.StatusCode != 404 {
		t.Error(resp.Status)
	}
	if _, body := fetch(t, r.client(t), "http://b.test/"); body != "first" {
		t.Error(body)
	}
	c.kill()
	c.up()
	eventually(t, "the status is told again", func() bool { return c.last().Applied == g })
}

func TestGapAsksForASnapshot(t *testing.T) {
	c := newController(t)
	c.set(routeTo("a.test", "a", "127.0.0.1:1"))
	r := start(t, Config{Root: rootWithKey(t), ControllerURL: c.url()})
	eventually(t, "applied", func() bool { return r.table.status().Applied == 2 })
	c.mu.Lock()
	c.gap, c.table.Generation = true, 9 // generations 3 to 9 never come
	c.mu.Unlock()
	g := c.set(routeTo("b.test", "b", "127.0.0.1:1"))
	eventually(t, "the snapshot is applied", func() bool { return r.table.status().Applied == g })
	if asked, _ := c.lastAsked(); asked != 0 {
		t.Errorf("asked for what came after %d, want everything", asked)
	}
	if r.table.routes.get("a.test") == nil || r.table.routes.get("b.test") == nil {
		t.Error("routes are missing")
	}
}

func TestStatusSaysWhenRequestsAreDrained(t *testing.T) {
	began, release := make(chan struct{}, 1), make(chan struct{})
	b := backend(t, func(w http.ResponseWriter, _ *http.Request) { began <- struct{}{}; <-release; fmt.Fprint(w, "old") })
	c := newController(t)
	g := c.set(routeTo("a.test", "a", addrOf(b)))
	r := start(t, Config{Root: rootWithKey(t), ControllerURL: c.url()})
	eventually(t, "applied", func() bool { return c.last().Applied == g })
	answer := make(chan string)
	go func() { _, body := fetch(t, r.client(t), "http://a.test/"); answer <- body }()
	<-began
	g = c.set(routeTo("a.test", "a", addrOf(named(t, "new"))))
	eventually(t, "applied", func() bool { return c.last().Applied == g })
	if _, body := fetch(t, r.client(t), "http://a.test/"); body != "new" {
		t.Error(body)
	}
	if s := c.last(); s.Drained != g-1 {
		t.Errorf("%+v with a request under way", s)
	}
	close(release)
	if body := <-answer; body != "old" {
		t.Error(body)
	}
	eventually(t, "drained", func() bool { return c.last().Drained == g })
}

func TestServesTheSavedTable(t *testing.T) {
	root := rootWithKey(t)
	c := newController(t)
	b := named(t, "kept")
	g := c.set(routeTo("a.test", "a", addrOf(b)))
	cfg := Config{Root: root, ControllerURL: c.url()}
	first := start(t, cfg)
	path := filepath.Join(root, "router", "table.json")
	eventually(t, "saved", func() bool {
		text, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(text), "a.test")
	})
	// The last change before the end is saved, too.
	g = c.set(routeTo("b.test", "b", addrOf(b)))
	eventually(t, "applied", func() bool { return c.last().Applied == g })
	first.stop()
	c.kill()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}

	second := start(t, cfg)
	if second.health() != nil {
		t.Error("not healthy with a saved table")
	}
	for _, host := range []string{"a", "b"} {
		if _, body := fetch(t, second.client(t), "http://"+host+".test/"); body != "kept" {
			t.Error(body)
		}
	}
	c.up()
	eventually(t, "follows", func() bool { return c.last().Applied == g })
	if asked, _ := c.lastAsked(); asked != g {
		t.Errorf("asked for what came after %d, want %d", asked, g)
	}
	second.stop()

	// After a boot somebody else may have the address.
	var saved map[string]any
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &saved); err != nil {
		t.Fatal(err)
	}
	saved["boot"] = "another"
	writeJSON(t, path, saved)
	c.kill()
	third := start(t, cfg)
	if resp, _ := fetch(t, third.client(t), "http://a.test/"); resp.StatusCode != 503 {
		t.Errorf("after a boot: %s", resp.Status)
	}
	c.up()
	eventually(t, "the controller's table", func() bool { return c.last().Applied == g })
	if _, body := fetch(t, third.client(t), "http://a.test/"); body != "kept" {
		t.Error(body)
	}
	third.stop()
	c.kill()
	c.up()

	// A file that makes no sense does not keep the router from starting.
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, cfg)
	eventually(t, "the controller's table", func() bool { return c.last().Applied == g })
}

// A thousand changes are some files, not a thousand.
func TestSavesAreGathered(t *testing.T) {
	tb := newTable(newUpstream, discard())
	dir := t.TempDir()
	saves := 0
	synctest.Test(t, func(t *testing.T) {
		s := newSaver(dir, tb, discard())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { s.run(ctx); close(ended) }()
		synctest.Wait()
		var last os.FileInfo
		for g := range uint64(1000) {
			mustApply(t, tb, routerconf.Change{Generation: g + 1, SetRoutes: []routerconf.Route{routeTo("a.test", "a", fmt.Sprintf("h:%d", g+1))}})
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if info, err := os.Stat(s.path); err == nil && (last == nil || !os.SameFile(info, last)) {
				saves, last = saves+1, info
			}
		}
		time.Sleep(2 * saveDelay)
		text, err := os.ReadFile(s.path)
		if err != nil || !strings.Contains(string(text), "h:1000") {
			t.Errorf("the last change is not saved: %v", err)
		}
		cancel()
		<-ended
	})
	if saves < 5 || saves > 15 {
		t.Errorf("%d saves in a second of changes", saves)
	}
}

func TestStaleStreamIsLeft(t *testing.T) {
	tb := emptyTable()
	synctest.Test(t, func(t *testing.T) {
		f := newFollower("http://controller", "secret", "id", tb, discard())
		f.client.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			near, far := net.Pipe()
			go func() { // two heartbeats, then silence
				for range 2 {
					time.Sleep(api.RoutesHeartbeatSeconds * time.Second)
					if _, err := far.Write([]byte("\n")); err != nil {
						return
					}
				}
			}()
			context.AfterFunc(r.Context(), func() { near.Close() })
			return &http.Response{StatusCode: 200, Body: near, Header: http.Header{}, Request: r}, nil
		})}
		began := time.Now()
		heard, err := f.follow(t.Context())
		if took := time.Since(began); !heard || err == nil || took != 5*api.RoutesHeartbeatSeconds*time.Second {
			t.Errorf("%v %v after %v", heard, err, took)
		}
	})
}

func TestBackoff(t *testing.T) {
	var b backoff
	if d := b.next(); d > backoffFirst {
		t.Errorf("first pause %v", d)
	}
	for range 100 {
		if d := b.next(); d < backoffFirst/2 || d > backoffMost {
			t.Errorf("pause %v", d)
		}
	}
	if d := b.next(); d < backoffMost/2 {
		t.Errorf("late pause %v", d)
	}
	b.reset()
	if d := b.next(); d > backoffFirst {
		t.Errorf("pause after success %v", d)
	}
}

func TestTableFile(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		"{": "unexpected end", `{"routes":[{"host":"A"},{"host":""}]}`: "not lower case",
	} {
		path := filepath.Join(dir, "t.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := newRouter(Config{TableFile: path, Root: dir})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "DEIS_TABLE") {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := newRouter(Config{Root: dir}); err == nil || !strings.Contains(err.Error(), "DEIS_CONTROLLER_URL") {
		t.Errorf("no source of routes: %v", err)
	}
}

// A router leaves nothing behind.
func TestStopEndsAllGoroutines(t *testing.T) {
	before := runtime.NumGoroutine()
	c := newController(t)
	r := start(t, Config{Root: rootWithKey(t), ControllerURL: c.url()})
	eventually(t, "healthy", func() bool { return r.health() == nil })
	r.stop()
	c.down()
	eventually(t, "goroutines have ended", func() bool { return runtime.NumGoroutine() <= before+1 })
}
