// Command deis-shimlog writes the output of one instance to its log. It is not
// for people: containerd's shim starts it, and it lives as long as the instance
// does, whatever happens to containerd or to our daemons.
//
//	deis-shimlog -log FILE
//
// It follows containerd's protocol for logging binaries: file descriptors 3 and
// 4 are the instance's stdout and stderr; a byte to 5 says that it is ready.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/deis/deis/internal/engine/containerd/shimlog"
)

// endGrace is how long output may still come after the shim said that the
// instance is gone; the shim itself waits 12 s.
const endGrace = 3 * time.Second

func main() {
	if len(os.Args) != 3 || os.Args[1] != "-log" {
		fmt.Fprintln(os.Stderr, "usage: deis-shimlog -log FILE (started by containerd)")
		os.Exit(2)
	}
	// There is one of us for each instance: memory counts, speed hardly.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(25)
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP)
	term, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	context.AfterFunc(term, func() { time.AfterFunc(endGrace, cancel) })
	ready := os.NewFile(5, "ready")
	_, _ = ready.Write([]byte{0})
	ready.Close()
	shimlog.Copy(ctx, os.Args[2], os.NewFile(3, "stdout"), os.NewFile(4, "stderr"))
}
