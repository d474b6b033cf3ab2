package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// user is a person with a home, a key and an account on a platform.
type user struct {
	p    *platform
	home string
}

func (p *platform) newUser(t testing.TB, name string) *user {
	t.Helper()
	u := &user{p: p, home: t.TempDir()}
	if err := os.Mkdir(filepath.Join(u.home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(u.home, ".ssh", "id_ed25519")
	u.must(t, "", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key)
	_, port, _ := net.SplitHostPort(p.http)
	u.must(t, "", "deis", "register", "http://deis.localhost:"+port, "--username", name, "--password", "secret", "--email", name+"@example.com")
	u.must(t, "", "deis", "keys:add", key+".pub")
	return u
}

// run runs a command as the user, in a directory.
func (u *user) run(ctx context.Context, dir, name string, args ...string) (string, error) {
	out, err := u.command(ctx, dir, name, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// command is a program as the user runs it.
func (u *user) command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	if path := filepath.Join(bin(), name); name == "deis" {
		name = path
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+u.home, "GIT_SSH_COMMAND="+sshCommand(u.home), "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=e2e", "GIT_AUTHOR_EMAIL=e2e@example.com", "GIT_COMMITTER_NAME=e2e", "GIT_COMMITTER_EMAIL=e2e@example.com")
	return cmd
}

func (u *user) must(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	out, err := u.run(t.Context(), dir, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// registryFailed is what programs say when a registry or the way to it fails for a moment.
var registryFailed = regexp.MustCompile(`i/o timeout|TLS handshake timeout|connection reset|connection refused|no such host|ETIMEDOUT|ECONNRESET|EAI_AGAIN|unexpected EOF|\b50[234]\b`)

// mustFetch is must for what fetches from registries: it is tried three times if one of them fails.
func (u *user) mustFetch(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	for try := 1; ; try++ {
		out, err := u.run(t.Context(), dir, name, args...)
		if err == nil {
			return out
		}
		if try == 3 || !registryFailed.MatchString(err.Error()) {
			t.Fatal(err)
		}
		t.Logf("try %d: %v", try, err)
	}
}

// newApp makes a repository with the tests' app and creates the app.
func (u *user) newApp(t testing.TB, app string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), app)
	if err := copyTestApp(dir); err != nil {
		t.Fatal(err)
	}
	u.must(t, dir, "git", "init", "-q", "-b", "master")
	u.must(t, dir, "git", "add", "-A")
	u.must(t, dir, "git", "commit", "-q", "-m", "first")
	u.must(t, dir, "deis", "create", app)
	return dir
}

// push commits a new message and pushes it.
func (u *user) push(t testing.TB, dir, message string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "message"), []byte(message), 0o644); err != nil {
		t.Fatal(err)
	}
	u.must(t, dir, "git", "commit", "-q", "--allow-empty", "-a", "-m", message)
	u.must(t, dir, "git", "push", "-q", "deis", "master")
}

// client makes requests to hosts of the platform.
func (p *platform) client(keepAlive bool) *http.Client { return p.clientAt(p.http, keepAlive) }

// clientAt makes them to one of the router's addresses.
func (p *platform) clientAt(address string, keepAlive bool) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		},
		MaxIdleConnsPerHost: 100, DisableKeepAlives: !keepAlive,
	}}
}

func (p *platform) get(ctx context.Context, c *http.Client, host, path string) (int, string, error) {
	return get(ctx, c, "http://"+host+path)
}

func get(ctx context.Context, c *http.Client, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// load is a constant rate of requests to one host, half of them over kept
// connections, half over new ones.
type load struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu       sync.Mutex
	count    int
	failures []string
	bodies   map[string]int
	took     []time.Duration
}

func (p *platform) startLoad(t *testing.T, host, path string, perSecond int) *load {
	t.Helper()
	return p.startLoadOver(t, p.client(true), "http", host, path, perSecond)
}

// loadMost is how many requests of a load are under way at most: a machine that does less than the rate is slow, and none
// of what it is late with has failed.
const loadMost = 500

// startLoadOver makes it with a client that keeps connections.
func (p *platform) startLoadOver(t *testing.T, kept *http.Client, scheme, host, path string, perSecond int) *load {
	t.Helper()
	transport := kept.Transport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	fresh := &http.Client{Timeout: kept.Timeout, Transport: transport}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	l := &load{cancel: cancel, bodies: map[string]int{}}
	underWay := make(chan struct{}, loadMost)
	l.done.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case underWay <- struct{}{}:
			default:
				continue
			}
			c := kept
			if n%2 == 1 {
				c = fresh
			}
			l.done.Go(func() {
				l.one(c, scheme+"://"+host+path)
				<-underWay
			})
		}
	})
	t.Cleanup(func() { cancel(); l.done.Wait() })
	return l
}

func (l *load) one(c *http.Client, url string) {
	began := time.Now()
	status, body, err := get(context.Background(), c, url)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	l.took = append(l.took, time.Since(began))
	switch {
	case err != nil:
		l.failures = append(l.failures, fmt.Sprintf("%s after %v: %v", began.Format("15:04:05.000"), time.Since(began).Round(time.Millisecond), err))
	case status != http.StatusOK:
		l.failures = append(l.failures, fmt.Sprintf("%s: %d %.200s", began.Format("15:04:05.000"), status, body))
	default:
		l.bodies[strings.TrimSpace(body)]++
	}
}

// await waits until an answer with each text came.
func (l *load) await(t *testing.T, want ...string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		l.mu.Lock()
		missing := slices.DeleteFunc(slices.Clone(want), func(text string) bool {
			for body := range l.bodies {
				if strings.Contains(body, text) {
					return true
				}
			}
			return false
		})
		l.mu.Unlock()
		if len(missing) == 0 {
			return
		}
		if time.Since(began) > 30*time.Second {
			t.Errorf("no answer contained any of %q", missing)
			return
		}
	}
}

// stop waits until the expected answers came, ends the load, waits for the last answer and fails the test if any
// request failed or an expected answer never came.
func (l *load) stop(t *testing.T, want ...string) {
	t.Helper()
	l.await(t, want...)
	l.cancel()
	l.done.Wait()
	if l.count == 0 {
		t.Fatal("no request was made")
	}
	if len(l.failures) > 0 {
		t.Errorf("%d of %d requests failed; the first: %s", len(l.failures), l.count, strings.Join(l.failures[:min(5, len(l.failures))], "\n"))
	}
	t.Logf("%d requests, %d failed, %d different answers, median %v, p99 %v", l.count, len(l.failures), len(l.bodies),
		median(l.took).Round(100*time.Microsecond), quantile(l.took, 0.99).Round(100*time.Microsecond))
}

// wantOnly fails the test if any answer was without a text.
func (l *load) wantOnly(t *testing.T, text string) {
	t.Helper()
	for body, n := range l.bodies {
		if !strings.Contains(body, text) {
			t.Errorf("%d answers without %q: %.200s", n, text, body)
		}
	}
}
