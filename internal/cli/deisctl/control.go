package deisctl

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/deis/deis/internal/supervisor"
)

// control is the supervising deisctl's unix socket; only root's (or the
// owner's) other deisctl processes reach it. GET /status answers a statusDoc;
// POST /stop stops the platform and streams lines until it has.
type control struct{ l net.Listener }

type statusDoc struct {
	// Supervisor is the pid of the supervising deisctl, 0 if none runs.
	Supervisor int                 `json:"supervisor"`
	Root       string              `json:"root"`
	Parts      []supervisor.Status `json:"parts"`
	// Disk is absent where the controller does not answer.
	Disk *diskDoc `json:"disk,omitempty"`
}

// stopRequest is one POST /stop.
type stopRequest struct {
	ctx  context.Context
	apps bool
	out  io.Writer
	done chan struct{}
}

func listenControl(path string) (*control, error) {
	// We hold the lock: a socket that is there is a dead one's.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return &control{l: l}, nil
}

func (c *control) Close() error { return c.l.Close() }

// serve answers in the background; a stop that is asked for comes by the
// channel, and its answer ends when done is closed.
func (c *control) serve(p *platform) <-chan stopRequest {
	stops := make(chan stopRequest)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(statusDoc{Supervisor: os.Getpid(), Root: p.Root, Parts: p.status()})
	})
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, r *http.Request) {
		stop := stopRequest{
			// A client that goes away does not stop a stop half-way.
			ctx: context.WithoutCancel(r.Context()), apps: r.URL.Query().Get("apps") == "true",
			out: &flushWriter{w}, done: make(chan struct{}),
		}
		select {
		case stops <- stop:
			<-stop.done
		case <-r.Context().Done():
		}
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(c.l) }() // ends when the process closes the socket
	return stops
}

type flushWriter struct{ w http.ResponseWriter }

func (f *flushWriter) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err == nil {
		err = http.NewResponseController(f.w).Flush()
	}
	return n, err
}

// status is that of our parts, and of those that somebody else runs.
func (p *platform) status() []supervisor.Status {
	all := p.sup.Status()
	if p.Engine != "containerd" {
		return all
	}
	var external []supervisor.Status
	for name, addr := range map[string]string{"containerd": p.ContainerdAddress, "buildkitd": p.BuildkitAddress} {
		if addr == "" {
			continue
		}
		st := supervisor.Status{Name: name, State: supervisor.Running, Version: "external", Address: addr}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if err := dialUnix(ctx, strings.TrimPrefix(addr, "unix://")); err != nil {
			st.State, st.Reason = supervisor.Unhealthy, err.Error()
		}
		cancel()
		external = append(external, st)
	}
	return append(external, all...)
}

func (s *settings) controlClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", s.run("deisctl.sock"))
		},
		DisableKeepAlives: true,
	}}
}

// errNotRunning says that no supervisor answers.
var errNotRunning = errors.New("no deisctl runs here")

func (s *settings) askControl(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://deisctl"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.controlClient().Do(req)
	if opErr := (*net.OpError)(nil); errors.As(err, &opErr) && opErr.Op == "dial" {
		return nil, errNotRunning
	}
	return resp, err
}

func (s *settings) askStatus(ctx context.Context) (statusDoc, error) {
	var doc statusDoc
	resp, err := s.askControl(ctx, http.MethodGet, "/status")
	if err != nil {
		return doc, err
	}
	defer resp.Body.Close()
	return doc, json.NewDecoder(resp.Body).Decode(&doc)
}

// askStop shows the lines of a stop and waits for its end.
func (s *settings) askStop(ctx context.Context, apps bool, out io.Writer) error {
	resp, err := s.askControl(ctx, http.MethodPost, fmt.Sprintf("/stop?apps=%t", apps))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		fmt.Fprintln(out, lines.Text())
	}
	// The supervisor ends right after its last line, sometimes before the
	// answer's own end has left it.
	if err := lines.Err(); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return nil
}
