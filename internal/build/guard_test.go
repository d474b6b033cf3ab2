package build_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/paas"
)

// smallLimits are quick to reach. Each hog has but one, since what comes first depends on the machine.
var smallLimits = build.Limits{Memory: 64 << 20, Disk: 200 << 20, CPU: 1.5, Processes: 100, Silence: 4 * time.Second}

// limited is a Builder with these limits on the shared platform.
func (p *platform) limited(t testing.TB, limits build.Limits) *build.Builder {
	t.Helper()
	b, err := build.New(t.Context(), build.Options{
		Address: p.buildkit, ContainerdAddress: p.socket, Namespace: p.namespace, CgroupParent: "/deis-" + p.id + "-build", Limits: limits,
		Secret: []byte("test"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// hogs are builds that take all there is of something, and what they are told.
var hogs = []struct {
	name, dockerfile, want string
}{
	{
		"memory", "FROM deis/run\nRUN x=$(head -c 8000000 /dev/zero | tr '\\0' x); while true; do x=$x$x; done\nCMD true\n",
		"the build was ended: it used more memory than it may (limit 64M, DEIS_BUILD_MEMORY)\nLet it do less at a time",
	},
	{
		"memory of one child", "FROM deis/run\nRUN sh -c 'x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done'; sleep 1000\nCMD true\n",
		"the build was ended: it used more memory than it may (limit 64M, DEIS_BUILD_MEMORY)",
	},
	{
		"memory in tmpfs", "FROM deis/run\nRUN --mount=type=tmpfs,target=/t head -c 100000000 /dev/zero >/t/x; sleep 1000\nCMD true\n",
		"the build was ended: it used more memory than it may (limit 64M, DEIS_BUILD_MEMORY)",
	},
	{
		"processes", "FROM deis/run\nRUN bash -c 'f() { f | f & f; }; f'\nCMD true\n",
		"the build was ended: it started more processes and threads than it may (limit 100, DEIS_BUILD_PROCESSES)",
	},
	{
		"processes that give up", "FROM deis/run\nRUN i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done\nCMD true\n",
		"the build was ended: it started more processes and threads than it may (limit 100, DEIS_BUILD_PROCESSES)",
	},
	{
		"disk", "FROM deis/run\nRUN while true; do head -c 10000000 /dev/zero >/big.$((i=i+1)); done\nCMD true\n",
		"the build was ended: it wrote more to the disk than it may (limit 200M, DEIS_BUILD_DISK)",
	},
	{
		"disk in a cache mount", "FROM deis/run\nRUN --mount=type=cache,target=/c head -c 1000000000 /dev/zero >/c/big; sleep 1000\nCMD true\n",
		"the build was ended: it wrote more to the disk than it may (limit 200M, DEIS_BUILD_DISK)",
	},
	{
		"disk over several steps", "FROM deis/run\nRUN head -c 120000000 /dev/zero >/a; sleep 0.5\nRUN head -c 120000000 /dev/zero >/b; sleep 1000\nCMD true\n",
		"the build was ended: it wrote more to the disk than it may (limit 200M, DEIS_BUILD_DISK)",
	},
	{
		"silence", "FROM deis/run\nRUN echo begun; trap '' TERM INT; while true; do sleep 1; done\nCMD true\n",
		"the build was ended: it showed nothing for too long (limit 4s, DEIS_BUILD_SILENCE)",
	},
}

func TestLimits(t *testing.T) {
	p := sharedPlatform(t)
	for i, hog := range hogs {
		t.Run(hog.name, func(t *testing.T) {
			limits := build.Limits{CPU: smallLimits.CPU}
			switch word, _, _ := strings.Cut(hog.name, " "); word {
			case "memory":
				limits.Memory = smallLimits.Memory
			case "processes":
				limits.Processes = smallLimits.Processes
			case "disk":
				limits.Disk = smallLimits.Disk
			default:
				limits.Silence = smallLimits.Silence
			}
			b := p.limited(t, limits)
			r, beside := newRepo(t), newRepo(t)
			tree := r.open(r.commit(map[string]string{"Dockerfile": hog.dockerfile}))
			start := time.Now()
			ended := make(chan error, 1)
			go func() {
				_, err := b.Build(t.Context(), build.Request{App: fmt.Sprintf("app-hog-%d", i), Tree: tree, Log: func(string) {}})
				ended <- err
			}()
			// Another app's build on the same BuildKit does not notice.
			_, log, err := p.buildApp(t, beside, "app-beside", map[string]string{"Dockerfile": "FROM deis/run\nRUN echo " + hog.name + "\nCMD true\n"})
			if err != nil {
				t.Errorf("the build beside: %v\n%s", err, log)
			}
			err = <-ended
			if e, ok := errors.AsType[*paas.Error](err); !ok || e.Code != paas.Invalid || !strings.HasPrefix(e.Message, hog.want) {
				t.Errorf("got:  %v\nwant: %s", err, hog.want)
			}
			t.Logf("ended after %v:\n%v", time.Since(start), err)
			if took := time.Since(start); took > 5*time.Minute {
				t.Errorf("it took %v", took)
			}
			p.nothingLeft(t)
		})
	}
}

// TestLimitsOfBuildpacks: they hold for builds without a Dockerfile too.
func TestLimitsOfBuildpacks(t *testing.T) {
	p := buildpackPlatform(t)
	for i, hog := range []struct{ name, script, want string }{
		{"memory", "x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done", "it used more memory than it may (limit 128M, DEIS_BUILD_MEMORY)"},
		{"processes", "bash -c 'f() { f | f & f; }; f'", "it started more processes and threads than it may (limit 100, DEIS_BUILD_PROCESSES)"},
		{"disk", "mkdir -p $deps; head -c 1000000000 /dev/zero >$deps/big; sleep 1000", "it wrote more to the disk than it may (limit 200M, DEIS_BUILD_DISK)"},
		{"silence", "sleep 1000", "it showed nothing for too long (limit 8s, DEIS_BUILD_SILENCE)"},
	} {
		t.Run(hog.name, func(t *testing.T) {
			limits := build.Limits{Processes: smallLimits.Processes, Memory: 128 << 20}
			switch hog.name {
			case "disk":
				limits = build.Limits{Disk: smallLimits.Disk}
			case "silence":
				limits = build.Limits{Silence: 8 * time.Second}
			}
			b, r := p.limited(t, limits), newRepo(t)
			tree := r.open(r.commit(map[string]string{"app.sh": "", "tamper": hog.script + "\n"}))
			var log strings.Builder
			_, err := b.Build(t.Context(), build.Request{
				App: fmt.Sprintf("app-hog-pack-%d", i), Tree: tree, Config: map[string]string{"DEIS_BUILDER": "deis/test-builder"},
				Log: func(line string) { log.WriteString(line + "\n") },
			})
			if e, ok := errors.AsType[*paas.Error](err); !ok || !strings.HasPrefix(e.Message, "the build was ended: "+hog.want) {
				t.Errorf("got:  %v\nwant: %s\n%s", err, hog.want, log.String())
			}
			p.nothingLeft(t)
		})
	}
}

// nothingLeft checks that no step, process or cgroup of a build is there.
func (p *platform) nothingLeft(t *testing.T) {
	t.Helper()
	waitFor(t, func() bool {
		return p.steps(t) == 0 && !slices.ContainsFunc(p.buildGroups(), func(dir string) bool { return filepath.Base(dir) != "buildkit" })
	})
}

// buildGroups are the cgroups directly below that of all builds.
func (p *platform) buildGroups() []string {
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup/*/deis-%s-build/*", "/sys/fs/cgroup/deis-%s-build/*"} {
		found, _ := filepath.Glob(fmt.Sprintf(pattern, p.id))
		dirs = append(dirs, slices.DeleteFunc(found, func(path string) bool {
			info, err := os.Stat(path)
			return err != nil || !info.IsDir()
		})...)
	}
	return dirs
}

// TestLimitsOfTheApp: an app's config lowers the limits of its builds, and does not raise them.
func TestLimitsOfTheApp(t *testing.T) {
	p, r := sharedPlatform(t), newRepo(t)
	b := p.limited(t, build.Limits{Memory: 512 << 20, Disk: 1 << 30, CPU: 1, Processes: 4096})
	tree := r.open(r.commit(map[string]string{"Dockerfile": "FROM deis/run\nRUN --mount=type=tmpfs,target=/t head -c 100000000 /dev/zero >/t/x\nCMD true\n"}))
	try := func(config map[string]string) error {
		_, err := b.Build(t.Context(), build.Request{App: "app-own", Tree: tree, Config: config, Log: func(string) {}})
		return err
	}
	for _, c := range []struct{ name, value, want string }{
		{"DEIS_BUILD_MEMORY", "64M", "the build was ended: it used more memory than it may (limit 64M, DEIS_BUILD_MEMORY)\nLet it do less at a time, for example with fewer parallel jobs, or raise the app's own limit: deis config:set DEIS_BUILD_MEMORY=..."},
		{"DEIS_BUILD_MEMORY", "2G", "the app's config asks for DEIS_BUILD_MEMORY=2G, but the platform's limit is 512M\nLower it, or remove it"},
		{"DEIS_BUILD_MEMORY", "1K", "the config value DEIS_BUILD_MEMORY is not a size from 32M up, like 512M or 2G"},
		{"DEIS_BUILD_MEMORY", "much", "the config value DEIS_BUILD_MEMORY is not a size"},
		{"DEIS_BUILD_DISK", "1025M", "the app's config asks for DEIS_BUILD_DISK=1025M, but the platform's limit is 1G"},
		{"DEIS_BUILD_DISK", "-1", "the config value DEIS_BUILD_DISK is not a size"},
		{"DEIS_BUILD_CPU", "1.5", "the app's config asks for DEIS_BUILD_CPU=1.5, but the platform's limit is 1"},
		{"DEIS_BUILD_CPU", "NaN", "the config value DEIS_BUILD_CPU is not a number of cores from 0.05 up, like 0.5"},
		{"DEIS_BUILD_CPU", "0", "the config value DEIS_BUILD_CPU is not a number"},
	} {
		err := try(map[string]string{c.name: c.value})
		if e, ok := errors.AsType[*paas.Error](err); !ok || e.Code != paas.Invalid || !strings.HasPrefix(e.Message, c.want) {
			t.Errorf("%s=%s:\ngot:  %v\nwant: %s", c.name, c.value, err, c.want)
		}
	}
	if err := try(map[string]string{"DEIS_BUILD_MEMORY": "256M", "DEIS_BUILD_CPU": "0.5", "DEIS_BUILD_DISK": "1G"}); err != nil {
		t.Error(err)
	}
	p.nothingLeft(t)
}

// TestCPULimit: a build gets the CPU that it may have, and no more.
func TestCPULimit(t *testing.T) {
	p, r := sharedPlatform(t), newRepo(t)
	b := p.limited(t, build.Limits{CPU: 0.2})
	tree := r.open(r.commit(map[string]string{"Dockerfile": "FROM deis/run\nRUN timeout 2 sh -c 'while :; do :; done'; cat /proc/self/stat; times\nCMD true\n"}))
	var log strings.Builder
	start := time.Now()
	if _, err := b.Build(t.Context(), build.Request{App: "app-cpu", Tree: tree, Log: func(line string) { log.WriteString(line + "\n") }}); err != nil {
		t.Fatal(err)
	}
	elapsed := time.Since(start)
	// The last line of times(1p) is what the children used: 0m0.40s.
	children := regexp.MustCompile(`(\d+)m(\d+\.\d+)s (\d+)m(\d+\.\d+)s`).FindAllStringSubmatch(log.String(), -1)
	if len(children) != 2 {
		t.Fatalf("log:\n%s", log.String())
	}
	user, _ := strconv.ParseFloat(children[1][2], 64)
	system, _ := strconv.ParseFloat(children[1][4], 64)
	if used := user + system; used <= 0 || used > 0.3*elapsed.Seconds() {
		t.Errorf("used %.2f s of CPU in %v, with a limit of 0.2 cores", used, elapsed)
	}
}

// TestKilledBuilder: what a killed builder's build left ends when the next builder starts.
func TestKilledBuilder(t *testing.T) {
	p := sharedPlatform(t)
	// A process in a group like a build's, whose owner is gone.
	left := fmt.Sprintf("/deis-%s-build/app-left/buildkit/step", p.id)
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var groups []string
	for _, root := range cgroupRoots() {
		dir := filepath.Join(root, left)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		groups = append(groups, dir)
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// And a build of another builder, which goes on.
	r := newRepo(t)
	tree := r.open(r.commit(map[string]string{"Dockerfile": "FROM deis/run\nRUN echo begun; sleep 2\nCMD true\n"}))
	begun, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := p.builder.Build(t.Context(), build.Request{App: "app-other", Tree: tree, Log: func(line string) {
			if strings.HasSuffix(line, " begun") {
				close(begun)
			}
		}})
		ended <- err
	}()
	<-begun
	p.limited(t, smallLimits)
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the process ended with %v", err)
	}
	for _, dir := range groups {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
	if err := <-ended; err != nil {
		t.Errorf("the build of another builder: %v", err)
	}
}

// cgroupRoots are those of the controllers that builds use.
func cgroupRoots() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	return []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/pids"}
}

// TestBuildsGiveWay: the kernel takes builds for idle, but where apps take all they can get, builds have their third.
func TestBuildsGiveWay(t *testing.T) {
	p := sharedPlatform(t)
	ctx, cancel := context.WithCancel(t.Context())
	r := newRepo(t)
	tree := r.open(r.commit(map[string]string{"Dockerfile": "FROM deis/run\nRUN echo begun; while :; do :; done & while :; do :; done\nCMD true\n"}))
	begun := make(chan struct{})
	ended := make(chan error, 1)
	b := p.limited(t, build.Limits{CPU: 1.5})
	go func() {
		_, err := b.Build(ctx, build.Request{App: "app-way", Tree: tree, Log: func(line string) {
			if strings.HasSuffix(line, " begun") {
				close(begun)
			}
		}})
		ended <- err
	}()
	defer func() {
		cancel()
		<-ended
	}()
	select {
	case <-begun:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	p.waitIdle(t, true)
	var hogs []*exec.Cmd
	for range 2 * runtime.NumCPU() {
		hog := exec.CommandContext(t.Context(), "sh", "-c", "while :; do :; done")
		if err := hog.Start(); err != nil {
			t.Fatal(err)
		}
		p.asInstance(t, hog)
		hogs = append(hogs, hog)
	}
	p.waitIdle(t, false)
	before, since := p.buildsCPU(t), time.Now()
	time.Sleep(2 * time.Second)
	part := float64(p.buildsCPU(t)-before) / float64(time.Since(since)) / float64(runtime.NumCPU())
	t.Logf("beside hogs the builds got %.0f %% of the CPUs", 100*part)
	if part < 0.05 || part > 0.6 { // a third but for what else runs; an idle group has less than a hundredth
		t.Error("that is no third")
	}
	for _, hog := range hogs {
		_ = hog.Process.Kill()
	}
	p.waitIdle(t, true)
}

// waitIdle waits until the kernel takes the builds for idle, or not.
func (p *platform) waitIdle(t *testing.T, want bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) { // other programs run, too
		idle, err := build.BuildsIdle("/deis-" + p.id + "-build")
		if err != nil {
			t.Fatal(err)
		}
		if idle == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the kernel does not take the builds for idle=%v", want)
		}
	}
}

func (p *platform) buildsCPU(t *testing.T) time.Duration {
	t.Helper()
	used, err := build.BuildsCPU("/deis-" + p.id + "-build")
	if err != nil {
		t.Fatal(err)
	}
	return used
}

// TestServedAppKeepsItsLatency measures an app beside builds that take all they can. What it may take more is for
// machines that do other work, too; BenchmarkLatency prints the same with more requests.
func TestServedAppKeepsItsLatency(t *testing.T) {
	for range 4 { // what else runs on this machine may come between the two
		quiet, beside := measureLatency(t, 500)
		t.Logf("p99 quiet %v, beside hogs %v", quiet, beside)
		if beside <= 2*quiet+50*time.Millisecond {
			return
		}
	}
	t.Error("builds cost the app its latency, every time")
}

// BenchmarkLatency measures the p99 of an app, quiet and beside hogs.
func BenchmarkLatency(b *testing.B) {
	quiet, beside := measureLatency(b, 5000)
	b.ReportMetric(float64(quiet.Microseconds())/1e3, "quiet-p99-ms")
	b.ReportMetric(float64(beside.Microseconds())/1e3, "beside-p99-ms")
	b.ReportMetric(0, "ns/op")
}

// measureLatency is the p99 of so many requests to an app in its own cgroup, as the engine makes it: quiet, and
// beside four builds that never stop; of these the best of three, since other programs run on this machine too.
func measureLatency(t testing.TB, requests int) (quiet, beside time.Duration) {
	p := sharedPlatform(t)
	url := p.serveApp(t)
	measure := func() time.Duration {
		cmd := testProcess(t, loadEnv+"="+url, requestsEnv+"="+strconv.Itoa(requests))
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		took, err := time.ParseDuration(strings.TrimSpace(string(out)))
		if err != nil {
			t.Fatal(err)
		}
		return took
	}
	quiet = measure()
	limits := build.DefaultLimits(2)
	limits.Processes, limits.Memory, limits.Disk = 200, 256<<20, 1<<30
	b := p.limited(t, limits)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var builds sync.WaitGroup
	var running sync.WaitGroup
	for i, command := range []string{
		"while :; do :; done & while :; do :; done",
		"bash -c 'f() { f | f & f; }; f'",
		"while :; do head -c 50000000 /dev/zero >/big; done",
		"while :; do x=; for i in 1 2 3 4 5 6 7 8; do x=$x$(head -c 4000000 /dev/zero | tr '\\0' x); done; done",
	} {
		r := newRepo(t)
		tree := r.open(r.commit(map[string]string{"Dockerfile": "FROM deis/run\nRUN echo begun; " + command + "\nCMD true\n"}))
		running.Add(1)
		begun := sync.OnceFunc(running.Done)
		builds.Go(func() {
			defer begun()
			for ctx.Err() == nil { // the ones that are ended begin again
				_, _ = b.Build(ctx, build.Request{App: fmt.Sprintf("app-latency-%d", i), Tree: tree, Log: func(line string) {
					if strings.HasSuffix(line, " begun") {
						begun()
					}
				}})
			}
		})
	}
	running.Wait()
	beside = measure()
	for range 2 {
		beside = min(beside, measure())
	}
	cancel()
	builds.Wait()
	return max(quiet, measure()), beside // the machine's other work comes and goes
}

// serveApp starts a web server in a cgroup beside that of the builds, where instances are.
func (p *platform) serveApp(t testing.TB) (url string) {
	t.Helper()
	cmd := testProcess(t, appEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.asInstance(t, cmd)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + strings.TrimSpace(line)
}

// asInstance puts a program where instances are, until the test ends.
func (p *platform) asInstance(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for _, root := range cgroupRoots() {
			// This fails for all but the last program.
			_ = os.Remove(filepath.Join(root, "deis-"+p.id, "app"))
			_ = os.Remove(filepath.Join(root, "deis-"+p.id))
		}
	})
	for _, root := range cgroupRoots() {
		dir := filepath.Join(root, "deis-"+p.id, "app")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// testProcess is this test binary as another program, by its environment.
func testProcess(t testing.TB, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// appEnv makes this test binary an app, loadEnv and requestsEnv its client: in the process of the test, which
// watches the builds, requests would wait for that.
const (
	appEnv      = "DEIS_TEST_APP"
	loadEnv     = "DEIS_TEST_LOAD"
	requestsEnv = "DEIS_TEST_REQUESTS"
)

// runLoad prints the p99 of requests to the app.
func runLoad() error {
	requests, err := strconv.Atoi(os.Getenv(requestsEnv))
	if err != nil {
		return err
	}
	var took []time.Duration
	for range requests {
		start := time.Now()
		resp, err := http.Get(os.Getenv(loadEnv))
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		took = append(took, time.Since(start))
		time.Sleep(5 * time.Millisecond)
	}
	slices.Sort(took)
	fmt.Println(took[len(took)*99/100])
	return nil
}

// runApp serves pages that take a little work, and says where.
func runApp() error {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { //nolint:gosec // of a test
		sum := sha256.New()
		for range 100 {
			_, _ = sum.Write(make([]byte, 4<<10))
		}
		fmt.Fprintf(w, "%x", sum.Sum(nil))
	}))
}
