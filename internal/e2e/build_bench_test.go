package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/build/imagestore"
)

// BenchmarkBuild times builds of examples with buildpacks: the first one, with nothing changed, with one file changed. Ours is
// the builder's stage of a git push, from the commit to an unpacked image. Beside it, in the same round and on the same
// BuildKit, the stock lifecycle's creator runs in one step on the same files with the same builder image, and leaves an OCI
// layout in a cache.
func BenchmarkBuild(b *testing.B) {
	if _, err := shared.run(b.Context(), "builder", "base-images", "--cache", baseCache()); err != nil {
		b.Fatal(err)
	}
	u := shared.newUser(b, "bench-build")
	store := shared.openStore(b)
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "example\tchange\tours\tstock\tours/stock\tstock's buildpacks\tours without them\t")
	warm := u.exampleApp(b, "shell", "e2e-bench-warm") // BuildKit unpacks the builder image when it is first used
	u.must(b, warm, "git", "commit", "-q", "-m", "first")
	u.must(b, warm, "git", "push", "-q", "deis", "master")
	var apps []*builtApp
	for _, e := range []struct{ name, source string }{
		{"golang", "main.go"}, {"nodejs", "server.js"}, {"static", "public/index.html"},
	} {
		a := &builtApp{u: u, name: e.name, source: e.source, dir: u.exampleApp(b, e.name, "e2e-bench-"+e.name), stock: newStock(b, store, e.name)}
		a.row(b, w, "first", []buildTimes{a.round(b)})
		apps = append(apps, a)
	}
	rounds := map[*builtApp][2][]buildTimes{}
	for b.Loop() {
		for _, a := range apps {
			r := rounds[a]
			r[0] = append(r[0], a.round(b))
			a.edit(b)
			r[1] = append(r[1], a.round(b))
			rounds[a] = r
		}
	}
	for _, a := range apps {
		a.row(b, w, "none", rounds[a][0])
		a.row(b, w, "one file", rounds[a][1])
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	fmt.Printf("\nmedian of %d rounds\n%s\n", b.N, table.String())
}

// builtApp is an example that is built by us and by the stock lifecycle.
type builtApp struct {
	u                 *user
	name, source, dir string
	edits             int
	stock             *stock
}

// buildTimes is one build of ours and one of the stock lifecycle; buildpacks is what its buildpacks took of that.
type buildTimes struct{ ours, stock, buildpacks time.Duration }

var answered = regexp.MustCompile(`(?i)(powered.by\W+)\w+`)

// edit changes one file.
func (a *builtApp) edit(b *testing.B) {
	a.edits++
	path := filepath.Join(a.dir, a.source)
	source, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	writeFile(b, a.dir, a.source, string(answered.ReplaceAll(source, fmt.Appendf(nil, "${1}Round%d", a.edits))))
}

// round pushes what is there, and has the stock lifecycle build it. The latter runs even if nothing is changed.
func (a *builtApp) round(b *testing.B) buildTimes {
	a.u.must(b, a.dir, "git", "commit", "-q", "--allow-empty", "-a", "-m", fmt.Sprint(a.edits))
	a.u.must(b, a.dir, "git", "push", "-q", "deis", "master")
	t := buildTimes{ours: ms(lastPush(b)["build_ms"])}
	t.stock, t.buildpacks = a.stock.build(b, a.dir)
	return t
}

func (a *builtApp) row(b *testing.B, w *tabwriter.Writer, change string, all []buildTimes) {
	column := func(of func(buildTimes) time.Duration) time.Duration {
		var d []time.Duration
		for _, t := range all {
			d = append(d, of(t))
		}
		slices.Sort(d)
		return d[len(d)/2]
	}
	t := buildTimes{
		column(func(t buildTimes) time.Duration { return t.ours }), column(func(t buildTimes) time.Duration { return t.stock }),
		column(func(t buildTimes) time.Duration { return t.buildpacks }),
	}
	round := func(d time.Duration) string { return d.Round(time.Millisecond).String() }
	rest := "-"
	if change != "none" { // where ours runs no buildpack
		rest = round(t.ours - t.buildpacks)
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.2f\t%s\t%s\t\n", a.name, change, round(t.ours), round(t.stock), float64(t.ours)/float64(t.stock), round(t.buildpacks), rest)
	b.ReportMetric(float64(t.ours.Milliseconds()), strings.ReplaceAll(a.name+"_"+change, " ", "_")+"_ms")
}

// stock builds one app with the lifecycle's creator, as little else as possible around it.
type stock struct {
	buildkit *client.Client
	name     string
	builder  llb.State // its image
	run      llb.State // the run image as a layout without layers
	env      llb.State // platform environment
	builds   int
}

func newStock(b *testing.B, store *imagestore.Store, name string) *stock {
	bk, err := client.New(b.Context(), "unix://"+filepath.Join(shared.root, "run", "buildkitd.sock"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { bk.Close() })
	config, err := store.Read(b.Context(), mustImage(b, store, build.DefaultBuilder).Manifest.Config)
	if err != nil {
		b.Fatal(err)
	}
	builder, err := llb.Image(build.DefaultBuilder, llb.ResolveModePreferLocal).WithImageConfig(config)
	if err != nil {
		b.Fatal(err)
	}
	return &stock{
		buildkit: bk, name: name, builder: builder, run: sparseLayout(b, store, build.CNBRunImage),
		// What the builder image trusts, for Node.js, which has a list of its own.
		env: llb.Scratch().File(llb.Mkdir("/env", 0o755).Mkfile("/env/NODE_EXTRA_CA_CERTS", 0o644, []byte("/etc/ssl/certs/ca-certificates.crt"))),
	}
}

// sparseLayout is an image as an OCI layout without its layers, where the lifecycle looks for it.
func sparseLayout(b *testing.B, store *imagestore.Store, name string) llb.State {
	img := mustImage(b, store, name)
	const dir = "/index.docker.io/deis/run/cnb"
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{img.ManifestDesc}})
	if err != nil {
		b.Fatal(err)
	}
	owner := llb.WithUIDGID(1000, 1000)
	file := llb.Mkdir(dir+"/blobs/sha256", 0o755, llb.WithParents(true), owner).
		Mkfile(dir+"/oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`), owner).
		Mkfile(dir+"/index.json", 0o644, index, owner)
	for _, desc := range []ocispec.Descriptor{img.ManifestDesc, img.Manifest.Config} {
		data, err := store.Read(b.Context(), desc)
		if err != nil {
			b.Fatal(err)
		}
		file = file.Mkfile(dir+"/blobs/sha256/"+desc.Digest.Encoded(), 0o644, data, owner)
	}
	return llb.Scratch().File(file)
}

// ranBuilder is the lifecycle's line about how long its buildpacks ran.
var ranBuilder = regexp.MustCompile(`Timer: Builder ran for (\S+)`)

func (s *stock) build(b *testing.B, dir string) (took, buildpacks time.Duration) {
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	files, err := fsutil.NewFS(dir)
	if err == nil {
		files, err = fsutil.NewFilterFS(files, &fsutil.FilterOpt{ExcludePatterns: []string{".git"}})
	}
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	def, err := s.definition().Marshal(ctx)
	if err != nil {
		b.Fatal(err)
	}
	events, said := solveLog()
	_, err = s.buildkit.Solve(ctx, def, client.SolveOpt{LocalMounts: map[string]fsutil.FS{"context": files}, SharedKey: "stock-" + s.name}, events)
	took = time.Since(began)
	log := <-said
	if err != nil {
		b.Fatalf("stock lifecycle: %v\n%s", err, log)
	}
	m := ranBuilder.FindStringSubmatch(log)
	if m == nil {
		b.Fatalf("the stock lifecycle does not say how long its buildpacks ran:\n%s", log)
	}
	if buildpacks, err = time.ParseDuration(m[1]); err != nil {
		b.Fatal(err)
	}
	return took, buildpacks
}

// solveLog takes a solve's events; what its steps wrote comes when they end.
func solveLog() (events chan *client.SolveStatus, said <-chan string) {
	events = make(chan *client.SolveStatus)
	whole := make(chan string, 1)
	go func() {
		var log strings.Builder
		for e := range events {
			for _, l := range e.Logs {
				log.Write(l.Data)
			}
		}
		whole <- log.String()
	}()
	return events, whole
}

// definition is the one step. The layout of the run image is copied to where the app's is kept from build to build.
func (s *stock) definition() llb.State {
	s.builds++
	owner := llb.WithUIDGID(1000, 1000)
	own := llb.Scratch().File(llb.Mkdir("/owned", 0o755, owner))
	local := llb.Local("context", llb.SharedKeyHint("context"))
	workspace := llb.Scratch().File(llb.Mkdir("/owned", 0o755, owner).Copy(local, "/", "/owned", &llb.CopyInfo{CopyDirContentsOnly: true}, owner))
	off := llb.ContentCache(llb.MountContentCacheOff)
	options := []llb.RunOption{
		llb.Shlex(`sh -c "cp -r /run-layout/. /layout/ && exec /cnb/lifecycle/creator -no-color -log-level debug -app /workspace -layers /layers -platform /bench/platform -cache-dir /cache -layout -layout-dir /layout -run-image docker.io/deis/run:cnb deis/` + s.name + `"`),
		llb.User("1000:1000"), llb.Dir("/workspace"),
		llb.AddEnv("CNB_PLATFORM_API", "0.13"), llb.AddEnv("CNB_EXPERIMENTAL_MODE", "silent"), llb.AddEnv("BENCH_BUILD", strconv.Itoa(s.builds)),
		llb.AddMount("/workspace", workspace, llb.SourcePath("/owned"), llb.ForceNoOutput, off),
		llb.AddMount("/layers", own, llb.SourcePath("/owned"), llb.ForceNoOutput, off),
		llb.AddMount("/bench/platform", s.env, llb.Readonly, off),
		llb.AddMount("/run-layout", s.run, llb.Readonly, off),
		llb.AddMount("/cache", own, llb.SourcePath("/owned"), llb.AsPersistentCacheDir("stock-cache-"+s.name, llb.CacheMountLocked), off),
		llb.AddMount("/layout", own, llb.SourcePath("/owned"), llb.AsPersistentCacheDir("stock-layout-"+s.name, llb.CacheMountLocked), off),
	}
	return s.builder.Run(options...).Root()
}
