package gitserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/deis/deis/internal/gitserver"
	"github.com/deis/deis/internal/gitserver/gittest"
	"github.com/deis/deis/internal/paas"
)

// platform is a Platform with one user, alice, and apps that she may or may not touch.
type platform struct {
	key     string
	down    bool
	receive func(ctx context.Context, p gitserver.Push, out io.Writer) error

	mu     sync.Mutex
	pushes []gitserver.Push
}

const foreignApp = "bobs"

// uuidOf gives each app that exists a UUID: those whose names begin with "app".
func uuidOf(app string) string {
	return fmt.Sprintf("00000000-0000-4000-8000-%012x", []byte((app + "------")[:6]))
}

func (p *platform) Authenticate(_ context.Context, key string) (gitserver.User, error) {
	switch {
	case p.down:
		return gitserver.User{}, paas.Errorf(paas.Unavailable, "The controller does not answer.")
	case key != p.key:
		return gitserver.User{}, paas.Errorf(paas.NotFound, "nobody's")
	}
	return gitserver.User{Name: "alice", Fingerprint: "54:6d"}, nil
}

func (p *platform) Authorize(_ context.Context, user, app string) (string, error) {
	switch {
	case user != "alice" || app == foreignApp:
		return "", paas.Errorf(paas.Forbidden, "You have no permission for %s.", app)
	case !strings.HasPrefix(app, "app"):
		return "", paas.Errorf(paas.NotFound, "App %s not found.", app)
	}
	return uuidOf(app), nil
}

func (p *platform) Receive(ctx context.Context, push gitserver.Push, out io.Writer) error {
	p.mu.Lock()
	p.pushes = append(p.pushes, push)
	p.mu.Unlock()
	if p.receive != nil {
		return p.receive(ctx, push, out)
	}
	return nil
}

func (p *platform) last() gitserver.Push {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pushes[len(p.pushes)-1]
}

// bench is a server, its platform, and a client with a key.
type bench struct {
	*platform
	*gittest.Client
	dir  string
	repo *gitserver.Repositories
	log  *syncBuffer
	stop func()
}

var hostKeys = sync.OnceValues(func() ([]gossh.Signer, error) {
	dir, err := os.MkdirTemp("", "keys")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return gitserver.HostKeys(dir)
})

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func start(t *testing.T, options ...func(*gitserver.Server)) *bench {
	t.Helper()
	t.Parallel()
	return serve(t, options...)
}

func serve(t testing.TB, options ...func(*gitserver.Server)) *bench {
	t.Helper()
	b := &bench{platform: &platform{}, dir: t.TempDir(), log: &syncBuffer{}}
	keys, err := hostKeys()
	if err != nil {
		t.Fatal(err)
	}
	if b.repo, err = gitserver.OpenRepositories(filepath.Join(b.dir, "repos")); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.Client = gittest.New(t, l.Addr().String())
	b.key = b.PublicKey
	s := &gitserver.Server{
		Platform: b.platform, HostKeys: keys, Repositories: b.repo,
		Log: slog.New(slog.NewTextHandler(b.log, nil)),
	}
	for _, o := range options {
		o(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(b.stop)
	return b
}

// stored returns what the server has for a ref, or "".
func (b *bench) stored(app, ref string) string {
	b.T.Helper()
	out, _ := b.Git(b.dir, "--git-dir", filepath.Join(b.dir, "repos", uuidOf(app)+".git"), "rev-parse", "-q", "--verify", ref)
	return strings.TrimSpace(out)
}

func TestPushAndClone(t *testing.T) {
	b := start(t)
	b.receive = func(_ context.Context, _ gitserver.Push, out io.Writer) error {
		fmt.Fprintln(out, "-----> Building")
		return nil
	}
	w := b.Work("app1")
	head := b.Must(w, "rev-parse", "HEAD")
	out := b.Must(w, "push", "deis", "master")
	gittest.Contains(t, out, "remote: -----> Building", "* [new branch]")
	if got := b.stored("app1", "refs/heads/master"); got != head {
		t.Errorf("stored %q, want %q", got, head)
	}
	p := b.last()
	zero := strings.Repeat("0", 40)
	if len(p.Refs) != 1 || p.Refs[0] != (gitserver.Ref{Old: zero, New: head, Name: "refs/heads/master"}) || !p.Refs[0].Creates() {
		t.Errorf("refs %+v", p.Refs)
	}
	if p.App != "app1" || p.UUID != uuidOf("app1") || p.User.Name != "alice" || p.User.Fingerprint != "54:6d" {
		t.Errorf("push %+v", p)
	}
	if p.Command != "git-receive-pack '/app1.git'" || len(strings.Fields(p.Connection)) != 4 || time.Since(p.Started) > time.Minute {
		t.Errorf("push %+v", p)
	}
	if !strings.HasPrefix(p.Quarantine, filepath.Join(p.Dir, "objects")+"/") {
		t.Errorf("quarantine %q", p.Quarantine)
	}

	gittest.Contains(t, b.Must(w, "push", "deis", "master"), "Everything up-to-date")
	if n := len(b.pushes); n != 1 {
		t.Errorf("%d pushes", n)
	}
	clone := filepath.Join(t.TempDir(), "c")
	b.Must(b.dir, "clone", "-q", b.URL("app1"), clone)
	if got := b.Must(clone, "rev-parse", "HEAD"); got != head {
		t.Errorf("cloned %q, want %q", got, head)
	}
	gittest.Contains(t, b.Must(w, "-c", "protocol.version=2", "ls-remote", "deis"), head+"\trefs/heads/master")
}

func TestObjectsAreInQuarantine(t *testing.T) {
	b := start(t)
	var seen, elsewhere string
	b.receive = func(_ context.Context, p gitserver.Push, _ io.Writer) error {
		look := exec.CommandContext(t.Context(), "git", "--git-dir", p.Dir, "cat-file", "-p", p.Refs[0].New+":Procfile")
		out, _ := look.CombinedOutput()
		elsewhere = string(out)
		look = exec.CommandContext(t.Context(), "git", "--git-dir", p.Dir, "cat-file", "-p", p.Refs[0].New+":Procfile")
		look.Env = append(os.Environ(), "GIT_OBJECT_DIRECTORY="+p.Quarantine, "GIT_ALTERNATE_OBJECT_DIRECTORIES="+p.Dir+"/objects")
		out, _ = look.CombinedOutput()
		seen = string(out)
		return nil
	}
	b.Must(b.Work("app1"), "push", "deis", "master")
	if seen != "web: run app1\n" || elsewhere == seen {
		t.Errorf("in quarantine %q, outside %q", seen, elsewhere)
	}
}

func TestRejectedPush(t *testing.T) {
	b := start(t)
	w := b.Work("app1")
	first := b.Must(w, "rev-parse", "HEAD")
	b.Must(w, "push", "deis", "master")
	b.receive = func(_ context.Context, _ gitserver.Push, out io.Writer) error {
		fmt.Fprintln(out, "-----> Building")
		return paas.Errorf(paas.Invalid, "The build failed.\nLook above.")
	}
	second := b.Commit(w, "more", "x")
	for range 2 { // the same commit can be pushed again
		out := b.Fails(w, "push", "deis", "master")
		gittest.Contains(t, out, "remote: -----> Building", "remote:  !     The build failed.", "remote:  !     Look above.", "[remote rejected]")
	}
	if got := b.stored("app1", "refs/heads/master"); got != first {
		t.Errorf("stored %q, want the old %q", got, first)
	}
	if got := b.stored("app1", second+"^{commit}"); got != "" {
		t.Error("the rejected commit was kept")
	}
	b.receive = func(context.Context, gitserver.Push, io.Writer) error { return errors.New("secret of the inside") }
	out, code := b.Git(w, "push", "deis", "master")
	if code == 0 || strings.Contains(out, "secret") {
		t.Errorf("status %d\n%s", code, out)
	}
	gittest.Contains(t, out, "Internal error. The builder's log says more.")
	gittest.Contains(t, b.log.String(), "secret of the inside")
}

func TestPushOfMainMovesHEAD(t *testing.T) {
	b := start(t)
	w := b.Work("app1")
	b.Must(w, "push", "deis", "HEAD:refs/heads/main")
	clone := filepath.Join(t.TempDir(), "c")
	if out := b.Must(b.dir, "clone", b.URL("app1"), clone); strings.Contains(out, "warning") {
		t.Error(out)
	}
	if _, err := os.Stat(filepath.Join(clone, "Procfile")); err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	b := start(t)
	for _, c := range []struct {
		name, command, want string
	}{
		{"unknown app", "git-receive-pack 'nope.git'", " !     App nope not found.\n"},
		{"unknown app, read", "git-upload-pack 'nope.git'", " !     App nope not found.\n"},
		{"foreign app", "git-receive-pack 'bobs.git'", " !     You have no permission for bobs.\n"},
		{"foreign app, read", "git-upload-pack 'bobs.git'", " !     You have no permission for bobs.\n"},
		{"no app", "git-receive-pack", ` !     "git-receive-pack" is not known here: this server takes git push, git fetch and ping.` + "\n"},
		{"shell", "", ` !     "" is not known here: this server takes git push, git fetch and ping.` + "\n"},
		{"other command", "ls /", ` !     "ls /" is not known here: this server takes git push, git fetch and ping.` + "\n"},
		{"chained", "git-receive-pack 'app1';reboot", ` !     "git-receive-pack 'app1';reboot" is not known here: this server takes git push, git fetch and ping.` + "\n"},
		{"substituted", "git-receive-pack $(id)", ` !     "git-receive-pack $(id)" is not known here: this server takes git push, git fetch and ping.` + "\n"},
		{"option", "git-receive-pack --help", ` !     App --help not found.` + "\n"},
		{"path", "git-receive-pack '../../etc'", ` !     "../../etc" names no app: a remote ends in /<app>.git, with letters a-z, digits and dashes.` + "\n"},
		{"terminal escape", "git-receive-pack '\x1b[31m'", ` !     "\x1b[31m" names no app: a remote ends in /<app>.git, with letters a-z, digits and dashes.` + "\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := []string{"-T", "git@127.0.0.1"}
			if c.command != "" {
				args = append(args, c.command)
			}
			out, code := b.SSH(args...)
			if out != c.want || code != 1 {
				t.Errorf("status %d, output %q, want %q", code, out, c.want)
			}
		})
	}
	entries, err := b.repo.List()
	if err != nil || len(entries) != 0 {
		t.Errorf("repositories %v, %v", entries, err)
	}
	out := b.Fails(b.Work("nope"), "push", "deis", "master")
	gittest.Contains(t, out, " !     App nope not found.\n")
}

func TestPing(t *testing.T) {
	b := start(t)
	if out, code := b.SSH("git@127.0.0.1", "ping"); out != "pong\n" || code != 0 {
		t.Errorf("status %d, output %q", code, out)
	}
	// Older v1 clients and people use any user name.
	if out, code := b.SSH("alice@127.0.0.1", "ping"); out != "pong\n" || code != 0 {
		t.Errorf("status %d, output %q", code, out)
	}
}

func TestOnlyGit(t *testing.T) {
	b := start(t)
	for _, args := range [][]string{
		{"-W", "127.0.0.1:22", "git@127.0.0.1"},
		{"-s", "git@127.0.0.1", "sftp"},
		{"-tt", "git@127.0.0.1", "ping"},
		{"-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:22", "git@127.0.0.1"},
	} {
		if out, code := b.SSH(args...); code == 0 {
			t.Errorf("%v: status 0\n%s", args, out)
		}
	}
	cmd := b.SSHCmd("-o", "SendEnv=LANG GIT_PROTOCOL", "git@127.0.0.1", "ping")
	cmd.Env = append(os.Environ(), "LANG=C", "GIT_PROTOCOL=version=2;rm")
	if out, code := b.Run(cmd); out != "pong\n" || code != 0 {
		t.Errorf("status %d, output %q", code, out)
	}
}

func TestStrangersKey(t *testing.T) {
	b := start(t)
	stranger := gittest.New(t, b.Addr)
	gittest.Contains(t, stranger.Fails(stranger.Work("app1"), "push", "deis", "master"), "Permission denied (publickey)")
}

func TestSecondKeyMayBeTheKnownOne(t *testing.T) {
	b := start(t)
	stranger := gittest.New(t, b.Addr)
	if out, code := stranger.SSH("-i", b.Key, "git@127.0.0.1", "ping"); out != "pong\n" || code != 0 {
		t.Errorf("status %d, output %q", code, out)
	}
}

func TestControllerDown(t *testing.T) {
	b := start(t)
	b.down = true
	w := b.Work("app1")
	out := b.Fails(w, "push", "deis", "master")
	gittest.Contains(t, out, " !     The controller does not answer.\n")
	// Nor does anything else work for those whom nobody knows.
	out, code := gittest.New(t, b.Addr).SSH("git@127.0.0.1", "ping")
	if code != 1 || out != " !     The controller does not answer.\n" {
		t.Errorf("status %d, output %q", code, out)
	}
	if entries, err := b.repo.List(); err != nil || len(entries) != 0 {
		t.Errorf("repositories %v, %v", entries, err)
	}
}

func TestSecondPushIsRefused(t *testing.T) {
	b := start(t)
	begun, release := make(chan bool), make(chan bool)
	b.receive = func(context.Context, gitserver.Push, io.Writer) error {
		begun <- true
		<-release
		return nil
	}
	w, w2 := b.Work("app1"), b.Work("app1")
	first := make(chan string)
	go func() {
		out, _ := b.Git(w, "push", "deis", "master")
		first <- out
	}()
	<-begun
	out := b.Fails(w2, "push", "deis", "master:other")
	gittest.Contains(t, out, " !     Another git push is ongoing. Aborting...\n")
	if err := b.repo.Remove(uuidOf("app1")); paas.CodeOf(err) != paas.Conflict {
		t.Errorf("Remove during a push: %v", err)
	}
	// Reading goes on.
	b.Must(w2, "ls-remote", "deis")
	release <- true
	gittest.Contains(t, <-first, "* [new branch]")
	if got := b.stored("app1", "other"); got != "" {
		t.Error("the second push was stored")
	}
	b.receive = nil
	b.Must(w2, "push", "deis", "master:other")
	if err := b.repo.Remove(uuidOf("app1")); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(filepath.Join(b.dir, "repos")); err != nil || len(entries) != 1 {
		t.Errorf("left after Remove: %v, %v", entries, err)
	}
}

func TestTooLarge(t *testing.T) {
	b := start(t, func(s *gitserver.Server) { s.MaxPush = 100 << 10 })
	w := b.Work("app1")
	noise := make([]byte, 3<<20)
	f, err := os.Open("/dev/urandom")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.ReadFull(f, noise); err != nil {
		t.Fatal(err)
	}
	b.Commit(w, "noise", string(noise))
	out := b.Fails(w, "push", "deis", "master")
	gittest.Contains(t, out, " !     This push is larger than what is taken here.")
	if len(b.pushes) != 0 || b.stored("app1", "refs/heads/master") != "" {
		t.Error("it was taken")
	}
	if left, _ := filepath.Glob(filepath.Join(b.dir, "repos", "*.git", "objects", "tmp_objdir-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	b.Must(w, "push", "deis", "master~:refs/heads/master")
}

func TestCorruptObjects(t *testing.T) {
	b := start(t)
	w := b.Work("app1")
	blob := b.Must(w, "rev-parse", "HEAD:Procfile")
	cmd := b.GitCmd(w, "mktree")
	cmd.Stdin = strings.NewReader("100644 blob " + blob + "\t.git\n")
	tree, code := b.Run(cmd)
	if code != 0 {
		t.Fatal(tree)
	}
	bad := b.Must(w, "commit-tree", "-m", "bad", strings.TrimSpace(tree))
	out := b.Fails(w, "push", "deis", bad+":refs/heads/master")
	gittest.Contains(t, out, "hasDotgit", "[remote rejected]")
	if len(b.pushes) != 0 || b.stored("app1", "refs/heads/master") != "" {
		t.Error("it was taken")
	}
}

func TestHangUpWhileReceiving(t *testing.T) {
	b := start(t)
	cmd := b.SSHCmd("git@127.0.0.1", "git-receive-pack 'app1'")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	gittest.Start(t, cmd)
	if _, err := io.ReadFull(stdout, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	// The push is under way: git waits for commands and a pack.
	w := b.Work("app1")
	out, _ := b.Git(w, "push", "deis", "master")
	gittest.Contains(t, out, "Another git push is ongoing.")
	gittest.HangUp(t, cmd)
	gittest.Eventually(t, "the lock is free", func() bool {
		_, code := b.Git(w, "push", "deis", "master")
		return code == 0
	})
	if n := len(b.pushes); n != 1 {
		t.Errorf("%d pushes", n)
	}
}

func TestHangUpDuringReceive(t *testing.T) {
	b := start(t)
	begun, release := make(chan bool), make(chan bool)
	b.receive = func(ctx context.Context, _ gitserver.Push, out io.Writer) error {
		begun <- true
		<-release
		for range 1000 { // more than pipes and windows hold
			if _, err := out.Write(bytes.Repeat([]byte("progress of the build\n"), 100)); err != nil {
				return err
			}
		}
		return ctx.Err()
	}
	w := b.Work("app1")
	head := b.Must(w, "rev-parse", "HEAD")
	push := b.GitCmd(w, "push", "deis", "master")
	gittest.Start(t, push)
	<-begun
	gittest.HangUp(t, push)
	time.Sleep(50 * time.Millisecond) // let the end of the connection arrive
	release <- true
	gittest.Eventually(t, "the ref is stored", func() bool { return b.stored("app1", "refs/heads/master") == head })
	b.receive = nil
	gittest.Eventually(t, "the lock is free", func() bool {
		_, code := b.Git(w, "push", "deis", "master:again")
		return code == 0
	})
}

func TestStopDuringReceive(t *testing.T) {
	b := start(t)
	b.receive = func(ctx context.Context, _ gitserver.Push, _ io.Writer) error {
		go b.stop()
		<-ctx.Done()
		return paas.Errorf(paas.Unavailable, "The builder is being stopped. Push again in a moment.")
	}
	out := b.Fails(b.Work("app1"), "push", "deis", "master")
	gittest.Contains(t, out, "remote:  !     The builder is being stopped.")
	if b.stored("app1", "refs/heads/master") != "" {
		t.Error("it was stored")
	}
}

func TestTenPushesAtOnce(t *testing.T) {
	b := start(t)
	b.receive = func(_ context.Context, p gitserver.Push, out io.Writer) error {
		fmt.Fprintln(out, "hello", p.App)
		return nil
	}
	var all sync.WaitGroup
	for i := range 10 {
		app := fmt.Sprintf("app%d", i)
		w := b.Work(app)
		all.Go(func() {
			out, err := b.GitCmd(w, "push", "deis", "master").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "remote: hello "+app) {
				t.Errorf("%s: %v\n%s", app, err, out)
			}
		})
	}
	all.Wait()
	if uuids, err := b.repo.List(); err != nil || len(uuids) != 10 {
		t.Errorf("repositories %v, %v", uuids, err)
	}
}

func TestDeleteAndForce(t *testing.T) {
	b := start(t)
	w := b.Work("app1")
	b.Must(w, "push", "deis", "master", "master:topic")
	b.Must(w, "push", "deis", ":topic")
	if p := b.last(); len(p.Refs) != 1 || !p.Refs[0].Deletes() || p.Refs[0].Name != "refs/heads/topic" {
		t.Errorf("refs %+v", p.Refs)
	}
	b.Must(w, "commit", "-q", "--amend", "-m", "other")
	b.Must(w, "push", "-f", "deis", "master")
	if got, want := b.stored("app1", "refs/heads/master"), b.Must(w, "rev-parse", "HEAD"); got != want {
		t.Errorf("stored %q, want %q", got, want)
	}
}

// BenchmarkPush is a push of a one-line change. receive-ms is from the client's asking to
// Platform.Receive, push-ms all that the user waits for.
func BenchmarkPush(b *testing.B) {
	s := serve(b)
	var receive time.Duration
	s.receive = func(_ context.Context, p gitserver.Push, _ io.Writer) error {
		receive += time.Since(p.Started)
		return nil
	}
	w := s.Work("app1")
	s.Must(w, "push", "deis", "master")
	receive = 0
	var push time.Duration
	for i := range b.N {
		s.Commit(w, "Procfile", fmt.Sprintf("web: run %d\n", i))
		began := time.Now()
		s.Must(w, "push", "-q", "deis", "master")
		push += time.Since(began)
	}
	b.ReportMetric(float64(receive.Milliseconds())/float64(b.N), "receive-ms")
	b.ReportMetric(float64(push.Milliseconds())/float64(b.N), "push-ms")
}

// TestMain lets the test binary be a server that can be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("GITSERVER_TEST_DIR"); dir != "" {
		serveForever(dir, os.Getenv("GITSERVER_TEST_KEY"))
	}
	os.Exit(m.Run())
}

func serveForever(dir, key string) {
	check := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	keys, err := gitserver.HostKeys(filepath.Join(dir, "ssh"))
	check(err)
	repos, err := gitserver.OpenRepositories(filepath.Join(dir, "repos"))
	check(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	p := &platform{key: key, receive: func(_ context.Context, _ gitserver.Push, out io.Writer) error {
		fmt.Fprintln(out, "building")
		select {}
	}}
	fmt.Println(l.Addr())
	check((&gitserver.Server{Platform: p, HostKeys: keys, Repositories: repos, Log: slog.New(slog.DiscardHandler)}).Serve(context.Background(), l))
}

func TestKilledServerLeavesNoLock(t *testing.T) {
	b := start(t)
	b.stop()
	victim := exec.CommandContext(t.Context(), os.Args[0])
	victim.Env = append(os.Environ(), "GITSERVER_TEST_DIR="+b.dir, "GITSERVER_TEST_KEY="+b.key)
	victim.Stderr = os.Stderr
	stdout, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(stdout, &b.Addr); err != nil {
		t.Fatal(err)
	}
	w := b.Work("app1")
	push := b.GitCmd(w, "push", "deis", "master")
	output, err := push.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := push.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(output, make([]byte, len("remote: building"))); err != nil {
		t.Fatal(err)
	}
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait()
	if err := push.Wait(); err == nil {
		t.Error("the push succeeded")
	}
	if got := b.stored("app1", "refs/heads/master"); got != "" {
		t.Error("the push was stored")
	}

	keys, err := hostKeys()
	if err != nil {
		t.Fatal(err)
	}
	repos, err := gitserver.OpenRepositories(filepath.Join(b.dir, "repos"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- (&gitserver.Server{Platform: b.platform, HostKeys: keys, Repositories: repos, Log: slog.Default()}).Serve(ctx, l)
	}()
	b.Must(w, "remote", "set-url", "deis", "ssh://git@"+l.Addr().String()+"/app1.git")
	b.Addr = l.Addr().String()
	b.Must(w, "push", "deis", "master")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestHostKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ssh")
	first, err := gitserver.HostKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := gitserver.HostKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for i, k := range first {
		types = append(types, k.PublicKey().Type())
		if !bytes.Equal(k.PublicKey().Marshal(), again[i].PublicKey().Marshal()) {
			t.Errorf("%s is another key the second time", k.PublicKey().Type())
		}
	}
	if got := strings.Join(types, " "); got != "ssh-ed25519 ecdsa-sha2-nistp256 ssh-rsa" {
		t.Error(got)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
	}
	path := filepath.Join(dir, "ssh_host_ed25519_key")
	if err := os.WriteFile(path, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := gitserver.HostKeys(dir); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a broken key: %v", err)
	}
}

func TestLeftoversGo(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, ".tmp-123", "repository"), 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := gitserver.OpenRepositories(dir)
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".tmp-*")); len(left) > 0 {
		t.Error(left)
	}
	if err := r.Remove(uuidOf("app1")); err == nil {
		t.Error("removed what is not there")
	}
}
