package controller

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/fake"
)

// attached is a client's end of a one-off.
type attached struct {
	t      *testing.T
	conn   io.ReadWriteCloser
	frames *api.Frames
	r      *bufio.Reader
	head   http.Header
}

// attach asks for a one-off as `deis run` does.
func (c *client) attach(body api.RunRequest) *attached {
	c.p.t.Helper()
	resp := c.tryAttach(body)
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(resp.Body)
		c.p.t.Fatalf("attach: %d %s", resp.StatusCode, text)
	}
	conn := resp.Body.(io.ReadWriteCloser)
	c.p.t.Cleanup(func() { conn.Close() })
	return &attached{t: c.p.t, conn: conn, frames: api.NewFrames(conn), r: bufio.NewReader(conn), head: resp.Header}
}

func (c *client) tryAttach(body api.RunRequest) *http.Response {
	c.p.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		c.p.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(c.p.t.Context(), http.MethodPost, c.p.url+"/v1/apps/shop/run", bytes.NewReader(text))
	if err != nil {
		c.p.t.Fatal(err)
	}
	req.Header = c.header.Clone()
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", api.RunProtocol)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.p.t.Fatal(err)
	}
	c.p.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// next is the next frame as "kind:payload".
func (a *attached) next() string {
	a.t.Helper()
	got := make(chan string, 1)
	go func() {
		kind, payload, err := api.ReadFrame(a.r, make([]byte, api.MaxFrame))
		switch {
		case err != nil:
			got <- "error:" + err.Error()
		case kind == api.FrameExit || kind == api.FrameWanted:
			n, _ := api.FrameNumber(payload)
			got <- fmt.Sprintf("%c:%d", kind, n)
		case kind == api.FrameFault:
			got <- fmt.Sprintf("%c:%v", kind, api.ParseFault(payload))
		default:
			got <- fmt.Sprintf("%c:%s", kind, payload)
		}
	}()
	select {
	case frame := <-got:
		return frame
	case <-time.After(patience):
		a.t.Fatal("no frame comes")
		return ""
	}
}

func (a *attached) want(frames ...string) {
	a.t.Helper()
	for _, want := range frames {
		if got := a.next(); got != want {
			a.t.Fatalf("frame %q, want %q", got, want)
		}
	}
}

// talker is a program that answers each line, tells its terminal's size at
// "size", ends at "end" and at the end of its input, and hangs at "hang".
func talker(ended chan<- error) func(engine.Process) (fake.Program, error) {
	return func(p engine.Process) (fake.Program, error) {
		return fake.Program{Run: func(ctx context.Context, job engine.Job) (int, error) {
			code, err := talk(ctx, job)
			ended <- err
			return code, err
		}}, nil
	}
}

func talk(ctx context.Context, job engine.Job) (int, error) {
	if job.Terminal != nil {
		size := job.Terminal.Size
		fmt.Fprintf(job.Stdout, "%s %dx%d", job.Process.Env["TERM"], size.Columns, size.Rows)
	}
	for lines := bufio.NewReader(job.Stdin); ; {
		line, err := lines.ReadString('\n')
		switch {
		case errors.Is(err, io.EOF):
			fmt.Fprint(job.Stderr, "input ended")
			return 3, nil
		case line == "size\n":
			select {
			case size := <-job.Terminal.Resize:
				fmt.Fprintf(job.Stdout, "%dx%d", size.Columns, size.Rows)
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		case line == "end\n":
			return 7, nil
		case line == "hang\n":
			<-ctx.Done()
			return 0, ctx.Err()
		default:
			fmt.Fprintf(job.Stdout, "you said %s", line)
		}
	}
}

// newShop is a platform with an app of alice's whose one-offs talk.
func newShop(t *testing.T) (p *platform, alice *client, ended chan error) {
	p = newPlatform(t)
	alice = p.user("alice")
	alice.app("shop", "web")
	ended = make(chan error, 1)
	p.engine.SetPrograms(talker(ended))
	return p, alice, ended
}

func runs(c *client) string {
	c.p.t.Helper()
	var l api.List[api.Container]
	c.json(&l, 200, "GET", "/v1/apps/shop/containers/run", nil)
	text := ""
	for _, i := range l.Results {
		text += fmt.Sprintf("%s.%d %s %s;", i.Type, i.Num, i.Release, i.State)
	}
	return text
}

// TestAttachedRun: streams, end of input, exit code and records of one-offs.
func TestAttachedRun(t *testing.T) {
	_, alice, ended := newShop(t)
	a := alice.attach(api.RunRequest{Command: "talk"})
	if got := a.head.Get(api.HeaderAPIVersion); got != api.Version {
		t.Errorf("the 101 has API version %q", got)
	}
	if got := runs(alice); got != "run.1 v2 initialized;" {
		t.Errorf("runs while it runs: %s", got)
	}
	a.frames.Send(api.FrameInput, []byte("hello\n"))
	a.want("w:6", "o:you said hello\n")
	a.frames.Send('?', []byte("a frame of tomorrow"))
	a.frames.Send(api.FrameAlive, nil)
	a.frames.Send(api.FrameInput, nil)
	a.want("e:input ended", "x:3")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	b := alice.attach(api.RunRequest{Command: "talk"})
	b.frames.Send(api.FrameInput, []byte("end\n"))
	b.want("w:4", "x:7")
	eventually(t, "both runs are on record", func() bool { return runs(alice) == "run.1 v2 destroyed;run.2 v2 destroyed;" })
	if got := alice.containers("shop"); len(got) != 1 {
		t.Errorf("the plain list shows %v", got)
	}
	if log := alice.want(200, "GET", "/v1/apps/shop/logs", nil); !strings.Contains(log, "shop[deis-controller]: alice runs 'talk'") {
		t.Errorf("the log: %s", log)
	}
}

// TestAttachedTerminal: name and sizes of the client's terminal.
func TestAttachedTerminal(t *testing.T) {
	for name, want := range map[string]string{"vt100": "vt100", "evil\nx": "xterm", "": "xterm"} {
		_, alice, _ := newShop(t)
		a := alice.attach(api.RunRequest{Command: "talk", Terminal: &api.RunTerminal{Name: name, Columns: 100, Rows: 30}})
		a.want("o:" + want + " 100x30")
		a.frames.Send(api.FrameResize, api.SizePayload(90, 20))
		a.frames.Send(api.FrameInput, []byte("size\n"))
		a.want("w:5", "o:90x20")
		a.frames.Send(api.FrameInput, []byte("end\n"))
		a.want("w:4", "x:7")
	}
}

// TestAttachedClientGoes: the process ends with its client, whatever that does.
func TestAttachedClientGoes(t *testing.T) {
	for name, leave := range map[string]func(*attached){
		"closed":          func(a *attached) { a.conn.Close() },
		"nonsense":        func(a *attached) { fmt.Fprint(a.conn, "GET / HTTP/1.1\r\n\r\n") },
		"size of 3 bytes": func(a *attached) { a.frames.Send(api.FrameResize, []byte("abc")) },
		"unwanted input": func(a *attached) {
			io.Copy(a.frames.Stream(api.FrameInput), strings.NewReader(strings.Repeat("x", 2*api.InputWindow)))
		},
		"closed, much sent": func(a *attached) { a.frames.Send(api.FrameInput, make([]byte, api.MaxFrame)); a.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			_, alice, ended := newShop(t)
			a := alice.attach(api.RunRequest{Command: "talk"})
			a.frames.Send(api.FrameInput, []byte("hang\n"))
			a.want("w:5")
			leave(a)
			select {
			case err := <-ended:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("ended with %v", err)
				}
			case <-time.After(patience):
				t.Fatal("the process goes on")
			}
			eventually(t, "the run is on record", func() bool { return runs(alice) == "run.1 v2 destroyed;" })
		})
	}
}

// TestAttachedControllerStops: who is attached is told why it ends.
func TestAttachedControllerStops(t *testing.T) {
	p, alice, ended := newShop(t)
	a := alice.attach(api.RunRequest{Command: "talk"})
	a.frames.Send(api.FrameInput, []byte("hang\n"))
	a.want("w:5")
	go p.stop()
	a.want("f:the controller is being stopped")
	a.conn.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// TestAttachRefused: before the protocol changes, errors are those of plain runs.
func TestAttachRefused(t *testing.T) {
	p, alice, _ := newShop(t)
	mallory := p.user("mallory")
	nobody := p.anonymous()
	ls := api.RunRequest{Command: "ls"}
	for _, test := range []struct {
		who    *client
		body   api.RunRequest
		status int
	}{{nobody, ls, 401}, {mallory, ls, 403}, {alice, api.RunRequest{}, 400}} {
		if got := test.who.tryAttach(test.body).StatusCode; got != test.status {
			t.Errorf("attach: %d, want %d", got, test.status)
		}
	}
	alice.want(201, "POST", "/v1/apps/shop/perms", map[string]string{"username": "mallory"})
	p.engine.SetPrograms(nil)
	p.engine.SetChaos(fake.Chaos{Create: 1})
	mallory.attach(ls).want("f:exit code 1")
	p.engine.SetChaos(fake.Chaos{})
	a := mallory.attach(ls)
	if got := a.next(); !strings.HasPrefix(got, `o:{"name":"shop_v2.run.2"`) {
		t.Errorf("the mock says %s", got)
	}
	a.want("x:0")
}

// TestRunLimits: a one-off has only the limits that are set for type run.
func TestRunLimits(t *testing.T) {
	p, alice, _ := newShop(t)
	got := make(chan engine.Process, 1)
	p.engine.SetPrograms(func(process engine.Process) (fake.Program, error) {
		return fake.Program{Run: func(context.Context, engine.Job) (int, error) { got <- process; return 0, nil }}, nil
	})
	for _, test := range []struct {
		body   string
		memory int64
		cpu    int64
	}{
		{`{"memory":{"web":"64M"},"values":{"A":"b"}}`, 0, 0},
		{`{"memory":{"run":"128M"},"cpu":{"run":512}}`, 128 << 20, 512},
	} {
		alice.want(201, "POST", "/v1/apps/shop/config", test.body)
		alice.says(`[0,""]`, 200, "POST", "/v1/apps/shop/run", `{"command":"ls"}`)
		if process := <-got; process.Memory != test.memory || process.CPUShares != test.cpu || process.Env["A"] != "b" {
			t.Errorf("after %s: %+v", test.body, process)
		}
	}
}
