// Command deisctl starts, stops and shows a Deis platform on this machine.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/deis/deis/internal/cli/deisctl"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := deisctl.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
