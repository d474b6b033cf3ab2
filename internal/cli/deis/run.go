package deis

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (c *cli) runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "apps:run <command>...",
		Aliases: []string{"run"},
		Short:   "Run a command once in a new instance of an app",
		Long: `The command is a line for the shell. It gets your input, and its exit status becomes this one's.
If input and output are a terminal, it has one too: keys such as Ctrl-C go to the command. It is
ended when you go, and after an hour in which nothing is typed or shown.
Without a terminal, output and errors stay apart; "</dev/null" keeps the command from your input.
Options for deis come before the command, all after it are the command's own.`,
		Example: "deis run --app=demo ls -l",
		Args:    atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.run(cmd.Context(), strings.Join(args, " "))
		},
	}
	c.withApp(cmd)
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (c *cli) run(ctx context.Context, command string) error {
	s, app, err := c.forApp(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.err, "Running `%s`...\n", command)
	tty := c.terminal()
	body := api.RunRequest{Command: command, Terminal: tty.describe()}
	upgrade := http.Header{"Connection": {"Upgrade"}, "Upgrade": {api.RunProtocol}}
	resp, err := s.api.Do(ctx, http.MethodPost, appPath(app, "run"), body, upgrade)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		return c.printRun(resp.Body)
	}
	restore, err := tty.raw()
	if err != nil {
		return err
	}
	defer restore()
	return c.attach(ctx, conn, tty)
}

// printRun prints the plain answer of contract 5.7, from a controller that cannot
// attach us to the process.
func (c *cli) printRun(body io.Reader) error {
	answer := []json.RawMessage{}
	status, output := 0, ""
	if json.NewDecoder(body).Decode(&answer) != nil || len(answer) != 2 ||
		json.Unmarshal(answer[0], &status) != nil || json.Unmarshal(answer[1], &output) != nil {
		return errors.New("the controller's answer is not the one expected")
	}
	fmt.Fprint(c.out, output)
	return exited(status)
}

// exited is the end of a command that ran.
func exited(status int) error {
	if status == 0 {
		return nil
	}
	return exitStatus(status)
}

// tty is the terminal that we run on, nil without one.
type tty struct{ in, out int } // descriptors

// terminal returns the one that we have if both input and output are.
func (c *cli) terminal() *tty {
	if !isTerminal(c.in) || !isTerminal(c.out) {
		return nil
	}
	descriptor := func(stream any) int { return int(stream.(interface{ Fd() uintptr }).Fd()) }
	return &tty{descriptor(c.in), descriptor(c.out)}
}

func (t *tty) describe() *api.RunTerminal {
	if t == nil {
		return nil
	}
	columns, rows := t.size()
	return &api.RunTerminal{Name: os.Getenv("TERM"), Columns: columns, Rows: rows}
}

// size is in characters; a terminal that does not know is a usual one.
func (t *tty) size() (columns, rows uint16) {
	w, h, err := term.GetSize(t.out)
	if err != nil || w <= 0 || h <= 0 {
		return 80, 24
	}
	return uint16(w), uint16(h)
}

// raw passes every key on, until restore.
func (t *tty) raw() (restore func(), err error) {
	if t == nil {
		return func() {}, nil
	}
	state, err := term.MakeRaw(t.in)
	if err != nil {
		return nil, fmt.Errorf("prepare the terminal: %w", err)
	}
	return func() { _ = term.Restore(t.in, state) }, nil // nothing else can be done about it
}

// attach connects the user's streams with those of a command, until it ends.
func (c *cli) attach(ctx context.Context, conn io.ReadWriteCloser, tty *tty) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	frames := api.NewFrames(conn)
	budget := newBudget(api.InputWindow)
	defer budget.close()
	go keepAlive(ctx, frames)
	go sendInput(c.in, frames, budget)
	if tty != nil {
		go sendSizes(ctx, tty, frames)
	}
	status, err := c.receive(bufio.NewReaderSize(conn, api.MaxFrame), budget)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	}
	return exited(status)
}

// receive prints what a command writes and returns its exit status.
func (c *cli) receive(r io.Reader, budget *budget) (status int, err error) {
	buf := make([]byte, api.MaxFrame)
	for {
		kind, payload, err := api.ReadFrame(r, buf)
		if err != nil {
			return 0, &failure{text: "The connection was lost, which ended the command.", err: err}
		}
		switch kind {
		case api.FrameOutput:
			_, err = c.out.Write(payload)
		case api.FrameErrors:
			_, err = c.err.Write(payload)
		case api.FrameWanted:
			var n uint32
			n, err = api.FrameNumber(payload)
			budget.add(int(n))
		case api.FrameExit:
			n, err := api.FrameNumber(payload)
			return int(n), err
		case api.FrameFault:
			return 0, api.ParseFault(payload)
		}
		if err != nil {
			return 0, err
		}
	}
}

// keepAlive shows the controller that we are there.
func keepAlive(ctx context.Context, frames *api.Frames) {
	tick := time.NewTicker(api.RunAlive)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = frames.Send(api.FrameAlive, nil) // receive notices a connection that is gone
		case <-ctx.Done():
			return
		}
	}
}

// sendInput passes input on as fast as it is wanted. A read that waits for input
// is left to the end of the process, since nothing can interrupt it.
func sendInput(in io.Reader, frames *api.Frames, budget *budget) {
	buf := make([]byte, api.MaxFrame)
	for {
		room := budget.take(len(buf))
		if room == 0 {
			return
		}
		n, err := in.Read(buf[:room])
		budget.add(room - n)
		if n > 0 && frames.Send(api.FrameInput, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = frames.Send(api.FrameInput, nil) // receive notices a connection that is gone
			return
		}
	}
}

// sendSizes tells how large the terminal is each time that it changes.
func sendSizes(ctx context.Context, tty *tty, frames *api.Frames) {
	changed := make(chan os.Signal, 1)
	defer notifyResize(changed)()
	for {
		select {
		case <-changed:
			_ = frames.Send(api.FrameResize, api.SizePayload(tty.size())) // receive notices a connection that is gone
		case <-ctx.Done():
			return
		}
	}
}

// budget is how many bytes of input may still be sent.
type budget struct {
	mu     sync.Mutex
	more   sync.Cond
	n      int
	closed bool
}

func newBudget(n int) *budget {
	b := &budget{n: n}
	b.more.L = &b.mu
	return b
}

// take waits until there is something and takes up to limit of it; 0 is the end.
func (b *budget) take(limit int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.n == 0 && !b.closed {
		b.more.Wait()
	}
	if b.closed {
		return 0
	}
	n := min(b.n, limit)
	b.n -= n
	return n
}

func (b *budget) add(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n += n
	b.more.Broadcast()
}

func (b *budget) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.more.Broadcast()
}
