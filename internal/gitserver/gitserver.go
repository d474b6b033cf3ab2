// Package gitserver receives git over SSH: it knows registered keys, asks who
// may touch which app, and runs the git binary on one bare repository an app.
//
// A push is checked, size-limited and unpacked by git into its quarantine
// before anybody sees it. Then git's pre-receive hook hands the refs to
// Platform.Receive, whose error rejects the push and whose output the pusher
// sees behind git's own "remote: ". The prefix is left visible: hiding it, as
// contract 9.4 does, takes an escape sequence that spoils logs of CI systems.
//
// Nothing that a client sends becomes part of a path or of a shell command:
// repositories are named by the app's UUID, which the Platform gives.
package gitserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"sync"
	"time"

	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"
)

const (
	// DefaultMaxPush holds the largest histories in use as apps with room to spare,
	// and keeps one push from filling the disk of a small server.
	DefaultMaxPush = 1 << 30
	// handshakeLimit is the whole time from the first byte to a verified key: several
	// round trips around the world and to the controller.
	handshakeLimit = 30 * time.Second
	// idleLimit ends connections on which no byte moves. A running command keeps its connection
	// awake with keepalives.
	idleLimit = 2 * time.Minute
	// keepAlive is the interval of keepalives; a peer that leaves one unanswered for keepAliveMax
	// intervals is gone.
	keepAlive    = 15 * time.Second
	keepAliveMax = 4
	// stallLimit ends a command that moves no data although the peer is there. A client may
	// compress a large history for minutes before it sends the first byte.
	stallLimit = 10 * time.Minute
	// maxAuthTries lets a user have an agent with a few keys too many.
	maxAuthTries = 10
	// maxConns and maxConnsPerHost bound memory: a connection with git behind it costs some
	// 10 MB. A whole office or CI system may share one address.
	maxConns        = 256
	maxConnsPerHost = 64
	// maxSessions is that of OpenSSH, for clients that share one connection.
	maxSessions = 10
	// shutdownGrace is how long commands under way get to say why they end.
	shutdownGrace = 3 * time.Second
)

// User is who holds a key.
type User struct {
	Name string
	// Fingerprint is that of the key, in the form of the Platform.
	Fingerprint string
}

// Ref is one line of a push: Name shall go from commit Old to New. An all-zero
// Old creates it, an all-zero New deletes it.
type Ref struct {
	Old, New, Name string
}

// Push is what Platform.Receive decides about.
type Push struct {
	App  string // app id
	UUID string // app UUID
	User User
	Refs []Ref
	// Dir is the bare repository. The new objects are in Quarantine, an object directory of its own
	// that goes away, or becomes part of Dir, when Receive has returned.
	Dir        string
	Quarantine string
	// Connection is "address port address port" of client and server, Command what was asked for.
	Connection string
	Command    string
	// Started is when the client asked for the push.
	Started time.Time
}

// Platform is what a Server asks of the rest. Its methods are called
// concurrently. The messages of their paas errors are shown to the user, one
// line each; other errors are logged.
type Platform interface {
	// Authenticate says whose a public key is (authorized_keys form, no comment). The code is
	// NotFound for nobody's.
	Authenticate(ctx context.Context, key string) (User, error)
	// Authorize returns the UUID of an app that the user may read and push.
	Authorize(ctx context.Context, user, app string) (uuid string, err error)
	// Receive decides about a complete push and does what follows from it. Its error rejects all refs. ctx
	// ends with the server, not with the client; output never fails, it is dropped when the client is gone.
	Receive(ctx context.Context, push Push, output io.Writer) error
}

// Server serves git over SSH. The fields are set before Serve.
type Server struct {
	Platform Platform
	HostKeys []gossh.Signer
	// Repositories is where they are kept.
	Repositories *Repositories
	// MaxPush bounds the pack of one push, in bytes; 0 means DefaultMaxPush.
	MaxPush int64
	Log     *slog.Logger

	mu      sync.Mutex
	closing bool
	running sync.WaitGroup
}

// Serve accepts connections until ctx ends, then closes l, ends what runs and
// returns nil. It is called once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if err := s.prepare(); err != nil {
		l.Close()
		return err
	}
	srv := s.sshServer(ctx)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(newLimitListener(l)) }()
	select {
	case err := <-done:
		return fmt.Errorf("ssh: %w", err)
	case <-ctx.Done():
	}
	l.Close()
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.wait(shutdownGrace)
	if err := srv.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("ssh: %w", err)
	}
	s.wait(shutdownGrace)
	return nil
}

// enter begins a session unless the server is closing.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.running.Add(1)
	}
	return !s.closing
}

// wait waits for the sessions to end, within limits.
func (s *Server) wait(limit time.Duration) {
	ended := make(chan struct{})
	go func() { s.running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(limit):
	}
}

func (s *Server) prepare() error {
	if len(s.HostKeys) == 0 {
		return errors.New("ssh: no host keys")
	}
	if _, err := exec.LookPath("git"); err != nil {
		return fmt.Errorf("git is needed to serve pushes: %w", err)
	}
	if s.MaxPush == 0 {
		s.MaxPush = DefaultMaxPush
	}
	return nil
}

// sshServer leaves only sessions: no forwarding, no agent, no subsystems.
func (s *Server) sshServer(ctx context.Context) *ssh.Server {
	srv := &ssh.Server{
		Version:              "deis",
		IdleTimeout:          idleLimit,
		ConnCallback:         accept,
		ServerConfigCallback: serverConfig,
		PublicKeyHandler:     s.offer,
		ChannelHandlers: map[string]ssh.ChannelHandler{
			"session": func(_ *ssh.Server, conn *gossh.ServerConn, c gossh.NewChannel, sctx ssh.Context) {
				s.session(ctx, conn, c, clientOf(sctx))
			},
		},
	}
	for _, key := range s.HostKeys {
		srv.AddHostKey(key)
	}
	return srv
}
