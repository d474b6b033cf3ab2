package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/deis/deis/internal/daemon"
	"golang.org/x/sys/unix"
)

// process is a running process: a child of ours, or one that a supervisor
// before us started.
type process struct {
	pid     int
	ticks   uint64 // start time as the kernel counts it: with pid, an identity
	started time.Time
	done    chan struct{} // closed when it has ended
	err     error         // how it ended; set before done is closed
}

// start runs a part as a child in its own process group, so that a ^C at our
// terminal does not reach it.
func start(p Part) (*process, error) {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", p.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(p.Command[0], p.Command[1:]...)
	cmd.Env = p.Env
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var fds []string
	for i, s := range p.Sockets {
		f, err := s.file()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		fds = append(fds, fmt.Sprintf("%s:%d", s.Name, 3+i))
	}
	cmd.Env = append(cmd.Env, daemon.ListenFDs+"="+strings.Join(fds, ","))
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	proc := &process{pid: cmd.Process.Pid, started: time.Now(), done: make(chan struct{})}
	proc.ticks, _, _ = startTicks(proc.pid)
	go func() {
		proc.err = cmd.Wait()
		close(proc.done)
	}()
	return proc, nil
}

// adopt returns the process of a record if it is still the same one, else nil.
func adopt(rec record) *process {
	if rec.PID == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(rec.PID, 0)
	if err != nil {
		return nil
	}
	if !rec.alive() {
		unix.Close(fd)
		return nil
	}
	proc := &process{pid: rec.PID, ticks: rec.StartTicks, started: startTime(rec.StartTicks), done: make(chan struct{})}
	go func() {
		defer unix.Close(fd)
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		proc.err = errors.New("ended (not our child: no exit status)")
		close(proc.done)
	}()
	return proc
}

func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// reason says how the process ended.
func (p *process) reason() string {
	if p.err == nil {
		return "exit status 0"
	}
	return p.err.Error()
}

// stop sends TERM and, after grace, KILL, and waits for the end.
func (p *process) stop(grace time.Duration) {
	if p.exited() {
		return
	}
	_ = unix.Kill(p.pid, unix.SIGTERM)
	select {
	case <-p.done:
		return
	case <-time.After(grace):
	}
	_ = unix.Kill(p.pid, unix.SIGKILL)
	<-p.done
}

// startTicks reads a process's start time (field 22 of /proc/PID/stat, in clock
// ticks since boot; proc_pid_stat(5)) and state.
func startTicks(pid int) (ticks uint64, state string, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, "", err
	}
	// The name in parentheses may hold spaces; the fields after it do not.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return 0, "", fmt.Errorf("/proc/%d/stat is short", pid)
	}
	ticks, err = strconv.ParseUint(fields[19], 10, 64)
	return ticks, fields[0], err
}

// startTime turns start ticks into a time. The kernel reports 100 ticks a
// second to user space on every architecture that we run on.
func startTime(ticks uint64) time.Time {
	var up unix.Sysinfo_t
	if unix.Sysinfo(&up) != nil {
		return time.Now()
	}
	boot := time.Now().Add(-time.Duration(up.Uptime) * time.Second)
	return boot.Add(time.Duration(ticks) * time.Second / 100)
}

// residentMemory returns a process's resident set in bytes, 0 if it is gone.
func residentMemory(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// cutLog keeps the log's content as ".1" and empties it. The process appends to
// the file all the while; lines written between the two steps are lost.
func cutLog(path string) error {
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(path+".1", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	return os.Truncate(path, 0)
}
