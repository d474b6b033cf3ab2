package hostnet

import (
	"net"
	"net/netip"
	"strings"
)

// Metadata are the addresses at which clouds give a machine its credentials and settings.
var Metadata = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba
}

// Own reports whether an address is one of this host's or of the members of its platforms, or one that
// is not for the outside: loopback, link-local, where metadata are, or multicast. What a user may name as a source is not
// fetched from there. It is true when that cannot be found out.
func Own(addr netip.Addr) bool {
	addr = addr.Unmap()
	if !addr.IsGlobalUnicast() {
		return true
	}
	for _, p := range Metadata {
		if p.Contains(addr) {
			return true
		}
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return true
	}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			return true
		}
		for _, a := range addrs {
			own, err := netip.ParsePrefix(a.String())
			if err == nil && (own.Addr().Unmap() == addr || strings.HasPrefix(i.Name, bridgePrefix) && own.Contains(addr)) {
				return true
			}
		}
	}
	return false
}
