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

// benchSizes are the numbers of apps that are compared.
var benchSizes = []int{1, 100, 1000}

// BenchmarkAPI measures what one client sees, over HTTP, of controllers with
// few and many apps that each run one instance. The controllers are asked in turn, so that whatever
// else the machine does slows all of them alike. scripts/bench-api makes a table of it.
func BenchmarkAPI(b *testing.B) {
	platforms := make([]*bench, len(benchSizes))
	for i, apps := range benchSizes {
		platforms[i] = newBench(b)
		for n := range apps {
			platforms[i].call(b, 201, "POST", "/v1/apps", fmt.Sprintf(`{"id":"app-%d"}`, n))
			platforms[i].call(b, 201, "POST", fmt.Sprintf("/v1/apps/app-%d/builds", n), `{"image":"example/app:1"}`)
		}
	}
	calls := []struct {
		name, method, path, body string
		status                   int
	}{
		{"app-list", "GET", "/v1/apps", "", 200},
		{"app-list-of-one", "GET", "/v1/apps?page_size=1", "", 200},
		{"release-list", "GET", "/v1/apps/app-0/releases", "", 200},
		{"config-set", "POST", "/v1/apps/app-0/config", `{"values":{"A":"1"}}`, 201},
	}
	for _, call := range calls {
		b.Run(call.name, func(b *testing.B) {
			took := make([][]time.Duration, len(platforms))
			for b.Loop() {
				for i, p := range platforms {
					began := time.Now()
					p.call(b, call.status, call.method, call.path, call.body)
					took[i] = append(took[i], time.Since(began))
				}
			}
			for i, apps := range benchSizes {
				slices.Sort(took[i])
				n := len(took[i])
				var sum time.Duration
				for _, d := range took[i] {
					sum += d
				}
				b.ReportMetric(float64(n)/sum.Seconds(), fmt.Sprintf("req/s@%d", apps))
				b.ReportMetric(float64(took[i][n/2].Microseconds())/1000, fmt.Sprintf("median-ms@%d", apps))
				b.ReportMetric(float64(took[i][n*99/100].Microseconds())/1000, fmt.Sprintf("p99-ms@%d", apps))
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
