package deisctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/supervisor"
)

// stopOrder is the order in which parts end: no new work first, what the
// others need last.
var stopOrder = []string{"builder", "router", "controller", "buildkitd", "containerd"}

// adminSocket is the name of the private address where a daemon serves health and metrics.
const adminSocket = "admin"

// anyPort ends an address whose port the kernel picks.
const anyPort = ":0"

// grace of the parts between TERM and KILL: longer than they give themselves.
const grace = 20 * time.Second

// platform knows the parts of one platform and how they find each other.
type platform struct {
	*settings
	sup *supervisor.Supervisor
	bin string // directory of our own programs
	env []string
}

func newPlatform(s *settings, sup *supervisor.Supervisor) (*platform, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return &platform{settings: s, sup: sup, bin: filepath.Dir(self), env: baseEnv()}, nil
}

// baseEnv is what every part gets of our environment: what finds programs,
// proxies and certificates, and the settings that we do not interpret.
func baseEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch strings.ToUpper(name) {
		case "PATH", "HOME", "TZ", "TMPDIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR":
			env = append(env, kv)
		default:
			if strings.HasPrefix(name, "DEIS_") && name != daemon.ListenFDs {
				env = append(env, kv)
			}
		}
	}
	return env
}

// parts opens the sockets and returns the parts in start order.
func (p *platform) parts() ([]supervisor.Part, error) {
	open, err := p.openSockets()
	if err != nil {
		return nil, err
	}
	parts, err := p.engineParts(open)
	if err != nil {
		return nil, err
	}
	var controllerNeeds []string // what runs instances, not what builds
	if p.ownContainerd() {
		controllerNeeds = []string{"containerd"}
	}
	builderNeeds := []string{"controller"}
	if p.ownBuildkitd() {
		builderNeeds = append(builderNeeds, "buildkitd")
	}
	api, ssh := open["controller"]["api"].Addr, open["builder"]["ssh"].Addr
	web, tls := open["router"]["http"].Addr, open["router"]["https"].Addr
	controllerURL := "DEIS_CONTROLLER_URL=http://" + api
	return append(parts,
		p.daemon("controller", api, open, controllerNeeds, "DEIS_SSH_URL="+p.sshURL(ssh), "DEIS_PUBLIC_ADDRS="+web+","+tls+","+ssh),
		p.daemon("router", web+" "+tls, open, []string{"controller"}, controllerURL),
		p.daemon("builder", ssh, open, builderNeeds, controllerURL),
	), nil
}

func (p *platform) ownContainerd() bool { return p.Engine == "containerd" && p.ContainerdAddress == "" }

func (p *platform) ownBuildkitd() bool { return p.Engine == "containerd" && p.BuildkitAddress == "" }

// sockets are those of each part, by their names.
type sockets map[string]map[string]*supervisor.Socket

// openSockets opens what the daemons listen on. Addresses with a port come first: for the others the kernel might pick just that one.
func (p *platform) openSockets() (sockets, error) {
	type socket struct{ part, name, addr string }
	all := []socket{
		{"controller", "api", p.ControllerAddr},
		{"builder", "ssh", p.SSHAddr},
		{"router", "http", p.HTTPAddr},
		{"router", "https", p.HTTPSAddr},
	}
	daemons := []string{"controller", "builder", "router"}
	if p.ownBuildkitd() {
		daemons = append(daemons, "buildkitd")
	}
	open := sockets{}
	for _, part := range daemons {
		open[part] = map[string]*supervisor.Socket{}
		all = append(all, socket{part, adminSocket, "127.0.0.1" + anyPort})
	}
	for _, picked := range []bool{false, true} {
		for _, s := range all {
			if strings.HasSuffix(s.addr, anyPort) != picked {
				continue
			}
			opened, err := p.sup.OpenSocket(s.part, s.name, s.addr)
			if err != nil {
				return nil, err
			}
			open[s.part][s.name] = opened
		}
	}
	return open, nil
}

// sshURL is the base of git remotes: the port is a setting, the host the
// controller's name.
func (p *platform) sshURL(addr string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		port = "2222"
	}
	return "ssh://git@deis." + p.Domain + ":" + port
}

// daemon is one of our own programs with a private address for its health.
func (p *platform) daemon(name, addr string, open sockets, needs []string, env ...string) supervisor.Part {
	program, args := name, []string(nil)
	if name == "buildkitd" { // a role of the builder's program
		program, args = "builder", []string{"buildkitd"}
	}
	health := open[name][adminSocket]
	return supervisor.Part{
		Name:    name,
		Command: append([]string{filepath.Join(p.bin, program)}, args...),
		// The last of equal names counts: ours.
		Env: slices.Concat(p.env, []string{
			"DEIS_ROOT=" + p.Root, "DEIS_DOMAIN=" + p.Domain, "DEIS_ENGINE=" + p.Engine,
			"DEIS_HTTP_ADDR=" + p.HTTPAddr, "DEIS_HTTPS_ADDR=" + p.HTTPSAddr, "DEIS_SSH_ADDR=" + p.SSHAddr,
			"DEIS_CONTAINERD_ADDRESS=" + p.containerd(), "DEIS_BUILDKIT_ADDRESS=" + p.buildkit(),
		}, env),
		Log:     p.logFile(name),
		Needs:   needs,
		Sockets: slices.Collect(maps.Values(open[name])),
		Health:  func(ctx context.Context) error { return healthz(ctx, health.Addr) },
		Grace:   grace,
		Version: daemon.Version,
		Address: addr,
	}
}

func (p *platform) containerd() string {
	if p.ContainerdAddress != "" {
		return p.ContainerdAddress
	}
	return p.run("containerd.sock")
}

func (p *platform) buildkit() string {
	if p.BuildkitAddress != "" {
		return p.BuildkitAddress
	}
	return p.run("buildkitd.sock")
}

// engineParts are containerd and buildkitd, unless somebody else runs them.
func (p *platform) engineParts(open sockets) ([]supervisor.Part, error) {
	var parts []supervisor.Part
	if p.ownContainerd() {
		program, err := exec.LookPath("containerd")
		if err != nil {
			return nil, errors.New("containerd is not installed: apt-get install containerd runc containernetworking-plugins nftables, or set DEIS_CONTAINERD_ADDRESS")
		}
		config := p.run("containerd.toml")
		if err := p.writeContainerdConfig(config); err != nil {
			return nil, err
		}
		socket := p.containerd()
		parts = append(parts, supervisor.Part{
			Name: "containerd", Command: []string{program, "--config", config}, Env: p.env, Log: p.logFile("containerd"),
			Health: func(ctx context.Context) error { return dialUnix(ctx, socket) },
			Grace:  grace, Version: programVersion(program), Address: socket,
		})
	}
	if p.ownBuildkitd() {
		var needs []string
		if len(parts) > 0 {
			needs = []string{"containerd"}
		}
		parts = append(parts, p.daemon("buildkitd", p.buildkit(), open, needs))
	}
	return parts, nil
}

// containerdConfig is version 2, which containerd 1.6 to 2.x read. The
// Kubernetes plugin and the snapshotters that need other file systems are off.
const containerdConfig = `version = 2
root = %q
state = %q
oom_score = -999
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]

[debug]
  level = "warn"

[grpc]
  address = %q

[plugins."io.containerd.internal.v1.opt"]
  path = %q
`

func (p *platform) writeContainerdConfig(path string) error {
	text := fmt.Sprintf(containerdConfig,
		filepath.Join(p.Root, "containerd"), p.run("containerd"), p.containerd(), filepath.Join(p.Root, "containerd", "opt"))
	return daemon.WriteFile(path, []byte(text), 0o600)
}

// programVersion is the third word of "containerd github.com/... 1.6.20 ...".
func programVersion(program string) string {
	out, err := exec.Command(program, "--version").Output()
	words := strings.Fields(string(out))
	if err != nil || len(words) < 3 {
		return "unknown"
	}
	return words[2]
}

func dialUnix(ctx context.Context, path string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return errors.New("its socket is not there yet")
		}
		return err
	}
	return conn.Close()
}

func healthz(ctx context.Context, addr string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return errors.New(strings.TrimSpace(string(text)))
	}
	return nil
}

// removeInstances stops and removes all that the platform runs. What the program
// says goes to the controller's log.
func (p *platform) removeInstances(ctx context.Context, out io.Writer) error {
	log, err := os.OpenFile(p.logFile("controller"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "controller"), "remove-instances")
	cmd.Env = append(slices.Clone(p.env), "DEIS_ROOT="+p.Root, "DEIS_ENGINE="+p.Engine, "DEIS_CONTAINERD_ADDRESS="+p.containerd())
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the apps' instances were not all removed (%w):\n%s", err, supervisor.Tail(p.logFile("controller"), 5))
	}
	fmt.Fprintln(out, "       the apps' instances stopped")
	return nil
}
