package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSettingsComeFromDefaultEnvironmentFlag(t *testing.T) {
	t.Setenv("DEIS_DOMAIN", "from.env")
	t.Setenv("DEIS_DRAIN_LIMIT", "3s")
	d := newDaemon("x")
	var domain, root, engine string
	var drain time.Duration
	var size int64
	d.String(&root, "root", "/var/lib/deis", "root")
	d.String(&domain, "domain", "localhost", "domain")
	d.Enum(&engine, "engine", "containerd", "engine", "containerd", "fake")
	d.Duration(&drain, "drain-limit", time.Minute, "drain")
	d.Bytes(&size, "size", "2G", "size")
	rest, err := d.Parse([]string{"--engine", "fake", "role"})
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(root, domain, engine, drain, size, rest)
	if want := fmt.Sprint("/var/lib/deis", "from.env", "fake", 3*time.Second, int64(2<<30), []string{"role"}); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestBadSettingsAreAllSaid(t *testing.T) {
	t.Setenv("DEIS_ENGINE", "docker")
	t.Setenv("DEIS_DRAIN_LIMIT", "soon")
	t.Setenv("DEIS_SIZE", "12X")
	d := newDaemon("x")
	var s string
	var dur time.Duration
	var n int64
	d.Enum(&s, "engine", "containerd", "", "containerd", "fake")
	d.Duration(&dur, "drain-limit", 0, "")
	d.Bytes(&n, "size", "1G", "")
	_, err := d.Parse(nil)
	usage := &usageError{}
	if !errors.As(err, &usage) {
		t.Fatalf("error %v is no usage error", err)
	}
	for _, want := range []string{`DEIS_ENGINE="docker"`, "containerd, fake", `DEIS_DRAIN_LIMIT="soon"`, `DEIS_SIZE="12X"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not said in %q", want, err)
		}
	}
	if _, err := newDaemon("x").Parse([]string{"--no-such-flag"}); !errors.As(err, &usage) {
		t.Errorf("unknown flag: %v", err)
	}
}

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "7": 7, "1k": 1 << 10, "500M": 500 << 20, "2G": 2 << 30} {
		if got, err := parseBytes(in); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "G", "-1", "1T", "1KM", "9999999999G", "1.5G"} {
		if got, err := parseBytes(in); err == nil {
			t.Errorf("%q: %d, want an error", in, got)
		}
	}
}

func TestListenOnUnixSocketReplacesADeadOne(t *testing.T) {
	d := newDaemon("x")
	path := filepath.Join(t.TempDir(), "s")
	for range 2 {
		l, err := d.Listen("api", path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false) // as after kill -9
		l.Close()
	}
}

func TestAdminServesHealthAndMetrics(t *testing.T) {
	d := newDaemon("x")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.inherited = map[string]net.Listener{"admin": l}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	healthy := make(chan error, 2)
	go func() { done <- d.ServeAdmin(ctx, func() error { return <-healthy }) }()

	healthy <- nil
	if status, body := fetch(t, l.Addr(), "/healthz"); status != 200 || body != "OK\n" {
		t.Errorf("healthy: %d %q", status, body)
	}
	healthy <- errors.New("the database is locked")
	if status, body := fetch(t, l.Addr(), "/healthz"); status != 503 || body != "the database is locked\n" {
		t.Errorf("not healthy: %d %q", status, body)
	}
	if status, body := fetch(t, l.Addr(), "/metrics"); status != 200 || !strings.Contains(body, "go_goroutines") {
		t.Errorf("metrics: %d %.80q", status, body)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("end: %v", err)
	}
}

func fetch(t *testing.T, addr net.Addr, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr.String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// The key is made once; what a power cut left of it is none.
func TestMakeKey(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "builder.key")
	read := func() string {
		if err := MakeKey(root); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	key := read()
	if fi, err := os.Stat(path); err != nil || len(key) != 65 || fi.Mode().Perm() != 0o600 {
		t.Fatalf("key of %d characters, %v %v", len(key), fi, err)
	}
	if read() != key {
		t.Error("another key the second time")
	}
	for _, text := range []string{"", "\n", strings.Repeat("\x00", 65)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if again := read(); len(again) != 65 || again == text || again == key {
			t.Errorf("%q became %q", text, again)
		}
	}
	if err := os.WriteFile(path, []byte("chosen by hand\n"), 0o600); err != nil || read() != "chosen by hand\n" {
		t.Error("a key that was there is replaced", err)
	}
	if files, err := os.ReadDir(root); err != nil || len(files) != 1 {
		t.Errorf("files %v, %v", files, err)
	}
}
