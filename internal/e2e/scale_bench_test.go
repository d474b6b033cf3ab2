package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	ctd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sync/errgroup"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/supervisor"
)

// scaleTime bounds how long the apps may take to come up, on a machine that does other things too.
const scaleTime = 40 * time.Minute

// BenchmarkScale fills one machine with small apps and then leaves them alone: how long until all of
// them are up, how fast the API lists them, what a look at one app and at all of them
// costs, and what each daemon takes of CPU and memory while nothing happens.
//
// DEIS_BENCH_APPS apps (100) have DEIS_BENCH_INSTANCES instances each (3), all of one image;
// the idle time is DEIS_BENCH_IDLE (60s).
func BenchmarkScale(b *testing.B) {
	apps, each := envInt(b, "DEIS_BENCH_APPS", 100), envInt(b, "DEIS_BENCH_INSTANCES", 3)
	idle, err := time.ParseDuration(envOr("DEIS_BENCH_IDLE", "60s"))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), scaleTime)
	defer cancel()
	op := newOperator(b, "scale")
	image := op.image(b, "scale-000")

	began := time.Now()
	took := op.fill(ctx, b, image, apps, each)
	up := awaitInstances(ctx, b, apps*each)
	printTable("%d apps with %d instances each on %d CPUs", []any{apps, each, cpus()}, [][]any{
		{"until all instances were up", up.Sub(began).Round(100 * time.Millisecond)},
		{"instances a second", fmt.Sprintf("%.1f", float64(apps*each)/up.Sub(began).Seconds())},
		{"one app's first deploy and scale, median", median(took).Round(time.Millisecond)},
		{"the same, p95", quantile(took, 0.95).Round(time.Millisecond)},
	})
	quiesce(ctx, b)
	before := scrape(b, "controller")
	pids := processes(b)
	sleepFor(ctx, b, 10*time.Second) // scrape and status had the controller measure files
	from := takeUsage(pids)
	sleepFor(ctx, b, idle)
	to := takeUsage(pids)
	after := scrape(b, "controller")
	printIdle(b, from, to)
	op.printCalls(ctx, b, apps)
	printLooks(before, after)
}

// operator is a user of the API without a command line, who can also say that something was built.
type operator struct {
	user, daemons api.Client
	name          string
	cli           *user
	containerd    *ctd.Client
	ctx           context.Context // containerd's
}

func newOperator(b *testing.B, name string) *operator {
	cli := shared.newUser(b, name)
	key, err := os.ReadFile(filepath.Join(shared.root, "builder.key"))
	if err != nil {
		b.Fatal(err)
	}
	ct, err := ctd.New(filepath.Join(shared.root, "run", "containerd.sock"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ct.Close() })
	o := &operator{name: name, cli: cli, containerd: ct}
	o.ctx = namespaces.WithNamespace(b.Context(), "deis-"+daemon.PlatformID(shared.root))
	url := "http://deis.localhost" + shared.http[strings.LastIndex(shared.http, ":"):]
	hc := shared.client(true)
	hc.Timeout = 0 // a rollout takes as long as it takes
	o.user = api.Client{URL: url, HTTP: hc}
	o.daemons = api.Client{URL: "http://" + shared.status(b)["controller"].Address, BuilderKey: strings.TrimSpace(string(key))}
	var answer struct{ Token string }
	o.call(b, http.MethodPost, "/v1/auth/login/", map[string]string{"username": name, "password": "secret"}, &answer)
	o.user.Token = answer.Token
	return o
}

func (o *operator) call(b *testing.B, method, path string, body, out any) {
	b.Helper()
	if err := o.user.Call(b.Context(), method, path, body, out); err != nil {
		b.Fatalf("%s %s: %v", method, path, err)
	}
}

// image pushes the tests' app once and returns what was built.
func (o *operator) image(b *testing.B, app string) api.BuildHook {
	dir := o.cli.newApp(b, app)
	o.cli.push(b, dir, "small")
	var answer api.ReleasesHookAnswer
	if err := o.daemons.Call(b.Context(), http.MethodGet, "/v1/hooks/releases?app="+app, nil, &answer); err != nil {
		b.Fatal(err)
	}
	r := answer.Releases[0]
	return api.BuildHook{Image: r.Image, Digest: r.Digest, SHA: r.SHA, Procfile: r.Procfile, Dockerfile: "true", Strategy: r.Strategy}
}

// create makes an app and brings an image live in it, as if it had been pushed and built.
func (o *operator) create(ctx context.Context, app string, build api.BuildHook) error {
	var made struct{ UUID string }
	if err := o.user.Call(ctx, http.MethodPost, "/v1/apps/", map[string]string{"id": app}, &made); err != nil {
		return fmt.Errorf("create %s: %w", app, err)
	}
	same, err := o.containerd.ImageService().Get(o.ctx, build.Image)
	if err != nil {
		return err
	}
	_, tag, _ := strings.Cut(build.Image, ":")
	build.Image = "deis.internal/apps/" + made.UUID + ":" + tag
	if _, err := o.containerd.ImageService().Create(o.ctx, images.Image{Name: build.Image, Target: same.Target}); err != nil {
		return err
	}
	build.RepoHook = api.RepoHook{ReceiveUser: o.name, ReceiveRepo: app}
	if err := o.daemons.Call(ctx, http.MethodPost, "/v1/hooks/build", build, nil); err != nil {
		return fmt.Errorf("deploy %s: %w", app, err)
	}
	return nil
}

func (o *operator) scale(ctx context.Context, app string, count int) error {
	return o.user.Call(ctx, http.MethodPost, "/v1/apps/"+app+"/scale/", map[string]int{"cmd": count}, nil)
}

// fill makes the apps, a few at a time as their owners would, and returns how long each took.
func (o *operator) fill(ctx context.Context, b *testing.B, image api.BuildHook, apps, each int) []time.Duration {
	took := make([]time.Duration, apps)
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(4)
	for n := range apps {
		work.Go(func() error {
			app := fmt.Sprintf("scale-%03d", n)
			began := time.Now()
			if n > 0 { // the first was pushed
				if err := o.create(ctx, app, image); err != nil {
					return err
				}
			}
			if err := o.scale(ctx, app, each); err != nil {
				return fmt.Errorf("scale %s: %w", app, err)
			}
			took[n] = time.Since(began)
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		b.Fatal(err)
	}
	return took
}

// awaitInstances waits until the controller counts this many that are up.
func awaitInstances(ctx context.Context, b *testing.B, want int) time.Time {
	for {
		if scrape(b, "controller")[`deis_instances{state="up"}`] == float64(want) {
			return time.Now()
		}
		sleepFor(ctx, b, 100*time.Millisecond)
	}
}

// quiesce waits for what follows a change: removed instances, saved tables, collected images.
func quiesce(ctx context.Context, b *testing.B) { sleepFor(ctx, b, 45*time.Second) }

func sleepFor(ctx context.Context, b *testing.B, d time.Duration) {
	b.Helper()
	select {
	case <-time.After(d):
	case <-ctx.Done():
		b.Fatal(ctx.Err())
	}
}

// scrape returns the samples of a daemon's /metrics by name and labels.
func scrape(b testing.TB, part string) map[string]float64 {
	b.Helper()
	resp, err := http.Get("http://" + shared.metrics(b)[part] + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	samples := map[string]float64{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if i := strings.LastIndex(lines.Text(), "} "); i > 0 {
			name, value = lines.Text()[:i+1], lines.Text()[i+2:]
		}
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil && !strings.HasPrefix(name, "#") {
			samples[name] = v
		}
	}
	return samples
}

// metrics are the private addresses of the daemons, as Prometheus finds them.
func (p *platform) metrics(t testing.TB) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(p.root, "run", "prometheus.json"))
	if err != nil {
		t.Fatal(err)
	}
	var groups []struct {
		Targets []string
		Labels  map[string]string
	}
	if err := json.Unmarshal(text, &groups); err != nil {
		t.Fatal(err)
	}
	addresses := map[string]string{}
	for _, g := range groups {
		addresses[g.Labels["daemon"]] = g.Targets[0]
	}
	return addresses
}

// usage is what a group of processes has taken until a moment.
type usage struct {
	at       time.Time
	cpu      map[string]time.Duration // with children that have ended
	memory   map[string]int64         // what it has alone and its part of what it shares, in bytes
	resident map[string]int64
	count    map[string]int
}

// takeUsage reads it for each daemon, and for the shims and log writers together.
func takeUsage(pids map[int]string) usage {
	u := usage{at: time.Now(), cpu: map[string]time.Duration{}, memory: map[string]int64{}, resident: map[string]int64{}, count: map[string]int{}}
	for pid, name := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		u.count[name]++
		u.cpu[name] += cpuTime(string(stat))
		rollup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		u.memory[name] += kilobytes(rollup, "Pss:")
		u.resident[name] += kilobytes(rollup, "Rss:")
	}
	return u
}

// processes names those of the platform.
func processes(b *testing.B) map[int]string {
	names := map[int]string{}
	doc := struct {
		Supervisor int
		Parts      []supervisor.Status
	}{}
	cmd := exec.Command(filepath.Join(bin(), "deisctl"), "status", "--json")
	cmd.Env = shared.env
	out, err := cmd.Output()
	if jsonErr := json.Unmarshal(out, &doc); jsonErr != nil {
		b.Fatal(err, jsonErr)
	}
	names[doc.Supervisor] = "deisctl"
	for _, p := range doc.Parts {
		names[p.PID] = p.Name
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		b.Fatal(err)
	}
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		switch args := string(line); {
		case !strings.Contains(args, shared.root):
		case strings.Contains(args, "containerd-shim"):
			names[pid] = "shims of the instances"
		case strings.Contains(args, "deis-shimlog"):
			names[pid] = "their log writers"
		}
	}
	return names
}

// cpuTime is utime, stime, cutime and cstime of proc(5), which count in hundredths.
func cpuTime(stat string) (sum time.Duration) {
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+2:])
	for _, f := range fields[11:15] {
		ticks, _ := strconv.Atoi(f)
		sum += time.Duration(ticks) * 10 * time.Millisecond
	}
	return sum
}

func kilobytes(text []byte, name string) int64 {
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) > 1 && string(f[0]) == name {
			n, _ := strconv.ParseInt(string(f[1]), 10, 64)
			return n << 10
		}
	}
	return 0
}

// printIdle shows what each part took, the daemons' sum, and what belongs to the instances.
func printIdle(b *testing.B, from, to usage) {
	seconds := to.at.Sub(from.at).Seconds()
	rows := [][]any{{"", "processes", "CPU of a core", "memory (PSS)", "RSS"}}
	row := func(title, name string) {
		rows = append(rows, []any{
			title, to.count[name], fmt.Sprintf("%.2f %%", (to.cpu[name]-from.cpu[name]).Seconds()/seconds*100),
			mb(to.memory[name]), mb(to.resident[name]),
		})
	}
	const all = "all daemons"
	daemons := []string{"deisctl", "controller", "router", "builder", "buildkitd", "containerd"}
	for _, name := range daemons {
		row(name, name)
		for _, u := range []usage{from, to} {
			u.cpu[all] += u.cpu[name]
			u.memory[all] += u.memory[name]
			u.resident[all] += u.resident[name]
			u.count[all] += u.count[name]
		}
	}
	row(all, all)
	row("shims of the instances", "shims of the instances")
	row("their log writers", "their log writers")
	printTable("idle for %.0f s", []any{seconds}, rows)
	b.ReportMetric((to.cpu[all]-from.cpu[all]).Seconds()/seconds*100, "idle-cpu-percent")
	b.ReportMetric(float64(to.memory[all]>>20), "idle-MB")
}

func mb(n int64) string { return fmt.Sprintf("%d MB", n>>20) }

// printCalls times lists of the API.
func (o *operator) printCalls(ctx context.Context, b *testing.B, apps int) {
	rows := [][]any{{"", "median", "p95"}}
	for _, c := range []struct{ title, path string }{
		{"list of the apps (one page of 100)", "/v1/apps/?page_size=100"},
		{"containers of one app", fmt.Sprintf("/v1/apps/scale-%03d/containers/", apps/2)},
		{"instances of one app", fmt.Sprintf("/v1/apps/scale-%03d/instances/", apps/2)},
	} {
		var took []time.Duration
		for range 50 {
			began := time.Now()
			if err := o.user.Call(ctx, http.MethodGet, c.path, nil, nil); err != nil {
				b.Fatal(c.path, err)
			}
			took = append(took, time.Since(began))
		}
		rows = append(rows, []any{c.title, median(took).Round(10 * time.Microsecond), quantile(took, 0.95).Round(10 * time.Microsecond)})
	}
	printTable("API", nil, rows)
}

// printLooks shows what the reconciler did between two scrapes.
func printLooks(before, after map[string]float64) {
	rows := [][]any{{"", "count", "mean"}}
	for _, c := range []struct{ title, metric, labels string }{
		{"looks at all apps", "deis_sweep_duration_seconds", ""},
		{"looks at one app", "deis_reconcile_duration_seconds", ""},
		{"reads of the store", "deis_store_duration_seconds", `{class="read"}`},
		{"writes of the store", "deis_store_duration_seconds", `{class="write"}`},
	} {
		count := after[c.metric+"_count"+c.labels] - before[c.metric+"_count"+c.labels]
		mean := time.Duration(0)
		if count > 0 {
			mean = time.Duration((after[c.metric+"_sum"+c.labels] - before[c.metric+"_sum"+c.labels]) / count * float64(time.Second))
		}
		rows = append(rows, []any{c.title, count, mean.Round(10 * time.Microsecond)})
	}
	printTable("controller while idle", nil, rows)
}

func printTable(title string, args []any, rows [][]any) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range rows {
		for i, cell := range row {
			if i == 0 { // the only one that is aligned to the left
				fmt.Fprintf(w, "%-42v\t", cell)
				continue
			}
			fmt.Fprintf(w, "%v\t", cell)
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // into memory
	fmt.Printf("\n"+title+"\n%s", append(args, text.String())...)
}

func median(d []time.Duration) time.Duration { return quantile(d, 0.5) }

// quantile is the smallest that at least this part of all does not exceed.
func quantile(d []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[max(int(math.Ceil(q*float64(len(sorted))))-1, 0)]
}

func cpus() int {
	set, _ := os.ReadFile("/proc/cpuinfo")
	return strings.Count(string(set), "processor\t")
}

func envOr(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

func envInt(b *testing.B, name string, def int) int {
	n, err := strconv.Atoi(envOr(name, strconv.Itoa(def)))
	if err != nil || n < 1 {
		b.Fatalf("%s is no number from 1", name)
	}
	return n
}
