package deisctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/hosttest"
	"github.com/deis/deis/internal/supervisor"
)

// TestMain lets copies of the test binary play deisctl and the daemons, by their names.
func TestMain(m *testing.M) {
	switch name := filepath.Base(os.Args[0]); name {
	case "deisctl":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		code := Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	case "controller", "router", "builder":
		daemon.Main(name, os.Args[1:], playDaemon)
	default:
		os.Exit(m.Run())
	}
}

// playDaemon is healthy, unless there is a file that says it is broken.
func playDaemon(ctx context.Context, d *daemon.Daemon, args []string) error {
	var root string
	d.String(&root, "root", "", "root")
	if _, err := d.Parse(args); err != nil {
		return err
	}
	if text, err := os.ReadFile(filepath.Join(root, d.Name+".broken")); err == nil {
		return errors.New(string(text))
	}
	return d.ServeAdmin(ctx, func() error { return nil })
}

// machine is one with the programs and no platform that runs.
type machine struct {
	t *testing.T
	*settings
	bin string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	// The root is short: unix sockets below it have little room.
	dir, err := os.MkdirTemp("", "deisctl-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	env := map[string]string{"DEIS_ROOT": filepath.Join(dir, "root"), "DEIS_ENGINE": "fake"}
	for _, name := range []string{"DEIS_HTTP_ADDR", "DEIS_HTTPS_ADDR", "DEIS_SSH_ADDR"} {
		env[name] = "127.0.0.1:0"
	}
	m := &machine{t: t, settings: settingsFromEnv(func(name string) string { return env[name] }), bin: dir}
	m.copyPrograms()
	if err := m.makeDirs(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.stop(context.Background(), false, io.Discard); err != nil {
			t.Error(err)
		}
	})
	return m
}

func (m *machine) copyPrograms() {
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.bin, "deisctl"), program, 0o700); err != nil {
		m.t.Fatal(err)
	}
	for _, name := range []string{"controller", "router", "builder"} {
		if err := os.Link(filepath.Join(m.bin, "deisctl"), filepath.Join(m.bin, name)); err != nil {
			m.t.Fatal(err)
		}
	}
}

func (m *machine) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(m.t.Context(), filepath.Join(m.bin, "deisctl"), args...)
	cmd.Env = m.environ()
	return cmd
}

// start runs deisctl start --detach and wants it to end well, or with exit code 1.
func (m *machine) start(well bool) (output string) {
	m.t.Helper()
	out, err := m.command("start", "--detach").CombinedOutput()
	exit := &exec.ExitError{}
	if well && err != nil || !well && !(errors.As(err, &exit) && exit.ExitCode() == ExitError) {
		m.t.Fatalf("start: %v\n%s", err, out)
	}
	return string(out)
}

const fault = "no certificates in /nowhere"

func (m *machine) breakPart(name string) {
	if err := os.WriteFile(filepath.Join(m.Root, name+".broken"), []byte(fault), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) mendPart(name string) {
	if err := os.Remove(filepath.Join(m.Root, name+".broken")); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) status() (supervisorPID int, parts map[string]supervisor.Status) {
	m.t.Helper()
	doc, err := m.askStatus(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	parts = map[string]supervisor.Status{}
	for _, st := range doc.Parts {
		parts[st.Name] = st
	}
	return doc.Supervisor, parts
}

// kill ends a process and waits until it holds nothing any more.
func (m *machine) kill(pid int) {
	m.t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
	if !hosttest.Ended(pid, time.Minute) {
		m.t.Fatalf("%d lives", pid)
	}
}

func wantAll(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%q is not said in\n%s", word, text)
		}
	}
}

// In the foreground, as under systemd, a part that cannot start takes no other with it, and deisctl goes on.
func TestForegroundStartGoesOnWithoutABrokenPart(t *testing.T) {
	m := newMachine(t)
	m.breakPart("builder")
	cmd := m.command("start")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	var said strings.Builder
	until := func(words ...string) { // until each was said
		for len(words) > 0 {
			if !lines.Scan() {
				t.Fatalf("deisctl ended before it said %q:\n%s", words, said.String())
			}
			fmt.Fprintln(&said, lines.Text())
			for len(words) > 0 && strings.Contains(said.String(), words[0]) {
				words = words[1:]
			}
		}
	}
	until(complaint+"builder is not healthy: exit status 1", fault, itsLog+m.logFile("builder"), "goes on trying", "       controller", "       router")
	_, parts := m.status()
	if parts["controller"].State != supervisor.Running || parts["router"].State != supervisor.Running {
		t.Errorf("beside a broken builder: %+v", parts)
	}
	if strings.Contains(said.String(), lastAddress) {
		t.Errorf("all is said to be well:\n%s", said.String())
	}
	m.mendPart("builder")
	until("       builder", lastAddress)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	until("controller stopped")
	if err := cmd.Wait(); err != nil {
		t.Errorf("deisctl ended: %v\n%s", err, said.String())
	}
	if strings.Count(said.String(), itsLog) != 1 {
		t.Errorf("not said once:\n%s", said.String())
	}
}

// A first start in the background that fails leaves nothing behind.
func TestFreshDetachedStartEndsWhatItStarted(t *testing.T) {
	m := newMachine(t)
	m.breakPart("builder")
	wantAll(t, m.start(false), "builder is not healthy: exit status 1", fault, m.logFile("builder"), "did not start; the other parts are stopped")
	left, err := supervisor.Left(m.run(""), stopOrder)
	if _, answer := m.askStatus(t.Context()); err != nil || len(left) > 0 || !errors.Is(answer, errNotRunning) {
		t.Errorf("left behind: %v %v; deisctl: %v", left, err, answer)
	}
	m.mendPart("builder")
	wantAll(t, m.start(true), "Deis runs")
}

// A start that fails leaves alone what ran before: apps are served by it.
func TestDetachedStartLeavesWhatItTookOver(t *testing.T) {
	m := newMachine(t)
	m.start(true)
	deisctl, before := m.status()
	m.kill(deisctl)
	m.kill(before["builder"].PID)
	m.breakPart("builder")
	wantAll(t, m.start(false), "builder is not healthy: exit status 1", fault, m.logFile("builder"), "The other parts run")
	_, after := m.status()
	for _, name := range []string{"controller", "router"} {
		if after[name].PID != before[name].PID || after[name].State == supervisor.Stopped {
			t.Errorf("%s: %+v, before %+v", name, after[name], before[name])
		}
	}
}

// A restart with a part that fails leaves the others running, the router among them.
func TestRestartGoesOnWithoutABrokenPart(t *testing.T) {
	m := newMachine(t)
	m.start(true)
	m.breakPart("controller")
	out, err := m.command("restart").CombinedOutput()
	if err == nil {
		t.Errorf("the restart is said to be good:\n%s", out)
	}
	wantAll(t, string(out), "controller is not healthy", fault, "The other parts run")
	// It is half the time that the others would wait for a controller that only hangs.
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, parts := m.status()
		if parts["router"].State == supervisor.Running && parts["builder"].State == supervisor.Running {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("without a controller: %+v", parts)
		}
	}
}

// A start that cannot even begin says why.
func TestDetachedStartThatEndsByItself(t *testing.T) {
	m := newMachine(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	m.SSHAddr = taken.Addr().String()
	wantAll(t, m.start(false), "did not start (exit status 1)", "address already in use")
}

// An address that was set is had, also where another part had its port before.
func TestSetAddressesComeFirst(t *testing.T) {
	m := newMachine(t)
	addr, anyPort := hosttest.Addr(t), m.ControllerAddr
	m.ControllerAddr = addr
	m.start(true)
	if err := m.stop(t.Context(), false, io.Discard); err != nil {
		t.Fatal(err)
	}
	m.ControllerAddr, m.SSHAddr = anyPort, addr
	m.start(true)
	if _, parts := m.status(); parts["builder"].Address != addr || parts["controller"].Address == addr {
		t.Errorf("%s was to be the builder's: %+v", addr, parts)
	}
}
