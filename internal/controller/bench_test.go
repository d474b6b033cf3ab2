package controller

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/store"
)

// BenchmarkAPI measures what one client sees, over HTTP, of a controller with
// few and many apps that each run one instance. scripts/bench-api makes a table of it.
func BenchmarkAPI(b *testing.B) {
	for _, apps := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("apps=%d", apps), func(b *testing.B) {
			c := newBench(b)
			for i := range apps {
				c.call(b, 201, "POST", "/v1/apps", fmt.Sprintf(`{"id":"app-%d"}`, i))
				c.call(b, 201, "POST", fmt.Sprintf("/v1/apps/app-%d/builds", i), `{"image":"example/app:1"}`)
			}
			one := fmt.Sprintf("/v1/apps/app-%d", apps/2)
			calls := []struct {
				name, method, path, body string
				status                   int
			}{
				{"app-list", "GET", "/v1/apps", "", 200},
				{"app-list-of-one", "GET", "/v1/apps?page_size=1", "", 200},
				{"release-list", "GET", one + "/releases", "", 200},
				{"config-set", "POST", one + "/config", `{"values":{"A":"1"}}`, 201},
			}
			for _, call := range calls {
				b.Run(call.name, func(b *testing.B) {
					var took []time.Duration
					for b.Loop() {
						began := time.Now()
						c.call(b, call.status, call.method, call.path, call.body)
						took = append(took, time.Since(began))
					}
					slices.Sort(took)
					b.ReportMetric(float64(len(took))/b.Elapsed().Seconds(), "req/s")
					b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
				})
			}
		})
	}
}

// bench is a superuser's connection to a controller on the fake engine.
type bench struct{ url, token string }

func newBench(b *testing.B) *bench {
	b.Helper()
	st, err := store.Open(b.Context(), filepath.Join(b.TempDir(), "db"))
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := newServer(Config{
		Listener: l, Domain: "example.test", Engine: EngineFake, Log: slog.New(slog.DiscardHandler),
		DrainLimit: time.Second,
	}, testKey, st, fake.New())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
		if err := st.Close(); err != nil {
			b.Error(err)
		}
	})
	if _, err := st.CreateUser(b.Context(), paas.User{Username: "alice"}, "secret"); err != nil {
		b.Fatal(err)
	}
	token, err := st.Login(b.Context(), "alice", "secret")
	if err != nil {
		b.Fatal(err)
	}
	return &bench{"http://" + l.Addr().String(), token}
}

func (c *bench) call(b *testing.B, status int, method, path, body string) {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), method, c.url+path, strings.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	req.Header = http.Header{"Authorization": {"token " + c.token}, "Content-Type": {"application/json"}}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != status {
		b.Fatalf("%s %s = %d %s, %v", method, path, resp.StatusCode, text, err)
	}
}
