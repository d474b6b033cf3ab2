// Package hostnet gives the containers of one platform a private IPv4 network
// on this host: one bridge, addresses from one subnet, masquerading to the
// outside. The bridge and the addresses are made by the CNI plugins "bridge"
// and "host-local", whose configuration this package writes; the firewall
// rules are one nftables table per network.
//
// What it promises: members reach the outside and this host (of it, in a closed
// network, only its resolver and what is allowed), but no denied prefix (of it, only a resolver); nothing outside the host,
// and no other bridge, opens a connection to a member; members that Attach made
// do not reach each other, nor do those that others made with the CNI
// configuration once Isolate was called. The host itself reaches every member.
// A firewall of others may still forbid more: where Docker or an administrator
// set the policy of forwarding to drop, the bridge must be let through there.
package hostnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// DefaultPluginDirs are where Debian and the CNI project put the plugins.
var DefaultPluginDirs = []string{"/usr/lib/cni", "/opt/cni/bin"}

const (
	// checkInterval is how long members may be cut off after somebody flushed
	// all firewall rules; a check costs one short run of nft.
	checkInterval = 15 * time.Second
	// cniVersion is the newest that the plugins of Debian 12 (1.1.1) speak.
	cniVersion = "1.0.0"

	forwardSysctl = "/proc/sys/net/ipv4/ip_forward"
)

// Options describe a network. Name and Dir are required.
type Options struct {
	// Name of the network, its bridge and its nftables table: at most 15 letters
	// and digits, unique on the host ("deis1a2b3c" for apps, "deis1a2b3cb" for builds).
	Name string
	// Dir holds the CNI configuration and the record of addresses in use:
	// <Dir>/<Name>.conflist, <Dir>/<Name>.subnet, <Dir>/ipam/<Name>.
	Dir string
	// Pools are where the subnet may come from, in order of preference;
	// default DefaultPools.
	Pools []netip.Prefix
	// PluginDirs are searched for the CNI plugins; default DefaultPluginDirs.
	PluginDirs []string
	// Deny lists destinations that members must not reach, for example a
	// cloud's metadata service. IPv4.
	Deny []netip.Prefix
	// Closed keeps members from this host, but for its port 53, and from the bridges of all platforms here.
	Closed bool
	// Allow lists addresses of this host that members of a closed network reach nevertheless. IPv4.
	Allow []netip.Prefix
	// Ports lists TCP ports of this host that they reach; an unspecified address means all of the host's.
	Ports []netip.AddrPort
}

// Network is an opened network. Its methods may be called concurrently.
type Network struct {
	// Name is the CNI network's name; Bridge its interface on the host.
	Name, Bridge string
	// Subnet holds the members; Gateway is the host's address in it.
	Subnet  netip.Prefix
	Gateway netip.Addr
	// ConfList is the path of the CNI configuration (*.conflist).
	ConfList string
	// PluginDir is where the CNI plugins are.
	PluginDir string
	// IPAMDir holds one file per address in use, named like the address; its
	// first line is the container's id.
	IPAMDir string

	opts Options
}

var validName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9]{0,14}$`)

// Open chooses the subnet or reads the earlier choice, makes the bridge, and
// writes the CNI configuration. Call Ensure before the first member.
func Open(opts Options) (*Network, error) {
	if !validName.MatchString(opts.Name) {
		return nil, fmt.Errorf("network name %q: want at most 15 letters and digits", opts.Name)
	}
	if !filepath.IsAbs(opts.Dir) {
		return nil, fmt.Errorf("network %s: directory %q is not absolute", opts.Name, opts.Dir)
	}
	for _, p := range slices.Concat(opts.Deny, opts.Allow) {
		if !p.Addr().Is4() {
			return nil, fmt.Errorf("network %s: prefix %v is not IPv4", opts.Name, p)
		}
	}
	opts.Ports = slices.DeleteFunc(slices.Clone(opts.Ports), func(p netip.AddrPort) bool {
		addr := p.Addr().Unmap() // members have IPv4 only
		return p.Port() == 0 || !addr.Is4() && !addr.IsUnspecified()
	})
	if opts.Pools == nil {
		opts.Pools = DefaultPools
	}
	if opts.PluginDirs == nil {
		opts.PluginDirs = DefaultPluginDirs
	}
	n := &Network{
		Name:     opts.Name,
		Bridge:   opts.Name,
		ConfList: filepath.Join(opts.Dir, opts.Name+".conflist"),
		IPAMDir:  filepath.Join(opts.Dir, "ipam", opts.Name),
		opts:     opts,
	}
	var err error
	if n.PluginDir, err = findPlugins(opts.PluginDirs); err != nil {
		return nil, fmt.Errorf("network %s: %w", n.Name, err)
	}
	if err := os.MkdirAll(opts.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("network %s: %w", n.Name, err)
	}
	if err := n.claim(); err != nil {
		return nil, fmt.Errorf("network %s: %w", n.Name, err)
	}
	if err := writeFile(n.ConfList, n.conflist()); err != nil {
		return nil, fmt.Errorf("network %s: %w", n.Name, err)
	}
	return n, nil
}

func findPlugins(dirs []string) (string, error) {
	for _, dir := range dirs {
		if missingPlugin(dir) == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no CNI plugins bridge, host-local and loopback in %s (Debian: containernetworking-plugins)",
		strings.Join(dirs, " or "))
}

func missingPlugin(dir string) error {
	for _, name := range []string{"bridge", "host-local", "loopback"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// conflist is the CNI configuration. host-local hands out addresses round
// robin, so one that was given back is the last to be used again.
func (n *Network) conflist() []byte {
	type m map[string]any
	doc := m{
		"cniVersion": cniVersion,
		"name":       n.Name,
		"plugins": []m{{
			"type":             "bridge",
			"bridge":           n.Bridge,
			"isDefaultGateway": true,
			"ipMasq":           false,
			"ipam": m{
				"type":    "host-local",
				"dataDir": filepath.Dir(n.IPAMDir),
				"ranges":  [][]m{{{"subnet": n.Subnet.String()}}},
			},
		}},
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		panic(err) // maps of strings always marshal
	}
	return append(text, '\n')
}

// Ensure makes the host forward packets and installs the firewall rules in one
// atomic step, whatever was there before. Connections under way go on.
func (n *Network) Ensure(ctx context.Context) error {
	if err := enableForwarding(); err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	if err := nft(ctx, n.rules()); err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	return nil
}

// Keep repeats Ensure until ctx ends, because administrators flush rules and
// network services reset forwarding. Failures are logged, once until they change.
func (n *Network) Keep(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	last := ""
	var kept []byte
	for {
		text := ""
		var err error
		if kept, err = n.ensureAgain(ctx, kept); err != nil && ctx.Err() == nil {
			text = err.Error()
		}
		if text != "" && text != last {
			log.Error("cannot install network rules", "error", text)
		}
		last = text
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ensureAgain is Ensure, which runs a program, only where the kernel does not hold what it held after the
// last time. It returns what it holds now, nil if that is not certain to be ours.
func (n *Network) ensureAgain(ctx context.Context, kept []byte) ([]byte, error) {
	if now, err := installed(n.Name); err == nil && kept != nil && bytes.Equal(now, kept) {
		return kept, enableForwarding()
	}
	before, err := generation()
	if err := errors.Join(err, n.Ensure(ctx)); err != nil {
		return nil, err
	}
	now, err := installed(n.Name)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if after, err := generation(); err != nil || after != before+1 {
		return nil, err // somebody else changed something meanwhile, perhaps our table
	}
	return now, nil
}

// Remove takes away the rules, the bridge, and the files. There must be no
// members any more. Forwarding stays on, since others may rely on it.
func (n *Network) Remove(ctx context.Context) error {
	errs := []error{nft(ctx, n.unrules())}
	if link, err := netlink.LinkByName(n.Bridge); err == nil {
		errs = append(errs, netlink.LinkDel(link))
	}
	for _, path := range []string{n.ConfList, n.subnetFile(), n.IPAMDir} {
		errs = append(errs, os.RemoveAll(path))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing network %s: %w", n.Name, err)
	}
	return nil
}

func enableForwarding() error {
	now, err := os.ReadFile(forwardSysctl)
	if err != nil {
		return err
	}
	if string(bytes.TrimSpace(now)) == "1" {
		return nil
	}
	return os.WriteFile(forwardSysctl, []byte("1\n"), 0o644)
}

const (
	// bridgePrefix begins the names of the bridges of all platforms.
	bridgePrefix = "deis"
	// bridges is their pattern, of nft.
	bridges = bridgePrefix + "*"
)

// rules is the script for nft. Adding and flushing the tables first makes it
// idempotent; nft applies all of it or nothing. What is refused is rejected, so
// that nobody waits for it; the first chain comes before those of other networks,
// which drop.
func (n *Network) rules() string {
	deny, closed, host := "", "", ""
	if len(n.opts.Deny) > 0 {
		denied := fmt.Sprintf("iifname %q ip daddr { %s }", n.Bridge, list(n.opts.Deny))
		// Some clouds resolve names where their metadata are.
		deny = denied + " meta l4proto { tcp, udp } th dport 53 accept\n\t\t" + denied + " reject with icmpx admin-prohibited"
	}
	if n.opts.Closed {
		closed = fmt.Sprintf("iifname %q oifname %q reject with icmpx admin-prohibited", n.Bridge, bridges)
		if len(n.opts.Allow) > 0 {
			host = fmt.Sprintf("iifname %q ip daddr { %s } accept\n\t\t", n.Bridge, list(n.opts.Allow))
		}
		for _, port := range n.opts.Ports {
			to := ""
			if addr := port.Addr().Unmap(); !addr.IsUnspecified() {
				to = fmt.Sprintf("ip daddr %s ", addr)
			}
			host += fmt.Sprintf("iifname %q %stcp dport %d accept\n\t\t", n.Bridge, to, port.Port())
		}
		host += strings.ReplaceAll(`iifname "$BRIDGE" ct state established,related accept
		iifname "$BRIDGE" meta l4proto { tcp, udp } th dport 53 accept
		iifname "$BRIDGE" reject with icmpx admin-prohibited`, "$BRIDGE", n.Bridge)
	}
	return strings.NewReplacer("$NAME", n.Name, "$BRIDGE", n.Bridge, "$SUBNET", n.Subnet.String(),
		"$DENY", deny, "$CLOSED", closed, "$HOST", host).Replace(`
add table inet $NAME
flush table inet $NAME
table inet $NAME {
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip saddr $SUBNET oifname != "$BRIDGE" masquerade
	}
	chain closed {
		type filter hook forward priority filter - 1;
		$CLOSED
	}
	chain forward {
		type filter hook forward priority filter;
		oifname "$BRIDGE" ct state new drop
		iifname "$BRIDGE" meta nfproto ipv6 drop
		$DENY
	}
	chain input {
		type filter hook input priority filter;
		iifname "$BRIDGE" meta nfproto ipv6 drop
		$DENY
		$HOST
	}
}
`)
}

// list writes prefixes as the elements of a set.
func list(prefixes []netip.Prefix) string {
	var all []string
	for _, p := range prefixes {
		all = append(all, p.Masked().String())
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), ", ")
}

func (n *Network) unrules() string {
	return strings.ReplaceAll(`
add table inet $NAME
delete table inet $NAME
`, "$NAME", n.Name)
}

func nft(ctx context.Context, script string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// writeFile replaces a file so that a reader or a crash sees the old or the new one.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
