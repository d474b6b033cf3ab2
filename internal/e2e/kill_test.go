package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func writeFile(t testing.TB, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Every daemon is killed in turn under load. Requests fail only while the
// router itself is down, and it comes back; afterwards a push
// works and every part runs.
func TestKillEachDaemon(t *testing.T) {
	u := shared.newUser(t, "kill")
	dir := u.newApp(t, "e2e-kill")
	u.push(t, dir, "before")
	u.must(t, dir, "deis", "scale", "cmd=2")

	for _, part := range []string{"controller", "builder", "buildkitd", "containerd"} {
		t.Run(part, func(t *testing.T) {
			l := shared.startLoad(t, "e2e-kill.localhost", "/", 100)
			killAndWait(t, part, time.Minute)
			time.Sleep(500 * time.Millisecond)
			l.stop(t, "message=")
			u.push(t, dir, "after "+part)
			wantMessage(t, "after "+part)
		})
	}
	t.Run("router", func(t *testing.T) {
		took := killAndWait(t, "router", 30*time.Second)
		t.Logf("router back after %v", took)
		wantMessage(t, "after containerd")
		l := shared.startLoad(t, "e2e-kill.localhost", "/", 100)
		u.push(t, dir, "after router")
		time.Sleep(300 * time.Millisecond)
		l.stop(t, "message=after router")
	})
	if out := u.must(t, dir, "deis", "ps"); strings.Count(out, " up ") != 2 {
		t.Errorf("ps after all:\n%s", out)
	}
}

// killAndWait kills a part with SIGKILL and waits until another process of it
// is healthy.
func killAndWait(t *testing.T, part string, limit time.Duration) time.Duration {
	t.Helper()
	before := shared.status(t)[part]
	if before.State != "running" {
		t.Fatalf("%s is %s before the kill: %s", part, before.State, before.Reason)
	}
	began := time.Now()
	if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for time.Since(began) < limit {
		if now := shared.status(t)[part]; now.State == "running" && now.PID != before.PID {
			return time.Since(began)
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s is not back after %v: %+v", part, limit, shared.status(t)[part])
	return 0
}

// wantMessage wants it at once: a push is done when the routers serve what it brought, also one that had lost the
// controller.
func wantMessage(t *testing.T, message string) {
	t.Helper()
	status, body, err := shared.get(t.Context(), shared.client(false), "e2e-kill.localhost", "/")
	if err != nil || status != 200 || !strings.Contains(body, "message="+message) {
		t.Errorf("want %q: %d %q %v", message, status, body, err)
	}
}
