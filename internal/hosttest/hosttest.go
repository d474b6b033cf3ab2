// Package hosttest is for tests on a host that they share with other processes: addresses that nobody else gets, and the
// certain end of a process.
package hosttest

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Addr reserves an address until the test ends.
func Addr(t testing.TB) string {
	t.Helper()
	addr, release, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return addr
}

// Reserve returns an address of the loopback device that is the caller's until release. Connections to it are refused while
// he does not listen there, and its port is nobody's who listens at any port or connects from one. It is held by a socket
// that is bound and never listens: package net, which sets SO_REUSEADDR too, can listen beside it, as often as one likes.
func Reserve() (addr string, release func(), err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("socket to reserve an address: %w", err)
	}
	var bound unix.Sockaddr
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
	)
	if err == nil {
		bound, err = unix.Getsockname(fd)
	}
	if err != nil {
		unix.Close(fd)
		return "", nil, fmt.Errorf("reserve an address: %w", err)
	}
	in := bound.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)).String(), func() { unix.Close(fd) }, nil
}

// Ended waits for at most limit until a process has ended with all its threads, so that it holds no socket and no lock any
// more, and reports whether it has. In /proc it is a zombie as soon as its first thread has ended.
func Ended(pid int, limit time.Duration) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	defer unix.Close(fd)
	for end := time.Now().Add(limit); ; {
		left := max(0, time.Until(end))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}
