package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func TestChoose(t *testing.T) {
	pool := []netip.Prefix{netip.MustParsePrefix("10.64.0.0/18"), netip.MustParsePrefix("172.16.0.0/20")}
	first, err := choose("deis0", pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := choose("deis0", pool, nil); again != first {
		t.Errorf("not deterministic: %v and %v", first, again)
	}
	var taken []netip.Prefix
	for range 5 {
		p, err := choose("deis0", pool, taken)
		if err != nil {
			t.Fatal(err)
		}
		if overlapsAny(p, taken) || p.Bits() != subnetBits || p != p.Masked() {
			t.Errorf("chose %v with %v taken", p, taken)
		}
		taken = append(taken, p)
	}
	if !slices.Contains(taken, pool[1]) {
		t.Errorf("second pool unused: %v", taken)
	}
	if p, err := choose("deis0", pool, taken); err == nil {
		t.Errorf("exhausted pools gave %v", p)
	}
	if p, err := choose("deis0", pool[:1], []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}); err == nil {
		t.Errorf("chose %v inside a routed range", p)
	}
	if _, err := choose("deis0", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, nil); err == nil {
		t.Error("too small a pool accepted")
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, opts := range []Options{
		{Name: "deis1a2b3c-apps", Dir: t.TempDir()},
		{Name: "deis0123456789ab", Dir: t.TempDir()},
		{Name: `a"b`, Dir: t.TempDir()},
		{Name: "", Dir: t.TempDir()},
		{Name: "deis1", Dir: "relative"},
		{Name: "deis1", Dir: t.TempDir(), PluginDirs: []string{"/nowhere"}},
		{Name: "deis1", Dir: t.TempDir(), Deny: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}},
	} {
		if n, err := Open(opts); err == nil {
			t.Errorf("%+v accepted: %+v", opts, n)
		}
	}
}

// host is a network namespace that stands for a machine.
type host struct {
	t  *testing.T
	ns netns.NsHandle
}

func newHost(t *testing.T) host {
	h := host{t: t}
	run(t, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		if h.ns, err = netns.Get(); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	t.Cleanup(func() { h.ns.Close() })
	return h
}

// run calls fn on a thread that is thrown away afterwards.
func run(t *testing.T, fn func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- fn()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func (h host) do(fn func() error) {
	h.t.Helper()
	run(h.t, func() error {
		if err := netns.Set(h.ns); err != nil {
			return err
		}
		return fn()
	})
}

// serve answers each connection on a port with the address of who asks.
func (h host) serve(addr string) {
	h.t.Helper()
	h.do(func() error {
		l, err := net.Listen("tcp4", addr)
		if err != nil {
			return err
		}
		h.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}()
		return nil
	})
}

// ask returns what the server at addr says, "" if it cannot be reached.
func (h host) ask(addr string) string { return h.askFor(addr, 10*time.Second) }

// askFor is ask with a limit of its own, for what is thought not to be reached.
func (h host) askFor(addr string, limit time.Duration) string {
	h.t.Helper()
	answer := ""
	h.do(func() error {
		c, err := net.DialTimeout("tcp4", addr, limit)
		if err != nil {
			return nil
		}
		defer c.Close()
		text, err := io.ReadAll(c)
		answer = string(text)
		return err
	})
	return answer
}

// connect puts a cable between two hosts and sets their addresses.
func connect(a, b host, addrA, addrB string) {
	a.t.Helper()
	plug := func(name, addr string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		ip, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, ip); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	}
	a.do(func() error {
		cable := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "out1", PeerNamespace: netlink.NsFd(int(b.ns))}
		cable.Name = "out0"
		if err := netlink.LinkAdd(cable); err != nil {
			return err
		}
		return plug("out0", addrA)
	})
	b.do(func() error { return plug("out1", addrB) })
}

// linkLocal is the IPv6 address that a device has without anybody's doing.
func (h host) linkLocal(device string) (addr netip.Addr) {
	h.t.Helper()
	h.do(func() error {
		i, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		addrs, err := i.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsLinkLocalUnicast() {
				addr = p.Addr()
			}
		}
		return err
	})
	if !addr.IsValid() {
		h.t.Fatalf("%s has no link-local address", device)
	}
	return addr
}

// reaches reports whether h opens an IPv6 connection to a peer by eth0.
func (h host) reaches(addr netip.Addr, peer host) (ok bool) {
	h.t.Helper()
	peer.do(func() error {
		l, err := net.Listen("tcp6", "[::]:6666")
		if err == nil {
			h.t.Cleanup(func() { l.Close() })
		}
		return err
	})
	h.do(func() error {
		c, err := net.DialTimeout("tcp6", "["+addr.WithZone("eth0").String()+"]:6666", 500*time.Millisecond)
		if err == nil {
			ok = true
			c.Close()
		}
		return nil
	})
	return ok
}

// neighbour reports whether h knows, by ARP, the hardware address behind an address.
func (h host) neighbour(addr netip.Addr) (ok bool) {
	h.t.Helper()
	h.do(func() error {
		list, err := netlink.NeighList(0, netlink.FAMILY_V4)
		for _, n := range list {
			ok = ok || n.IP.Equal(addr.AsSlice()) && len(n.HardwareAddr) > 0
		}
		return err
	})
	return ok
}

func (h host) member(n *Network, id string) (host, netip.Addr) {
	h.t.Helper()
	path := filepath.Join(h.t.TempDir(), id)
	if err := NewNamespace(path); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { RemoveNamespace(path) })
	var addr netip.Addr
	h.do(func() (err error) {
		addr, err = n.Attach(h.t.Context(), id, path)
		return err
	})
	ns, err := netns.GetFromPath(path)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { ns.Close() })
	return host{h.t, ns}, addr
}

// foreignMember is one that somebody else made with the CNI configuration.
func (h host) foreignMember(n *Network, id string) (host, netip.Addr) {
	h.t.Helper()
	path := filepath.Join(h.t.TempDir(), id)
	if err := NewNamespace(path); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { RemoveNamespace(path) })
	var addr netip.Addr
	h.do(func() error {
		cni, list, err := n.cni()
		if err != nil {
			return err
		}
		res, err := cni.AddNetworkList(h.t.Context(), list, runtimeConf(id, path))
		if err != nil {
			return err
		}
		got, err := types100.GetResult(res)
		if err != nil {
			return err
		}
		addr, _ = netip.AddrFromSlice(got.IPs[0].Address.IP.To4())
		return nil
	})
	ns, err := netns.GetFromPath(path)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { ns.Close() })
	return host{h.t, ns}, addr
}

func (h host) open(opts Options) *Network {
	h.t.Helper()
	var n *Network
	h.do(func() (err error) {
		if n, err = Open(opts); err != nil {
			return err
		}
		return n.Ensure(h.t.Context())
	})
	return n
}

func TestNetwork(t *testing.T) {
	h, outside := newHost(t), newHost(t)
	connect(h, outside, "198.51.100.1/24", "198.51.100.2/24")
	h.do(func() error { // some kernels can send what crosses a bridge through the rules too; not all do
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0o644)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
	dir := t.TempDir()
	apps := h.open(Options{Name: "deistest", Dir: dir, Deny: []netip.Prefix{netip.MustParsePrefix("198.51.100.3/32")}})
	builds := h.open(Options{Name: "deistestb", Dir: dir, Closed: true, Allow: []netip.Prefix{netip.MustParsePrefix("198.51.100.5/32")}, Ports: []netip.AddrPort{
		netip.MustParseAddrPort("[::]:8080"), netip.MustParseAddrPort("198.51.100.1:8443"), netip.MustParseAddrPort("[fe80::1]:81"), {},
	}})
	if apps.Subnet.Overlaps(builds.Subnet) {
		t.Fatalf("%v overlaps %v", apps.Subnet, builds.Subnet)
	}
	one, addrOne := h.member(apps, "one")
	two, addrTwo := h.member(apps, "two")
	build, addrBuild := h.member(builds, "build")
	other, _ := h.foreignMember(builds, "other")
	third, addrThird := h.foreignMember(builds, "third")
	if !apps.Subnet.Contains(addrOne) || !apps.Subnet.Contains(addrTwo) || addrOne == addrTwo {
		t.Errorf("addresses %v and %v of %v", addrOne, addrTwo, apps.Subnet)
	}
	outside.do(func() error { // back routes, and an address that is denied
		link, err := netlink.LinkByName("out1")
		if err != nil {
			return err
		}
		second, err := netlink.ParseAddr("198.51.100.3/24")
		if err != nil {
			return err
		}
		dst, err := netlink.ParseIPNet(apps.Subnet.String())
		if err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: net.ParseIP("198.51.100.1")}
		if err := netlink.AddrAdd(link, second); err != nil {
			return err
		}
		return netlink.RouteAdd(route)
	})
	for _, m := range []host{h, outside, one, two, build, third} {
		m.serve(":80")
	}
	for _, port := range []string{":53", ":8080", ":8443"} {
		h.serve(port)
	}
	outside.serve(":53")
	h.do(func() error { // an address of the host that a closed network may reach
		link, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		ip, err := netlink.ParseAddr("198.51.100.5/32")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, ip)
	})
	if other.ask(addrThird.String()+":80") == "" {
		t.Error("members of others' making do not reach each other anyway: the test proves nothing")
	}
	h.do(builds.Isolate)
	gateway := apps.Gateway.String()
	for _, addr := range []string{builds.Gateway.String() + ":80", gateway + ":80", addrOne.String() + ":80"} {
		start := time.Now()
		build.do(func() error {
			c, err := net.DialTimeout("tcp4", addr, 5*time.Second)
			if err == nil {
				c.Close()
				t.Errorf("a build reaches %s", addr)
			}
			return nil
		})
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("a build waits %v for %s, which it may not reach", took, addr)
		}
	}
	checks := func(phase string) {
		t.Helper()
		for _, c := range []struct {
			who  string
			from host
			to   string
			want string
		}{
			{"member to the outside, masqueraded", one, "198.51.100.2:80", "198.51.100.1"},
			{"build to the outside, masqueraded", build, "198.51.100.2:80", "198.51.100.1"},
			{"host to member", h, addrOne.String() + ":80", gateway},
			{"host to build", h, addrBuild.String() + ":80", builds.Gateway.String()},
			{"member to the host", one, gateway + ":80", addrOne.String()},
			{"member to a denied address", one, "198.51.100.3:80", ""},
			{"build to an address denied to members only", build, "198.51.100.3:80", "198.51.100.1"},
			{"outside to member", outside, addrOne.String() + ":80", ""},
			{"member to another member", one, addrTwo.String() + ":80", ""},
			{"member to build", one, addrBuild.String() + ":80", ""},
			{"build to member", build, addrOne.String() + ":80", ""},
			{"build to the host", build, builds.Gateway.String() + ":80", ""},
			{"build to the host's address outside", build, "198.51.100.1:80", ""},
			{"build to the host's address among members", build, gateway + ":80", ""},
			{"build to the host's resolver", build, builds.Gateway.String() + ":53", addrBuild.String()},
			{"build to a port of the host that is allowed", build, builds.Gateway.String() + ":8080", addrBuild.String()},
			{"build to a port of one of the host's addresses", build, "198.51.100.1:8443", addrBuild.String()},
			{"build to that port of another address", build, builds.Gateway.String() + ":8443", ""},
			{"member to a resolver at a denied address", one, "198.51.100.3:53", "198.51.100.1"},
			{"build to an address of the host that is allowed", build, "198.51.100.5:80", addrBuild.String()},
			{"build to another build", build, addrThird.String() + ":80", ""},
			{"build to another build, both of others' making", other, addrThird.String() + ":80", ""},
			{"host to a build of others' making", h, addrThird.String() + ":80", builds.Gateway.String()},
			{"member to itself", one, "127.0.0.1:80", "127.0.0.1"},
		} {
			limit := 10 * time.Second
			if c.want == "" {
				limit = 100 * time.Millisecond
			}
			if got := c.from.askFor(c.to, limit); got != c.want {
				t.Errorf("%s: %s: got %q, want %q", phase, c.who, got, c.want)
			}
		}
	}
	checks("at first")
	for what, peer := range map[string]struct {
		host
		addr netip.Addr
	}{"another member": {two, addrTwo}, "the host": {h, apps.Gateway}} {
		device := "eth0"
		if what == "the host" {
			device = apps.Bridge
		}
		if addr := peer.linkLocal(device); one.reaches(addr, peer.host) {
			t.Errorf("a member reaches %s by IPv6 at %s", what, addr)
		}
	}
	if one.neighbour(addrTwo) || !one.neighbour(apps.Gateway) {
		t.Error("a member knows another's hardware address, or not that of the host")
	}

	// The administrator's "nft flush ruleset" is undone.
	h.do(func() error { return exec.Command("nft", "flush", "ruleset").Run() })
	if got := outside.ask(addrOne.String() + ":80"); got == "" {
		t.Error("flushing the rules changed nothing: the test proves nothing")
	}
	ctx, cancel := context.WithCancel(t.Context())
	for _, n := range []*Network{apps, builds} {
		h.do(func() error {
			go func() { // Keep ensures at once; it needs a thread in the namespace of h
				runtime.LockOSThread()
				if netns.Set(h.ns) == nil {
					n.Keep(ctx, slog.New(slog.DiscardHandler))
				}
			}()
			return nil
		})
	}
	for began := time.Now(); h.rules() != 2; time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatal("the rules do not come back")
		}
	}
	cancel()
	checks("after a flush")
	h.do(func() error { return apps.Ensure(t.Context()) })
	checks("after another Ensure")

	if ids, err := apps.Members(); err != nil || !slices.Equal(slices.Sorted(slices.Values(ids)), []string{"one", "two"}) {
		t.Errorf("members %q, %v", ids, err)
	}
	for _, id := range []string{"one", "two", "two"} {
		h.do(func() error { return apps.Detach(t.Context(), id, "/gone/"+id) })
	}
	if ids, err := apps.Members(); err != nil || len(ids) != 0 {
		t.Errorf("members after detach %q, %v", ids, err)
	}
	if _, next := h.member(apps, "three"); next == addrOne || next == addrTwo {
		t.Errorf("%v handed out again at once", next)
	}
	for _, n := range []*Network{apps, builds, builds} {
		h.do(func() error { return n.Remove(t.Context()) })
	}
	h.do(func() error {
		for _, name := range []string{apps.Bridge, builds.Bridge} {
			if _, err := netlink.LinkByName(name); err == nil {
				t.Errorf("bridge %s is left", name)
			}
		}
		return nil
	})
	if n := h.rules(); n != 0 {
		t.Errorf("%d tables are left", n)
	}
}

// rules counts the host's nftables tables.
func (h host) rules() int {
	h.t.Helper()
	var out []byte
	h.do(func() (err error) {
		out, err = exec.Command("nft", "list", "tables").Output()
		return err
	})
	return strings.Count(string(out), "table ")
}

func TestSubnetIsKept(t *testing.T) {
	h := newHost(t)
	opts := Options{Name: "deistest", Dir: t.TempDir()}
	first := h.open(opts)
	if again := h.open(opts); again.Subnet != first.Subnet {
		t.Fatalf("%v became %v", first.Subnet, again.Subnet)
	}
	claim := func() error {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "vpn"}, PeerName: "vpn0"}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(first.Gateway.String() + "/24")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, addr)
	}
	h.do(claim)
	if again := h.open(opts); again.Subnet != first.Subnet {
		t.Errorf("%v became %v under a living bridge", first.Subnet, again.Subnet)
	}
	h.do(func() error { return exec.Command("ip", "link", "del", first.Bridge).Run() }) // as a reboot does
	second := h.open(opts)
	if second.Subnet.Overlaps(first.Subnet) {
		t.Errorf("kept %v though another interface has it", first.Subnet)
	}
	_, addr := h.member(second, "one")
	if !second.Subnet.Contains(addr) {
		t.Errorf("%v is not in %v", addr, second.Subnet)
	}
	// With members on it, a subnet is never changed.
	h.do(func() error {
		link, err := netlink.LinkByName("vpn")
		if err != nil {
			return err
		}
		ip, err := netlink.ParseAddr(second.Subnet.Addr().Next().Next().Next().String() + "/32")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, ip)
	})
	if third := h.open(opts); third.Subnet != second.Subnet {
		t.Errorf("%v became %v under a living bridge", second.Subnet, third.Subnet)
	}
}

// TestNoTwoNetworksChooseOneSubnet: all are opened at once, before any has a member, all begin to search at one subnet,
// and there are just enough.
func TestNoTwoNetworksChooseOneSubnet(t *testing.T) {
	h := newHost(t)
	pools := []netip.Prefix{netip.MustParsePrefix("10.64.0.0/17")}
	const networks = 8 // that many subnets are in the pool
	var names []string
	for i := 0; len(names) < networks; i++ {
		name := fmt.Sprintf("deis%06x", i)
		p, err := choose(name, pools, nil)
		if err != nil {
			t.Fatal(err)
		}
		if p.Addr() == pools[0].Addr() {
			names = append(names, name)
		}
	}
	opened := make(chan *Network, networks)
	for _, name := range names {
		opts := Options{Name: name, Dir: t.TempDir(), Pools: pools}
		go func() {
			runtime.LockOSThread()
			n, err := (*Network)(nil), netns.Set(h.ns)
			if err == nil {
				n, err = Open(opts)
			}
			if err != nil {
				t.Error(err)
			}
			opened <- n
		}()
	}
	var all []*Network
	for range networks {
		if n := <-opened; n != nil {
			all = append(all, n)
		}
	}
	owner := map[netip.Prefix]string{}
	for _, n := range all {
		if owner[n.Subnet] != "" {
			t.Errorf("%s and %s chose %v", owner[n.Subnet], n.Name, n.Subnet)
		}
		owner[n.Subnet] = n.Name
		if _, addr := h.member(n, n.Name); !n.Subnet.Contains(addr) {
			t.Errorf("%v is not in %v", addr, n.Subnet)
		}
	}
}

// TestBridgeKeepsItsAddress: members know the gateway by its hardware address, which a bridge takes from its ports unless it has its own.
func TestBridgeKeepsItsAddress(t *testing.T) {
	h := newHost(t)
	opts := Options{Name: "deistest", Dir: t.TempDir()}
	hardware := func() (addr string) {
		h.do(func() error {
			link, err := netlink.LinkByName(opts.Name)
			if err == nil {
				addr = link.Attrs().HardwareAddr.String()
			}
			return err
		})
		return addr
	}
	n := h.open(opts)
	before := hardware()
	for i := range 8 { // the lowest address of a port would be the bridge's
		h.member(n, fmt.Sprint("m", i))
	}
	h.open(opts)
	if after := hardware(); after != before {
		t.Errorf("%s became %s", before, after)
	}
}

func TestNamespace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ns")
	for range 2 {
		if err := NewNamespace(path); err != nil {
			t.Fatal(err)
		}
	}
	if !isNamespace(path) {
		t.Error("no namespace")
	}
	for range 2 {
		if err := RemoveNamespace(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := NewNamespace(filepath.Join(path, "no", "directory")); err == nil {
		t.Error("a namespace without directory")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("left behind")
	}
}

func TestOwn(t *testing.T) {
	h := newHost(t)
	n := h.open(Options{Name: "deistest", Dir: t.TempDir()})
	_, addr := h.member(n, "one")
	h.do(func() error {
		for text, want := range map[string]bool{
			"127.0.0.1": true, "127.1.2.3": true, "::1": true, "::ffff:127.0.0.1": true, "0.0.0.0": true,
			"169.254.169.254": true, "100.100.100.200": true, "fe80::1": true, "224.0.0.1": true,
			n.Gateway.String(): true, addr.String(): true, n.Subnet.Addr().Next().Next().Next().Next().String(): true,
			"203.0.113.7": false, "10.0.0.7": false, "2001:db8::1": false,
		} {
			if got := Own(netip.MustParseAddr(text)); got != want {
				t.Errorf("Own(%s) = %t", text, got)
			}
		}
		return nil
	})
}
