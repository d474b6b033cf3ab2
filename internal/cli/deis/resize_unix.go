//go:build !windows

package deis

import (
	"os"
	"os/signal"
	"syscall"
)

// notifyResize sends to a channel each time that the terminal changes its size, until stop.
func notifyResize(changed chan<- os.Signal) (stop func()) {
	signal.Notify(changed, syscall.SIGWINCH)
	return func() { signal.Stop(changed) }
}
