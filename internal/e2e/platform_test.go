// Package e2e tests whole platforms: the real programs, containerd, BuildKit,
// git, ssh and curl, used as a user and an operator would.
package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/hosttest"
	"github.com/deis/deis/internal/supervisor"
)

// platform is one that the tests started.
type platform struct {
	root             string
	http, https, ssh string // addresses
	env              []string
}

// bin is where the programs under test are: DEIS_TEST_BIN, or bin/ of the checkout.
func bin() string {
	if dir := os.Getenv("DEIS_TEST_BIN"); dir != "" {
		return dir
	}
	dir, err := filepath.Abs("../../bin")
	if err != nil {
		panic(err)
	}
	return dir
}

// baseCache is where base images' root file systems are kept between runs.
func baseCache() string {
	if dir := os.Getenv("DEIS_TEST_BASE_CACHE"); dir != "" {
		return dir
	}
	dir, err := filepath.Abs("../../.deis/cache/base")
	if err != nil {
		panic(err)
	}
	return dir
}

// freeAddr is an address that nobody else gets until these tests have ended.
func freeAddr() string {
	addr, _, err := hosttest.Reserve()
	if err != nil {
		panic(err)
	}
	return addr
}

// newPlatform makes one that is not started yet. Its root is short: unix
// sockets below it have little room.
func newPlatform(engine string) (*platform, error) {
	root, err := os.MkdirTemp("", "deis-e2e-")
	if err != nil {
		return nil, err
	}
	return newPlatformAt(root, engine)
}

func newPlatformAt(root, engine string) (*platform, error) {
	p := &platform{root: root, http: freeAddr(), https: freeAddr(), ssh: freeAddr()}
	if err := os.Mkdir(p.tmp(), 0o700); err != nil {
		return nil, err
	}
	certificates, err := machineCertificates(root)
	if err != nil {
		return nil, err
	}
	p.env = append(os.Environ(), "DEIS_BUILD_CA_FILE="+certificates,
		"DEIS_ROOT="+root, "DEIS_DOMAIN=localhost", "DEIS_ENGINE="+engine,
		"DEIS_HTTP_ADDR="+p.http, "DEIS_HTTPS_ADDR="+p.https, "DEIS_SSH_ADDR="+p.ssh,
		"DEIS_DRAIN_LIMIT=5s", "TMPDIR="+p.tmp(), "PATH="+bin()+":"+os.Getenv("PATH"))
	return p, nil
}

// machineCertificates joins what this machine trusts besides Debian's authorities in a file, for builds that fetch through a
// proxy; "" if there is none.
func machineCertificates(dir string) (string, error) {
	files, err := filepath.Glob("/usr/local/share/ca-certificates/*.crt")
	if err != nil || len(files) == 0 {
		return "", err
	}
	var all []byte
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		all = append(append(all, data...), '\n')
	}
	path := filepath.Join(dir, "certificates.pem")
	return path, os.WriteFile(path, all, 0o644)
}

func (p *platform) run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(bin(), name), args...)
	cmd.Env = p.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// startFor starts the platform for one test, with which it goes. A test that failed shows its logs.
func (p *platform) startFor(t *testing.T) {
	t.Helper()
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.logs())
		}
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
}

func (p *platform) start() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	_, err := p.run(ctx, "deisctl", "start", "--detach")
	return err
}

// close stops everything and removes the root.
func (p *platform) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if _, err := p.run(ctx, "deisctl", "stop", "--apps"); err != nil {
		return err
	}
	return os.RemoveAll(p.root)
}

// status asks deisctl.
func (p *platform) status(t testing.TB) map[string]supervisor.Status {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin(), "deisctl"), "status", "--json")
	cmd.Env = p.env
	out, err := cmd.Output()
	var doc struct{ Parts []supervisor.Status }
	if jsonErr := json.Unmarshal(out, &doc); jsonErr != nil {
		t.Fatalf("deisctl status: %v, %v\n%s", err, jsonErr, out)
	}
	parts := map[string]supervisor.Status{}
	for _, s := range doc.Parts {
		parts[s.Name] = s
	}
	return parts
}

// logs is the end of every part's log, for failures.
func (p *platform) logs() string {
	out, err := p.run(context.Background(), "deisctl", "logs", "-n", "40")
	if err != nil {
		return err.Error()
	}
	return out
}

// shared is the platform on real engines that most tests use.
var shared *platform

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (int, error) {
	p, err := newPlatform("containerd")
	if err != nil {
		return 1, err
	}
	shared = p
	if err := p.start(); err != nil {
		return 1, fmt.Errorf("%w\n%s", err, p.logs())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	flag.Parse()
	if onlyBenchmarks := flag.Lookup("test.run").Value.String() == "^$"; !onlyBenchmarks { // their app is FROM scratch
		if _, err := p.run(ctx, "builder", "base-images", "--cache", baseCache()); err != nil {
			_ = p.close()
			return 1, err
		}
	}
	if err := buildTestApp(); err != nil {
		_ = p.close()
		return 1, err
	}
	defer os.RemoveAll(testApp)
	code := m.Run()
	if code != 0 {
		fmt.Fprintf(os.Stderr, "---- logs of the platform\n%s\n", p.logs())
	}
	return code, p.close()
}

// testApp is the directory that becomes the tests' app: a static program, so
// that its image builds in an instant.
var testApp string

func buildTestApp() error {
	dir, err := os.MkdirTemp("", "deis-e2e-app-")
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "app"), "./testdata/app")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("test app: %w\n%s", err, out)
	}
	testApp = dir
	dockerfile := "FROM scratch\nCOPY app /app\nCOPY message /message\nEXPOSE 5000\nCMD [\"/app\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "message"), []byte("one"), 0o644)
}
