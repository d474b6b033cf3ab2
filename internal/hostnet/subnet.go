package hostnet

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultPools are private ranges (RFC 1918) outside of the defaults of the
// large clouds, Docker's first networks and k3s.
var DefaultPools = []netip.Prefix{
	netip.MustParsePrefix("10.64.0.0/11"),
	netip.MustParsePrefix("172.16.0.0/12"),
}

// subnetBits gives 4093 addresses, four times what one Linux bridge has ports
// for (1024): one that was given back rests for a long time.
const subnetBits = 20

// subnetLock is locked by who chooses a subnet, so that no two networks of a host choose the same. Only
// root can open it: nobody else makes us wait.
const subnetLock = "/run/deis-subnets.lock"

func (n *Network) subnetFile() string {
	return filepath.Join(n.opts.Dir, n.Name+".subnet")
}

// claim sets the subnet, and takes it from all other networks: these see what is taken by the addresses that there are.
func (n *Network) claim() error {
	lock, err := os.OpenFile(subnetLock, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // which unlocks
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", subnetLock, err)
	}
	if n.Subnet, err = n.subnet(); err != nil {
		return err
	}
	n.Gateway = n.Subnet.Addr().Next()
	if err := n.makeBridge(); err != nil {
		return fmt.Errorf("make the bridge: %w", err)
	}
	return nil
}

// makeBridge makes the bridge as the plugin would for the first member, unless it is there.
func (n *Network) makeBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.Bridge
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	bridge, err := netlink.LinkByName(n.Bridge)
	if err != nil {
		return err
	}
	gateway, err := netlink.ParseAddr(netip.PrefixFrom(n.Gateway, n.Subnet.Bits()).String())
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(bridge, gateway); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	// Unless it is set, it changes as members come and go.
	if err := netlink.LinkSetHardwareAddr(bridge, bridge.Attrs().HardwareAddr); err != nil {
		return err
	}
	return netlink.LinkSetUp(bridge)
}

// subnet returns the recorded subnet, or chooses and records one. A record is
// given up only when something else on the host uses the range meanwhile and
// our bridge is gone, that is when no member can have an address of it.
func (n *Network) subnet() (netip.Prefix, error) {
	taken, err := takenPrefixes(n.Bridge)
	if err != nil {
		return netip.Prefix{}, err
	}
	text, err := os.ReadFile(n.subnetFile())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return netip.Prefix{}, err
	}
	recorded, err := netip.ParsePrefix(strings.TrimSpace(string(text)))
	if err == nil {
		_, gone := netlink.LinkByName(n.Bridge)
		if gone == nil || !overlapsAny(recorded, taken) {
			return recorded, nil
		}
	}
	chosen, err := choose(n.Name, n.opts.Pools, taken)
	if err != nil {
		return netip.Prefix{}, err
	}
	return chosen, writeFile(n.subnetFile(), []byte(chosen.String()+"\n"))
}

// choose returns a free subnet of the pools. The search starts where the name
// says, so that networks that do not see each other rarely meet.
func choose(name string, pools, taken []netip.Prefix) (netip.Prefix, error) {
	h := fnv.New32a()
	h.Write([]byte(name))
	for _, pool := range pools {
		if !pool.Addr().Is4() || pool.Bits() > subnetBits {
			return netip.Prefix{}, fmt.Errorf("pool %v: want an IPv4 range of at least /%d", pool, subnetBits)
		}
		count := uint32(1) << (subnetBits - pool.Bits())
		for i := range count {
			p := nth(pool, (h.Sum32()+i)%count)
			if !overlapsAny(p, taken) {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("no free /%d in %v: every one overlaps a route or address of this host", subnetBits, pools)
}

func nth(pool netip.Prefix, i uint32) netip.Prefix {
	b := pool.Masked().Addr().As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += i << (32 - subnetBits)
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), subnetBits)
}

func overlapsAny(p netip.Prefix, list []netip.Prefix) bool {
	for _, q := range list {
		if p.Overlaps(q) {
			return true
		}
	}
	return false
}

// takenPrefixes lists what the host's routes and addresses use, except for the
// default route and what belongs to our own bridge.
func takenPrefixes(bridge string) ([]netip.Prefix, error) {
	own := -1
	if link, err := netlink.LinkByName(bridge); err == nil {
		own = link.Attrs().Index
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	routes, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var taken []netip.Prefix
	for _, a := range addrs {
		if a.LinkIndex != own {
			taken = appendPrefix(taken, a.IPNet.String())
		}
	}
	for _, r := range routes {
		if r.LinkIndex != own && r.Dst != nil {
			taken = appendPrefix(taken, r.Dst.String())
		}
	}
	return taken, nil
}

// dumps is how often the kernel is asked for a list that changes while it is read.
const dumps = 100

// whole lists until the list did not change meanwhile.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range dumps {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

func appendPrefix(list []netip.Prefix, s string) []netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Bits() == 0 {
		return list
	}
	return append(list, p.Masked())
}
