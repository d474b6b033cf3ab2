package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deis/deis/internal/hosttest"
)

// deisctl runs a command and returns its exit code and output.
func (p *platform) deisctl(t *testing.T, args ...string) (int, string) {
	t.Helper()
	out, err := p.run(t.Context(), "deisctl", args...)
	exit := &exec.ExitError{}
	if errors.As(err, &exit) {
		return exit.ExitCode(), out
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, out
}

func startFake(t *testing.T) *platform {
	t.Helper()
	p, err := newPlatform("fake")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// The operator's day: start, start again, status, logs, restart, stop, status.
func TestDeisctl(t *testing.T) {
	p := startFake(t)
	if code, out := p.deisctl(t, "start", "--detach"); code != 0 || !strings.Contains(out, "runs already") {
		t.Errorf("start again: %d\n%s", code, out)
	}
	if code, out := p.deisctl(t, "start"); code != 1 || !strings.Contains(out, "runs already") {
		t.Errorf("start in the foreground beside it: %d\n%s", code, out)
	}
	code, out := p.deisctl(t, "status")
	if code != 0 {
		t.Errorf("status: %d\n%s", code, out)
	}
	for _, want := range []string{"NAME", "UPTIME", "MEMORY", "controller", "running", p.http, p.ssh} {
		if !strings.Contains(out, want) {
			t.Errorf("status does not say %q:\n%s", want, out)
		}
	}
	for name, st := range p.status(t) {
		if st.PID == 0 || st.Address == "" || st.Memory == 0 || st.Version == "" {
			t.Errorf("%s: %+v", name, st)
		}
	}
	if code, out := p.deisctl(t, "logs", "builder", "-n", "5"); code != 0 || !strings.Contains(out, "builder") {
		t.Errorf("logs: %d\n%s", code, out)
	}
	if code, out := p.deisctl(t, "logs", "database"); code != 2 || !strings.Contains(out, `no part is called "database"`) {
		t.Errorf("logs of no part: %d\n%s", code, out)
	}
	before := p.status(t)["controller"].PID
	if code, out := p.deisctl(t, "restart"); code != 0 {
		t.Errorf("restart: %d\n%s", code, out)
	}
	if now := p.status(t)["controller"]; now.PID == before || now.State != "running" {
		t.Errorf("after a restart: %+v", now)
	}
	if code, out := p.deisctl(t, "stop"); code != 0 || !strings.Contains(out, "controller stopped") {
		t.Errorf("stop: %d\n%s", code, out)
	}
	if code, out := p.deisctl(t, "status"); code != 3 || !strings.Contains(out, "is stopped") {
		t.Errorf("status when stopped: %d\n%s", code, out)
	}
	if code, out := p.deisctl(t, "stop"); code != 0 || !strings.Contains(out, "nothing runs") {
		t.Errorf("stop again: %d\n%s", code, out)
	}
}

// Settings that cannot be are all said, before anything is touched.
func TestDeisctlSettings(t *testing.T) {
	p := &platform{env: append(os.Environ(), "DEIS_ROOT=/nonexistent/"+strings.Repeat("x", 100), "DEIS_ENGINE=docker", "DEIS_SSH_ADDR=nowhere")}
	code, out := p.deisctl(t, "start")
	for _, want := range []string{"too long", "DEIS_ENGINE", "DEIS_SSH_ADDR"} {
		if code != 2 || !strings.Contains(out, want) {
			t.Errorf("exit %d, want 2 and a word on %s:\n%s", code, want, out)
		}
	}
}

// A killed deisctl leaves its parts serving; the next one takes them over, and
// starts again what dies from then on.
func TestKilledDeisctl(t *testing.T) {
	p := startFake(t)
	before := p.status(t)
	pid := p.pids(t)["deisctl"]
	if err := kill(pid); err != nil {
		t.Fatal(err)
	}
	if !hosttest.Ended(pid, time.Minute) {
		t.Fatalf("deisctl (%d) does not end", pid)
	}
	code, out := p.deisctl(t, "status")
	if code != 3 || !strings.Contains(out, "No deisctl watches over these parts") {
		t.Errorf("status without a supervisor: %d\n%s", code, out)
	}
	if status, _, err := p.get(t.Context(), p.client(false), "deis.localhost", "/v1/"); err != nil || status != 401 {
		t.Errorf("the API meanwhile: %d %v", status, err)
	}
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	after := p.status(t)
	for name := range before {
		if before[name].PID != after[name].PID || after[name].State != "running" {
			t.Errorf("%s was not taken over: %+v, before %+v", name, after[name], before[name])
		}
	}
	if err := syscall.Kill(after["router"].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		if now := p.status(t)["router"]; now.State == "running" && now.PID != after["router"].PID {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the router is not started again: %+v", p.status(t)["router"])
		}
		time.Sleep(20 * time.Millisecond)
	}
	if status, _, err := p.get(t.Context(), p.client(false), "deis.localhost", "/v1/"); err != nil || status != 401 {
		t.Errorf("the API after the router's death: %d %v", status, err)
	}
}

// In the foreground, TERM stops the parts in order and deisctl ends with 0.
func TestForegroundStart(t *testing.T) {
	p, err := newPlatform("fake")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(p.root) })
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin(), "deisctl"), "start")
	cmd.Env = p.env
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		fmt.Fprintln(&out, lines.Text())
		if strings.HasPrefix(lines.Text(), "       git ") { // the last line of a start
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("deisctl ended: %v\n%s", err, out.String())
	}
	for _, want := range []string{"Deis runs", "builder stopped", "controller stopped"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
}
