package deisctl

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/deis/deis/internal/daemon"
)

// settings of one platform. Each is an environment variable and a flag; the
// flag wins.
type settings struct {
	Root, Domain                 string
	HTTPAddr, HTTPSAddr, SSHAddr string
	ControllerAddr               string
	Engine                       string
	// ContainerdAddress and BuildkitAddress are those of daemons that somebody
	// else runs; empty, we run our own.
	ContainerdAddress, BuildkitAddress string
}

func settingsFromEnv(getenv func(string) string) *settings {
	get := func(name, def string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return def
	}
	return &settings{
		Root:              get("DEIS_ROOT", "/var/lib/deis"),
		Domain:            get("DEIS_DOMAIN", "localhost"),
		HTTPAddr:          get("DEIS_HTTP_ADDR", ":80"),
		HTTPSAddr:         get("DEIS_HTTPS_ADDR", ":443"),
		SSHAddr:           get("DEIS_SSH_ADDR", ":2222"),
		ControllerAddr:    get("DEIS_CONTROLLER_ADDR", "127.0.0.1:0"),
		Engine:            get("DEIS_ENGINE", "containerd"),
		ContainerdAddress: get("DEIS_CONTAINERD_ADDRESS", ""),
		BuildkitAddress:   get("DEIS_BUILDKIT_ADDRESS", ""),
	}
}

func (s *settings) bind(f *pflag.FlagSet) {
	f.StringVar(&s.Domain, "domain", s.Domain, "apps are served at <app>.<domain>, the controller at deis.<domain>; DEIS_DOMAIN")
	f.StringVar(&s.HTTPAddr, "http-addr", s.HTTPAddr, "address of the router's HTTP; DEIS_HTTP_ADDR")
	f.StringVar(&s.HTTPSAddr, "https-addr", s.HTTPSAddr, "address of the router's HTTPS; DEIS_HTTPS_ADDR")
	f.StringVar(&s.SSHAddr, "ssh-addr", s.SSHAddr, "address of git over SSH; DEIS_SSH_ADDR")
	f.StringVar(&s.ControllerAddr, "controller-addr", s.ControllerAddr, "private address of the API; DEIS_CONTROLLER_ADDR")
	f.StringVar(&s.Engine, "engine", s.Engine, "containerd, or fake: no containers, only states; DEIS_ENGINE")
	f.StringVar(&s.ContainerdAddress, "containerd-address", s.ContainerdAddress, "socket of a containerd that runs already; DEIS_CONTAINERD_ADDRESS")
	f.StringVar(&s.BuildkitAddress, "buildkit-address", s.BuildkitAddress, "socket of a buildkitd that runs already; DEIS_BUILDKIT_ADDRESS")
}

// maxSocketPath is what fits into a unix socket's address (unix(7)).
const maxSocketPath = 107

// complete makes the settings definite and reports every fault at once.
func (s *settings) complete() error {
	root, err := filepath.Abs(s.Root)
	if err != nil {
		return fmt.Errorf("DEIS_ROOT: %w", err)
	}
	s.Root = root
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	// containerd adds ".ttrpc" to the name of its socket.
	if longest := s.run("containerd.sock") + ".ttrpc"; len(longest) > maxSocketPath {
		fault("DEIS_ROOT=%q is too long: %s must fit into %d characters; choose a shorter directory", s.Root, longest, maxSocketPath)
	}
	if s.Engine != "containerd" && s.Engine != "fake" {
		fault("DEIS_ENGINE=%q is neither containerd nor fake", s.Engine)
	}
	for name, addr := range map[string]string{
		"DEIS_HTTP_ADDR": s.HTTPAddr, "DEIS_HTTPS_ADDR": s.HTTPSAddr, "DEIS_SSH_ADDR": s.SSHAddr, "DEIS_CONTROLLER_ADDR": s.ControllerAddr,
	} {
		if _, err := net.ResolveTCPAddr("tcp", addr); err != nil {
			fault("%s=%q is no host:port", name, addr)
		}
	}
	if s.Domain == "" || strings.ContainsAny(s.Domain, ":/ @_") || strings.HasPrefix(s.Domain, ".") {
		fault("DEIS_DOMAIN=%q is no domain name", s.Domain)
	}
	if err := errors.Join(faults...); err != nil {
		return &exitError{ExitUsage, err.Error()}
	}
	return nil
}

func (s *settings) run(name string) string { return filepath.Join(s.Root, "run", name) }
func (s *settings) logFile(part string) string {
	return filepath.Join(s.Root, "log", part+".log")
}

// makeDirs makes the directories that belong to no single part, and the key
// that the daemons share.
func (s *settings) makeDirs() error {
	for _, dir := range []string{s.Root, s.run(""), filepath.Join(s.Root, "log")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return daemon.MakeKey(s.Root)
}
