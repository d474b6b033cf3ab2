package gitserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/deis/deis/internal/paas"
)

// session is one command of a client.
type session struct {
	*Server
	gossh.Channel
	conn     *gossh.ServerConn
	command  string // as it was asked for
	protocol string // GIT_PROTOCOL, or empty
	started  time.Time
	gone     chan struct{} // closed when the client is
	// moved is when a byte last went in either direction, in Unix nanoseconds.
	moved atomic.Int64
	// read counts the bytes that the client has sent.
	read atomic.Int64
}

// session serves one channel: one exec request; env is accepted and, but for git's
// protocol version, ignored; everything else is refused.
func (s *Server) session(ctx context.Context, conn *gossh.ServerConn, c gossh.NewChannel, from *client) {
	if !s.enter() {
		return
	}
	defer s.running.Done()
	defer from.sessions.Add(-1)
	if from.sessions.Add(1) > maxSessions {
		// A peer that is gone needs no answer.
		_ = c.Reject(gossh.ResourceShortage, "too many sessions")
		return
	}
	channel, requests, err := c.Accept()
	if err != nil {
		return
	}
	sess := &session{Server: s, Channel: channel, conn: conn, gone: make(chan struct{})}
	started := false
	var command sync.WaitGroup
	for req := range requests {
		if sess.request(req, started) {
			started = true
			command.Go(func() { sess.exec(ctx) })
		}
	}
	close(sess.gone)
	command.Wait()
}

// gitProtocol is the form of git's version announcement; anything else is not passed on.
var gitProtocol = regexp.MustCompile(`^version=[0-9]$`)

// request answers one request and reports whether the command shall start.
func (s *session) request(req *gossh.Request, started bool) (start bool) {
	ok := false
	switch {
	case started:
	case req.Type == "env":
		var env struct{ Name, Value string }
		ok = gossh.Unmarshal(req.Payload, &env) == nil
		if ok && env.Name == "GIT_PROTOCOL" && gitProtocol.MatchString(env.Value) {
			s.protocol = env.Value
		}
	case req.Type == "shell":
		start = true
	case req.Type == "exec":
		var exec struct{ Command string }
		start = gossh.Unmarshal(req.Payload, &exec) == nil
		s.command = exec.Command
	}
	if req.WantReply {
		// A peer that is gone shows in the channel's end.
		_ = req.Reply(ok || start, nil)
	}
	return start
}

// exec runs the command and tells the client how it ended.
func (s *session) exec(ctx context.Context) {
	defer s.Close()
	s.started = time.Now()
	s.moved.Store(s.started.UnixNano())
	done := make(chan struct{})
	defer close(done)
	go s.watch(done)
	status, err := s.run(ctx)
	if err != nil {
		status = 1
		s.explain(s.Stderr(), err)
	}
	// The client may be gone.
	_, _ = s.SendRequest("exit-status", false, gossh.Marshal(struct{ Status uint32 }{uint32(status)}))
}

func (s *session) run(ctx context.Context) (status int, err error) {
	who, ok := s.conn.Permissions.ExtraData[callerKey{}].(caller)
	if !ok {
		return 1, errors.New("session without a caller")
	}
	if who.err != nil {
		if who.user, err = s.Platform.Authenticate(ctx, who.key); err != nil {
			return 1, err
		}
	}
	cmd, err := parseCommand(s.command)
	if err != nil {
		return 1, err
	}
	if cmd.verb == verbPing {
		_, err := io.WriteString(s, "pong\n")
		return 0, err
	}
	uuid, err := s.Platform.Authorize(ctx, who.user.Name, cmd.app)
	if err != nil {
		return 1, err
	}
	repo, err := s.Repositories.open(ctx, uuid)
	if err != nil {
		return 1, err
	}
	if cmd.verb == verbUpload {
		return s.upload(ctx, repo)
	}
	return s.receive(ctx, Push{
		App: cmd.app, UUID: uuid, User: who.user, Dir: repo,
		Connection: connection(s.conn), Command: s.command, Started: s.started,
	})
}

// connection has the form of sshd's SSH_CONNECTION.
func connection(conn gossh.ConnMetadata) string {
	part := func(a net.Addr) string {
		host, port, err := net.SplitHostPort(a.String())
		if err != nil {
			return a.String() + " 0"
		}
		return host + " " + port
	}
	return part(conn.RemoteAddr()) + " " + part(conn.LocalAddr())
}

// explain tells the user why a command failed, and the log too.
func (s *session) explain(w io.Writer, err error) {
	text := "Internal error. The builder's log says more."
	level := slog.LevelError
	if e, ok := errors.AsType[*paas.Error](err); ok && e.Code != paas.Internal && e.Message != "" {
		text, level = e.Message, slog.LevelInfo
	}
	s.Log.Log(context.Background(), level, "refused",
		"command", s.command, "connection", connection(s.conn), "error", err.Error())
	for line := range strings.Lines(text) {
		// The client may be gone.
		_, _ = fmt.Fprintf(w, " !     %s\n", strings.TrimRight(line, "\n"))
	}
}

// watch keeps the connection awake while the command runs and ends it when the
// peer is gone or has not moved for too long.
func (s *session) watch(done <-chan struct{}) {
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	var waiting atomic.Int32 // ticks since the keepalive that has no answer yet
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		ticks := waiting.Add(1)
		if ticks > keepAliveMax || time.Since(time.Unix(0, s.moved.Load())) > stallLimit {
			s.conn.Close()
			return
		}
		if ticks == 1 {
			go func() {
				if _, _, err := s.conn.SendRequest("keepalive@openssh.com", true, nil); err == nil {
					waiting.Store(0)
				}
			}()
		}
	}
}

// Read reads from the client.
func (s *session) Read(p []byte) (int, error) {
	n, err := s.Channel.Read(p)
	s.read.Add(int64(n))
	s.moved.Store(time.Now().UnixNano())
	return n, err
}

// Write writes to the client. It is the lossy writer that git writes to: what cannot be sent is
// dropped, so that a client that hangs up does not stop what has begun.
func (s *session) Write(p []byte) (int, error) {
	_, _ = s.Channel.Write(p)
	s.moved.Store(time.Now().UnixNano())
	return len(p), nil
}
