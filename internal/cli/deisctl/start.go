package deisctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/deis/deis/internal/supervisor"
	"github.com/spf13/cobra"
)

// startTimeout is when a part that is not healthy yet is called so. The first
// start creates databases and keys; on a busy machine that takes seconds.
const startTimeout = 2 * time.Minute

// maxLine bounds a line that a start tells: more than supervisor.Tail returns.
const maxLine = 2 << 20

// What a start tells is read by people, and by who started it detached: a good
// start ends with lastAddress, what is said of a part that fails with itsLog.
const (
	complaint   = " !     "
	itsLog      = complaint + "Its log: "
	lastAddress = "       git    "
)

func startCommand(s *settings) *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Start the platform and keep it running",
		Long: `Start starts every part of the platform, waits until each is healthy and says
where it listens. What dies is started again. In the foreground, ^C stops the
parts in order; the apps' instances go on running.

A part that does not become healthy is said with the end of its log, and tried
again; the others run meanwhile. With --detach the exit code is then 1, and a
platform of which nothing ran before is stopped again.

What an earlier deisctl left running is taken over as it is.`,
		Example: "  deisctl start --detach --root /var/lib/deis --domain example.com",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.checkMachine(); err != nil {
				return err
			}
			if err := s.makeDirs(); err != nil {
				return err
			}
			if !detach {
				return s.supervise(cmd.Context(), cmd.OutOrStdout())
			}
			left, err := supervisor.Left(s.run(""), stopOrder)
			if err != nil {
				return err
			}
			return s.startDetached(cmd.Context(), len(left) == 0, cmd.OutOrStdout())
		},
	}
	s.bind(cmd.Flags())
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "run in the background; return when every part is healthy")
	return cmd
}

func restartCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restart",
		Short: "Stop the platform and start it again in the background",
		Long: `Restart stops the daemons in order and starts them with the settings given now.
The apps' instances go on running; their requests wait while the router starts.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.checkMachine(); err != nil {
				return err
			}
			if err := s.makeDirs(); err != nil {
				return err
			}
			if err := s.stop(cmd.Context(), false, cmd.OutOrStdout()); err != nil {
				return err
			}
			return s.startDetached(cmd.Context(), false, cmd.OutOrStdout())
		},
	}
	s.bind(cmd.Flags())
	return cmd
}

// checkMachine says early what a start would fail for.
func (s *settings) checkMachine() error {
	if s.Engine == "fake" {
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("containers need root: run as root, or try DEIS_ENGINE=fake")
	}
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			return nil
		}
	}
	return errors.New("the CNI plugins are not installed: apt-get install containerd runc containernetworking-plugins nftables")
}

// supervise runs the platform in this process until ctx ends or a stop is
// asked for.
func (s *settings) supervise(ctx context.Context, out io.Writer) error {
	// Who started us detached stops reading when all is well.
	signal.Ignore(syscall.SIGPIPE)
	running := fmt.Errorf("the platform in %s runs already: see deisctl status", s.Root)
	if _, err := s.askStatus(ctx); err == nil {
		return running
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("daemon", "deisctl")
	sup, err := supervisor.Open(ctx, s.run(""), log)
	if errors.Is(err, supervisor.ErrRunning) {
		return running
	}
	if err != nil {
		return err
	}
	defer sup.Close()
	p, err := newPlatform(s, sup)
	if err != nil {
		return err
	}
	parts, err := p.parts()
	if err != nil {
		return err
	}
	control, err := listenControl(s.run("deisctl.sock"))
	if err != nil {
		return err
	}
	defer control.Close()
	metrics, err := s.serveMetrics(sup, parts)
	if err != nil {
		return err
	}
	defer metrics.Close()
	fmt.Fprintf(out, "-----> Starting Deis in %s (engine %s)\n", s.Root, s.Engine)
	if err := sup.Start(context.WithoutCancel(ctx), parts); err != nil {
		return err
	}
	stops := control.serve(p)
	var telling sync.WaitGroup
	starting, cancel := context.WithCancel(ctx)
	telling.Go(func() { p.tellStart(starting, out) })
	quiet := func() { cancel(); telling.Wait() }
	defer quiet()
	select {
	case <-ctx.Done():
		quiet()
		fmt.Fprintln(out, "-----> Stopping; the apps go on running")
		sup.Stop(func(name string) { fmt.Fprintf(out, "       %s stopped\n", name) })
		return nil
	case stop := <-stops:
		quiet()
		defer close(stop.done)
		defer control.Close() // before: who asked may start the next one at once, and must not find us
		return p.stopAll(stop.ctx, stop.apps, stop.out)
	}
}

// tellStart says of each part when it is healthy, or why it is not, and at last
// where the platform listens.
func (p *platform) tellStart(ctx context.Context, out io.Writer) {
	began := time.Now()
	err := p.sup.WaitHealthy(ctx, startTimeout, func(st supervisor.Status, failed error) {
		if failed == nil {
			fmt.Fprintf(out, "       %-11s %s  (%.1f s)\n", st.Name, st.Address, time.Since(began).Seconds())
			return
		}
		fmt.Fprintln(out, complaint+strings.ReplaceAll(failed.Error(), "\n", "\n"+complaint))
		fmt.Fprintf(out, "%s%s\n", itsLog, p.logFile(st.Name))
		fmt.Fprintf(out, "%sPut that right: deisctl goes on trying, and the other parts run meanwhile. A changed setting needs a restart.\n", complaint)
	})
	if err == nil {
		p.printAddresses(out)
	}
}

func (p *platform) printAddresses(out io.Writer) {
	fmt.Fprintf(out, "-----> Deis runs\n"+
		"       API    %s\n"+
		"       apps   %s\n"+
		lastAddress+"%s\n",
		webURL("http", "deis."+p.Domain, p.HTTPAddr, "80"),
		webURL("http", "<app>."+p.Domain, p.HTTPAddr, "80")+" and "+webURL("https", "<app>."+p.Domain, p.HTTPSAddr, "443"),
		p.sshURL(p.SSHAddr)+"/<app>.git")
}

// stopAll ends the parts in order; with apps, the instances too, between the
// controller, which would start them again, and the engine.
func (p *platform) stopAll(ctx context.Context, apps bool, out io.Writer) error {
	var failed error
	p.sup.Stop(func(name string) {
		fmt.Fprintf(out, "       %s stopped\n", name)
		if apps && name == "controller" && p.Engine == "containerd" {
			failed = p.removeInstances(ctx, out)
		}
	})
	return failed
}

// startDetached runs "deisctl start" in a session of its own and waits until
// every part is healthy. When one is not, what a fresh start began is ended; else
// apps may depend on what runs, and it is left. A platform that runs already is
// good.
func (s *settings) startDetached(ctx context.Context, fresh bool, out io.Writer) error {
	if st, err := s.askStatus(ctx); err == nil {
		fmt.Fprintf(out, "-----> Deis runs already in %s (%d parts)\n", s.Root, len(st.Parts))
		return nil
	}
	r, exited, err := s.runDetached()
	if err != nil {
		return err
	}
	failure, ok := copyUntilRunning(r, out)
	r.Close() // or what it tells next might hold it up
	switch {
	case ok:
		return nil
	case failure == "":
		err = <-exited
		return fmt.Errorf("the platform did not start (%w):\n%s", err, supervisor.Tail(s.logFile("deisctl"), 12))
	case !fresh:
		return fmt.Errorf("%s\nThe other parts run, and deisctl goes on trying: see deisctl status. A changed setting needs a restart", failure)
	}
	if err := s.askStop(ctx, false, io.Discard); err != nil {
		return fmt.Errorf("%s\nThe other parts were not stopped: %w", failure, err)
	}
	<-exited
	return fmt.Errorf("%s\nThe platform did not start; the other parts are stopped again", failure)
}

// runDetached starts "deisctl start" in a session of its own. It returns what that
// tells, to be closed, and its end.
func (s *settings) runDetached() (tells io.ReadCloser, exited <-chan error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	log, err := os.OpenFile(s.logFile("deisctl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	cmd := exec.Command(self, "start")
	cmd.Env = s.environ()
	cmd.Stdout, cmd.Stderr = w, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		r.Close()
		return nil, nil, err
	}
	end := make(chan error, 1)
	go func() { end <- cmd.Wait() }()
	return r, end, nil
}

// copyUntilRunning shows the child's progress and reports whether it came to
// the end of a good start, or what it says of the first part that fails. The
// child goes on without a reader.
func copyUntilRunning(r io.Reader, out io.Writer) (failure string, ok bool) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		line := lines.Text()
		said, fails := strings.CutPrefix(line, complaint)
		switch {
		case strings.HasPrefix(line, itsLog):
			return failure + said, false
		case fails:
			failure += said + "\n"
			continue
		}
		fmt.Fprintln(out, line)
		if strings.HasPrefix(line, lastAddress) {
			return "", true
		}
	}
	return "", false // it has ended: its log says more
}

// environ is our environment with the settings as they are now.
func (s *settings) environ() []string {
	return append(slices.Clone(os.Environ()),
		"DEIS_ROOT="+s.Root, "DEIS_DOMAIN="+s.Domain, "DEIS_HTTP_ADDR="+s.HTTPAddr, "DEIS_HTTPS_ADDR="+s.HTTPSAddr,
		"DEIS_SSH_ADDR="+s.SSHAddr, "DEIS_CONTROLLER_ADDR="+s.ControllerAddr, "DEIS_ENGINE="+s.Engine,
		"DEIS_CONTAINERD_ADDRESS="+s.ContainerdAddress, "DEIS_BUILDKIT_ADDRESS="+s.BuildkitAddress)
}
