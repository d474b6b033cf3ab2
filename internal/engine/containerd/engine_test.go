package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/containerd/containerdtest"
	"github.com/deis/deis/internal/hostnet"
	"github.com/deis/deis/internal/paas"
)

const (
	appA = "aaaaaaaa-0000-4000-8000-000000000001"
	appB = "bbbbbbbb-0000-4000-8000-000000000002"
)

func (b *bench) spec(app, processType string, n int, command []string) engine.SetSpec {
	spec := engine.SetSpec{
		SetKey: engine.SetKey{App: app, Type: processType, Generation: 1},
		Process: engine.Process{
			AppID: "-a--b-", Version: 3, Image: testImage, Digest: b.digest, Command: command,
			Env: map[string]string{"SECRET": "s3cret"},
		},
	}
	for i := range n {
		spec.Nums = append(spec.Nums, i+1)
	}
	return spec
}

func (b *bench) apply(spec engine.SetSpec) {
	b.t.Helper()
	if err := b.Apply(b.t.Context(), spec); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) list(app string) []engine.Instance {
	b.t.Helper()
	list, err := b.Instances(b.t.Context(), app)
	if err != nil {
		b.t.Fatal(err)
	}
	return list
}

func (b *bench) eventually(what string, ok func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("not in time: %s", what)
		}
	}
}

// serves waits until an instance answers.
func (b *bench) serves(inst engine.Instance) {
	b.t.Helper()
	b.eventually("instance serves", func() bool {
		return b.Probe(b.t.Context(), inst, engine.Check{Path: "/ok", Timeout: time.Second}) == nil
	})
}

// output runs a script as a one-off.
func (b *bench) output(process engine.Process) string {
	b.t.Helper()
	var out bytes.Buffer
	if _, err := b.Run(b.t.Context(), engine.Job{App: appA, Num: 1, Process: process, Stdout: &out}); err != nil {
		b.t.Fatal(err)
	}
	return out.String()
}

func (b *bench) clean() {
	b.t.Helper()
	for _, app := range []string{appA, appB} {
		if err := b.Forget(context.Background(), app); err != nil {
			b.t.Errorf("Forget: %v", err)
		}
	}
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		left := b.leftovers("")
		if len(left) == 0 {
			return
		}
		if time.Since(began) > time.Minute { // longer than tidy pauses
			b.t.Errorf("left over: %v", left)
			return
		}
	}
}

// TestContainerdKilled kills containerd and then the engine under a running instance.
func TestContainerdKilled(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	ctx := t.Context()
	b.apply(b.spec(appA, "web", 1, sh(`n=0; httpd -f -p "$PORT" -h /www & while :; do n=$((n+1)); echo tick $n; sleep 0.1; done`)))
	before := b.list(appA)[0]
	b.serves(before)
	watching, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	changes := b.Watch(watching)

	b.daemon.Kill()
	time.Sleep(300 * time.Millisecond)
	if err := get(ctx, before.Address, "/ok"); err != nil {
		t.Errorf("while containerd is down: %v", err)
	}
	applied := make(chan error)
	go func() { applied <- b.Apply(ctx, b.spec(appA, "worker", 1, sleepCmd)) }()
	time.Sleep(200 * time.Millisecond)
	b.daemon.Restart()
	if err := <-applied; err != nil {
		t.Errorf("Apply begun while containerd was down: %v", err)
	}
	for app := range changes {
		if app == "" {
			break
		}
	}
	if watching.Err() != nil {
		t.Error("Watch does not say that it lost the connection")
	}

	b.Close()
	b.open()
	list := b.list(appA)
	if len(list) != 2 || list[0] != before && list[0].ID != before.ID {
		t.Fatalf("re-adopted %+v, want %+v and a worker", list, before)
	}
	list[0].Started = before.Started // not the same pointer to a zone
	if list[0] != before {
		t.Errorf("re-adopted %+v, want %+v", list[0], before)
	}
	b.apply(b.spec(appA, "web", 1, serveCmd))
	if got := b.list(appA)[0].ID; got != before.ID {
		t.Error("Apply replaced an instance that runs")
	}
	b.serves(before)

	// The log has no gap: the shim, not containerd, has it.
	b.eventually("a second of ticks", func() bool { return b.ticks(appA) >= 10 })
	b.clean()
}

// TestContainerdKilledMeanwhile kills containerd at several moments of an Apply and a Remove.
func TestContainerdKilledMeanwhile(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	for _, delay := range []time.Duration{20, 60, 100, 140} {
		for _, call := range []func() error{
			func() error { return b.Apply(t.Context(), b.spec(appA, "web", 3, serveCmd)) },
			func() error { return b.Remove(t.Context(), b.spec(appA, "web", 0, nil).SetKey) },
		} {
			ended := make(chan error)
			go func() { ended <- call() }()
			time.Sleep(delay * time.Millisecond)
			b.daemon.Kill()
			b.daemon.Restart()
			if err := <-ended; err != nil {
				t.Errorf("killed after %d ms: %v", delay, err)
			}
			if n := len(b.list(appA)); n != 0 && n != 3 {
				t.Errorf("killed after %d ms: %d instances", delay, n)
			}
			for _, inst := range b.list(appA) {
				b.serves(inst)
			}
		}
	}
	b.clean()
	b.eventually("all shims have ended", func() bool { return len(b.daemon.Shims()) == 0 })
}

// TestStrayDirectories: what a containerd left that was killed while it made a snapshot does not keep it from making others.
func TestStrayDirectories(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	b.apply(b.spec(appA, "web", 1, sleepCmd))
	found, err := filepath.Glob(filepath.Join(b.daemon.Dir, "*", "io.containerd.snapshotter.v1.overlayfs", "snapshots", "*"))
	if err != nil || len(found) == 0 {
		t.Fatalf("%q, %v", found, err)
	}
	last := 0
	for _, dir := range found {
		n, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		last = max(last, n)
	}
	for n := range 30 {
		if err := os.MkdirAll(filepath.Join(filepath.Dir(found[0]), strconv.Itoa(last+1+n), "fs"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 2 {
		b.apply(b.spec(appB, "web", 3+round, sleepCmd))
		if list := b.list(appB); len(list) != 3+round {
			t.Errorf("%d instances", len(list))
		}
	}
	b.clean()
}

// ticks counts the lines "tick 1", "tick 2" ... and fails when one is missing.
func (b *bench) ticks(app string) int {
	b.t.Helper()
	n := 0
	err := b.Logs(b.t.Context(), app, engine.LogQuery{Lines: 10000}, func(l engine.LogLine) error {
		n++
		if want := fmt.Sprintf("tick %d", n); l.Text != want {
			b.t.Errorf("log has %q, want %q", l.Text, want)
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

func TestReasons(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	hog := b.spec(appA, "hog", 1, []string{"/bin/sh", "-c", "sleep 0.2; x=x; while :; do x=$x$x; done"})
	hog.Process.Memory = 16 << 20
	// A server whose worker is killed, and that ends by itself later.
	worker := b.spec(appA, "worker", 1, []string{"/bin/sh", "-c", "sh -c 'x=x; while :; do x=$x$x; done'; sleep 0.2; exit 4"})
	worker.Process.Memory = 16 << 20
	for _, c := range []struct {
		spec   engine.SetSpec
		state  paas.InstanceState
		reason string
	}{
		{b.spec(appA, "exit", 1, []string{"/bin/sh", "-c", "exit 3"}), paas.StateCrashed, "exited with code 3"},
		{b.spec(appA, "good", 1, []string{"/bin/true"}), paas.StateCrashed, "exited with code 0"},
		{b.spec(appA, "segv", 1, []string{"/bin/sh", "-c", "sh -c 'kill -SEGV $$'; exit $?"}), paas.StateCrashed, "exited with code 139 (SIGSEGV)"},
		{
			b.spec(appA, "none", 1, []string{"no-such-command"}), paas.StateCrashed,
			`cannot start: exec: "no-such-command": executable file not found in $PATH`,
		},
		{
			b.spec(appA, "file", 1, []string{"/no/such/file"}), paas.StateCrashed,
			`cannot start: exec: "/no/such/file": stat /no/such/file: no such file or directory`,
		},
		{b.spec(appA, "noexec", 1, []string{"/etc"}), paas.StateCrashed, `cannot start: exec: "/etc": `},
		{b.spec(appA, "kill", 1, []string{"/bin/sh", "-c", "sh -c 'kill -KILL $$'; exit $?"}), paas.StateCrashed, "exited with code 137 (SIGKILL)"},
		{hog, paas.StateCrashed, "killed, because it used more memory than its limit; exited with code 137 (SIGKILL)"},
		{worker, paas.StateCrashed, "exited with code 4; before that a process of it was killed, because it used more memory than its limit"},
	} {
		b.apply(c.spec)
		got := engine.Instance{}
		b.eventually(c.spec.Type+" has ended", func() bool {
			for _, got = range b.list(appA) {
				if got.Type == c.spec.Type {
					return got.State != paas.StateUp
				}
			}
			return false
		})
		if got.State != c.state || !strings.HasPrefix(got.Reason, c.reason) || got.Address != "" {
			t.Errorf("%s: %s, %q, address %q; want %s, %q", c.spec.Type, got.State, got.Reason, got.Address, c.state, c.reason)
		}
		if err := b.Probe(t.Context(), got, engine.Check{Timeout: time.Second}); err == nil {
			t.Errorf("%s: passes a check", c.spec.Type)
		}
	}
	before := b.list(appA)
	b.Close()
	b.open()
	for i, inst := range b.list(appA) {
		if inst.Reason != before[i].Reason {
			t.Errorf("after a restart of the engine %s has reason %q, not %q", inst.Type, inst.Reason, before[i].Reason)
		}
	}
	var out bytes.Buffer
	job := b.spec(appA, "", 1, []string{"no-such-command"}).Process
	if code, err := b.Run(t.Context(), engine.Job{App: appA, Process: job, Stdout: &out}); code != 127 || err != nil || !strings.Contains(out.String(), "not found") {
		t.Errorf("one-off without command: %d, %v, %q", code, err, out.String())
	}
	bad := b.spec(appB, "web", 1, serveCmd)
	bad.Process.Env["PORT"] = "http"
	if err := b.Apply(t.Context(), bad); paas.CodeOf(err) != paas.Invalid {
		t.Errorf("PORT=http: %v", err)
	}
	b.clean()
}

func TestSandbox(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	spec := b.spec(appA, "web", 1, serveCmd)
	spec.Process.Memory, spec.Process.CPUShares = 64<<20, 256
	b.apply(spec)
	id := b.list(appA)[0].ID
	for file, want := range map[string]string{
		"memory/memory.limit_in_bytes": "67108864",
		"cpu/cpu.shares":               "256",
		"pids/pids.max":                fmt.Sprint(paas.DefaultProcesses),
	} {
		controller, name, _ := strings.Cut(file, "/")
		path := filepath.Join("/sys/fs/cgroup", controller, b.cgroup(id), name)
		if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil { // version 2
			path = filepath.Join("/sys/fs/cgroup", b.cgroup(id), map[string]string{
				"memory.limit_in_bytes": "memory.max", "cpu.shares": "cpu.weight", "pids.max": "pids.max",
			}[name])
			want = strings.Replace(want, "256", "10", 1)
		}
		text, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(text)) != want {
			t.Errorf("%s: %q, %v, want %s", file, text, err, want)
		}
	}

	process := spec.Process
	process.Command = []string{"/bin/sh", "-c", `grep -E "NoNewPrivs|Seccomp:|CapEff" /proc/self/status; ulimit -c
		echo "$SECRET $PORT $HOSTNAME $(hostname) $(id -u) $PWD"; cat /etc/hosts; ip -4 addr show eth0; ip route
		touch /etc/hosts 2>&1; mount -t tmpfs x /tmp 2>&1; ls /sys/fs/cgroup | head -3; ls -l /proc/self/ns/net; ps | wc -l`}
	out := b.output(process)
	for _, want := range []string{
		"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t00000000000405fb", "\n0\n",
		"s3cret 5000 run-1 run-1 0 /", "127.0.0.1\tlocalhost", "\trun-1", "default via " + b.network.Gateway.String(),
		"Read-only file system", "permission denied",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}

	// What the image says is used: user, directory, port, command, PATH and variables.
	b.daemon.Import(b.ns, containerdtest.Image{
		Name: "docker.io/library/custom:latest",
		Config: ocispec.ImageConfig{
			User: "worker", WorkingDir: "/srv", Entrypoint: []string{"/bin/sh", "-c"}, Env: []string{"FROM=image", "SECRET=x"},
			Cmd:          []string{"id; pwd; echo $PORT $FROM $SECRET; mkdir -p /tmp/x && httpd -f -p 80 & sleep 0.2; wget -qO- 127.0.0.1:80 2>&1"},
			ExposedPorts: map[string]struct{}{"8081/tcp": {}, "8080": {}, "53/udp": {}},
		},
		Files: map[string]string{"etc/passwd": "worker:x:1234:1234::/srv:/bin/sh\n", "etc/group": "worker:x:1234:\nextra:x:55:worker\n", "srv/index.html": "low port\n"},
	})
	custom := engine.Process{Image: "custom", Env: map[string]string{"SECRET": "y"}}
	out = b.output(custom)
	for _, want := range []string{"uid=1234", "55(extra)", "/srv\n", "8080 image y\n", "low port"} {
		if !strings.Contains(out, want) {
			t.Errorf("custom image: output %q lacks %q", out, want)
		}
	}
	b.daemon.Import(b.ns, containerdtest.Image{Name: "docker.io/library/nouser:latest", Config: ocispec.ImageConfig{User: "ghost", Cmd: []string{"true"}}})
	_, err := b.Run(t.Context(), engine.Job{App: appA, Process: engine.Process{Image: "nouser"}, Stdout: io.Discard})
	if paas.CodeOf(err) != paas.Invalid {
		t.Errorf("image with an unknown user: %v", err)
	}
	b.clean()
}

// TestLogsTurnOver writes more than a log may hold.
func TestLogsTurnOver(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	b.apply(b.spec(appA, "a/../b.c", 1, sh(`yes 0123456789012345678901234567890123456789012345678901234567890123456789 | head -n 300000; while :; do echo end; sleep 1; done`)))
	end := func() (text string, n int) {
		err := b.Logs(t.Context(), appA, engine.LogQuery{Lines: 1}, func(l engine.LogLine) error {
			text, n = l.Text, n+1
			if l.Type != "a/../b.c" || l.Num != 1 || l.Generation != 1 {
				t.Errorf("line of %s.%d generation %d", l.Type, l.Num, l.Generation)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return text, n
	}
	b.eventually("all is written", func() bool { text, _ := end(); return text == "end" })
	total := int64(0)
	entries, err := os.ReadDir(b.logDir(appA))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if len(entries) != 2 || total > 16<<20 || total < 8<<20 {
		t.Errorf("%d files of %d bytes in all", len(entries), total)
	}
	if err := b.Remove(t.Context(), b.spec(appA, "a/../b.c", 1, nil).SetKey); err != nil {
		t.Fatal(err)
	}
	if text, n := end(); text != "deis: stopped: exited with code 0" || n != 1 {
		t.Errorf("after the instance is gone: %d lines, the last %q", n, text)
	}
	b.clean()
}

// TestFlood: an app that writes as fast as it can is not held up, takes no more
// disk than its logs may, and the log says what is missing, if anything is.
func TestFlood(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	const lines = 600_000 // a log holds less than half of them
	began := time.Now()
	b.apply(b.spec(appA, "flood", 1, sh(fmt.Sprintf(`yes "a line as long as most of them are, which is about eighty characters or more" | head -n %d; while :; do echo end; sleep 1; done`, lines))))
	last := ""
	b.eventually("all is written", func() bool {
		err := b.Logs(t.Context(), appA, engine.LogQuery{Lines: 1}, func(l engine.LogLine) error { last = l.Text; return nil })
		return err == nil && last == "end"
	})
	rate := lines / time.Since(began).Seconds()
	t.Logf("%.0f lines a second", rate)
	if rate < 10_000 { // it does 100,000 and more where nothing else runs
		t.Errorf("the app was held up: %.0f lines a second", rate)
	}
	n := 0
	if err := b.Logs(t.Context(), appA, engine.LogQuery{Lines: 1_000_000}, func(engine.LogLine) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	if n < 10_000 || n*80 > engine.MaxLogBytes+1<<20 {
		t.Errorf("%d lines are kept or read", n)
	}
	if err := b.Remove(t.Context(), b.spec(appA, "flood", 1, nil).SetKey); err != nil {
		t.Fatal(err)
	}
	b.clean()
}

func TestPruneLogs(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	if err := os.MkdirAll(b.logDir(appA), 0o750); err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		path := filepath.Join(b.logDir(appA), logName(engine.SetKey{Type: "web", Generation: int64(i)}, 1))
		if err := os.WriteFile(path, nil, 0o640); err != nil {
			t.Fatal(err)
		}
		age := time.Now().Add(time.Duration(i-100) * time.Hour)
		if err := cmpOr(os.Truncate(path, 8<<20), os.Chtimes(path, age, age)); err != nil {
			t.Fatal(err)
		}
	}
	b.pruneLogs(appA)
	entries, err := os.ReadDir(b.logDir(appA))
	if err != nil || len(entries) != 8 {
		t.Errorf("%d files kept, %v, want 8", len(entries), err)
	}
	for _, entry := range entries {
		if _, _, generation, ok := parseLogName(entry.Name()); !ok || generation < 4 {
			t.Errorf("%s was kept, though older than others", entry.Name())
		}
	}
}

func cmpOr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestManyAddresses starts two apps at once, on two platforms side by side.
func TestManyAddresses(t *testing.T) {
	t.Parallel()
	one := newDaemonAndBench(t)
	two := newBench(t, one.daemon)
	var calls sync.WaitGroup
	for _, b := range []*bench{one, two} {
		for _, app := range []string{appA, appB} {
			calls.Go(func() {
				if err := b.Apply(t.Context(), b.spec(app, "web", 5, serveCmd)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	calls.Wait()
	seen := map[string]bool{}
	for _, b := range []*bench{one, two} {
		for _, inst := range b.list("") {
			if inst.Address == "" || seen[inst.Address] {
				t.Errorf("address %q of %s.%d is no one's or another's too", inst.Address, inst.App, inst.Num)
			}
			seen[inst.Address] = true
			b.serves(inst)
		}
	}
	if len(seen) != 20 {
		t.Errorf("%d addresses, want 20", len(seen))
	}
	if one.network.Subnet.Overlaps(two.network.Subnet) {
		t.Errorf("subnets %v and %v overlap", one.network.Subnet, two.network.Subnet)
	}
	start := time.Now()
	const rounds = 5
	for range rounds {
		one.list("")
	}
	t.Logf("Instances of %d containers on %d: %v", 10, 20, time.Since(start)/rounds)

	// An instance reaches neither another nor one of the other platform.
	for _, inst := range []engine.Instance{one.list(appB)[0], two.list(appB)[0]} {
		if out := one.ask(inst.Address, 2*time.Second); strings.Contains(out, "ok\n") {
			t.Errorf("an instance of another app answers at %s: %s", inst.Address, out)
		}
	}
	if err := one.Forget(t.Context(), appA); err != nil {
		t.Error(err)
	}
	if n := len(two.list("")); n != 10 {
		t.Errorf("%d instances on the other platform, want 10", n)
	}
	one.clean()
	two.clean()
	if err := one.Leave(t.Context()); err != nil {
		t.Error(err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/deis-", "/sys/fs/cgroup/deis-", "/sys/class/net/deis"} {
		if left, _ := filepath.Glob(pattern + one.opts.PlatformID); len(left) > 0 {
			t.Errorf("a platform that left has %v", left)
		}
	}
}

// TestReboot takes all processes and mounts away, and looks at what comes back.
func TestReboot(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	spec := b.spec(appA, "web", 2, serveCmd)
	b.apply(spec)
	before := b.list(appA)
	b.Close()
	b.daemon.Reboot()
	b.eventually("no instance survives the reboot", func() bool { // the processes of a namespace end after its first
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		return get(ctx, before[0].Address, "/ok") != nil && get(ctx, before[1].Address, "/ok") != nil
	})
	for _, args := range []string{"ip link del " + b.network.Bridge, "nft delete table inet " + b.network.Name} {
		if out, err := exec.Command("sh", "-c", args).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args, err, out)
		}
	}
	b.daemon.Restart()
	b.open()
	for _, inst := range b.list(appA) {
		if inst.State != paas.StateDown || inst.Address != "" || inst.Reason == "" {
			t.Errorf("after a reboot: %+v", inst)
		}
	}
	b.apply(spec)
	after := b.list(appA)
	if len(after) != 2 {
		t.Fatalf("%d instances, want 2", len(after))
	}
	for i, inst := range after {
		if inst.State != paas.StateUp || inst.ID == before[i].ID || inst.Address == before[i].Address {
			t.Errorf("replaced %+v by %+v", before[i], inst)
		}
		b.serves(inst)
	}
	b.clean()
}

// TestSweep makes what a crash may leave, and starts an engine over it.
func TestSweep(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	b.apply(b.spec(appA, "web", 1, serveCmd))
	ctx := b.in(t.Context())
	img, err := b.image(ctx, appA, b.spec(appA, "web", 1, nil).Process)
	if err != nil {
		t.Fatal(err)
	}
	// A container without record, and one of a job that waits to be started.
	early := newID()
	if err := hostnet.NewNamespace(b.netns(early)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.network.Attach(ctx, early, b.netns(early)); err != nil {
		t.Fatal(err)
	}
	if err := b.prepare(ctx, img, early); err != nil {
		t.Fatal(err)
	}
	late := record{SetKey: engine.SetKey{App: appA, Type: "run"}, ID: newID(), Kind: kindJob, Num: 1}
	log, err := b.openLog(late)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.create(ctx, img, late, b.spec(appA, "", 1, sleepCmd).Process, log); err != nil {
		t.Fatal(err)
	}
	b.Close()
	b.open()
	// A one-off starts only when those of the dead process have ended.
	if out := b.output(b.spec(appA, "", 1, []string{"/bin/echo", "next"}).Process); out != "next\n" {
		t.Errorf("a one-off wrote %q", out)
	}
	jobs, err := b.records(ctx, "", kindJob)
	if err != nil || len(jobs) > 0 {
		t.Errorf("one-offs of the dead process: %+v, %v", jobs, err)
	}
	b.eventually("remnants are gone", func() bool { return len(b.leftovers("")) == 0 && len(b.daemon.Shims()) == 1 })
	list := b.list(appA)
	if len(list) != 1 || list[0].State != paas.StateUp {
		t.Errorf("the instance is not left alone: %+v", list)
	}
	b.serves(list[0])

	// An Apply whose creation stopped half way is finished by the next.
	half := record{SetKey: engine.SetKey{App: appA, Type: "worker", Generation: 1}, ID: newID(), Kind: kindInstance, Num: 1}
	if _, err := b.create(ctx, img, half, b.spec(appA, "", 1, sleepCmd).Process, log); err != nil {
		t.Fatal(err)
	}
	b.Close()
	b.open()
	b.apply(b.spec(appA, "worker", 1, sleepCmd))
	if list = b.list(appA); len(list) != 2 || list[1].State != paas.StateUp || list[1].ID == half.ID {
		t.Errorf("after an Apply over a half-made instance: %+v", list)
	}
	b.clean()
}

// TestStuckRemnant: a one-off that cannot be removed keeps its own app from one-offs, and no other.
func TestStuckRemnant(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	ctx := b.in(t.Context())
	run := func(app string) error {
		process := b.spec(app, "", 1, []string{"/bin/true"}).Process
		_, err := b.Run(t.Context(), engine.Job{App: app, Num: 1, Process: process, Stdout: io.Discard})
		return err
	}
	if err := run(appA); err != nil { // unpacks the image
		t.Fatal(err)
	}
	// Its snapshot has a child.
	stuck := record{SetKey: engine.SetKey{App: appA, Type: "run"}, ID: newID(), Kind: kindJob, Num: 1}
	sn := b.client.SnapshotService(snapshotter)
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "now"})
	_, errMade := sn.Prepare(ctx, "key", "", root)
	errKept := sn.Commit(ctx, stuck.ID, "key", root)
	_, errChild := sn.Prepare(ctx, "child", stuck.ID, root)
	spec, errSpec := typeurl.MarshalAny(&specs.Spec{})
	record := containers.Container{ID: stuck.ID, Labels: stuck.labels(), Runtime: containers.RuntimeInfo{Name: runcRuntime}, Spec: spec}
	_, errRecord := b.daemon.Client().ContainerService().Create(ctx, record)
	if err := errors.Join(errMade, errKept, errChild, errSpec, errRecord); err != nil {
		t.Fatal(err)
	}
	b.Close()
	b.open()
	if err := run(appB); err != nil {
		t.Errorf("a one-off of another app: %v", err)
	}
	if err := run(appA); paas.CodeOf(err) != paas.Unavailable || !strings.Contains(err.Error(), "earlier one-off") {
		t.Errorf("a one-off beside what cannot be removed: %v", err)
	}
	if err := sn.Remove(ctx, "child"); err != nil {
		t.Fatal(err)
	}
	if err := run(appA); err != nil {
		t.Errorf("a one-off when nothing is in the way any more: %v", err)
	}
	b.clean()
}

// TestStop: TERM first, KILL for those who do not listen; a call that was
// interrupted is finished by the next.
func TestStop(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	deaf := b.spec(appA, "deaf", 1, []string{"/bin/sh", "-c", "trap 'echo heard' TERM; echo up; while :; do sleep 0.1; done"})
	b.apply(deaf)
	text := ""
	lastLine := func() string {
		b.Logs(t.Context(), appA, engine.LogQuery{Lines: 1}, func(l engine.LogLine) error { text = l.Text; return nil })
		return text
	}
	b.eventually("it is up", func() bool { return lastLine() == "up" })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	removed := make(chan error)
	go func() { removed <- b.Remove(ctx, deaf.SetKey) }()
	b.eventually("it hears the TERM", func() bool { return lastLine() == "heard" })
	cancel()
	if err := <-removed; err == nil {
		t.Error("an interrupted Remove reports success")
	}
	if list := b.list(appA); len(list) != 1 || list[0].State != paas.StateUp {
		t.Errorf("after an interrupted Remove: %+v", list)
	}
	start := time.Now()
	if err := b.Remove(t.Context(), deaf.SetKey); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < engine.StopGrace || d > engine.StopGrace+time.Minute { // which it would outlive by itself
		t.Errorf("took %v, want the grace of %v", d, engine.StopGrace)
	}
	b.clean()
}

// TestWritten: what instances write to their files counts as their app's, at most once a minute.
func TestWritten(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	const mega = 1 << 20
	b.apply(b.spec(appB, "web", 1, sleepCmd))
	b.apply(b.spec(appA, "web", 1, sh(`dd if=/dev/zero of=/tmp/a bs=1M count=20 2>/dev/null; ln /tmp/a /tmp/b; echo first; sleep 10000 & wait`)))
	wrote := func(what string) {
		t.Helper()
		b.eventually(what+" is written", func() bool {
			text := ""
			err := b.Logs(t.Context(), appA, engine.LogQuery{Lines: 1}, func(l engine.LogLine) error { text = l.Text; return nil })
			return err == nil && text == what
		})
	}
	usage := func(app string) int64 {
		t.Helper()
		usage, err := b.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return usage.Apps[app].Written
	}
	near := func(got, want int64) bool { return got >= want*mega && got < (want+1)*mega }
	due := func() {
		b.eventually("no look is under way", func() bool {
			b.written.mu.Lock()
			defer b.written.mu.Unlock()
			b.written.next = time.Time{}
			return b.written.ended == nil
		})
	}

	wrote("first")
	b.eventually("20 MB are counted", func() bool { return near(usage(appA), 20) })
	if got := usage(appB); !near(got, 0) {
		t.Errorf("another app has written %d bytes", got)
	}
	b.apply(b.spec(appA, "worker", 1, sh(`mkdir -p /srv/x; dd if=/dev/zero of=/srv/x/c bs=1M count=10 2>/dev/null; echo second; sleep 10000 & wait`)))
	wrote("second")
	if got := usage(appA); !near(got, 20) {
		t.Errorf("looked again at once: %d bytes", got)
	}
	due()
	b.eventually("30 MB are counted", func() bool { return near(usage(appA), 30) })
	if err := b.Remove(t.Context(), b.spec(appA, "web", 1, nil).SetKey); err != nil {
		t.Fatal(err)
	}
	if got := usage(appA); !near(got, 10) { // without another look
		t.Errorf("%d bytes, though only the worker is there", got)
	}
	b.clean()
}

// TestImages: pinned images outlive their tag, and an app takes its images with it.
func TestImages(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	ctx := b.in(t.Context())
	local := appImages(appA) + ":git-000000000001"
	oldDigest := b.daemon.Import(b.ns, containerdtest.Image{Name: local, Files: map[string]string{"which": "old"}}).String()
	process := engine.Process{Image: local, Digest: oldDigest, Command: []string{"cat", "/which"}}
	if out := b.output(process); out != "old" {
		t.Fatalf("got %q", out)
	}
	newDigest := b.daemon.Import(b.ns, containerdtest.Image{Name: local, Files: map[string]string{"which": "new"}}).String()
	b.Close()
	b.open() // with an empty cache
	ctd := b.daemon.Client()
	if err := ctd.ImageService().Delete(ctx, testImage, images.SynchronousDelete()); err != nil { // and collected garbage
		t.Fatal(err)
	}
	if out := b.output(process); out != "old" {
		t.Errorf("the pinned image after its tag moved: %q", out)
	}
	process.Digest = newDigest
	if out := b.output(process); out != "new" {
		t.Errorf("the new image: %q", out)
	}
	process.Digest = digest.FromString("nothing").String()
	if _, err := b.Run(t.Context(), engine.Job{App: appA, Process: process, Stdout: io.Discard}); paas.CodeOf(err) != paas.Unavailable {
		t.Errorf("an image that never was: %v", err)
	}

	b.clean()
	left, err := ctd.ImageService().List(ctx, "name~=deis.internal")
	if err != nil || len(left) != 0 {
		t.Errorf("images left after Forget: %v, %v", left, err)
	}
	process = engine.Process{Image: "No Reference"}
	if _, err := b.Run(t.Context(), engine.Job{App: appA, Process: process, Stdout: io.Discard}); paas.CodeOf(err) != paas.Invalid {
		t.Errorf("a bad reference: %v", err)
	}
	b.clean()
}

// BenchmarkStart measures an instance from Apply to its first answer.
func BenchmarkStart(b *testing.B) {
	bench := newDaemonAndBench(b)
	spec := bench.spec(appA, "web", 1, serveCmd)
	bench.apply(spec) // unpacks
	var started, answered []time.Duration
	for b.Loop() {
		spec.Generation++
		begin := time.Now()
		bench.apply(spec)
		started = append(started, time.Since(begin))
		for _, inst := range bench.list(appA) {
			if inst.Generation != spec.Generation {
				continue
			}
			for bench.Probe(b.Context(), inst, engine.Check{Timeout: time.Second}) != nil {
				time.Sleep(time.Millisecond)
			}
		}
		answered = append(answered, time.Since(begin))
		if err := bench.Remove(b.Context(), spec.SetKey); err != nil {
			b.Fatal(err)
		}
	}
	median := func(list []time.Duration) float64 {
		slices.Sort(list)
		return float64(list[len(list)/2].Microseconds()) / 1000
	}
	b.ReportMetric(median(started), "ms-to-start")
	b.ReportMetric(median(answered), "ms-to-answer")
	b.ReportMetric(float64(answered[0].Microseconds())/1000, "ms-to-answer-best")
}
