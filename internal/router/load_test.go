package router

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/deis/deis/routerconf"
)

// load sends requests to a host from some clients until stop is called, and
// counts them. Each that is not answered with 200 is a failure.
func (r *running) load(t *testing.T, host string, clients int) (count *atomic.Int64, stop func()) {
	t.Helper()
	count = new(atomic.Int64)
	var workers sync.WaitGroup
	ended := make(chan struct{})
	client := r.client(t)
	for i := range clients {
		url := "http://" + host + "/"
		if i%2 == 1 {
			url = "https://" + host + "/"
		}
		workers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-ended:
					return
				default:
				}
				var resp *http.Response
				var err error
				if n%3 == 0 {
					resp, err = client.Post(url, "text/plain", strings.NewReader("body"))
				} else {
					resp, err = client.Get(url)
				}
				if err != nil {
					t.Errorf("after %d requests: %v", count.Load(), err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 {
					t.Errorf("after %d requests: %s %v %s", count.Load(), resp.Status, err, body)
					return
				}
				count.Add(1)
			}
		})
	}
	return count, sync.OnceFunc(func() { close(ended); workers.Wait() })
}

// Invariant 2: nothing unrelated ever drops.
func TestChangesOfOneAppDoNotTouchAnother(t *testing.T) {
	const changes, sockets = 2000, 200
	c := newController(t)
	c.set(routeTo("a.test", "a", addrOf(named(t, "a"))), routeTo("ws.a.test", "a", addrOf(echoServer(t))), routeTo("b.test", "b"))
	r := start(t, Config{Root: rootWithKey(t), ControllerURL: c.url()})
	eventually(t, "following", func() bool { return r.table.status().Applied == 2 })
	var open []*websocket.Conn
	for i := range sockets {
		ws := r.dialWS(t, []string{"ws", "wss"}[i%2]+"://ws.a.test/")
		echo(t, ws, "first")
		open = append(open, ws)
	}
	count, stop := r.load(t, "a.test", 8)
	defer stop()
	var last uint64
	for i := range changes {
		last = c.set(routeTo("b.test", "b", fmt.Sprintf("127.0.0.1:%d", 1+i)))
		if i%100 == 0 {
			echo(t, open[i%sockets], "between")
		}
		if n := count.Load(); i%10 == 0 { // changes and requests alternate, however slow the machine is
			eventually(t, "requests go on", func() bool { return count.Load() > n || t.Failed() })
		}
	}
	eventually(t, "all changes are applied", func() bool { return c.last().Applied == last })
	if s := c.last(); s.Drained != last {
		t.Errorf("open WebSockets of another app count as requests to drain: %+v", s)
	}
	stop()
	for _, ws := range open {
		echo(t, ws, "last")
	}
	t.Logf("%d requests during %d changes", count.Load(), changes)
}

// A deploy: new instances come, the table changes, the old ones are closed once
// the router says that they are drained.
func TestDeploysUnderLoad(t *testing.T) {
	const deploys = 40
	c := newController(t)
	instance := func(i int) *httptest.Server {
		return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			time.Sleep(time.Millisecond)
			fmt.Fprint(w, i)
		}))
	}
	old := []*httptest.Server{instance(0), instance(0)}
	c.set(routeTo("a.test", "a", addrOf(old[0]), addrOf(old[1])))
	r := start(t, Config{Root: rootWithKey(t), ControllerURL: c.url()})
	eventually(t, "following", func() bool { return r.table.status().Applied == 2 })
	count, stop := r.load(t, "a.test", 8)
	defer stop()
	for i := range deploys {
		n := count.Load()
		next := []*httptest.Server{instance(i), instance(i)}
		g := c.set(routeTo("a.test", "a", addrOf(next[0]), addrOf(next[1])))
		eventually(t, "drained", func() bool { return c.last().Drained >= g })
		eventually(t, "requests go on", func() bool { return count.Load() > n || t.Failed() })
		for _, s := range old {
			s.Listener.Close()
			s.CloseClientConnections()
			s.Close()
		}
		old = next
	}
	stop()
	for _, s := range old {
		s.Close()
	}
	t.Logf("%d requests during %d deploys", count.Load(), deploys)
}

// An instance that dies without notice costs no request that can be repeated.
func TestInstanceDiesUnderLoad(t *testing.T) {
	good, dying := named(t, "good"), httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "dying") }))
	r := serve(t, oneRoute("a.test", addrOf(good), addrOf(dying)))
	client := r.client(t)
	for i := range 400 {
		if i == 100 {
			dying.CloseClientConnections()
			dying.Close()
		}
		if resp, body := fetch(t, client, "http://a.test/"); resp.StatusCode != 200 {
			t.Fatalf("request %d: %s %s", i, resp.Status, body)
		}
	}
}

func TestStopFinishesRequests(t *testing.T) {
	began, release := make(chan struct{}, 2), make(chan struct{})
	b := backend(t, func(w http.ResponseWriter, _ *http.Request) { began <- struct{}{}; <-release; fmt.Fprint(w, "whole") })
	r := serve(t, routerconf.Table{Routes: []routerconf.Route{routeTo("a.test", "a", addrOf(b)), routeTo("ws.test", "ws", addrOf(echoServer(t)))}})
	ws := r.dialWS(t, "ws://ws.test/")
	answers := make(chan string, 2)
	for _, scheme := range []string{"http", "https"} {
		go func() { _, body := fetch(t, r.client(t), scheme+"://a.test/"); answers <- body }()
	}
	<-began
	<-began
	stopped := make(chan struct{})
	go func() { r.stop(); close(stopped) }()
	eventually(t, "no new connections", func() bool {
		c, err := net.Dial("tcp", r.httpAddr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	select {
	case <-stopped:
		t.Error("stopped with requests under way")
	default:
	}
	close(release)
	for range 2 {
		if body := <-answers; body != "whole" {
			t.Error(body)
		}
	}
	<-stopped
	// A WebSocket would never end by itself; it must not hold up the end.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, _, err := ws.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the WebSocket survived: %v", err)
	}
}

// lockedBuffer is a sink that can be slow.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func TestAccessLog(t *testing.T) {
	var sink lockedBuffer
	b := named(t, "answer")
	r := serve(t, oneRoute("a.test", addrOf(b)), func(c *Config) { c.AccessLog = &sink })
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://a.test/path?token=secret", nil)
	req.Header.Set("X-Request-Id", "the-id")
	resp, err := r.client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	fetch(t, r.client(t), "http://unknown.test/")
	eventually(t, "two lines", func() bool { return strings.Count(sink.String(), "\n") == 2 })
	var line struct {
		Time                                                              time.Time
		Msg, App, Host, Method, Path, Client, Scheme, Proto, Instance, ID string
		Status, Bytes                                                     int
		Seconds, Wait                                                     float64
	}
	first, second, _ := strings.Cut(sink.String(), "\n")
	if err := json.Unmarshal([]byte(first), &line); err != nil {
		t.Fatal(err)
	}
	if line.Msg != "request" || line.App != "app" || line.Host != "a.test" || line.Path != "/path" || line.Client != "127.0.0.1" ||
		line.Scheme != "https" || line.Proto != "HTTP/2.0" || line.Instance != addrOf(b) || line.ID != "the-id" || line.Status != 200 ||
		line.Bytes != 6 || line.Wait <= 0 || line.Seconds < line.Wait || line.Time.IsZero() {
		t.Errorf("%s", first)
	}
	if strings.Contains(first, "secret") {
		t.Errorf("a query is logged: %s", first)
	}
	if !strings.Contains(second, `"status":404`) || !strings.Contains(second, `"app":""`) {
		t.Errorf("%s", second)
	}
	for name, want := range map[string]float64{"deis_router_requests_total": 2, "deis_router_table_applied_generation": 1, "deis_router_access_log_dropped_total": 0} {
		if got := metric(t, r, name); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
}

func TestSlowAccessLogCostsLinesOnly(t *testing.T) {
	var sink lockedBuffer
	l := newAccessLog()
	sink.mu.Lock()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { l.run(ctx, &sink); close(ended) }()
	x := &exchange{began: time.Now()}
	req := httptest.NewRequest("GET", "http://a.test/", nil)
	const lines = 3 * accessQueue
	for range lines {
		l.log(x, req) // does not wait
	}
	dropped := l.dropped.Load()
	if dropped == 0 || dropped >= lines {
		t.Errorf("%d of %d lines dropped", dropped, lines)
	}
	sink.mu.Unlock()
	cancel()
	<-ended
	if got := uint64(strings.Count(sink.String(), "\n")); got+dropped != lines {
		t.Errorf("%d lines written, %d dropped, of %d", got, dropped, lines)
	}
}

func TestRequestIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := newID()
		if seen[id] || !validRequestID(id) {
			t.Fatalf("id %q", id)
		}
		seen[id] = true
	}
	if got := slices.Sorted(func(yield func(string) bool) {
		for _, id := range []string{"", "a b", "a\n", "<script>", strings.Repeat("a", 201), "\u00e9"} {
			if validRequestID(id) {
				yield(id)
			}
		}
	}); len(got) > 0 {
		t.Errorf("valid: %q", got)
	}
}

func BenchmarkProxy(b *testing.B) {
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1024)) }))
	defer back.Close()
	r := serve(b, oneRoute("a.test", addrOf(back)), func(c *Config) { c.AccessLog = io.Discard })
	r.cfg.Log = slog.New(slog.DiscardHandler)
	client := r.client(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := client.Get("http://a.test/")
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}
