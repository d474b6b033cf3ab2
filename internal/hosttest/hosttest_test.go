package hosttest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	if os.Getenv("TEST_ROLE") != "" {
		runtime.LockOSThread() // main in the first thread
	}
}

// TestMain lets the test binary play a process whose first thread ends long before the others.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_ROLE") == "" {
		os.Exit(m.Run())
	}
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}()
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
}

func TestAddr(t *testing.T) {
	addr := Addr(t)
	for range 2 {
		if _, err := net.Dial("tcp", addr); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connected where nobody listens: %v", err)
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		l.Close()
	}
	// A socket without SO_REUSEADDR asks for what the kernel asks for when it picks a port.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var port int
	if _, err := fmt.Sscanf(addr, "127.0.0.1:%d", &port); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("the port is another's as well: %v", err)
	}
}

func TestEnded(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TEST_ROLE=first thread ends")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	pid := cmd.Process.Pid
	for stat := ""; !strings.Contains(stat, ") Z "); time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		stat = string(text)
	}
	if Ended(pid, 100*time.Millisecond) {
		t.Error("ended although a thread lives")
	}
	stdin.Close()
	if !Ended(pid, time.Minute) {
		t.Error("not ended")
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if !Ended(pid, 0) {
		t.Error("not ended though waited for")
	}
}
