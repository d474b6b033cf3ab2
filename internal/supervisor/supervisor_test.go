package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/hosttest"
)

// TestMain lets the test binary play the parts: a web server on a handed-over
// socket, and a supervisor that can be killed.
func TestMain(m *testing.M) {
	switch os.Getenv("TEST_ROLE") {
	case "web":
		daemon.Main("web", nil, serveWeb)
	case "supervisor":
		superviseForever()
	default:
		os.Exit(m.Run())
	}
}

func serveWeb(ctx context.Context, d *daemon.Daemon, args []string) error {
	if _, err := d.Parse(args); err != nil {
		return err
	}
	l, err := d.Listen("http", "127.0.0.1:1")
	if err != nil {
		return err
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, os.Getpid())
	})}
	return daemon.ServeHTTP(ctx, srv, l, time.Second)
}

func superviseForever() {
	dir := os.Getenv("TEST_DIR")
	s, err := Open(context.Background(), dir, discard)
	if err == nil {
		var parts []Part
		if parts, err = webParts(s, dir); err == nil {
			err = s.Start(context.Background(), parts)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	select {}
}

var discard = slog.New(slog.DiscardHandler)

func webParts(s *Supervisor, dir string) ([]Part, error) {
	sock, err := s.OpenSocket("web", "http", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return []Part{{
		Name: "web", Command: []string{self}, Env: []string{"TEST_ROLE=web"}, Log: filepath.Join(dir, "web.log"),
		Sockets: []*Socket{sock}, Address: sock.Addr, Grace: 2 * time.Second,
		Health: func(context.Context) error { _, err := get(sock.Addr); return err },
	}}, nil
}

func get(addr string) (string, error) {
	c := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + addr)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func startSupervisor(t *testing.T, dir string, make func(*Supervisor) []Part) *Supervisor {
	t.Helper()
	s, err := Open(t.Context(), dir, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.Start(context.Background(), make(s)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(func(string) {}) })
	return s
}

func sh(dir, name, script string) Part {
	return Part{Name: name, Command: []string{"/bin/sh", "-c", script}, Log: filepath.Join(dir, name+".log"), Grace: 300 * time.Millisecond}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not within a minute", what)
}

func alive(pid int) bool {
	_, state, err := startTicks(pid)
	return err == nil && state != "Z"
}

func TestStartsInOrderOfNeedsAndStopsInReverse(t *testing.T) {
	dir := t.TempDir()
	trace := filepath.Join(dir, "trace")
	traced := func(name string) Part {
		p := sh(dir, name, fmt.Sprintf("trap 'echo stop %[1]s >> %[2]s; exit' TERM; echo start %[1]s >> %[2]s; while :; do sleep 0.05; done", name, trace))
		p.Grace = time.Minute
		return p
	}
	b := traced("b")
	b.Needs = []string{"a"}
	a := traced("a")
	a.Health = func(context.Context) error { _, err := os.Stat(trace); return err }
	c := traced("c")
	c.Needs = []string{"b"}
	b.Health = func(context.Context) error {
		if text, _ := os.ReadFile(trace); !strings.Contains(string(text), "start b") {
			return os.ErrNotExist
		}
		return nil
	}
	c.Health = func(context.Context) error {
		if text, _ := os.ReadFile(trace); !strings.Contains(string(text), "start c") {
			return os.ErrNotExist
		}
		return nil
	}
	s := startSupervisor(t, dir, func(*Supervisor) []Part { return []Part{a, b, c} })
	waitHealthy(t, s)
	for _, st := range s.Status() {
		if st.State != Running || st.PID == 0 || st.Memory == 0 {
			t.Errorf("status %+v", st)
		}
	}
	s.Stop(func(string) {})
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	want := "start a\nstart b\nstart c\nstop c\nstop b\nstop a\n"
	if string(text) != want {
		t.Errorf("order:\n%swant:\n%s", text, want)
	}
}

func TestWhatDiesIsStartedAgainOnTheSameSocket(t *testing.T) {
	dir := t.TempDir()
	var addr string
	s := startSupervisor(t, dir, func(s *Supervisor) []Part {
		parts, err := webParts(s, dir)
		if err != nil {
			t.Fatal(err)
		}
		addr = parts[0].Address
		return parts
	})
	waitHealthy(t, s)
	for range 3 {
		pid := s.Status()[0].PID
		if pid <= 1 {
			t.Fatalf("status %+v", s.Status()[0])
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// The socket is ours: a request waits for the next process, and none is refused.
		var got string
		eventually(t, "answer of the next process", func() bool {
			var err error
			if got, err = get(addr); err != nil && !strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "reset") {
				t.Fatalf("request between two processes: %v", err)
			}
			return err == nil
		})
		if got == fmt.Sprint(pid) {
			t.Fatalf("pid %d answered after its death", pid)
		}
		eventually(t, "healthy again", func() bool { return s.Status()[0].State == Running && s.Status()[0].PID != pid })
	}
	if n := s.Status()[0].Restarts; n != 3 {
		t.Errorf("restarts %d, want 3", n)
	}
}

// A part that fails is said once, with its log, and run on; what needs it is started all the same; and it
// is said when it is healthy after all.
func TestPartThatFailsHoldsUpNoOther(t *testing.T) {
	dir := t.TempDir()
	mended := filepath.Join(dir, "mended")
	broken := sh(dir, "broken", "test -e "+mended+" && exec sleep 60; echo no such database >&2; exit 7")
	broken.Health = func(context.Context) error { _, err := os.Stat(mended); return err }
	other := sh(dir, "other", "exec sleep 60")
	other.Needs = []string{"broken"}
	s := startSupervisor(t, dir, func(*Supervisor) []Part { return []Part{broken, other} })
	eventually(t, "start of the other", func() bool { return s.Status()[1].State == Running })
	told := make(chan string, 10)
	all := make(chan error, 1)
	go func() {
		all <- s.WaitHealthy(t.Context(), time.Minute, func(st Status, failed error) {
			told <- fmt.Sprint(st.Name, " ", failed)
		})
	}()
	got := <-told + "\n" + <-told
	for _, want := range []string{"broken is not healthy: exit status 7", "no such database", "other <nil>"} {
		if !strings.Contains(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	}
	eventually(t, "more attempts", func() bool { return s.Status()[0].Restarts > 1 })
	if err := os.WriteFile(mended, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := <-told; got != "broken <nil>" {
		t.Errorf("told %q, want that it is healthy", got)
	}
	if err := <-all; err != nil || len(told) > 0 {
		t.Errorf("at last: %v, %d more told", err, len(told))
	}
}

// A part that runs and does not become healthy is said when patience ends.
func TestPartThatDoesNotBecomeHealthyIsSaid(t *testing.T) {
	dir := t.TempDir()
	p := sh(dir, "dazed", "echo thinking; exec sleep 60")
	p.Health = func(context.Context) error { return errors.New("no table yet") }
	s := startSupervisor(t, dir, func(*Supervisor) []Part { return []Part{p} })
	eventually(t, "look at its health", func() bool {
		return s.Status()[0].Reason != "" && Tail(p.Log, 1) != ""
	})
	ctx, cancel := context.WithCancel(t.Context())
	var told error
	if err := s.WaitHealthy(ctx, time.Millisecond, func(_ Status, failed error) { told = failed; cancel() }); err == nil {
		t.Error("all is well")
	}
	if told == nil || !strings.Contains(told.Error(), "no table yet") || !strings.Contains(told.Error(), "thinking") {
		t.Errorf("told %v", told)
	}
}

// Nobody waits for ever for a part that runs and does not become healthy.
func TestNeedsAreAwaitedForSomeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &runner{}
		began := time.Now()
		r.awaitNeeds(t.Context(), []*runner{{part: Part{Name: "a"}}, {part: Part{Name: "b"}}})
		if d := time.Since(began); d != needTime || r.status.Reason != "waits for a" {
			t.Errorf("went on after %v, want %v; status %+v", d, needTime, r.status)
		}
	})
}

// An adopted part is watched from the start, whatever is with those that it needs.
func TestAdoptedPartWaitsForNobody(t *testing.T) {
	dir := t.TempDir()
	pid := sleeper(t, dir, "served")
	dazed := sh(dir, "dazed", "exec sleep 60")
	dazed.Health = func(context.Context) error { return errors.New("no") }
	served := sh(dir, "served", "exec sleep 60")
	served.Needs = []string{"dazed"}
	s := startSupervisor(t, dir, func(*Supervisor) []Part { return []Part{dazed, served} })
	eventually(t, "health of the adopted", func() bool { st := s.Status()[1]; return st.State == Running && st.PID == pid })
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "start of its successor", func() bool { st := s.Status()[1]; return st.State == Running && st.PID != pid })
}

// sleeper runs a process that an earlier supervisor is said to have left.
func sleeper(t *testing.T, dir, name string) (pid int) {
	t.Helper()
	cmd := exec.Command("/bin/sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	ticks, _, err := startTicks(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeRecords(dir, map[string]record{name: {PID: cmd.Process.Pid, StartTicks: ticks}}); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

// What a power cut damaged is forgotten; what was damaged since the machine started may be of parts that run.
func TestDamagedRecords(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, recordsFile)
	for _, text := range []string{"", "\x00\x00\x00", `{"router": {"pid": 12`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Left(dir, []string{"router"}); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove the file") {
			t.Errorf("%q of now: %v", text, err)
		}
		before := startTime(0).Add(-time.Minute)
		if err := os.Chtimes(path, before, before); err != nil {
			t.Fatal(err)
		}
		if left, err := Left(dir, []string{"router"}); err != nil || len(left) > 0 {
			t.Errorf("%q of before the machine started: %v, %v", text, left, err)
		}
	}
	startSupervisor(t, dir, func(*Supervisor) []Part { return []Part{sh(dir, "web", "exec sleep 60")} })
	eventually(t, "new records", func() bool {
		left, err := Left(dir, []string{"web"})
		return err == nil && len(left) == 1
	})
}

func waitHealthy(t *testing.T, s *Supervisor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.WaitHealthy(ctx, time.Minute, func(_ Status, failed error) {
		if failed != nil {
			t.Error(failed)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func TestKillAfterGrace(t *testing.T) {
	dir := t.TempDir()
	s := startSupervisor(t, dir, func(*Supervisor) []Part {
		return []Part{sh(dir, "deaf", "trap '' TERM; echo ready; while :; do sleep 0.05; done")}
	})
	eventually(t, "start", func() bool { return Tail(filepath.Join(dir, "deaf.log"), 1) == "ready" })
	pid := s.Status()[0].PID
	began := time.Now()
	s.Stop(func(string) {})
	if d := time.Since(began); d < 300*time.Millisecond || d > time.Minute {
		t.Errorf("stop took %v, grace is 300 ms", d)
	}
	if alive(pid) {
		t.Error("still alive")
	}
}

func TestSecondSupervisorIsRefused(t *testing.T) {
	dir := t.TempDir()
	startSupervisor(t, dir, func(*Supervisor) []Part { return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, dir, discard); err != ErrRunning {
		t.Errorf("error %v, want ErrRunning", err)
	}
}

func TestKilledSupervisorLeavesPartsToTheNext(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := writeRecords(dir, map[string]record{"web": {Sockets: map[string]string{"http": hosttest.Addr(t)}}}); err != nil {
		t.Fatal(err)
	}
	first := exec.Command(self)
	first.Env = []string{"TEST_ROLE=supervisor", "TEST_DIR=" + dir}
	first.Stderr = os.Stderr
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	var rec record
	eventually(t, "first supervisor's part", func() bool {
		b, _ := os.ReadFile(filepath.Join(dir, recordsFile))
		var all map[string]record
		if json.Unmarshal(b, &all) != nil {
			return false
		}
		rec = all["web"]
		if !rec.alive() {
			return false
		}
		got, err := get(rec.Sockets["http"])
		return err == nil && got == fmt.Sprint(rec.PID)
	})
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	left, err := Left(dir, []string{"web"})
	if err != nil || len(left) != 1 || left[0].PID != rec.PID {
		t.Fatalf("left %+v, %v", left, err)
	}

	s := startSupervisor(t, dir, func(s *Supervisor) []Part {
		parts, err := webParts(s, dir)
		if err != nil {
			t.Fatal(err)
		}
		return parts
	})
	waitHealthy(t, s)
	st := s.Status()[0]
	if st.PID != rec.PID || st.Restarts != 0 {
		t.Fatalf("pid %d with %d restarts, want the old %d", st.PID, st.Restarts, rec.PID)
	}
	// The adopted process dies: the supervisor sees it without being its parent
	// and opens the same address again.
	if err := syscall.Kill(rec.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "successor of the adopted process", func() bool {
		got, err := get(rec.Sockets["http"])
		return err == nil && got != fmt.Sprint(rec.PID)
	})
}

func TestStopLeft(t *testing.T) {
	dir := t.TempDir()
	pid := sleeper(t, dir, "sleep")
	records, err := readRecords(dir)
	if err != nil {
		t.Fatal(err)
	}
	records["reused"] = record{PID: os.Getpid(), StartTicks: 1} // our pid, but another process's time: must be spared
	if err := writeRecords(dir, records); err != nil {
		t.Fatal(err)
	}
	var told []string
	if err := StopLeft(dir, []string{"reused", "sleep"}, time.Second, func(n string) { told = append(told, n) }); err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || told[0] != "sleep" || alive(pid) {
		t.Errorf("told %v", told)
	}
}

func TestSocketComesBackOnItsPort(t *testing.T) {
	dir := t.TempDir()
	open := func(addr string) (*Supervisor, *Socket) {
		s, err := Open(t.Context(), dir, discard)
		if err != nil {
			t.Fatal(err)
		}
		sock, err := s.OpenSocket("web", "http", addr)
		if err != nil {
			t.Fatal(err)
		}
		return s, sock
	}
	first := hosttest.Addr(t)
	s, sock := open(first)
	if err := s.Start(t.Context(), []Part{func() Part { p := sh(dir, "web", "exec sleep 60"); p.Sockets = []*Socket{sock}; return p }()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "start", func() bool { return s.Status()[0].PID != 0 })
	s.Stop(func(string) {})
	s.Close()
	s, sock = open("127.0.0.1:0")
	defer s.Close()
	defer sock.close()
	if sock.Addr != first {
		t.Errorf("address %s after %s", sock.Addr, first)
	}
	if _, err := net.Listen("tcp", first); err == nil {
		t.Error("the port is free: nothing listens")
	}
}

func TestLogIsCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintln(f, "before")
	if err := cutLog(path); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(f, "after")
	now, _ := os.ReadFile(path)
	old, _ := os.ReadFile(path + ".1")
	if string(now) != "after\n" || string(old) != "before\n" {
		t.Errorf("log %q, before %q", now, old)
	}
}
