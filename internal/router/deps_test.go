package router

import (
	"os/exec"
	"strings"
	"testing"
)

// The router stays small and restarts fast: it links no engine, no builder and
// no database.
func TestDependencies(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "github.com/deis/deis/cmd/router").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := string(out)
	if !strings.Contains(deps, "github.com/deis/deis/internal/router\n") {
		t.Fatal("go list does not list what the router imports")
	}
	for _, bad := range []string{
		// database/sql itself comes with Prometheus' collectors; no driver does.
		"containerd", "moby/", "k8s.io/", "modernc.org", "sqlite", "pgx", "grpc", "go-git", "gliderlabs", "\ntesting\n", "websocket",
		"deis/internal/engine", "deis/internal/store", "deis/internal/controller", "deis/internal/builder", "deis/internal/build",
	} {
		if strings.Contains(deps, bad) {
			t.Errorf("the router links %s", bad)
		}
	}
}
