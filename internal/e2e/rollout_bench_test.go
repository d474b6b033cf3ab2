package e2e

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sync/errgroup"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/containerd"
)

// BenchmarkRollout times, as the caller of the API sees it, a rollout (a config change) and a
// rollback to the release before, of an app with 1, 10 and 50 instances, and beside each in the
// same round the bare engine: Apply of the same number of instances of the same image, and
// Probe of each until all serve. DEIS_BENCH_ROUNDS is the rounds with one instance.
func BenchmarkRollout(b *testing.B) {
	rounds := envInt(b, "DEIS_BENCH_ROUNDS", 12)
	op := newOperator(b, "rollouts")
	image := op.image(b, "e2e-rollout")
	bare := op.newBareEngine(b, image)
	rows := [][]any{{"", "rounds", "rollout median", "p95", "rollback median", "p95", "bare engine median", "p95", "rollout/bare", "rollback/bare"}}
	for _, n := range []int{1, 10, 50} {
		if err := op.scale(b.Context(), "e2e-rollout", n); err != nil {
			b.Fatal(err)
		}
		var forward, back, engine []time.Duration
		count := max(rounds/(1+n/10), 3)
		for range count {
			op.awaitOnly(b, n)
			forward = append(forward, timed(b, func() error { return op.configure("e2e-rollout") }))
			op.awaitOnly(b, n)
			back = append(back, timed(b, func() error { return op.rollback("e2e-rollout") }))
			op.awaitOnly(b, n)
			engine = append(engine, timed(b, func() error { return bare.start(n) }))
			if err := bare.remove(); err != nil {
				b.Fatal(err)
			}
		}
		ratio := func(d []time.Duration) string {
			return fmt.Sprintf("%.2f", float64(median(d))/float64(median(engine)))
		}
		ms := func(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
		rows = append(rows, []any{
			fmt.Sprintf("%d instances", n), count, ms(median(forward)), ms(quantile(forward, 0.95)), ms(median(back)), ms(quantile(back, 0.95)),
			ms(median(engine)), ms(quantile(engine, 0.95)), ratio(forward), ratio(back),
		})
		b.ReportMetric(float64(median(forward).Milliseconds()), fmt.Sprintf("rollout-of-%d-ms", n))
		b.ReportMetric(float64(median(back).Milliseconds()), fmt.Sprintf("rollback-of-%d-ms", n))
	}
	printTable("rollouts on %d CPUs", []any{cpus()}, rows)
}

func timed(b *testing.B, f func() error) time.Duration {
	b.Helper()
	began := time.Now()
	if err := f(); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// configure changes the config, which makes a release.
func (o *operator) configure(app string) error {
	values := map[string]any{"values": map[string]string{"GREETING": fmt.Sprint(time.Now().UnixNano())}}
	return o.user.Call(o.ctx, http.MethodPost, "/v1/apps/"+app+"/config/", values, nil)
}

// rollback goes back to the release before.
func (o *operator) rollback(app string) error {
	return o.user.Call(o.ctx, http.MethodPost, "/v1/apps/"+app+"/releases/rollback/", map[string]any{}, nil)
}

// awaitOnly waits until the platform has as many containers as are wanted: what was replaced is gone.
func (o *operator) awaitOnly(b *testing.B, n int) {
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		list, err := o.containerd.ContainerService().List(o.ctx, `labels."deis.kind"==instance`)
		if err != nil {
			b.Fatal(err)
		}
		if len(list) == n {
			break
		}
		if time.Now().After(deadline) {
			b.Fatalf("%d containers are there, want %d", len(list), n)
		}
	}
}

// bareEngine is an engine of its own, in a namespace of its own, on the platform's containerd.
type bareEngine struct {
	engine *containerd.Engine
	ctx    context.Context
	spec   engine.SetSpec
}

func (o *operator) newBareEngine(b *testing.B, image api.BuildHook) *bareEngine {
	const id = "bare"
	own := namespaces.WithNamespace(b.Context(), "deis-"+id)
	var copied bytes.Buffer
	if err := o.containerd.Export(o.ctx, &copied, archive.WithImage(o.containerd.ImageService(), image.Image)); err != nil {
		b.Fatal(err)
	}
	list, err := o.containerd.Import(own, &copied)
	if err != nil {
		b.Fatal(err)
	}
	e, err := containerd.New(containerd.Options{
		Address: filepath.Join(shared.root, "run", "containerd.sock"), Root: b.TempDir(), PlatformID: id,
		ShimLog: filepath.Join(bin(), "deis-shimlog"), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	bare := &bareEngine{engine: e, ctx: b.Context(), spec: engine.SetSpec{
		SetKey:  engine.SetKey{App: "bare", Type: "web"},
		Process: engine.Process{AppID: "bare", Version: 1, Image: list[0].Name},
	}}
	b.Cleanup(func() {
		bare.ctx = context.Background()
		if err := bare.remove(); err != nil {
			b.Error(err)
		}
		if err := e.Leave(context.Background()); err != nil {
			b.Error(err)
		}
		e.Close()
	})
	return bare
}

// start brings up n instances and returns when each serves.
func (e *bareEngine) start(n int) error {
	e.spec.Generation++
	e.spec.Nums = nil
	for num := range n {
		e.spec.Nums = append(e.spec.Nums, num+1)
	}
	if err := e.engine.Apply(e.ctx, e.spec); err != nil {
		return err
	}
	list, err := e.engine.Instances(e.ctx, e.spec.App)
	if err != nil || len(list) != n {
		return fmt.Errorf("%d of %d instances: %w", len(list), n, err)
	}
	var probes errgroup.Group
	for _, inst := range list {
		probes.Go(func() error {
			deadline := time.Now().Add(30 * time.Second)
			for {
				err := e.engine.Probe(e.ctx, inst, engine.Check{})
				if err == nil || time.Now().After(deadline) {
					return err
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	return probes.Wait()
}

func (e *bareEngine) remove() error { return e.engine.Remove(e.ctx, e.spec.SetKey) }
