package deis_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deis/deis/internal/cli/deis"
	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal: the command has the slave, the test the other
// end, where it types and sees what is shown.
type terminal struct {
	master, slave *os.File
	mu            sync.Mutex
	screen        bytes.Buffer
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	term := &terminal{master: master, slave: slave}
	go func() { _, _ = io.Copy(term, master) }()
	return term
}

func (term *terminal) Write(p []byte) (int, error) {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.screen.Write(p)
}

func (term *terminal) shown() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return strings.ReplaceAll(term.screen.String(), "\r\n", "\n")
}

// await waits until the screen shows text.
func (term *terminal) await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(term.shown(), text); {
		if time.Now().After(deadline) {
			t.Fatalf("no %q in %q", text, term.shown())
		}
		time.Sleep(time.Millisecond)
	}
}

func (term *terminal) echoes(t *testing.T) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(term.slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

func (term *terminal) hidden(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); term.echoes(t); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the terminal shows what is typed")
		}
	}
}

func (term *terminal) run(ctx context.Context, args ...string) <-chan int {
	done := make(chan int, 1)
	go func() { done <- deis.Run(ctx, args, deis.Streams{In: term.slave, Out: term.slave, Err: term.slave}) }()
	return done
}

func newHome(t *testing.T) *stub {
	t.Helper()
	s := newStub()
	t.Cleanup(s.close)
	t.Setenv("HOME", t.TempDir())
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	t.Setenv("DEIS_PROFILE", "")
	return s
}

// TestPasswordIsNotShown types a registration as a person would.
func TestPasswordIsNotShown(t *testing.T) {
	s := newHome(t)
	term := newTerminal(t)
	done := term.run(t.Context(), "register", s.server.URL)
	for _, step := range []struct{ prompt, answer string }{
		{"username: ", "alice"}, {"password: ", "hunter2"}, {"password (again): ", "hunter2"}, {"email: ", "a@example.com"},
	} {
		term.await(t, step.prompt)
		if strings.HasPrefix(step.prompt, "password") {
			term.hidden(t)
		}
		if _, err := term.master.WriteString(step.answer + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	if status := <-done; status != 0 {
		t.Errorf("exit status %d: %s", status, term.shown())
	}
	term.await(t, "Logged in as alice")
	if shown := term.shown(); strings.Contains(shown, "hunter2") || !strings.Contains(shown, "a@example.com") {
		t.Errorf("shown: %q", shown)
	}
}

// TestInterruptedPrompt: Ctrl-C at a password leaves the terminal as it was.
func TestInterruptedPrompt(t *testing.T) {
	s := newHome(t)
	term := newTerminal(t)
	ctx, interrupt := context.WithCancel(t.Context())
	done := term.run(ctx, "login", s.server.URL, "--username=alice")
	term.await(t, "password: ")
	term.hidden(t)
	interrupt()
	if status := <-done; status != 130 {
		t.Errorf("exit status %d", status)
	}
	term.await(t, "Interrupted.")
	if !term.echoes(t) {
		t.Error("the terminal hides what is typed next")
	}
}

// TestColours: headings, errors and log lines have them on a terminal, unless
// NO_COLOR is set.
func TestColours(t *testing.T) {
	s := newHome(t)
	register := deis.Run(t.Context(), []string{"register", s.server.URL, "--username=alice", "--password=x", "--email=x"},
		deis.Streams{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard})
	if register != 0 {
		t.Fatal("not registered")
	}
	for _, noColor := range []string{"", "1"} {
		t.Setenv("NO_COLOR", noColor)
		term := newTerminal(t)
		<-term.run(t.Context(), "apps")
		<-term.run(t.Context(), "info", "--app=missing")
		term.await(t, "no app missing")
		if got := strings.Contains(term.shown(), "\x1b["); got != (noColor == "") {
			t.Errorf("with NO_COLOR=%q: %q", noColor, term.shown())
		}
	}
}

// TestDots: whoever waits at a terminal sees that it goes on.
func TestDots(t *testing.T) {
	s := newHome(t)
	if deis.Run(t.Context(), []string{"register", s.server.URL, "--username=alice", "--password=x", "--email=x"},
		deis.Streams{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard}) != 0 {
		t.Fatal("not registered")
	}
	term := newTerminal(t)
	s.mu.Lock() // the stub does not answer
	unlock := sync.OnceFunc(s.mu.Unlock)
	defer unlock()
	done := term.run(t.Context(), "create", "demo", "--no-remote")
	term.await(t, "Creating Application....")
	unlock()
	if status := <-done; status != 0 {
		t.Errorf("exit status %d", status)
	}
	term.await(t, "Creating Application.... done, created demo")
}
