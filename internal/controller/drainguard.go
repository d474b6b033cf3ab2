package controller

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/deis/deis/internal/hostnet"
)

// drainGuard keeps the drains that members name, which this process dials in the host's own network, from what their
// instances do not reach either: this machine's services, other apps, and the metadata of clouds.
type drainGuard struct {
	// ports and prefixes are the addresses of this machine that the operator lets instances reach.
	ports    []netip.AddrPort
	prefixes []netip.Prefix
}

// control is a net.Dialer's. It sees the address that is dialled, whatever a name was a moment ago.
func (g *drainGuard) control(network, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("read the address %q: %w", address, err)
	}
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	if hostnet.Own(addr.Addr()) && !g.allows(network, addr) {
		return fmt.Errorf("%s is an address of the platform itself or of its cloud, where an app's log lines do not go; its operator can allow it with DEIS_APP_ALLOW", addr.Addr())
	}
	return nil
}

// allows reports whether an address of this machine, and of no instance on it, is one that the operator named. One
// with a port is of TCP, as it is for instances.
func (g *drainGuard) allows(network string, addr netip.AddrPort) bool {
	if strings.HasPrefix(network, "tcp") && slices.Contains(g.ports, addr) {
		return true
	}
	named := slices.ContainsFunc(g.prefixes, func(p netip.Prefix) bool { return p.Contains(addr.Addr()) })
	return named && (addr.Addr().IsLoopback() || ofHost(addr.Addr()))
}

// ofHost reports whether an interface of this machine has an address.
func ofHost(addr netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().Unmap() == addr
	})
}
