package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	ctd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"

	"github.com/deis/deis/internal/daemon"
)

// BenchmarkPush times a one-line change of a small Dockerfile app from "git
// push" to the new answer, everything warm, by stages, and beside it in the same
// round the least that it could take: a bare BuildKit solve of the same files,
// and a bare containerd start of the result, without a network of its own,
// until its port answers.
func BenchmarkPush(b *testing.B) {
	u := shared.newUser(b, "bench")
	dir := u.newApp(b, "e2e-bench")
	u.push(b, dir, "warm")
	bare := newBare(b, dir)
	bare.round(b, "warm")

	stages := map[string][]time.Duration{}
	note := func(stage string, d time.Duration) { stages[stage] = append(stages[stage], d) }
	kept := shared.client(true)
	for n := 0; b.Loop(); n++ {
		message := fmt.Sprintf("round-%d", n)
		writeFile(b, dir, "message", message)
		u.must(b, dir, "git", "commit", "-q", "-a", "-m", message)
		began := time.Now()
		u.must(b, dir, "git", "push", "-q", "deis", "master")
		pushed := time.Since(began)
		live := awaitAnswer(b, kept, "e2e-bench.localhost", message, began)
		push := lastPush(b)
		note("1 SSH, receive", ms(push["receive_ms"]))
		note("2 build", ms(push["build_ms"]))
		note("3 rollout until healthy, routed", ms(push["rollout_ms"]))
		note("4 git push in all", pushed)
		note("5 from git push to the new answer", live)
		solve, start := bare.round(b, message)
		note("6 bare BuildKit solve", solve)
		note("7 bare containerd start", start)
		note("8 ours over 6 and 7", live-solve-start)
	}
	printStages(b, stages)
}

func ms(v any) time.Duration {
	f, _ := v.(float64)
	return time.Duration(f * float64(time.Millisecond))
}

func printStages(b *testing.B, stages map[string][]time.Duration) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "stage\tmedian\tbest\tp90\t")
	for _, stage := range slices.Sorted(maps.Keys(stages)) {
		d := stages[stage]
		slices.Sort(d)
		at := func(q float64) string { return d[int(q*float64(len(d)-1))].Round(time.Millisecond).String() }
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t\n", stage[2:], at(0.5), at(0), at(0.9))
		b.ReportMetric(float64(d[len(d)/2].Milliseconds()), strings.NewReplacer(" ", "_", ",", "").Replace(stage)+"_ms")
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	fmt.Printf("\n%d pushes\n%s\n", b.N, text.String())
}

func awaitAnswer(b *testing.B, c *http.Client, host, want string, began time.Time) time.Duration {
	for time.Since(began) < time.Minute {
		_, body, err := shared.get(b.Context(), c, host, "/")
		if err == nil && strings.Contains(body, "message="+want+" ") {
			return time.Since(began)
		}
		time.Sleep(time.Millisecond)
	}
	b.Fatalf("%s never answered %s", host, want)
	return 0
}

// lastPush is the builder's line of log about the last push.
func lastPush(b testing.TB) map[string]any {
	text, err := os.ReadFile(filepath.Join(shared.root, "log", "builder.log"))
	if err != nil {
		b.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, line := range slices.Backward(lines) {
		var doc map[string]any
		if json.Unmarshal([]byte(line), &doc) == nil && doc["msg"] == "push" {
			return doc
		}
	}
	b.Fatal("the builder's log has no push")
	return nil
}

// bare does what no platform can do without.
type bare struct {
	dir        string
	buildkit   *client.Client
	containerd *ctd.Client
	ctx        context.Context // containerd's; a namespace must not reach BuildKit
}

const bareImage = "deis.internal/bench:bare"

func newBare(b *testing.B, app string) *bare {
	dir := filepath.Join(b.TempDir(), "context")
	if err := os.CopyFS(dir, os.DirFS(app)); err != nil {
		b.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, ".git")); err != nil {
		b.Fatal(err)
	}
	bk, err := client.New(b.Context(), "unix://"+filepath.Join(shared.root, "run", "buildkitd.sock"))
	if err != nil {
		b.Fatal(err)
	}
	ns := "deis-" + daemon.PlatformID(shared.root)
	ct, err := ctd.New(filepath.Join(shared.root, "run", "containerd.sock"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { bk.Close(); ct.Close() })
	return &bare{dir: dir, buildkit: bk, containerd: ct, ctx: namespaces.WithNamespace(b.Context(), ns)}
}

func (r *bare) round(b *testing.B, message string) (solve, start time.Duration) {
	writeFile(b, r.dir, "message", message)
	began := time.Now()
	r.solve(b)
	solve = time.Since(began)
	return solve, r.start(b)
}

func (r *bare) solve(b *testing.B) {
	files, err := fsutil.NewFS(r.dir)
	if err != nil {
		b.Fatal(err)
	}
	_, err = r.buildkit.Solve(b.Context(), nil, client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"image-resolve-mode": "local"},
		LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": files}, SharedKey: "bench",
		Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{
			"name": bareImage, "unpack": "true", "compression": "uncompressed",
		}}},
	}, nil)
	if err != nil {
		b.Fatal(err)
	}
}

// start times from the wish for a container until its port answers.
func (r *bare) start(b *testing.B) time.Duration {
	addr := freeAddr()
	_, port, _ := net.SplitHostPort(addr)
	began := time.Now()
	image, err := r.containerd.GetImage(r.ctx, bareImage)
	if err != nil {
		b.Fatal(err)
	}
	id := fmt.Sprintf("bench-%d", began.UnixNano())
	c, err := r.containerd.NewContainer(r.ctx, id, ctd.WithNewSnapshot(id, image, snapshots.WithLabels(nil)),
		ctd.WithNewSpec(oci.WithImageConfig(image), oci.WithEnv([]string{"PORT=" + port}), oci.WithHostNamespace("network")))
	if err != nil {
		b.Fatal(err)
	}
	task, err := c.NewTask(r.ctx, cio.NullIO)
	if err != nil {
		b.Fatal(err)
	}
	exited, err := task.Wait(r.ctx)
	if err != nil {
		b.Fatal(err)
	}
	if err := task.Start(r.ctx); err != nil {
		b.Fatal(err)
	}
	for {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			break
		}
		if time.Since(began) > 10*time.Second {
			b.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	took := time.Since(began)
	if err := task.Kill(r.ctx, 9); err != nil {
		b.Fatal(err)
	}
	<-exited
	if _, err := task.Delete(r.ctx); err != nil {
		b.Fatal(err)
	}
	if err := c.Delete(r.ctx, ctd.WithSnapshotCleanup); err != nil {
		b.Fatal(err)
	}
	return took
}
