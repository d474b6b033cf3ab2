package controller

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/containerd"
	"github.com/deis/deis/internal/engine/fake"
)

// openEngine opens the engine that the settings name.
func openEngine(cfg Config) (engine.Engine, func() error, error) {
	switch cfg.Engine {
	case EngineFake:
		return fake.New(), func() error { return nil }, nil
	case EngineContainerd:
		e, err := openContainerd(cfg)
		if err != nil {
			return nil, nil, err
		}
		return e, e.Close, nil
	}
	return nil, nil, fmt.Errorf("engine %q is neither containerd nor fake", cfg.Engine)
}

func openContainerd(cfg Config) (*containerd.Engine, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find deis-shimlog: %w", err)
	}
	root, err := filepath.Abs(cfg.Root)
	if err != nil {
		return nil, err
	}
	address := cfg.ContainerdAddress
	if address == "" {
		address = filepath.Join(root, "run", "containerd.sock")
	}
	public, err := parsePublic(cfg.PublicAddrs)
	if err != nil {
		return nil, err
	}
	ports, prefixes, err := parseAllow(cfg.AppAllow)
	if err != nil {
		return nil, err
	}
	return containerd.New(containerd.Options{
		Address: address, Root: root, PlatformID: daemon.PlatformID(root), Namespace: cfg.ContainerdNamespace,
		ShimLog: filepath.Join(filepath.Dir(self), "deis-shimlog"),
		Public:  append(public, ports...), Allow: prefixes, InsecureRegistries: items(cfg.InsecureRegistries),
		Processes: int64(cfg.AppProcesses),
		Log:       cfg.Log, Metrics: cfg.Metrics,
	})
}

// items are the parts of a list with commas.
func items(text string) []string {
	return strings.FieldsFunc(text, func(c rune) bool { return c == ',' || c == ' ' })
}

// parsePublic reads addresses to listen on. An empty host is every address, also of IPv4.
func parsePublic(text string) ([]netip.AddrPort, error) {
	var list []netip.AddrPort
	for _, item := range items(text) {
		addr, err := net.ResolveTCPAddr("tcp", item)
		if err != nil {
			return nil, fmt.Errorf("DEIS_PUBLIC_ADDRS: %q: %w", item, err)
		}
		host, _ := netip.AddrFromSlice(addr.IP)
		if !host.IsValid() {
			host = netip.IPv4Unspecified()
		}
		list = append(list, netip.AddrPortFrom(host.Unmap(), uint16(addr.Port)))
	}
	return list, nil
}

func parseAllow(text string) (ports []netip.AddrPort, prefixes []netip.Prefix, err error) {
	for _, item := range items(text) {
		if port, err := netip.ParseAddrPort(item); err == nil {
			ports = append(ports, port)
			continue
		}
		prefix := item
		if !strings.Contains(item, "/") {
			prefix += "/32"
		}
		p, err := netip.ParsePrefix(prefix)
		if err != nil || !p.Addr().Is4() {
			return nil, nil, fmt.Errorf("DEIS_APP_ALLOW: %q is none of a.b.c.d, a.b.c.d/n and a.b.c.d:port", item)
		}
		prefixes = append(prefixes, p)
	}
	return ports, prefixes, nil
}
