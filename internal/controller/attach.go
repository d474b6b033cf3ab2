package controller

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"sync"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

const (
	// attachIdle ends a terminal where nothing is typed and nothing shown: somebody has
	// forgotten it. One-offs without terminal, a long migration for example,
	// may be silent as long as their client is there.
	attachIdle = time.Hour
	// attachGrace is how long a client may take for the last frames.
	attachGrace = 5 * time.Second
	// defaultTerm is TERM where the client's is not a name: what every terminal can do.
	defaultTerm = "xterm"
)

var (
	errIdle     = paas.Errorf(paas.Unavailable, "container timed out: nothing was typed or shown for %s", attachIdle)
	errStopping = paas.Errorf(paas.Unavailable, "the controller is being stopped")
	errOverflow = errors.New("the client sends more input than was asked for")
)

var termName = regexp.MustCompile(`^[A-Za-z0-9._+-]{1,64}$`)

// terminal returns a field that is a terminal, nil where there is none.
func (f *form) terminal(name string) *api.RunTerminal {
	if f.fields[name] == nil {
		return nil
	}
	t := &api.RunTerminal{}
	text, err := json.Marshal(f.fields[name])
	if err != nil || json.Unmarshal(text, t) != nil {
		f.fault(name, "This is not a terminal.")
		return nil
	}
	if !termName.MatchString(t.Name) {
		t.Name = defaultTerm
	}
	return t
}

// upgrade answers with 101 and takes the connection over. The reader holds what
// the client has sent already.
func (c *call) upgrade(protocol string) (net.Conn, io.Reader, error) {
	conn, rw, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("upgrade to %s: %w", protocol, err)
	}
	c.w.status = http.StatusSwitchingProtocols
	h := c.w.Header().Clone()
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", protocol)
	fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\n")
	err = h.Write(rw)
	fmt.Fprint(rw, "\r\n")
	if err = errors.Join(err, conn.SetWriteDeadline(time.Now().Add(attachGrace)), rw.Flush(), conn.SetWriteDeadline(time.Time{})); err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("upgrade to %s: %w", protocol, err)
	}
	return conn, rw.Reader, nil
}

// attachRun runs a job whose streams are the connection (api.RunProtocol). The
// process ends with the connection, and when the controller is stopped.
func (c *call) attachRun(job engine.Job) error {
	c.s.attached.Add(1)
	defer c.s.attached.Done()
	conn, r, err := c.upgrade(api.RunProtocol)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(c.ctx)
	defer cancel(nil)
	// What waits for a client that takes nothing must not wait for ever.
	defer context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Now().Add(attachGrace)) })()
	go func() {
		select {
		case <-c.s.stopping:
			cancel(errStopping)
		case <-ctx.Done():
		}
	}()
	a := newAttachment(conn, &job)
	defer a.stdin.close()
	if job.Terminal != nil {
		a.idle = time.AfterFunc(attachIdle, func() { cancel(errIdle) })
		defer a.idle.Stop()
	}
	listening := make(chan struct{})
	go func() {
		defer close(listening)
		cancel(a.listen(bufio.NewReaderSize(r, api.MaxFrame)))
	}()
	code, err := c.runJob(ctx, job)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		c.s.cfg.Log.Info("a one-off was ended", "app", c.app.ID, "num", job.Num, "why", cause.Error(), "error", err.Error())
		err = cause
	} else if err != nil && paas.CodeOf(err) == paas.Internal {
		c.s.cfg.Log.Error("a one-off failed", "app", c.app.ID, "num", job.Num, "error", err.Error())
	}
	a.end(code, err)
	// Until the client has hung up: closing what it still sends to would take
	// the last frames away from it.
	defer time.AfterFunc(attachGrace, func() { conn.Close() }).Stop()
	<-listening
	return nil
}

// awaitAttached gives the one-offs under way time to end, once the controller is to.
func (s *server) awaitAttached() {
	ended := make(chan struct{})
	go func() {
		s.attached.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(attachGrace):
	}
}

// attachment is the client's end of a one-off.
type attachment struct {
	conn   net.Conn
	frames *api.Frames
	stdin  *inbox
	sizes  chan engine.WindowSize // holds the latest
	idle   *time.Timer            // nil without terminal
}

// newAttachment connects a job's streams.
func newAttachment(conn net.Conn, job *engine.Job) *attachment {
	a := &attachment{conn: conn, frames: api.NewFrames(conn), sizes: make(chan engine.WindowSize, 1)}
	a.stdin = newInbox(func(n int) { _ = a.frames.SendNumber(api.FrameWanted, uint32(n)) }) // listen notices a client that is gone
	job.Stdin = a.stdin
	job.Stdout = &used{a, a.frames.Stream(api.FrameOutput)}
	job.Stderr = &used{a, a.frames.Stream(api.FrameErrors)}
	if job.Terminal != nil {
		job.Terminal.Resize = a.sizes
	}
	return a
}

// used notes that a stream is in use.
type used struct {
	a *attachment
	w io.Writer
}

func (u *used) Write(p []byte) (int, error) {
	u.a.use()
	return u.w.Write(p)
}

func (a *attachment) use() {
	if a.idle != nil {
		a.idle.Reset(attachIdle)
	}
}

// listen takes what the client sends until it is gone, which its error says.
func (a *attachment) listen(r io.Reader) error {
	buf := make([]byte, api.MaxFrame)
	for {
		if err := a.conn.SetReadDeadline(time.Now().Add(api.RunSilence)); err != nil {
			return err
		}
		kind, payload, err := api.ReadFrame(r, buf)
		if err == nil {
			err = a.take(kind, payload)
		}
		if err != nil {
			return fmt.Errorf("the client of a one-off: %w", err)
		}
	}
}

func (a *attachment) take(kind api.FrameKind, payload []byte) error {
	switch kind {
	case api.FrameInput:
		a.use()
		return a.stdin.put(payload)
	case api.FrameResize:
		columns, rows, err := api.ParseSize(payload)
		if err != nil {
			return err
		}
		select { // only the latest size counts
		case <-a.sizes:
		default:
		}
		a.sizes <- engine.WindowSize{Columns: columns, Rows: rows}
	}
	return nil
}

// end tells the client how it ended. What it does not hear any more does not matter.
func (a *attachment) end(code int, err error) {
	if err == nil {
		_ = a.frames.SendNumber(api.FrameExit, uint32(code))
		return
	}
	body, encodeErr := json.Marshal(api.ErrorBody(err))
	if encodeErr == nil {
		_ = a.frames.Send(api.FrameFault, api.FaultPayload(api.StatusOf(err), body))
	}
}

// inbox is the stdin of a process, as a client sends it. It never holds more than
// api.InputWindow, and taking it in never waits.
type inbox struct {
	wanted func(n int)
	mu     sync.Mutex
	more   sync.Cond
	buf    []byte
	ended  bool
}

func newInbox(wanted func(n int)) *inbox {
	b := &inbox{wanted: wanted}
	b.more.L = &b.mu
	return b
}

// put takes one frame in; an empty one is the end.
func (b *inbox) put(p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.buf)+len(p) > api.InputWindow {
		return errOverflow
	}
	if !b.ended {
		b.buf = append(b.buf, p...)
		b.ended = len(p) == 0
	}
	b.more.Broadcast()
	return nil
}

// close makes an end where the client has made none.
func (b *inbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.more.Broadcast()
}

func (b *inbox) Read(p []byte) (int, error) {
	n := b.wait(p)
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	b.wanted(n)
	return n, nil
}

func (b *inbox) wait(p []byte) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.buf) == 0 && !b.ended {
		b.more.Wait()
	}
	n := copy(p, b.buf)
	b.buf = b.buf[:copy(b.buf, b.buf[n:])]
	return n
}
