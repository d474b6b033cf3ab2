package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A platform on a containerd and a buildkitd that somebody else runs: it starts
// neither, uses both, and another platform shares the containerd.
func TestExternalEngines(t *testing.T) {
	p, err := newPlatform("containerd")
	if err != nil {
		t.Fatal(err)
	}
	// Somebody's buildkitd, with its own root and namespace, on somebody's containerd.
	other := t.TempDir()
	socket := filepath.Join(p.root, "elsewhere.sock")
	containerd := filepath.Join(shared.root, "run", "containerd.sock")
	buildkitd := exec.Command(filepath.Join(bin(), "builder"), "buildkitd", "--root", other,
		"--buildkit-address", socket, "--containerd-address", containerd, "--containerd-namespace", "somebody")
	buildkitd.Env = append(os.Environ(), "DEIS_LOG_LEVEL=error")
	buildkitd.Stderr = os.Stderr
	if err := buildkitd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
		_ = buildkitd.Process.Signal(syscall.SIGTERM)
		if err := buildkitd.Wait(); err != nil {
			t.Errorf("buildkitd: %v", err)
		}
	})
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatal("buildkitd does not make its socket")
		}
	}

	p.env = append(p.env, "DEIS_CONTAINERD_ADDRESS="+containerd, "DEIS_BUILDKIT_ADDRESS="+socket, "DEIS_CONTAINERD_NAMESPACE=somebody")
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	parts := p.status(t)
	for _, name := range []string{"containerd", "buildkitd"} {
		if st := parts[name]; st.Version != "external" || st.State != "running" || st.PID != 0 {
			t.Errorf("%s: %+v", name, st)
		}
	}
	u := p.newUser(t, "external")
	dir := u.newApp(t, "e2e-external")
	u.push(t, dir, "elsewhere")
	status, body, err := p.get(t.Context(), p.client(false), "e2e-external.localhost", "/")
	if err != nil || status != 200 || !strings.Contains(body, "message=elsewhere release=v2") {
		t.Errorf("%d %q %v", status, body, err)
	}
}
