// Command router is the HTTP and HTTPS proxy in front of apps and controller.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/router"
)

func main() { daemon.Main("router", os.Args[1:], run) }

func run(ctx context.Context, d *daemon.Daemon, args []string) error {
	cfg := router.Config{Log: d.Log, Metrics: d.Metrics, Listen: d.Listen, Admin: d.ServeAdmin}
	var accessLog string
	d.String(&cfg.Root, "root", "/var/lib/deis", "`directory` of the platform's state")
	d.String(&cfg.Domain, "domain", "localhost", "the platform's domain, until a table names it")
	d.String(&cfg.HTTPAddr, "http-addr", ":80", "`address` of HTTP")
	d.String(&cfg.HTTPSAddr, "https-addr", ":443", "`address` of HTTPS")
	d.String(&cfg.ControllerURL, "controller-url", "", "`URL` of the controller, whose routes are served")
	d.String(&cfg.TableFile, "table", "", "`file` with a routing table to serve without a controller")
	d.String(&cfg.TrustedProxies, "trusted-proxies", "", "`CIDRs`, with commas, of load balancers whose X-Forwarded headers are believed")
	d.Enum(&accessLog, "access-log", "on", "a JSON line for each request on standard output: on or off", "on", "off")
	rest, err := d.Parse(args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return fmt.Errorf("unknown argument %q", rest[0])
	}
	if accessLog == "on" {
		cfg.AccessLog = os.Stdout
	}
	return router.Run(ctx, cfg)
}
