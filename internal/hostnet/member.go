package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// memberInterface is the name of a member's interface in its namespace.
const memberInterface = "eth0"

// Attach gives the network namespace at a path an interface "eth0", an address
// and a default route, and returns the address. The id (letters, digits, "-", "_")
// names the member; it must be detached before it is attached again.
//
// Addresses go round robin through the subnet: one that a member gave back is
// handed out again only after all others were, so that whoever still knows the
// old member does not meet a new one.
func (n *Network) Attach(ctx context.Context, id, netns string) (netip.Addr, error) {
	cni, list, err := n.cni()
	if err != nil {
		return netip.Addr{}, err
	}
	res, err := cni.AddNetworkList(ctx, list, runtimeConf(id, netns))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("attach %s to network %s: %w", id, n.Name, err)
	}
	got, err := types100.GetResult(res)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("attach %s to network %s: %w", id, n.Name, err)
	}
	if err := isolate(got.Interfaces); err != nil {
		return netip.Addr{}, fmt.Errorf("attach %s to network %s: %w", id, n.Name, err)
	}
	for _, ip := range got.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP.To4()); ok {
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("attach %s to network %s: no IPv4 address in the plugin's answer", id, n.Name)
}

// isolate keeps the host's end of a member's cable from the other ports of the
// bridge. The bridge plugin of Debian 12 cannot do it.
func isolate(interfaces []*types100.Interface) error {
	for _, i := range interfaces {
		if i.Sandbox != "" {
			continue
		}
		link, err := netlink.LinkByName(i.Name)
		if err != nil {
			return fmt.Errorf("isolate %s: %w", i.Name, err)
		}
		if link.Type() != "veth" {
			continue
		}
		if err := netlink.LinkSetIsolated(link, true); err != nil {
			return fmt.Errorf("isolate %s: %w", i.Name, err)
		}
	}
	return nil
}

// Isolate keeps all members that there are from each other, whoever made them.
func (n *Network) Isolate() error {
	bridge, err := netlink.LinkByName(n.Bridge)
	if err != nil {
		return fmt.Errorf("isolate the members of network %s: %w", n.Name, err)
	}
	links, err := whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("isolate the members of network %s: %w", n.Name, err)
	}
	for _, link := range links {
		if link.Attrs().MasterIndex != bridge.Attrs().Index {
			continue
		}
		// A port that is gone by now reaches nobody.
		if err := netlink.LinkSetIsolated(link, true); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("isolate %s: %w", link.Attrs().Name, err)
		}
	}
	return nil
}

// Detach takes the interface away and gives the address back. The namespace may
// be gone already. It is nil when there is nothing to do.
func (n *Network) Detach(ctx context.Context, id, netns string) error {
	cni, list, err := n.cni()
	if err != nil {
		return err
	}
	if !isNamespace(netns) {
		netns = ""
	}
	if err := cni.DelNetworkList(ctx, list, runtimeConf(id, netns)); err != nil {
		return fmt.Errorf("detach %s from network %s: %w", id, n.Name, err)
	}
	return nil
}

// Members lists the ids that hold an address.
func (n *Network) Members() ([]string, error) {
	entries, err := os.ReadDir(n.IPAMDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("members of network %s: %w", n.Name, err)
	}
	var ids []string
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(n.IPAMDir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("members of network %s: %w", n.Name, err)
		}
		id, _, _ := strings.Cut(string(text), "\n")
		ids = append(ids, strings.TrimSpace(id))
	}
	return ids, nil
}

func (n *Network) cni() (*libcni.CNIConfig, *libcni.NetworkConfigList, error) {
	list, err := libcni.ConfListFromBytes(n.conflist())
	if err != nil {
		return nil, nil, fmt.Errorf("network %s: %w", n.Name, err)
	}
	cache := filepath.Join(n.opts.Dir, "cache")
	return libcni.NewCNIConfigWithCacheDir([]string{n.PluginDir}, cache, nil), list, nil
}

func runtimeConf(id, netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: netns, IfName: memberInterface}
}

// NewNamespace makes a network namespace with a working loopback interface,
// kept by a mount at path, whose directory must exist. A namespace that is
// there already is kept.
func NewNamespace(path string) error {
	if isNamespace(path) {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("new network namespace: %w", err)
	}
	f.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with its goroutine
		done <- mountNewNamespace(path)
	}()
	if err := <-done; err != nil {
		return errors.Join(fmt.Errorf("new network namespace: %w", err), os.Remove(path))
	}
	return nil
}

func mountNewNamespace(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount at %s: %w", path, err)
	}
	return nil
}

// RemoveNamespace undoes NewNamespace. The namespace itself lives on while
// processes are in it. It is nil when there is nothing.
func RemoveNamespace(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

func isNamespace(path string) bool {
	var st unix.Statfs_t
	return path != "" && unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
