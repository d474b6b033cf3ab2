package deisctl

import (
	"bufio"
	"bytes"
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
	"syscall"
	"time"

	"github.com/deis/deis/internal/supervisor"
	"github.com/spf13/cobra"
)

// startTimeout bounds a start. The first one creates databases and keys; on a
// busy machine that takes seconds.
const startTimeout = 2 * time.Minute

func startCommand(s *settings) *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Start the platform and keep it running",
		Long: `Start starts every part of the platform, waits until each is healthy and says
where it listens. What dies later is started again. In the foreground, ^C stops
the parts in order; the apps' instances go on running.

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
			if detach {
				return s.startDetached(cmd.Context(), cmd.OutOrStdout())
			}
			return s.supervise(cmd.Context(), cmd.OutOrStdout())
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
			return s.startDetached(cmd.Context(), cmd.OutOrStdout())
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
	began := time.Now()
	err = sup.WaitHealthy(ctx, startTimeout, func(st supervisor.Status) {
		fmt.Fprintf(out, "       %-11s %s  (%.1f s)\n", st.Name, st.Address, time.Since(began).Seconds())
	})
	switch {
	case err == nil:
		p.printAddresses(out)
	case ctx.Err() == nil:
		sup.Stop(func(string) {})
		return err
	}
	select {
	case <-ctx.Done():
		fmt.Fprintln(out, "-----> Stopping; the apps go on running")
		sup.Stop(func(name string) { fmt.Fprintf(out, "       %s stopped\n", name) })
		return nil
	case stop := <-stops:
		defer close(stop.done)
		return p.stopAll(stop.ctx, stop.apps, stop.out)
	}
}

func (p *platform) printAddresses(out io.Writer) {
	fmt.Fprintf(out, "-----> Deis runs\n"+
		"       API    %s\n"+
		"       apps   %s\n"+
		"       git    %s\n",
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
// every part is healthy. A platform that runs already is good.
func (s *settings) startDetached(ctx context.Context, out io.Writer) error {
	if st, err := s.askStatus(ctx); err == nil {
		fmt.Fprintf(out, "-----> Deis runs already in %s (%d parts)\n", s.Root, len(st.Parts))
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(s.logFile("deisctl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(self, "start")
	cmd.Env = s.environ()
	cmd.Stdout, cmd.Stderr = w, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	if s.copyUntilRunning(r, out) {
		return nil
	}
	err = <-exited
	return fmt.Errorf("the platform did not start (%w):\n%s", err, supervisor.Tail(s.logFile("deisctl"), 12))
}

// copyUntilRunning shows the child's progress and reports whether it came to
// the end of a good start. The child goes on without a reader.
func (s *settings) copyUntilRunning(r io.Reader, out io.Writer) bool {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fmt.Fprintln(out, lines.Text())
		if bytes.HasPrefix(lines.Bytes(), []byte("       git ")) {
			return true
		}
	}
	return false
}

// environ is our environment with the settings as they are now.
func (s *settings) environ() []string {
	return append(slices.Clone(os.Environ()),
		"DEIS_ROOT="+s.Root, "DEIS_DOMAIN="+s.Domain, "DEIS_HTTP_ADDR="+s.HTTPAddr, "DEIS_HTTPS_ADDR="+s.HTTPSAddr,
		"DEIS_SSH_ADDR="+s.SSHAddr, "DEIS_CONTROLLER_ADDR="+s.ControllerAddr, "DEIS_ENGINE="+s.Engine,
		"DEIS_CONTAINERD_ADDRESS="+s.ContainerdAddress, "DEIS_BUILDKIT_ADDRESS="+s.BuildkitAddress)
}
