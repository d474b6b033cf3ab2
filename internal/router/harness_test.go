package router

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/deis/deis/routerconf"
)

// running is a router with real listeners.
type running struct {
	*router
	httpAddr, httpsAddr string
	metrics             *prometheus.Registry
	stop                func()
}

// start runs a router until the test or stop ends it.
func start(t testing.TB, cfg Config) *running {
	t.Helper()
	registry := prometheus.NewRegistry()
	if cfg.Root == "" {
		cfg.Root = t.TempDir()
	}
	if cfg.Domain == "" {
		cfg.Domain = "test"
	}
	cfg.Metrics = registry
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	r, err := newRouter(cfg)
	if err != nil {
		t.Fatal(err)
	}
	plain, secure := listen(t), listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.run(ctx, plain, secure) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(shutdownGrace + 5*time.Second):
			t.Error("the router does not end")
		}
	})
	t.Cleanup(stop)
	return &running{router: r, httpAddr: plain.Addr().String(), httpsAddr: secure.Addr().String(), metrics: registry, stop: stop}
}

// serve runs a router with a table and no controller.
func serve(t testing.TB, table routerconf.Table, edit ...func(*Config)) *running {
	t.Helper()
	if table.Generation == 0 {
		table.Generation = 1
	}
	file := filepath.Join(t.TempDir(), "table.json")
	writeJSON(t, file, table)
	cfg := Config{TableFile: file}
	for _, e := range edit {
		e(&cfg)
	}
	return start(t, cfg)
}

func writeJSON(t testing.TB, path string, v any) {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// backend is an app's instance.
func backend(t testing.TB, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// named answers with its name.
func named(t testing.TB, name string) *httptest.Server {
	return backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })
}

func addrOf(s *httptest.Server) string { return s.Listener.Addr().String() }

// routeTo sends a host to instances; their ids are their addresses.
func routeTo(host, app string, addrs ...string) routerconf.Route {
	r := routerconf.Route{Host: host, App: app}
	for _, a := range addrs {
		r.Targets = append(r.Targets, routerconf.Target{ID: a, Address: a})
	}
	return r
}

func oneRoute(host string, addrs ...string) routerconf.Table {
	return routerconf.Table{Generation: 1, Domain: "test", Routes: []routerconf.Route{routeTo(host, "app", addrs...)}}
}

// client reaches the router under every name: "http://any.host/".
func (r *running) client(t testing.TB) *http.Client {
	dial := func(addr string) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
	}
	plain := &http.Transport{DialContext: dial(r.httpAddr), MaxIdleConnsPerHost: 100, DisableCompression: true}
	secure := &http.Transport{
		DialContext: dial(r.httpsAddr), MaxIdleConnsPerHost: 100, DisableCompression: true, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	t.Cleanup(func() { plain.CloseIdleConnections(); secure.CloseIdleConnections() })
	return &http.Client{
		Transport: bothSchemes{plain, secure}, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

type bothSchemes struct{ plain, secure *http.Transport }

func (b bothSchemes) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "https" {
		return b.secure.RoundTrip(r)
	}
	return b.plain.RoundTrip(r)
}

// fetch returns status and body of a GET.
func fetch(t testing.TB, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// raw sends bytes as they are and returns all that comes until the end.
func (r *running) raw(t testing.TB, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", r.httpAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

// eventually waits until f holds.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// serveConfig is a config with an empty table, ready for newRouter.
func serveConfig(t *testing.T) Config {
	t.Helper()
	root := t.TempDir()
	file := filepath.Join(root, "table.json")
	writeJSON(t, file, routerconf.Table{Generation: 1, Domain: "test"})
	return Config{
		Root: root, Domain: "test", TableFile: file,
		Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	}
}

// rootWithKey is a platform's directory with the daemons' key.
func rootWithKey(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "builder.key"), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return root
}

// metric sums the samples of one metric.
func metric(t testing.TB, r *running, name string) (sum float64) {
	t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
		return sum
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// echoServer answers each WebSocket message with itself.
func echoServer(t testing.TB) *httptest.Server {
	return backend(t, func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		ws.SetReadLimit(-1)
		for {
			kind, data, err := ws.Read(r.Context())
			if err != nil {
				return
			}
			if ws.Write(r.Context(), kind, data) != nil {
				return
			}
		}
	})
}

func (r *running) dialWS(t testing.TB, url string) *websocket.Conn {
	t.Helper()
	transport := r.client(t).Transport.(bothSchemes)
	transport.secure.ForceAttemptHTTP2 = false
	transport.secure.TLSClientConfig.NextProtos = []string{"http/1.1"}
	ws, _, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		t.Fatal(err)
	}
	ws.SetReadLimit(-1)
	t.Cleanup(func() { _ = ws.CloseNow() })
	return ws
}

func echo(t testing.TB, ws *websocket.Conn, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := ws.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		t.Error(err)
		return
	}
	if _, got, err := ws.Read(ctx); err != nil || string(got) != text {
		t.Errorf("echo: %d bytes, %v", len(got), err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
