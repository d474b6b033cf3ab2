package gitserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/deis/deis/internal/paas"
)

// limits are git's settings for both directions: memory for packs and objects in the order of
// 100 MB a process, and no work behind our back.
var limits = []string{
	"core.bigFileThreshold=32m",
	"core.packedGitWindowSize=16m",
	"core.packedGitLimit=128m",
	"core.deltaBaseCacheLimit=32m",
	"pack.threads=2",
	"pack.windowMemory=32m",
	"pack.deltaCacheSize=32m",
	"gc.auto=0",
	"receive.autogc=false",
}

// receiveSettings are given to each receive-pack, so that no repository keeps old ones.
func (s *Server) receiveSettings() []string {
	return append([]string{
		"core.hooksPath=" + s.Repositories.hook,
		"receive.maxInputSize=" + strconv.FormatInt(s.MaxPush, 10),
		"receive.fsckObjects=true",
		// Old histories of well-known projects have these; they harm nobody.
		"receive.fsck.badTimezone=ignore",
		"receive.fsck.missingSpaceBeforeDate=ignore",
		"receive.fsck.zeroPaddedFilemode=ignore",
		"receive.advertisePushOptions=false",
		"receive.denyCurrentBranch=ignore",
	}, limits...)
}

// git makes a command that talks to the client. It has its own process group, which dies as a whole
// when ctx ends.
func (s *session) git(ctx context.Context, repo, verb string, settings []string) *exec.Cmd {
	var args []string
	for _, setting := range settings {
		args = append(args, "-c", setting)
	}
	cmd := exec.CommandContext(ctx, "git", append(args, verb, repo)...)
	cmd.Dir = repo
	cmd.Env = gitEnv(repo)
	if s.protocol != "" {
		cmd.Env = append(cmd.Env, "GIT_PROTOCOL="+s.protocol)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Stdout = s
	cmd.Stderr = lossy{s.Stderr()}
	return cmd
}

// finish feeds a started command from the client and returns its exit status.
func (s *session) finish(cmd *exec.Cmd, stdin io.WriteCloser) (int, error) {
	go func() {
		// The end of either side ends the other.
		_, _ = io.Copy(stdin, s)
		stdin.Close()
	}()
	err := cmd.Wait()
	exit := &exec.ExitError{}
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1), nil
	}
	return 1, fmt.Errorf("git: %w", err)
}

// leaving returns a context that ends when the client or the server does, if hangUp agrees then.
func (s *session) leaving(ctx context.Context, hangUp func() bool) (context.Context, context.CancelFunc) {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		select {
		case <-life.Done():
		case <-s.gone:
		case <-ctx.Done():
		}
		if hangUp() {
			end()
		}
	}()
	return life, end
}

func (s *session) upload(ctx context.Context, repo string) (int, error) {
	ctx, end := s.leaving(ctx, func() bool { return true })
	defer end()
	cmd := s.git(ctx, repo, verbUpload, limits)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 1, err
	}
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("start upload-pack: %w", err)
	}
	return s.finish(cmd, stdin)
}

// receive runs one push. It ends when git has stored or rejected the refs.
func (s *session) receive(ctx context.Context, push Push) (int, error) {
	unlock, err := s.Repositories.lock(push.UUID)
	if err != nil {
		return 1, err
	}
	defer unlock()
	if err := sweepQuarantine(push.Dir); err != nil {
		return 1, err
	}
	p, err := newPipes()
	if err != nil {
		return 1, err
	}
	defer p.close()
	var turn turn
	life, end := s.leaving(ctx, turn.hangUp)
	defer end()
	cmd := s.git(life, push.Dir, verbReceive, s.receiveSettings())
	cmd.ExtraFiles = p.child[:]
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 1, err
	}
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("start receive-pack: %w", err)
	}
	p.closeChild()
	decided := make(chan error, 1)
	go func() { decided <- s.decide(ctx, &push, p, &turn) }()
	status, err := s.finish(cmd, stdin)
	switch decision := <-decided; {
	case err != nil:
		return 1, err
	case errors.Is(decision, errNoPush) && s.read.Load() > s.MaxPush:
		return 1, paas.Errorf(paas.Invalid, "This push is larger than what is taken here. "+
			"Take large files out of its commits, or have --max-push-size of the builder raised.")
	case decision == nil && aimsHEAD(push.Refs):
		return status, s.Repositories.aimHEAD(ctx, push.Dir)
	}
	return status, nil
}

func aimsHEAD(refs []Ref) bool {
	return slices.ContainsFunc(refs, func(r Ref) bool { return r.Name == "refs/heads/main" && r.Creates() })
}

// decide waits for the hook, asks the Platform and tells the hook. From then on ctx counts, and no
// longer the client.
func (s *session) decide(ctx context.Context, push *Push, p *pipes, turn *turn) error {
	defer p.close()
	var err error
	push.Quarantine, push.Refs, err = readHook(p.refs)
	if errors.Is(err, errNoPush) || !turn.begin() {
		return errNoPush
	}
	push.Quarantine = filepath.Clean(push.Quarantine)
	out := lossy{p.output}
	if err == nil {
		err = s.Platform.Receive(ctx, *push, out)
	}
	if err != nil {
		s.explain(out, err)
		p.end(1)
		return err
	}
	p.end(0)
	return nil
}

// turn says whose a push is: the client's until the hook runs, ours from then on.
type turn struct {
	mu          sync.Mutex
	begun, gone bool
}

// begin reports whether the client is still there; if so, hanging up comes too late.
func (t *turn) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun = !t.gone
	return t.begun
}

// hangUp reports whether the push shall be killed.
func (t *turn) hangUp() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gone = true
	return !t.begun
}

// pipes are the descriptors 3, 4 and 5 of the hook.
type pipes struct {
	child  [3]*os.File
	refs   *os.File
	output *os.File
	status *os.File
}

func newPipes() (*pipes, error) {
	p := &pipes{}
	var err [3]error
	p.refs, p.child[0], err[0] = os.Pipe()
	p.child[1], p.output, err[1] = os.Pipe()
	p.child[2], p.status, err[2] = os.Pipe()
	if err := errors.Join(err[:]...); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *pipes) closeChild() {
	for _, f := range p.child {
		f.Close()
	}
}

func (p *pipes) close() {
	p.closeChild()
	p.refs.Close()
	p.output.Close()
	p.status.Close()
}

// end tells the hook that there is no more output, and its status.
func (p *pipes) end(status int) {
	p.output.Close()
	// Without its reader the push is lost anyway.
	_, _ = fmt.Fprintln(p.status, status)
}

// lossy drops what cannot be written.
type lossy struct{ w io.Writer }

func (l lossy) Write(p []byte) (int, error) {
	_, _ = l.w.Write(p)
	return len(p), nil
}
