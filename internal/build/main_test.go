package build_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/build/buildkitd"
	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/hostnet"
)

// platform is a real containerd of our own, and BuildKit's role as a process.
type platform struct {
	dir, socket, id, namespace string

	containerd *exec.Cmd
	buildkitd  *exec.Cmd
	buildkit   string
	builder    *build.Builder
	ca         *authority // that builds trust
}

// roleEnv makes this test binary the role.
const roleEnv = "DEIS_TEST_BUILDKITD"

// layersCache is shared by test runs, because it takes a minute to make.
func layersCache() string {
	if dir := os.Getenv("DEIS_TEST_BASE_CACHE"); dir != "" {
		return dir
	}
	return filepath.Join("..", "..", ".deis", "cache", "base")
}

var shared struct {
	once sync.Once
	p    *platform
	err  error
}

// sharedPlatform has deis/run and one Builder for all tests.
func sharedPlatform(t testing.TB) *platform {
	t.Helper()
	shared.once.Do(func() { shared.p, shared.err = startPlatform() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.p
}

func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) != "" {
		daemon.Main("buildkitd", os.Args[1:], buildkitd.Main)
		return
	}
	for env, run := range map[string]func() error{appEnv: runApp, loadEnv: runLoad} {
		if os.Getenv(env) == "" {
			continue
		}
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if shared.p != nil {
		shared.p.close()
	}
	os.Exit(code)
}

func startPlatform() (_ *platform, err error) {
	p := &platform{}
	if p.dir, err = os.MkdirTemp("", "deis-build-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	p.id = fmt.Sprintf("%x", sha256.Sum256([]byte(p.dir)))[:6]
	p.namespace = "deis-" + p.id
	p.socket = filepath.Join(p.dir, "c.sock")
	if err := p.startContainerd(); err != nil {
		return nil, err
	}
	if p.ca, err = newAuthority(filepath.Join(p.dir, "ca.pem")); err != nil {
		return nil, err
	}
	p.buildkit = filepath.Join(p.dir, "b.sock")
	if err := p.startBuildkit(); err != nil {
		return nil, err
	}
	ctx := context.Background()
	if err := p.baseImages(ctx, func(line string) { fmt.Println(line) }, "deis/run"); err != nil {
		return nil, err
	}
	p.builder, err = build.New(ctx, build.Options{Address: p.buildkit, ContainerdAddress: p.socket, Namespace: p.namespace, CgroupParent: "/deis-" + p.id + "-build", Secret: []byte("test")})
	return p, err
}

func (p *platform) baseImages(ctx context.Context, log func(string), names ...string) error {
	return build.BaseImages(ctx, build.BaseConfig{ContainerdAddress: p.socket, Namespace: p.namespace, Cache: layersCache(), Images: names, Log: log})
}

func (p *platform) startContainerd() error {
	config := filepath.Join(p.dir, "c.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n"+
		"[plugins.\"io.containerd.internal.v1.opt\"]\n  path = %q\n",
		filepath.Join(p.dir, "root"), filepath.Join(p.dir, "state"), p.socket, filepath.Join(p.dir, "opt"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(p.dir, "containerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p.containerd = exec.CommandContext(context.Background(), "containerd", "--config", config)
	p.containerd.Stdout, p.containerd.Stderr = log, log
	if err := startBound(p.containerd); err != nil {
		return err
	}
	for range 1200 {
		if c, err := new(net.Dialer).DialContext(context.Background(), "unix", p.socket); err == nil {
			return c.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("containerd does not start; see %s", log.Name())
}

// startBound starts a process that dies with this one, however this one ends.
func startBound(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the signal comes when the thread that started it ends
		started <- cmd.Start()
		select {}
	}()
	return <-started
}

// startBuildkit starts this test binary again as the role.
func (p *platform) startBuildkit() error {
	log, err := os.OpenFile(filepath.Join(p.dir, "buildkitd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p.buildkitd = exec.CommandContext(context.Background(), self, "--root", p.dir, "--buildkit-address", p.buildkit, "--containerd-address", p.socket, "--log-level", "warn",
		"--build-ca-file", p.ca.file)
	p.buildkitd.Env = append(os.Environ(), roleEnv+"=1")
	p.buildkitd.Stdout, p.buildkitd.Stderr = log, log
	return startBound(p.buildkitd)
}

func (p *platform) stopBuildkit() error {
	return errors.Join(p.buildkitd.Process.Signal(syscall.SIGTERM), p.buildkitd.Wait())
}

func (p *platform) close() {
	if p.builder != nil {
		_ = p.builder.Close()
	}
	if p.buildkitd != nil {
		_ = p.stopBuildkit()
	}
	if n, err := hostnet.Open(hostnet.Options{Name: "deis" + p.id + "b", Dir: filepath.Join(p.dir, "cni")}); err == nil {
		_ = n.Remove(context.Background())
	}
	if p.containerd != nil {
		_ = p.containerd.Process.Signal(syscall.SIGTERM)
		_ = p.containerd.Wait()
	}
	if p.dir != "" {
		os.RemoveAll(p.dir)
	}
}

func (p *platform) client(t *testing.T) *containerd.Client {
	t.Helper()
	c, err := containerd.New(p.socket, containerd.WithDefaultNamespace(p.namespace))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// repo is a bare repository that files are committed to.
type repo struct {
	t   testing.TB
	dir string
}

func newRepo(t testing.TB) *repo {
	t.Helper()
	r := &repo{t, t.TempDir()}
	r.git("", "init", "--quiet", "--bare")
	return r
}

func (r *repo) git(stdin string, args ...string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "git", append([]string{"--git-dir", r.dir}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
		"GIT_AUTHOR_DATE=2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE=2026-01-01T00:00:00Z", // equal files are an equal commit
		"GIT_INDEX_FILE="+filepath.Join(r.dir, "index"))
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// commit makes a commit of these files only. A name may begin with "mode:",
// git's octal file mode, as in "120000:link".
func (r *repo) commit(files map[string]string) string {
	r.t.Helper()
	r.git("", "read-tree", "--empty")
	var index strings.Builder
	hashes := map[string]string{}
	for name, content := range files {
		mode := "100644"
		if m, rest, ok := strings.Cut(name, ":"); ok {
			mode, name = m, rest
		}
		hash := content
		if mode != "160000" {
			if hashes[content] == "" {
				hashes[content] = r.git(content, "hash-object", "-w", "--stdin")
			}
			hash = hashes[content]
		}
		fmt.Fprintf(&index, "%s %s\t%s\x00", mode, hash, name)
	}
	r.git(index.String(), "update-index", "-z", "--index-info")
	return r.git("", "commit-tree", "-m", "test", r.git("", "write-tree"))
}

func (r *repo) open(commit string) *build.Tree {
	r.t.Helper()
	tree, err := build.OpenTree(r.t.Context(), build.TreeOptions{GitDir: r.dir, Commit: commit})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(tree.Close)
	return tree
}

// buildApp builds a commit of files and returns the lines that the pusher saw.
func (p *platform) buildApp(t *testing.T, r *repo, app string, files map[string]string) (*build.Result, string, error) {
	t.Helper()
	var log strings.Builder
	res, err := p.builder.Build(t.Context(), build.Request{App: app, Tree: r.open(r.commit(files)), Log: func(line string) { log.WriteString(line + "\n") }})
	return res, log.String(), err
}

// runIn runs a shell command with its root in a directory.
func runIn(root, command string) (string, error) {
	out, err := exec.CommandContext(context.Background(), "chroot", root, "/bin/sh", "-c", command).CombinedOutput()
	return strings.TrimSuffix(string(out), "\n"), err
}
