package build_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/paas"
)

const hello = "FROM deis/run\nCOPY . /app\nCMD [\"/app/run\"]\n"

// built is a finished build, seen from containerd's side.
type built struct {
	*build.Result
	log    string
	config ocispec.Image
	// ls is the output of a shell command in the image's file system.
	sh func(command string) string
}

func mustBuild(t *testing.T, r *repo, app string, files map[string]string) built {
	t.Helper()
	p := sharedPlatform(t)
	res, log, err := p.buildApp(t, r, app, files)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	return p.inspect(t, res, log)
}

// inspect checks that an image is in the store and reads it.
func (p *platform) inspect(t *testing.T, res *build.Result, log string) built {
	t.Helper()
	img, err := p.client(t).GetImage(t.Context(), res.Image)
	if err != nil {
		t.Fatal(err)
	}
	if got := img.Target().Digest.String(); got != res.Digest {
		t.Errorf("digest in the store %s, reported %s", got, res.Digest)
	}
	if ok, err := img.IsUnpacked(t.Context(), defaults.DefaultSnapshotter); !ok || err != nil {
		t.Errorf("unpacked: %v, %v", ok, err)
	}
	b := built{Result: res, log: log}
	desc, err := img.Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	data, err := content.ReadBlob(t.Context(), img.ContentStore(), desc)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &b.config); err != nil {
		t.Fatal(err)
	}
	b.sh = func(command string) string { return p.shell(t, b.config, command) }
	return b
}

// shell runs a command on the host in the image's file system.
func (p *platform) shell(t *testing.T, config ocispec.Image, command string) string {
	t.Helper()
	snapshots := p.client(t).SnapshotService(defaults.DefaultSnapshotter)
	key := fmt.Sprintf("view-%d", time.Now().UnixNano())
	mounts, err := snapshots.View(t.Context(), key, identity.ChainID(config.RootFS.DiffIDs).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = snapshots.Remove(context.WithoutCancel(t.Context()), key) }()
	out := ""
	err = mount.WithTempMount(t.Context(), mounts, func(root string) error {
		var err error
		out, err = runIn(root, command)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

func TestBuild(t *testing.T) {
	r := newRepo(t)
	b := mustBuild(t, r, "app-first", map[string]string{"Dockerfile": hello, "100755:run": "#!/bin/sh\n", "Procfile": "web: /app/run\n"})
	if b.Procfile["web"] != "/app/run" || b.Strategy != paas.StrategyDockerfile {
		t.Errorf("got %+v", b.Result)
	}
	commit := b.config.Config.Labels["org.opencontainers.image.revision"]
	if b.Image != build.ImageName("app-first", commit) || !slices.Contains(b.config.Config.Env, "GIT_SHA="+commit) {
		t.Errorf("image %s has labels %v, environment %v", b.Image, b.config.Config.Labels, b.config.Config.Env)
	}
	if at := b.config.Created; at == nil || at.Format(time.DateOnly) != "2000-01-01" {
		t.Errorf("the image is of %v", at)
	}
	for _, want := range []string{"       [1/2] FROM docker.io/deis/run:latest", "       [2/2] COPY . /app", "       exporting to image"} {
		if !strings.Contains(b.log, want) || !strings.Contains(b.Log, want) {
			t.Errorf("no line %q in\n%s", want, b.log)
		}
	}
}

func TestUnchangedStepsAreCached(t *testing.T) {
	r := newRepo(t)
	files := map[string]string{
		"Dockerfile": "FROM deis/run\nCOPY a /a\nRUN date +%N >/stamp\nCOPY . /app\nCMD [\"true\"]\n",
		"a":          "one", "b": "one",
	}
	first := mustBuild(t, r, "app-cache", files)
	files["b"] = "two"
	second := mustBuild(t, r, "app-cache", files)
	if got, want := second.sh("cat /stamp"), first.sh("cat /stamp"); got != want {
		t.Errorf("RUN ran again: %s then %s", want, got)
	}
	if got := second.sh("cat /app/b"); got != "two" {
		t.Errorf("/app/b is %q", got)
	}
	if first.Digest == second.Digest || !strings.Contains(second.log, "RUN date +%N >/stamp (cached)") {
		t.Errorf("log:\n%s", second.log)
	}
	files["a"] = "two"
	third := mustBuild(t, r, "app-cache", files)
	if first.sh("cat /stamp") == third.sh("cat /stamp") {
		t.Error("RUN did not run again after its input changed")
	}
}

func TestTreeArrivesAsPushed(t *testing.T) {
	names := []string{"with space", "ünïcödé-\u65e5\u672c", "new\nline", `back\slash`, `"quoted"`, "-dash", ".hidden", "a.txt", "a/b", "a-b", "%2e%2e", "[x]*?"}
	files := map[string]string{
		"Dockerfile":     "FROM deis/run\nCOPY . /app/\nRUN test \"$(/app/100)\" = ran\nCMD [\"true\"]\n",
		"100755:100":     "#!/bin/sh\necho ran\n",
		"120000:dir/up":  "../../../../etc/passwd",
		"120000:abs":     "/etc/shadow",
		"120000:dangles": "nowhere/at all",
		"120000:ok":      "a.txt",
		"empty":          "",
		"160000:sub/mod": strings.Repeat("1", 40),
		".gitattributes": "*.bin filter=lfs\n",
		"big.bin":        "version https://git-lfs.github.com/spec/v1\noid sha256:" + strings.Repeat("0", 64) + "\nsize 12345\n",
		"zeros":          strings.Repeat("\x00", 9<<20),
	}
	for _, n := range names {
		files[n] = "content of " + n
	}
	b := mustBuild(t, newRepo(t), "app-tree", files)
	for _, n := range names {
		if got := b.sh("cat '/app/" + n + "'"); got != "content of "+n {
			t.Errorf("%q holds %q", n, got)
		}
	}
	for command, want := range map[string]string{
		"readlink /app/dir/up":                        "../../../../etc/passwd",
		"readlink /app/abs":                           "/etc/shadow",
		"readlink /app/dangles":                       "nowhere/at all",
		"cat /app/ok":                                 "content of a.txt",
		"stat -c '%a %u %g' /app/100":                 "755 0 0",
		"stat -c '%a %s' /app/empty":                  "644 0",
		"stat -c '%a %s' /app/zeros":                  "644 9437184",
		"date -u -r /app/empty +%F":                   "2000-01-01",
		"stat -c %F /app/sub/mod; ls -A /app/sub/mod": "directory",
	} {
		if got := b.sh(command); got != want {
			t.Errorf("%s: got %q, want %q", command, got, want)
		}
	}
	for _, want := range []string{"submodule sub/mod", "1 file is in Git LFS: the build gets only the pointer of big.bin"} {
		if !strings.Contains(b.log, want) {
			t.Errorf("log says nothing of %q:\n%s", want, b.log)
		}
	}
}

func TestDockerfileFeatures(t *testing.T) {
	for name, dockerfile := range map[string]string{
		"syntax line":    "# syntax=docker/dockerfile:1\nFROM deis/run\nCMD [\"true\"]\n",
		"labs syntax":    "# syntax = docker/dockerfile:1.7-labs\nFROM deis/run\nRUN <<EOF\ntest -f /etc/debian_version\nEOF\nCMD true\n",
		"cache mount":    "FROM deis/run AS b\nRUN --mount=type=cache,target=/c echo x >/c/x && cp /c/x /x\nFROM deis/run\nCOPY --from=b /x /x\nCMD true\n",
		"bind mount":     "FROM deis/run\nRUN --mount=type=bind,target=/src test -f /src/Dockerfile\nCMD true\n",
		"link and chown": "FROM deis/run\nCOPY --link --chown=1000:1000 Dockerfile /d\nUSER 1000\nCMD true\n",
		"scratch":        "FROM scratch\nCOPY Dockerfile /\nCMD [\"/x\"]\n",
		"CRLF":           "FROM deis/run\r\nRUN true\r\nCMD true\r\n",
		"build argument": "ARG BASE=deis/run\nFROM ${BASE}\nARG X=1\nRUN test $X = 1\nCMD true\n",
		"time":           "FROM deis/run\nRUN test -z \"$SOURCE_DATE_EPOCH\"\nARG SOURCE_DATE_EPOCH\nRUN test $SOURCE_DATE_EPOCH = 946684800\nCMD true\n",
		"network none":   "FROM deis/run\nRUN --network=none ! cat /sys/class/net/eth0/address\nCMD true\n",
	} {
		t.Run(name, func(t *testing.T) {
			mustBuild(t, newRepo(t), "app-features", map[string]string{"Dockerfile": dockerfile})
		})
	}
}

// TestCacheMountsArePrivate: an app must not poison what others compile with.
func TestCacheMountsArePrivate(t *testing.T) {
	files := map[string]string{"Dockerfile": "FROM deis/run\nCOPY n /n\nRUN --mount=type=cache,target=/c echo $(cat /n) >>/c/seen; cp /c/seen /seen\nCMD [\"true\"]\n"}
	for _, step := range []struct{ app, n, want string }{{"app-c1", "1", "1"}, {"app-c2", "2", "2"}, {"app-c1", "3", "1\n3"}} {
		files["n"] = step.n
		if got := mustBuild(t, newRepo(t), step.app, files).sh("cat /seen"); got != step.want {
			t.Errorf("%s sees %q, want %q", step.app, got, step.want)
		}
	}
}

func TestDockerignore(t *testing.T) {
	b := mustBuild(t, newRepo(t), "app-ignore", map[string]string{"Dockerfile": hello, "run": "", "secret/key": "x", "keep/key": "x", ".dockerignore": "secret\nkeep\n!keep/key\n"})
	if got := b.sh("cd /app; find . -type f | sort | tr '\\n' ' '"); got != "./.dockerignore ./Dockerfile ./keep/key ./run " {
		t.Errorf("got %s", got)
	}
}

// TestForeignImages: no build gets at the image of an app, by whatever name it may know.
func TestForeignImages(t *testing.T) {
	r := newRepo(t)
	secret := mustBuild(t, r, "app-foreign", map[string]string{"Dockerfile": hello, "secret": "s3cret"})
	digest := "deis.internal/apps/app-foreign@" + secret.Digest
	for name, dockerfile := range map[string]string{
		"FROM":   "FROM " + secret.Image + "\n",
		"digest": "FROM " + digest + "\n",
		"COPY":   "FROM deis/run\nCOPY --from=" + secret.Image + " / /other\nCMD true\n",
		"RUN":    "FROM deis/run\nRUN --mount=from=" + secret.Image + ",target=/other cp -r /other /mine\nCMD true\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := sharedPlatform(t).buildApp(t, newRepo(t), "app-thief", map[string]string{"Dockerfile": dockerfile})
			if paas.CodeOf(err) != paas.Invalid || !strings.Contains(err.Error(), "is not on this machine") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  string // beginning of the error; "..." stands for anything
		log   string
	}{
		{"no Dockerfile and no builder", map[string]string{"Procfile": "web: x\n"}, "the builder image deis/builder:latest is not on this machine, and its registry cannot be reached\nAsk the operator", ""},
		{"Dockerfile elsewhere", map[string]string{"docker/Dockerfile": hello}, "the builder image", ""},
		{"Dockerfile is a directory", map[string]string{"Dockerfile/x": hello}, "the builder image", ""},
		{"empty Dockerfile", map[string]string{"Dockerfile": "\n"}, "the Dockerfile is empty", ""},
		{"large Dockerfile", map[string]string{"Dockerfile": strings.Repeat("#\n", 1<<20)}, "Dockerfile has 2097152 bytes; the limit is 1048576", ""},
		{"Procfile", map[string]string{"Dockerfile": hello, "Procfile": "web:\n  - x\n"}, "Procfile line 1: the command of \"web\" is not one text", ""},
		{
			"failing RUN",
			map[string]string{"Dockerfile": "FROM deis/run\n\nRUN echo before; echo \"\x1b[31mred\x1b]0;title\x07\"; \\\n  exit 3\nCMD true\n"},
			"Dockerfile line 3: RUN echo before; echo \"red\"; ...\nthe command failed with exit code 3", "       before\n       red\n",
		},
		{"killed RUN", map[string]string{"Dockerfile": "FROM deis/run\nRUN sh -c 'kill -9 $$'; exit $?\nCMD true\n"}, "Dockerfile line 2: RUN sh -c 'kill -9 $$'; exit $?\nthe command was killed", ""},
		{"distrust", map[string]string{"Dockerfile": "FROM deis/run\nRUN echo npm error code SELF_SIGNED_CERT_IN_CHAIN; exit 1\nCMD true\n"}, "...the platform's operator can have builds trust it: DEIS_BUILD_CA_FILE.", ""},
		{"unknown instruction", map[string]string{"Dockerfile": "FROM deis/run\nFOO bar\n"}, "Dockerfile line 2: unknown instruction: FOO", ""},
		{"no FROM", map[string]string{"Dockerfile": "RUN true\n"}, "Dockerfile line 1: no build stage in current context", ""},
		{"missing file", map[string]string{"Dockerfile": "FROM deis/run\nCOPY nothing /\nCMD true\n"}, "Dockerfile line 2: COPY nothing /\n\"/nothing\": not found in the pushed files", ""},
		{"missing base", map[string]string{"Dockerfile": "FROM node:22\nCMD true\n"}, "Dockerfile line 1: the image node:22 is not on this machine, and its registry cannot be reached\nBase images that are always here: deis/run, deis/build.", ""},
		{"missing base with port", map[string]string{"Dockerfile": "FROM registry.invalid:1/a/b:c\nCMD true\n"}, "Dockerfile line 1: the image registry.invalid:1/a/b:c is not on this machine", ""},
		{"no command", map[string]string{"Dockerfile": "FROM deis/run\n"}, "the image has no command to run", ""},
		{"privileges", map[string]string{"Dockerfile": "# syntax=docker/dockerfile:1\nFROM deis/run\nRUN --security=insecure true\nCMD true\n"}, "...RUN --security=insecure is not allowed here: steps get no more rights than the apps", ""},
		{"host network", map[string]string{"Dockerfile": "FROM deis/run\nRUN --network=host true\nCMD true\n"}, "...RUN --network=host is not allowed here: steps have a network of their own, which reaches the internet", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, log, err := sharedPlatform(t).buildApp(t, newRepo(t), "app-refused", tt.files)
			if err == nil {
				t.Fatal("built")
			}
			e, ok := errors.AsType[*paas.Error](err)
			if !ok || e.Code != paas.Invalid {
				t.Fatalf("got %T %v", err, err)
			}
			if want, anywhere := strings.CutPrefix(tt.want, "..."); !strings.HasPrefix(e.Message, want) && (!anywhere || !strings.Contains(e.Message, want)) {
				t.Errorf("got:  %q\nwant: %q", e.Message, tt.want)
			}
			if !strings.Contains(log, tt.log) || strings.ContainsRune(log+e.Message, '\x1b') {
				t.Errorf("log:\n%q", log)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	p, r := sharedPlatform(t), newRepo(t)
	tree := r.open(r.commit(map[string]string{"Dockerfile": "FROM deis/run\nRUN echo begun; sleep 1000\nCMD true\n"}))
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{})
	go func() {
		<-begun
		cancel()
	}()
	start := time.Now()
	_, err := p.builder.Build(ctx, build.Request{App: "app-cancel", Tree: tree, Log: func(line string) {
		if strings.HasSuffix(line, " begun") {
			close(begun)
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	waitFor(t, func() bool { return p.steps(t) == 0 })
	t.Logf("ended after %v", time.Since(start))
}

func TestStepsHaveANetworkOfTheirOwn(t *testing.T) {
	b := mustBuild(t, newRepo(t), "app-network", map[string]string{"Dockerfile": "FROM deis/run\nRUN cat /proc/net/route >/routes\nRUN getent hosts localhost\nCMD [\"true\"]\n"})
	defaults := regexp.MustCompile(`(?m)^eth[0-9]\t00000000\t`).FindAllString(b.sh("cat /routes"), -1)
	host, err := os.ReadFile("/proc/net/route")
	if err != nil {
		t.Fatal(err)
	}
	if routes := b.sh("cat /routes"); len(defaults) != 1 || routes == string(host) {
		t.Errorf("routes:\n%s", routes)
	}
}

// steps is the number of containers of RUN steps.
func (p *platform) steps(t *testing.T) int {
	t.Helper()
	all, err := p.client(t).Containers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if done() {
			return
		}
	}
	t.Fatal("waited in vain")
}

// TestRestarts: containerd, then BuildKit, go away and come back under a
// Builder that knows nothing of it.
func TestRestarts(t *testing.T) {
	p, r := sharedPlatform(t), newRepo(t)
	must := func(n int) {
		t.Helper()
		start := time.Now()
		files := map[string]string{"Dockerfile": hello, "run": fmt.Sprint(n)}
		if _, log, err := p.buildApp(t, r, "app", files); err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		t.Logf("build %d: %v", n, time.Since(start))
	}
	must(1)

	_ = p.containerd.Process.Kill()
	_ = p.containerd.Wait()
	if err := p.startContainerd(); err != nil {
		t.Fatal(err)
	}
	must(2)

	// Killed in the midst of a step, BuildKit leaves a container that its successor removes.
	begun, result := make(chan struct{}), make(chan error)
	go func() {
		tree := r.open(r.commit(map[string]string{"Dockerfile": "FROM deis/run\nRUN echo begun; sleep 1000\nCMD true\n"}))
		_, err := p.builder.Build(t.Context(), build.Request{App: "app", Tree: tree, Log: func(line string) {
			if strings.HasSuffix(line, " begun") {
				close(begun)
			}
		}})
		result <- err
	}()
	<-begun
	_ = p.buildkitd.Process.Kill()
	_ = p.buildkitd.Wait()
	if err := <-result; paas.CodeOf(err) != paas.Unavailable {
		t.Errorf("build on a killed BuildKit ended with %v", err)
	}
	if n := p.steps(t); n != 1 {
		t.Errorf("%d steps run on after the kill, want 1", n)
	}
	go func() {
		_, _, err := p.buildApp(t, r, "app", map[string]string{"Dockerfile": hello, "run": "3"})
		result <- err
	}()
	time.Sleep(300 * time.Millisecond)
	if err := p.startBuildkit(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if n := p.steps(t); n != 0 {
		t.Errorf("%d steps left", n)
	}
	must(4)
}

func TestParallelBuilds(t *testing.T) {
	p := sharedPlatform(t)
	var group errgroup.Group
	for i := range 6 {
		r := newRepo(t)
		tree := r.open(r.commit(map[string]string{"Dockerfile": hello, "run": fmt.Sprint(i)}))
		group.Go(func() error {
			// Two builds for each of three apps.
			_, err := p.builder.Build(t.Context(), build.Request{App: fmt.Sprintf("app-%d", i%3), Tree: tree, Log: func(string) {}})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// BenchmarkBuild measures one build of an app of 300 files: again, and with one file changed.
func BenchmarkBuild(b *testing.B) {
	p, r := sharedPlatform(b), newRepo(b)
	files := map[string]string{"Dockerfile": hello, "run": ""}
	for i := range 300 {
		files[fmt.Sprintf("d%d/f%d", i%20, i)] = strings.Repeat(fmt.Sprintf("%d\n", i), 200)
	}
	bench := func(name string, change bool) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				if change {
					files["run"] = fmt.Sprint(time.Now())
				}
				commit := r.commit(files)
				b.StartTimer()
				tree := r.open(commit)
				if _, err := p.builder.Build(b.Context(), build.Request{App: "app-bench", Tree: tree, Log: func(string) {}}); err != nil {
					b.Fatal(err)
				}
				tree.Close()
			}
		})
	}
	bench("first", true)
	bench("unchanged", false)
	bench("one file", true)
}
