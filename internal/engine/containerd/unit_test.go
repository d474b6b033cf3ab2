package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

func TestChoosePort(t *testing.T) {
	exposed := func(list ...string) ocispec.ImageConfig {
		set := map[string]struct{}{}
		for _, p := range list {
			set[p] = struct{}{}
		}
		return ocispec.ImageConfig{ExposedPorts: set}
	}
	for _, c := range []struct {
		env  string
		img  ocispec.ImageConfig
		want int // 0 for an error
	}{
		{"", exposed(), 5000},
		{"", exposed("8080/tcp", "80/tcp", "443"), 80},
		{"", exposed("53/udp"), 5000},
		{"", exposed("53/udp", "9000"), 9000},
		{"", exposed("junk/tcp", "0/tcp", "70000/tcp"), 5000},
		{"3000", exposed("80/tcp"), 3000},
		{"0", exposed(), 0},
		{"65536", exposed(), 0},
		{"-1", exposed(), 0},
		{"http", exposed(), 0},
	} {
		got, err := choosePort(map[string]string{"PORT": c.env}, c.img)
		if got != c.want || (err != nil) != (c.want == 0) || err != nil && paas.CodeOf(err) != paas.Invalid {
			t.Errorf("PORT %q, exposed %v: %d, %v, want %d", c.env, c.img.ExposedPorts, got, err, c.want)
		}
	}
}

func TestStartFailure(t *testing.T) {
	const prefix = "create container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "
	for text, want := range map[string]string{
		prefix + `exec: "x": executable file not found in $PATH: unknown`:                            `cannot start: exec: "x": executable file not found in $PATH`,
		prefix + `error during container init: exec: "x": permission denied: unknown`:                `cannot start: exec: "x": permission denied`,
		prefix + `chdir to cwd ("/srv") set in config.json failed: permission denied: unknown`:       `cannot start: chdir to cwd ("/srv") set in config.json failed: permission denied`,
		prefix + `container init was OOM-killed (memory limit too low?): unknown`:                    "cannot start: its memory limit is too low",
		prefix + `error setting rlimits for ready process: operation not permitted: unknown`:         "",
		prefix + `error mounting "/x" to rootfs at "/etc/hosts": no such file or directory: unknown`: "",
		"create container: connection error: desc = transport: exec: something else":                 "",
	} {
		if got := startFailure(errors.New(text)); got != want {
			t.Errorf("%s:\ngot  %q\nwant %q", text, got, want)
		}
	}
	if got := startFailure(nil); got != "" {
		t.Errorf("no error: %q", got)
	}
}

// TestSpec: the confinement that does not depend on this machine.
func TestSpec(t *testing.T) {
	e := &Engine{opts: Options{Root: "/root-of-platform", PlatformID: "abc", Processes: 77}}
	ctx := namespaces.WithNamespace(t.Context(), "test")
	make := func(p engine.Process) *specs.Spec {
		t.Helper()
		p.Command = []string{"true"}
		s, err := e.spec(ctx, &image{}, record{ID: newID()}, p, &containers.Container{ID: "x"})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := make(engine.Process{Memory: 64 << 20, CPUShares: 1})
	res := s.Linux.Resources
	if *res.Memory.Limit != 64<<20 || countsSwap() != (res.Memory.Swap != nil) || res.Memory.Swap != nil && *res.Memory.Swap != 64<<20 {
		t.Errorf("memory %+v", res.Memory)
	}
	if *res.CPU.Shares != 2 || *res.Pids.Limit != 77 {
		t.Errorf("CPU shares %d, processes %d", *res.CPU.Shares, *res.Pids.Limit)
	}
	if len(res.Devices) == 0 || res.Devices[0].Allow || res.Devices[0].Access != "rwm" {
		t.Errorf("devices are not refused at first: %+v", res.Devices)
	}
	if caps := s.Process.Capabilities; !slices.Equal(caps.Bounding, capabilities) || !slices.Equal(caps.Effective, capabilities) ||
		!slices.Equal(caps.Permitted, capabilities) || len(caps.Ambient) > 0 || len(caps.Inheritable) > 0 {
		t.Errorf("capabilities %+v", caps)
	}
	if !s.Process.NoNewPrivileges || s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActErrno {
		t.Error("no new privileges or system calls are not confined")
	}
	if s.Root.Readonly || *s.Process.OOMScoreAdj != oomScoreAdjust {
		t.Errorf("root %+v, OOM score %d", s.Root, *s.Process.OOMScoreAdj)
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"} {
		if !slices.Contains(s.Linux.MaskedPaths, path) {
			t.Errorf("%s is not masked", path)
		}
	}
	for _, path := range []string{"/proc/bus", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} {
		if !slices.Contains(s.Linux.ReadonlyPaths, path) {
			t.Errorf("%s is not read-only", path)
		}
	}
	for _, m := range s.Mounts {
		if (m.Destination == "/sys" || m.Destination == "/sys/fs/cgroup") && !slices.Contains(m.Options, "ro") {
			t.Errorf("%s is mounted with %v", m.Destination, m.Options)
		}
	}
	kinds := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range s.Linux.Namespaces {
		kinds[ns.Type] = true
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace, specs.NetworkNamespace} {
		if !kinds[kind] {
			t.Errorf("no namespace of its own: %s", kind)
		}
	}

	s = make(engine.Process{ReadOnly: true})
	if *s.Linux.Resources.CPU.Shares != 1024 || s.Linux.Resources.Memory != nil && s.Linux.Resources.Memory.Limit != nil || !s.Root.Readonly {
		t.Errorf("without limits: %+v", s.Linux.Resources)
	}
	if !slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/tmp" && m.Type == "tmpfs" }) {
		t.Error("nothing can be written to")
	}
}

func TestHostname(t *testing.T) {
	for processType, want := range map[string]string{
		"web": "web-7", "Web_Worker": "web-worker-7", "a/../b": "a-b-7",
		"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-7",
	} {
		if got := hostname(record{SetKey: engine.SetKey{Type: processType}, Num: 7}); got != want {
			t.Errorf("%s: %s, want %s", processType, got, want)
		}
	}
}

func FuzzLogName(f *testing.F) {
	for _, s := range []string{"web", "", "a/../b.c", "..", "%2F", "ü\x00"} {
		f.Add(s, 1, int64(2))
	}
	f.Fuzz(func(t *testing.T, processType string, num int, generation int64) {
		name := logName(engine.SetKey{Type: processType, Generation: generation}, num)
		for _, c := range []byte(name) {
			if c == '/' || c < ' ' || c > '~' {
				t.Errorf("%q is no file name", name)
			}
		}
		gotType, gotNum, gotGeneration, ok := parseLogName(name)
		if !ok || gotType != processType || gotNum != num || gotGeneration != generation {
			t.Errorf("%q is read as %q, %d, %d, %v", name, gotType, gotNum, gotGeneration, ok)
		}
	})
}

// What a look at a task says of an instance, when this process is not at work on it.
func TestJudgesTasks(t *testing.T) {
	e := &Engine{opts: Options{Root: t.TempDir()}, notes: map[string]*note{}}
	r := record{SetKey: engine.SetKey{App: "a", Type: "web"}, ID: "x", Kind: kindInstance, Num: 1, Port: 5000}
	if err := os.MkdirAll(e.instanceDir(r.ID), 0o750); err != nil {
		t.Fatal(err)
	}
	judge := func(status task.Status, creating bool) paas.InstanceState {
		return e.instance(r, &task.Process{ID: r.ID, Status: status}, creating).State
	}
	for _, c := range []struct {
		status   task.Status
		creating bool
		want     paas.InstanceState
	}{
		{task.Status_CREATED, true, paas.StateCreated},
		{task.Status_CREATED, false, paas.StateDown}, // its creator was killed, and nobody else will start it
	} {
		if got := judge(c.status, c.creating); got != c.want {
			t.Errorf("%s, creating %t: %s, want %s", c.status, c.creating, got, c.want)
		}
	}
	if err := os.WriteFile(e.startFile(r.ID), []byte(`{"Address":"10.0.0.2","Started":"2026-01-02T03:04:05Z"}`), 0o640); err != nil {
		t.Fatal(err)
	}
	for _, status := range []task.Status{task.Status_RUNNING, task.Status_UNKNOWN} { // the latter is of a slow shim
		if got := judge(status, false); got != paas.StateUp {
			t.Errorf("%s: %s, want up", status, got)
		}
	}
	if got := e.instance(r, nil, false).State; got != paas.StateDown {
		t.Errorf("without a task: %s", got)
	}
	delete(e.notes, r.ID)
	if e.instance(r, nil, false); len(e.notes) > 0 {
		t.Error("a look at what is gone leaves a note")
	}
}

// TestMemoryText: who has no limit did not exceed it.
func TestMemoryText(t *testing.T) {
	const path = "/sys/fs/cgroup"
	group := filepath.Join(path, "memory") // version 1
	if _, err := os.Stat(filepath.Join(path, "cgroup.controllers")); err == nil {
		group = path
	}
	e := &Engine{opts: Options{PlatformID: "t" + newID()[:7]}}
	dir := group + e.cgroup("x")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir); os.Remove(filepath.Dir(dir)) })
	if got, want := e.memoryText("x"), "the machine had no memory left"; got != want {
		t.Errorf("without a limit: %q, want %q", got, want)
	}
}
