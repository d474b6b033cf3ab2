package deis_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/cli/deis"
	"golang.org/x/sys/unix"
)

// peer is the controller's end of a one-off, for tests that say what it sends.
type peer struct {
	t       *testing.T
	request api.RunRequest
	conn    net.Conn
	r       *bufio.Reader
	*api.Frames
}

// next is the next frame of the client but for signs of life.
func (p *peer) next() (kind api.FrameKind, payload string, err error) {
	for {
		kind, b, err := api.ReadFrame(p.r, make([]byte, api.MaxFrame))
		if err != nil || kind != api.FrameAlive {
			return kind, string(b), err
		}
	}
}

func (p *peer) want(kind api.FrameKind, payload string) {
	p.t.Helper()
	if k, got, err := p.next(); err != nil || k != kind || got != payload {
		p.t.Errorf("frame %c %q %v, want %c %q", k, got, err, kind, payload)
	}
}

// newController serves the one-offs and logs of app demo, and logs alice in.
func newController(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("TERM", "xterm-256color")
	t.Setenv("DEIS_PROFILE", "")
	if err := os.Mkdir(filepath.Join(home, ".deis"), 0o700); err != nil {
		t.Fatal(err)
	}
	settings := fmt.Sprintf(`{"username":"alice","controller":%q,"token":"t0ken"}`, server.URL)
	if err := os.WriteFile(filepath.Join(home, ".deis", "client.json"), []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	return server
}

// attaching serves one-offs with a function for the controller's end.
func attaching(t *testing.T, serve func(*peer)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/v1/apps/demo/run" || !api.AsksUpgrade(r.Header, api.RunProtocol) {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		}
		p := &peer{t: t}
		if err := json.NewDecoder(r.Body).Decode(&p.request); err != nil {
			t.Error(err)
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", api.RunProtocol)
		p.conn, p.r, p.Frames = conn, rw.Reader, api.NewFrames(conn)
		serve(p)
		// Until the client has gone, as the controller does.
		_, _ = io.Copy(io.Discard, p.r)
	}
}

// TestRunPiped: streams of a command without terminal, and its exit status.
func TestRunPiped(t *testing.T) {
	input := strings.Repeat("0123456789", 20_000) // more than may be under way
	newController(t, attaching(t, func(p *peer) {
		if p.request.Command != "tr a b" || p.request.Terminal != nil {
			t.Errorf("asked for %+v", p.request)
		}
		text, unread := "", 0
		for {
			kind, payload, err := p.next()
			if err != nil || kind != api.FrameInput {
				t.Errorf("frame %c %v", kind, err)
				return
			}
			if payload == "" {
				break
			}
			text += payload
			if unread += len(payload); unread == api.InputWindow {
				p.conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
				if b, err := p.r.Peek(1); err == nil {
					t.Errorf("%q comes, which nobody wanted", b)
				}
				p.conn.SetReadDeadline(time.Time{})
				p.SendNumber(api.FrameWanted, uint32(unread))
				unread = 0
			}
		}
		if text != input {
			t.Errorf("%d bytes of input, want %d", len(text), len(input))
		}
		p.Send('?', []byte("a frame of tomorrow"))
		p.Send(api.FrameOutput, []byte("out"))
		p.Send(api.FrameErrors, []byte("err"))
		p.SendNumber(api.FrameExit, 7)
	}))
	var stdout, stderr bytes.Buffer
	status := deis.Run(t.Context(), []string{"run", "--app=demo", "tr", "a", "b"},
		deis.Streams{In: strings.NewReader(input), Out: &stdout, Err: &stderr})
	if status != 7 || stdout.String() != "out" || !strings.HasSuffix(stderr.String(), "\nerr") {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout.String(), stderr.String())
	}
}

// TestRunEndsBadly: what the user reads when there is no exit code.
func TestRunEndsBadly(t *testing.T) {
	for _, test := range []struct {
		name   string
		serve  func(*peer)
		status int
		stderr string
	}{
		{"fault", func(p *peer) {
			p.Send(api.FrameFault, api.FaultPayload(503, []byte(`{"detail":"container timed out"}`)))
		}, 1, "!    container timed out"},
		{"lost", func(p *peer) { p.conn.Close() }, 1, "The connection was lost, which ended the command."},
		{"nonsense", func(p *peer) { p.Send(api.FrameExit, []byte("0")) }, 1, "!"},
	} {
		t.Run(test.name, func(t *testing.T) {
			newController(t, attaching(t, test.serve))
			var stderr bytes.Buffer
			status := deis.Run(t.Context(), []string{"run", "--app=demo", "x"},
				deis.Streams{In: strings.NewReader(""), Out: io.Discard, Err: &stderr})
			if status != test.status || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("status %d, stderr %q", status, stderr.String())
			}
		})
	}
}

// TestRunInterrupted: without terminal, Ctrl-C ends the command by hanging up.
func TestRunInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	newController(t, attaching(t, func(p *peer) {
		interrupt()
		_, _, err := p.next()
		gone <- err
	}))
	stdin, stdinWriter := io.Pipe()
	defer stdinWriter.Close()
	status := deis.Run(ctx, []string{"run", "--app=demo", "sleep", "1000"}, deis.Streams{In: stdin, Out: io.Discard, Err: io.Discard})
	if status != 130 {
		t.Errorf("exit status %d", status)
	}
	if err := <-gone; err == nil {
		t.Error("the controller still hears from the client")
	}
}

// TestRunTerminal: keys go to the command as they are, sizes follow, and the
// terminal is as before at the end.
func TestRunTerminal(t *testing.T) {
	term := newTerminal(t)
	term.resize(t, 91, 37)
	newController(t, attaching(t, func(p *peer) {
		if want := (api.RunTerminal{Name: "xterm-256color", Columns: 91, Rows: 37}); p.request.Terminal == nil || *p.request.Terminal != want {
			t.Errorf("terminal %+v, want %+v", p.request.Terminal, want)
		}
		p.Send(api.FrameOutput, []byte("$ "))
		p.want(api.FrameInput, "\x03")
		p.Send(api.FrameOutput, []byte("^C\r\nresize now"))
		p.want(api.FrameResize, string(api.SizePayload(100, 50)))
		p.Send(api.FrameOutput, []byte("\r\nbye\r\n"))
		p.SendNumber(api.FrameExit, 130)
	}))
	done := term.run(t.Context(), "run", "--app=demo", "bash")
	term.await(t, "$ ")
	if term.echoes(t) {
		t.Error("the terminal shows what is typed by itself")
	}
	term.master.WriteString("\x03")
	term.await(t, "resize now")
	term.resize(t, 100, 50)
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil { // it is not our controlling terminal
		t.Fatal(err)
	}
	if status := <-done; status != 130 {
		t.Errorf("exit status %d: %s", status, term.shown())
	}
	term.await(t, "bye")
	if !term.echoes(t) {
		t.Error("the terminal is not as before")
	}
}

func (term *terminal) resize(t *testing.T, columns, rows uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(term.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		t.Fatal(err)
	}
}

// safeBuffer may be read while it is written.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestFollow: lines come as they are written; after broken connections none is
// lost or shown twice.
func TestFollow(t *testing.T) {
	const second = "2014-01-01T00:00:0"
	line := func(s int, text string) string { return fmt.Sprintf("%s%dUTC demo[web.1]: %s\n", second, s, text) }
	asked := make(chan string, 10)
	answers := make(chan func(http.ResponseWriter), 10)
	newController(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.RequestURI()
		(<-answers)(w)
	})
	stream := func(lines ...string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set(api.HeaderFollow, "true")
			for _, l := range lines {
				io.WriteString(w, l)
			}
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}
	answers <- stream(line(1, "forgotten"), line(8, "a"), line(7, "late"), line(8, "a"), line(8, "half a li")[:40])
	answers <- func(w http.ResponseWriter) { http.Error(w, "<h1>Bad Gateway</h1>", http.StatusBadGateway) }
	answers <- stream(line(7, "late"), line(7, "later"), line(8, "a"), line(8, "a"), line(8, "half a line"), line(8, "a"), line(9, "b"))
	answers <- func(w http.ResponseWriter) { // the app is gone
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"detail":"Not found"}`)
	}
	answers <- func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }
	stdout, stderr := &safeBuffer{}, &safeBuffer{}
	status := deis.Run(t.Context(), []string{"logs", "--app=demo", "-f", "-n", "5", "--process=web"},
		deis.Streams{In: strings.NewReader(""), Out: stdout, Err: stderr})
	want := line(1, "forgotten") + line(8, "a") + line(7, "late") + line(8, "a") + line(7, "later") + line(8, "half a line") + line(8, "a") + line(9, "b")
	if stdout.String() != want {
		t.Errorf("shown:\n%s\nwant:\n%s", stdout, want)
	}
	if status != 1 || !strings.Contains(stderr.String(), "There is no app demo.") {
		t.Errorf("status %d, stderr %s", status, stderr)
	}
	for _, want := range []string{
		"/v1/apps/demo/logs?follow=true&log_lines=5&process=web",
		"/v1/apps/demo/logs?follow=true&log_lines=100000&process=web&since=2014-01-01T00%3A00%3A03UTC",
		"/v1/apps/demo/logs?follow=true&log_lines=100000&process=web&since=2014-01-01T00%3A00%3A03UTC",
		"/v1/apps/demo/logs?follow=true&log_lines=100000&process=web&since=2014-01-01T00%3A00%3A04UTC",
	} {
		if got := <-asked; got != want {
			t.Errorf("asked %s, want %s", got, want)
		}
	}
}

// TestFollowInterrupted: Ctrl-C is the usual end and says nothing.
func TestFollowInterrupted(t *testing.T) {
	newController(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.HeaderFollow, "true")
		io.WriteString(w, "2014-01-01T00:00:01UTC demo[web.1]: one\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, interrupt := context.WithCancel(t.Context())
	stdout, stderr := &safeBuffer{}, &safeBuffer{}
	done := make(chan int, 1)
	go func() {
		done <- deis.Run(ctx, []string{"logs", "--app=demo", "--follow"}, deis.Streams{In: strings.NewReader(""), Out: stdout, Err: stderr})
	}()
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(stdout.String(), "one"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the line does not come while the connection is open")
		}
	}
	interrupt()
	if status := <-done; status != 130 || stderr.String() != "" {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
}

// TestFollowOldController: one that answers once and ends.
func TestFollowOldController(t *testing.T) {
	newController(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "2014-01-01T00:00:01UTC demo[web.1]: one\n")
	})
	stdout, stderr := &safeBuffer{}, &safeBuffer{}
	status := deis.Run(t.Context(), []string{"logs", "--app=demo", "--follow"}, deis.Streams{In: strings.NewReader(""), Out: stdout, Err: stderr})
	if status != 1 || !strings.Contains(stdout.String(), "one") || !strings.Contains(stderr.String(), "cannot follow logs") {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
}
