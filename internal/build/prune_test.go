package build_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/moby/buildkit/client"

	"github.com/deis/deis/internal/build"
)

// usage is BuildKit's records by their ids.
func (p *platform) usage(t *testing.T) map[string]*client.UsageInfo {
	t.Helper()
	c, err := client.New(t.Context(), "unix://"+p.buildkit)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	list, err := c.DiskUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*client.UsageInfo{}
	for _, r := range list {
		all[r.ID] = r
	}
	return all
}

// kept lists what containerd keeps: images, snapshots, blobs.
func (p *platform) kept(t *testing.T) (names []string) {
	t.Helper()
	c := p.client(t)
	images, err := c.ImageService().List(t.Context())
	for _, img := range images {
		names = append(names, img.Name)
	}
	err = errors.Join(err,
		c.SnapshotService(defaults.DefaultSnapshotter).Walk(t.Context(), func(_ context.Context, s snapshots.Info) error {
			names = append(names, s.Name)
			return nil
		}),
		c.ContentStore().Walk(t.Context(), func(b content.Info) error {
			names = append(names, b.Digest.String())
			return nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// leftBeyond is kept without what was kept before, once containerd has collected its garbage.
func (p *platform) leftBeyond(t *testing.T, before []string) (left []string) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		left = slices.DeleteFunc(p.kept(t), func(name string) bool { return slices.Contains(before, name) })
		if len(left) == 0 {
			return nil
		}
	}
	return left
}

// buildCache is buildApp with the number of the cache.
func (p *platform) buildCache(t *testing.T, r *repo, app string, cache int64, files map[string]string) built {
	t.Helper()
	var log strings.Builder
	_, err := p.builder.Build(t.Context(), build.Request{
		App: app, Cache: cache, Tree: r.open(r.commit(files)), Log: func(line string) { log.WriteString(line + "\n") },
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	return built{log: log.String()}
}

func (p *platform) prune(t *testing.T, caches map[string]int64) int64 {
	t.Helper()
	freed, err := p.builder.Prune(t.Context(), func(context.Context) (map[string]int64, error) { return caches, nil })
	if err != nil {
		t.Fatal(err)
	}
	return freed
}

// TestEndedBuildsLetGo: what a build used can be removed soon after it failed or was ended, also while nothing else is built.
func TestEndedBuildsLetGo(t *testing.T) {
	p, r := sharedPlatform(t), newRepo(t)
	for name, command := range map[string]string{"failed": "echo begun; exit 1", "ended": "echo begun; sleep 1000"} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			dockerfile := "FROM deis/run\nRUN head -c 6000000 /dev/urandom >/" + name + "\nRUN " + command + "\nCMD true\n"
			_, err := p.builder.Build(ctx, build.Request{
				App: "app-fails", Tree: r.open(r.commit(map[string]string{"Dockerfile": dockerfile})),
				Log: func(line string) {
					if name == "ended" && strings.HasSuffix(line, " begun") {
						cancel()
					}
				},
			})
			if err == nil {
				t.Fatal("it did not fail")
			}
			began := time.Now()
			waitFor(t, func() bool {
				for _, u := range p.usage(t) {
					if u.InUse {
						t.Logf("%v in use: %s %q, %d bytes", time.Since(began), u.RecordType, u.Description, u.Size)
						return false
					}
				}
				return true
			})
		})
	}
}

// restartBuildkit is the end of all uses: BuildKit lets go of what a build used some time after its end.
func (p *platform) restartBuildkit(t *testing.T) {
	t.Helper()
	if err := errors.Join(p.stopBuildkit(), p.startBuildkit(), p.builder.Ready(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// everything is a Dockerfile with one of each kind of record: a stage that no image has, a cache
// mount, a source, results of RUN and COPY, a merge.
func everything(text string) map[string]string {
	return map[string]string{
		"Dockerfile": "FROM deis/run AS b\nCOPY src /src\nRUN --mount=type=cache,target=/c echo x >>/c/n && head -c 3000000 /dev/urandom >/c/big && " +
			"cp /c/n /n && head -c 2000000 /dev/urandom >/stage\n" +
			"FROM deis/run\nCOPY --from=b /n /n\nCOPY --link src /src\nRUN head -c 1000000 /dev/urandom >/mine\nCMD [\"true\"]\n",
		"src": text,
	}
}

func TestPruneLeavesNothingOfAnAppThatIsGone(t *testing.T) {
	r := newRepo(t)
	shell := func(text string) map[string]string {
		return map[string]string{"app.sh": "echo " + text + "\n", "deps.lock": text}
	}
	noise := map[string]string{"SIZE": "6500000"} // bytes of dependencies
	for name, c := range map[string]struct {
		build  func(app, text string) string // returns the log
		cached string                        // what the log of a second build says
		least  int64                         // bytes that a build leaves
	}{
		"dockerfile": {func(app, text string) string {
			return sharedPlatform(t).buildCache(t, r, app, 0, everything(text)).log
		}, "RUN head -c 1000000 /dev/urandom >/mine (cached)", 6_000_000},
		"buildpacks": {func(app, text string) string {
			return mustPush(t, r, build.Request{App: app, Config: noise}, shell(text)).log
		}, "built before", 6_000_000},
	} {
		t.Run(name, func(t *testing.T) {
			p := sharedPlatform(t)
			p.restartBuildkit(t)
			p.prune(t, map[string]int64{}) // what other tests left is no app's either from here on
			c.build("app-stays", "stays")
			before, kept := p.usage(t), p.kept(t)
			c.build("app-gone", "goes")
			if after := p.usage(t); len(after) < len(before)+3 {
				t.Fatalf("a build made %d records", len(after)-len(before))
			}
			apps := map[string]int64{"app-stays": 0, "app-gone": 0}
			if freed := p.prune(t, apps); freed != 0 {
				t.Errorf("%d bytes freed while both apps exist", freed)
			}
			delete(apps, "app-gone")
			var freed int64
			waitFor(t, func() bool { // see restartBuildkit
				freed += p.prune(t, apps)
				for id, r := range p.usage(t) {
					if before[id] == nil {
						t.Logf("left: %s %q, %d bytes, in use: %v, shared: %v", r.RecordType, r.Description, r.Size, r.InUse, r.Shared)
						return false
					}
				}
				return true
			})
			if freed < c.least {
				t.Errorf("%d bytes freed", freed)
			}
			if left := p.leftBeyond(t, kept); len(left) > 0 {
				t.Errorf("left in containerd: %q", left)
			}
			if log := c.build("app-stays", "stays"); !strings.Contains(log, c.cached) {
				t.Errorf("the other app is built anew:\n%s", log)
			}
		})
	}
}

func TestPruneKeepsWhatItIsNotTold(t *testing.T) {
	p, r := sharedPlatform(t), newRepo(t)
	p.buildCache(t, r, "app-unsure", 0, everything("unsure"))
	before := len(p.usage(t))
	refused := errors.New("the controller does not answer")
	if _, err := p.builder.Prune(t.Context(), func(context.Context) (map[string]int64, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Errorf("err = %v", err)
	}
	if after := len(p.usage(t)); after != before {
		t.Errorf("%d records, then %d", before, after)
	}
}

func TestClearedCacheStartsAnew(t *testing.T) {
	p, r := sharedPlatform(t), newRepo(t)
	files := everything("one")
	number := func(b built) string { // how many builds filled the cache mount before
		for line := range strings.Lines(b.log) {
			if _, n, ok := strings.Cut(line, "lines in the cache: "); ok {
				return strings.TrimSpace(n)
			}
		}
		return "cached"
	}
	files["Dockerfile"] = "FROM deis/run\nCOPY src /src\nRUN --mount=type=cache,target=/c echo x >>/c/n && echo lines in the ca\"\"che: $(wc -l </c/n)\nCMD [\"true\"]\n"
	step := func(cache int64, src, want string) {
		t.Helper()
		files["src"] = src
		if b := p.buildCache(t, r, "app-clear", cache, files); number(b) != want {
			t.Errorf("cache %d, source %s: %s, want %s\n%s", cache, src, number(b), want, b.log)
		}
	}
	step(0, "one", "1")
	step(0, "one", "cached")
	step(0, "two", "2")
	step(1, "two", "1")
	step(1, "two", "cached")
	var freed int64
	waitFor(t, func() bool {
		freed += p.prune(t, map[string]int64{"app-clear": 1})
		for _, r := range p.usage(t) {
			// What was copied is no result of a step: the current cache builds on it.
			if strings.Contains(r.Description, `"app/app-clear/0`) && !strings.Contains(r.Description, "COPY") {
				t.Logf("left: %q", r.Description)
				return false
			}
		}
		return true
	})
	if freed <= 0 {
		t.Errorf("%d bytes freed", freed)
	}
	step(1, "two", "cached")
	step(1, "three", "2")
	step(0, "three", "1") // cleared means gone
}

// TestCachesAreOnesOwn: the result of a step that read a cache mount is not another app's.
func TestCachesAreOnesOwn(t *testing.T) {
	p, r := sharedPlatform(t), newRepo(t)
	files := map[string]string{"Dockerfile": "FROM deis/run\nRUN --mount=type=cache,id=/../../app/app-mine/0/m,target=/c cat /c/secret 2>/dev/null || echo \"secret\" of $(date +%N) | tee /c/secret\nCMD [\"true\"]\n"}
	secret := func(app string) string {
		b := p.buildCache(t, r, app, 0, files)
		_, text, _ := strings.Cut(b.log, "secret of ")
		text, _, _ = strings.Cut(text, "\n")
		return text
	}
	mine := secret("app-mine")
	if theirs := secret("app-theirs"); mine == "" || theirs == "" || mine == theirs {
		t.Errorf("mine %q, theirs %q", mine, theirs)
	}
}

// smallPlatform is a BuildKit of its own, without base images, on the shared containerd.
func smallPlatform(t *testing.T) *platform {
	t.Helper()
	p := &platform{dir: t.TempDir(), socket: sharedPlatform(t).socket, ca: sharedPlatform(t).ca}
	p.id = fmt.Sprintf("%x", sha256.Sum256([]byte(p.dir)))[:6]
	p.namespace, p.buildkit = "deis-"+p.id, filepath.Join(p.dir, "b.sock")
	t.Cleanup(p.close)
	if err := p.startBuildkit(); err != nil {
		t.Fatal(err)
	}
	var err error
	p.builder, err = build.New(t.Context(), build.Options{Address: p.buildkit, ContainerdAddress: p.socket, Namespace: p.namespace, CgroupParent: "/deis-" + p.id + "-build"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCacheBudget: the cache is brought below DEIS_BUILD_CACHE. Layers of images do not count.
func TestCacheBudget(t *testing.T) {
	const budget, file, apps = 20e6, 4e6, 6
	p, r := smallPlatform(t), newRepo(t)
	used := func() (bytes int64) {
		for _, u := range p.usage(t) {
			if !u.Shared {
				bytes += u.Size
			}
		}
		return bytes
	}
	for i := range apps {
		noise := make([]byte, file)
		_, _ = rand.Read(noise) // never fails
		p.buildCache(t, r, fmt.Sprintf("app-%d", i), 0, map[string]string{
			"Dockerfile": "FROM scratch AS a\nCOPY f /f\nFROM scratch\nCOPY --from=a /f /g\nCMD [\"/g\"]\n", "f": string(noise),
		})
	}
	if got := used(); got < 2*apps*file {
		t.Fatalf("%d builds left %d bytes", apps, got)
	}
	t.Setenv("DEIS_BUILD_CACHE", fmt.Sprint(int64(budget)))
	p.restartBuildkit(t)
	var got int64
	for end := time.Now().Add(150 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if got = used(); got > 0 && got <= budget {
			return
		}
	}
	t.Errorf("%d bytes are used, the budget is %d", got, int64(budget))
}
