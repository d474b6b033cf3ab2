package gitserver

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/deis/deis/internal/paas"
)

func TestParseCommand(t *testing.T) {
	for line, want := range map[string]command{
		"ping":                                {verb: verbPing},
		" ping ":                              {verb: verbPing},
		"git-receive-pack 'app.git'":          {verb: verbReceive, app: "app"},
		"git-receive-pack '/app.git'":         {verb: verbReceive, app: "app"},
		"git-receive-pack /app":               {verb: verbReceive, app: "app"},
		`git-receive-pack "app.git"`:          {verb: verbReceive, app: "app"},
		"git receive-pack 'app.git'":          {verb: verbReceive, app: "app"},
		"git-upload-pack '-a--b-.git'":        {verb: verbUpload, app: "-a--b-"},
		"git-upload-pack 123":                 {verb: verbUpload, app: "123"},
		`git-upload-pack a\pp`:                {verb: verbUpload, app: "app"},
		"git-upload-pack 'a''p''p'.git":       {verb: verbUpload, app: "app"},
		"":                                    {},
		"git":                                 {},
		"ping pong":                           {},
		"git-receive-pack":                    {},
		"git-receive-pack ''":                 {},
		"git-receive-pack '/'":                {},
		"git-receive-pack '.git'":             {},
		"git-receive-pack 'a' 'b'":            {},
		"git-receive-pack '..'":               {},
		"git-receive-pack '//app'":            {},
		"git-receive-pack 'x/app'":            {},
		"git-receive-pack 'App'":              {},
		"git-receive-pack 'app.git/'":         {},
		"git-receive-pack 'a\x00'":            {},
		"git-receive-pack 'a\n'":              {},
		"git-receive-pack 'app":               {},
		`git-receive-pack app\`:               {},
		`git-receive-pack "$app"`:             {},
		"git-receive-pack app\nreboot":        {},
		"git-receive-pack app;reboot":         {},
		"git-receive-pack app&reboot":         {},
		"git-receive-pack app|reboot":         {},
		"git-receive-pack <app":               {},
		"git-receive-pack (app)":              {},
		"git-receive-pack app*":               {},
		"git-receive-pack `app`":              {},
		"git-upload-archive 'app.git'":        {},
		"git-receive-pack-x 'app.git'":        {},
		"receive-pack 'app.git'":              {},
		strings.Repeat("a", maxCommand+1):     {},
		"git-upload-pack " + long(64):         {verb: verbUpload, app: long(64)},
		"git-upload-pack " + long(65):         {},
		"git-upload-pack " + long(64) + ".gi": {},
	} {
		got, err := parseCommand(line)
		if want.verb == "" {
			if paas.CodeOf(err) != paas.Invalid {
				t.Errorf("%q: %+v, %v", line, got, err)
			}
		} else if got != want || err != nil {
			t.Errorf("%q: %+v, %v; want %+v", line, got, err, want)
		}
	}
}

func long(n int) string { return strings.Repeat("a", n) }

func FuzzParseCommand(f *testing.F) {
	f.Add("git-receive-pack 'app.git'")
	f.Add("git-receive-pack 'a';reboot")
	f.Add(`git upload-pack "/a\"b"`)
	f.Fuzz(func(t *testing.T, line string) {
		cmd, err := parseCommand(line)
		if err == nil && cmd.verb != verbPing && len(paas.CheckAppID(cmd.app)) > 0 {
			t.Errorf("%q: %+v", line, cmd)
		}
		if err != nil && (paas.CodeOf(err) != paas.Invalid || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r == 0x7f })) {
			t.Errorf("%q: %v", line, err)
		}
	})
}

const (
	hash1 = "1111111111111111111111111111111111111111"
	hash2 = "2222222222222222222222222222222222222222"
)

func TestReadHook(t *testing.T) {
	quarantine, refs, err := readHook(strings.NewReader("/r.git/objects/tmp\n" + hash1 + " " + hash2 + " refs/heads/a b\n\n"))
	if err != nil || quarantine != "/r.git/objects/tmp" || !slices.Equal(refs, []Ref{{hash1, hash2, "refs/heads/a b"}}) {
		t.Errorf("%q, %v, %v", quarantine, refs, err)
	}
	if _, _, err := readHook(strings.NewReader("")); !errors.Is(err, errNoPush) {
		t.Errorf("nothing: %v", err)
	}
	line := hash1 + " " + hash2 + " refs/heads/x\n"
	for _, text := range []string{
		"/r", "/r\n", "/r\n\n", "/r\n" + line, "/r\n" + line + "\x00",
		"/r\nx y refs/heads/z\n\n", "/r\n" + hash1 + " " + hash2 + "\n\n", "/r\n" + hash1 + " " + hash2 + " HEAD\n\n",
		"/r\n" + strings.Repeat(line, maxRefs+1) + "\n",
		"/r\n" + hash1 + " " + hash2 + " refs/" + strings.Repeat("x", maxRefLine) + "\n\n",
	} {
		if _, refs, err := readHook(strings.NewReader(text)); err == nil || errors.Is(err, errNoPush) || refs != nil {
			t.Errorf("%.80q: %d refs, %v", text, len(refs), err)
		}
	}
}

func FuzzReadHook(f *testing.F) {
	f.Add([]byte("/r\n" + hash1 + " " + hash2 + " refs/heads/x\n\n"))
	f.Add([]byte("/r\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, refs, err := readHook(strings.NewReader(string(text)))
		if err == nil && len(refs) == 0 {
			t.Error("no refs, no error")
		}
		for _, r := range refs {
			if !hash.MatchString(r.Old) || !hash.MatchString(r.New) || strings.Contains(r.Name, "\n") {
				t.Errorf("%+v", r)
			}
		}
	})
}

func TestHookWithoutAServerRejects(t *testing.T) {
	dir := t.TempDir()
	if err := installHook(dir); err != nil {
		t.Fatal(err)
	}
	p, err := newPipes()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	hook := exec.CommandContext(t.Context(), filepath.Join(dir, "pre-receive"))
	hook.ExtraFiles = p.child[:]
	if err := hook.Start(); err != nil {
		t.Fatal(err)
	}
	// The server dies while the hook waits for its decision.
	p.closeChild()
	p.output.Close()
	p.status.Close()
	exit := &exec.ExitError{}
	if err := hook.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("%v", err)
	}
	if err := exec.CommandContext(t.Context(), hook.Path).Run(); err == nil {
		t.Error("it passes without any descriptors")
	}
}

func TestOnlyGitsProtocolIsPassedOn(t *testing.T) {
	for value, want := range map[string]string{"version=2": "version=2", "version=2:x": "", "version=22": "", "2": "", "version=2\n": ""} {
		s := &session{}
		s.request(&gossh.Request{Type: "env", Payload: gossh.Marshal(struct{ Name, Value string }{"GIT_PROTOCOL", value})}, false)
		s.request(&gossh.Request{Type: "env", Payload: gossh.Marshal(struct{ Name, Value string }{"GIT_DIR", "version=1"})}, false)
		if s.protocol != want {
			t.Errorf("%q: %q", value, s.protocol)
		}
	}
}

// A client may offer somebody else's key and then sign with his own.
func TestKeyThatSignedCounts(t *testing.T) {
	key := func() gossh.PublicKey {
		pub, _, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		k, err := gossh.NewPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	alice, bob := key(), key()
	c := &client{handshake: time.NewTimer(time.Hour), offered: map[string]caller{
		string(alice.Marshal()): {user: User{Name: "alice"}},
		string(bob.Marshal()):   {user: User{Name: "bob"}},
	}}
	if _, err := c.verified(key()); err == nil {
		t.Error("a key that was not offered")
	}
	p, err := c.verified(alice)
	if err != nil || p.ExtraData[callerKey{}].(caller).user.Name != "alice" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestConnectionLimits(t *testing.T) {
	l := newLimitListener(nil)
	for range maxConnsPerHost {
		if !l.enter("a") {
			t.Fatal("refused too early")
		}
	}
	if l.enter("a") {
		t.Error("one host may have too many")
	}
	for i := range maxConns - maxConnsPerHost {
		if !l.enter(string(rune('b' + i))) {
			t.Fatal("refused too early")
		}
	}
	if l.enter("other") {
		t.Error("all together may have too many")
	}
	for range maxConnsPerHost {
		l.leave("a")
	}
	if !l.enter("other") || len(l.hosts) != maxConns-maxConnsPerHost+1 {
		t.Error("those who left still count")
	}
}

// pipeListener is a listener whose connections are in memory, so that time can be synctest's.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

type pipeConn struct{ net.Conn }

func (pipeConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }
func (pipeConn) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 2} }

func (l pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l pipeListener) Close() error   { l.close(); return nil }
func (l pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l pipeListener) dial() net.Conn {
	server, client := net.Pipe()
	l.conns <- pipeConn{server}
	e := eagerConn{client, make(chan []byte, 100), make(chan struct{})}
	go e.send()
	return e
}

// eagerConn writes without waiting for a reader, as a socket does; both sides of SSH begin with writing.
type eagerConn struct {
	net.Conn
	out    chan []byte
	closed chan struct{}
}

func (c eagerConn) Write(p []byte) (int, error) {
	select {
	case c.out <- slices.Clone(p):
		return len(p), nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

func (c eagerConn) send() {
	defer close(c.closed)
	for p := range c.out {
		if _, err := c.Conn.Write(p); p == nil || err != nil {
			return
		}
	}
}

func (c eagerConn) Close() error {
	err := c.Conn.Close()
	select {
	case c.out <- nil:
	case <-c.closed:
	}
	return err
}

// slow lets everybody in and answers the question for an app only when asked to.
type slow struct{ answer chan bool }

func (slow) Authenticate(context.Context, string) (User, error) { return User{Name: "alice"}, nil }
func (s slow) Authorize(context.Context, string, string) (string, error) {
	<-s.answer
	return "", paas.Errorf(paas.NotFound, "late")
}
func (slow) Receive(context.Context, Push, io.Writer) error { return nil }

// inMemory runs test against a server with a clock of its own.
func inMemory(t *testing.T, test func(t *testing.T, l pipeListener, p slow)) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	hostKey, err := gossh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		l := pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		l.close = sync.OnceFunc(func() { close(l.closed) })
		p := slow{answer: make(chan bool, 1)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		s := &Server{Platform: p, HostKeys: []gossh.Signer{hostKey}, Log: slog.New(slog.DiscardHandler)}
		go func() { done <- s.Serve(ctx, l) }()
		test(t, l, p)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// connect returns a connected client; it answers keepalives only if alive.
func connect(t *testing.T, c net.Conn, alive bool) *gossh.Client {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := gossh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	conn, chans, reqs, err := gossh.NewClientConn(c, "", &gossh.ClientConfig{
		User: "git", Auth: []gossh.AuthMethod{gossh.PublicKeys(signer)}, HostKeyCallback: gossh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if !alive {
		unanswered := make(chan *gossh.Request)
		go func(reqs <-chan *gossh.Request) {
			for range reqs {
			}
			close(unanswered)
		}(reqs)
		reqs = unanswered
	}
	return gossh.NewClient(conn, chans, reqs)
}

func TestHandshakeLimit(t *testing.T) {
	inMemory(t, func(t *testing.T, l pipeListener, _ slow) {
		c := l.dial()
		began := time.Now()
		var trickle sync.WaitGroup
		trickle.Go(func() {
			// A byte now and then is activity, but no handshake.
			for range 2 * handshakeLimit / time.Second {
				_, _ = c.Write([]byte("S"))
				time.Sleep(time.Second)
			}
		})
		defer trickle.Wait()
		_, _ = io.Copy(io.Discard, c)
		if d := time.Since(began); d != handshakeLimit {
			t.Errorf("closed after %s", d)
		}
	})
}

func TestIdleLimit(t *testing.T) {
	inMemory(t, func(t *testing.T, l pipeListener, _ slow) {
		c := connect(t, l.dial(), true)
		began := time.Now()
		_ = c.Wait()
		if d := time.Since(began); d < idleLimit-time.Second || d > idleLimit+time.Second {
			t.Errorf("closed after %s", d)
		}
	})
}

func TestDeadPeerIsFound(t *testing.T) {
	inMemory(t, func(t *testing.T, l pipeListener, p slow) {
		c := connect(t, l.dial(), false)
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := s.Start("git-upload-pack 'app1'"); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait()
		if d := time.Since(began); d > (keepAliveMax+2)*keepAlive {
			t.Errorf("found after %s", d)
		}
		p.answer <- true
	})
}

func TestLivingPeerMayWait(t *testing.T) {
	inMemory(t, func(t *testing.T, l pipeListener, p slow) {
		c := connect(t, l.dial(), true)
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		var stderr strings.Builder
		s.Stderr = &stderr
		if err := s.Start("git-upload-pack 'app1'"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(stallLimit - time.Minute)
		p.answer <- true
		exit := &gossh.ExitError{}
		if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 1 || stderr.String() != " !     late\n" {
			t.Errorf("%v, %q", err, stderr.String())
		}
		c.Close()
	})
}

func TestStalledCommandEnds(t *testing.T) {
	inMemory(t, func(t *testing.T, l pipeListener, p slow) {
		c := connect(t, l.dial(), true)
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := s.Start("git-upload-pack 'app1'"); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait()
		if d := time.Since(began); d < stallLimit || d > stallLimit+2*keepAlive {
			t.Errorf("ended after %s", d)
		}
		p.answer <- true
	})
}

func TestTooManySessions(t *testing.T) {
	inMemory(t, func(t *testing.T, l pipeListener, _ slow) {
		c := connect(t, l.dial(), true)
		for range maxSessions {
			if _, err := c.NewSession(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.NewSession(); err == nil {
			t.Error("one too many")
		}
		c.Close()
		synctest.Wait()
	})
}
