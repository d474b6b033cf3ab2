package containerd

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

const (
	// openFiles is enough for any server, and not so much that programs that
	// close every possible descriptor at their start take seconds.
	openFiles = 65536
	// oomScoreAdjust is half of the scale: more than the daemons have, and less than a process may give itself.
	oomScoreAdjust = 500
	// scratchSize bounds each directory that is in memory; the memory limit counts it too.
	scratchSize = "64m"
	// minShares is the least that the kernel takes. defaultShares, what an instance has without a limit, is the most of contract 5.2
	// and the kernel's default in version 1; in version 2 the kernel's default would be more than that.
	minShares, defaultShares = 2, 1024

	// cgroup2 is there in version 2 of control groups.
	cgroup2 = "/sys/fs/cgroup/cgroup.controllers"

	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// capabilities are Docker's defaults without those that an app does not need:
// NET_RAW (frames of its own making, by which it could take over the addresses of other instances), MKNOD
// (devices), AUDIT_WRITE (the host's audit log) and SETFCAP (privileges on files, which no new privileges
// makes void). NET_BIND_SERVICE is not needed for low ports either, but programs that carry it on their
// files do not start without it. Only processes of root have them.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
	"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// spec is the OCI runtime configuration: Docker's defaults (seccomp, devices, masked paths), fewer
// capabilities, no new privileges, and the limits.
func (e *Engine) spec(ctx context.Context, img *image, r record, process engine.Process, c *containers.Container, more ...oci.SpecOpts) (*specs.Spec, error) {
	args := process.Command
	if args == nil {
		args = slices.Concat(img.config.Entrypoint, img.config.Cmd)
	}
	if len(args) == 0 {
		return nil, paas.Errorf(paas.Invalid, "the image has no command, and no Procfile gives one for %s", r.Type)
	}
	cwd := img.config.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	opts := []oci.SpecOpts{
		oci.WithProcessArgs(args...),
		oci.WithProcessCwd(cwd),
		oci.WithEnv(environment(img.config, process.Env, r)),
		withUser(img.config.User),
		oci.WithHostname(hostname(r)),
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: e.netns(r.ID)}),
		oci.WithCgroup(e.cgroup(r.ID)),
		oci.WithCapabilities(capabilities),
		oci.WithPidsLimit(cmp.Or(e.opts.Processes, paas.DefaultProcesses)),
		oci.WithRlimit(&specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Hard: fileLimit(), Soft: fileLimit()}),
		// A core dump holds the config, which is secret.
		oci.WithRlimit(&specs.POSIXRlimit{Type: "RLIMIT_CORE", Hard: 0, Soft: 0}),
		oci.WithDefaultUnixDevices,
		oci.WithoutRunMount,
		oci.WithMounts(e.nameMounts(r.ID)),
		withOwnCgroup,
		withNetworkSysctls,
		withKilledFirst,
		seccomp.WithDefaultProfile(),
	}
	if process.Memory > 0 {
		opts = append(opts, withMemoryLimit(process.Memory))
	}
	opts = append(opts, oci.WithCPUShares(uint64(max(cmp.Or(process.CPUShares, defaultShares), minShares))))
	if process.ReadOnly {
		opts = append(opts, oci.WithRootFSReadonly(), withScratch)
	}
	s, err := oci.GenerateSpec(ctx, e.client, c, append(opts, more...)...)
	if err != nil {
		return nil, fmt.Errorf("container spec: %w", err)
	}
	return s, nil
}

// fileLimit is openFiles, or less where we may not give more than we have.
func fileLimit() uint64 {
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		return openFiles
	}
	return min(openFiles, own.Max)
}

// environment is the image's, overlaid by the config, with PORT. It is sorted.
func environment(img ocispec.ImageConfig, config map[string]string, r record) []string {
	vars := map[string]string{}
	for _, kv := range append([]string{defaultPath}, img.Env...) {
		k, v, _ := strings.Cut(kv, "=")
		vars[k] = v
	}
	vars["HOSTNAME"] = hostname(r)
	for k, v := range config {
		vars[k] = v
	}
	vars["PORT"] = strconv.Itoa(r.Port)
	list := make([]string, 0, len(vars))
	for k, v := range vars {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list
}

// choosePort is the config's PORT, else the lowest exposed TCP port, else 5000
// (contract 9.6).
func choosePort(config map[string]string, img ocispec.ImageConfig) (int, error) {
	if text := config["PORT"]; text != "" {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			return 0, paas.Errorf(paas.Invalid, "PORT is %q, which is no port number", text)
		}
		return int(port), nil
	}
	lowest := 0
	for exposed := range img.ExposedPorts {
		number, proto, _ := strings.Cut(exposed, "/")
		port, err := strconv.ParseUint(number, 10, 16)
		if err != nil || port == 0 || proto != "" && proto != "tcp" {
			continue
		}
		if lowest == 0 || int(port) < lowest {
			lowest = int(port)
		}
	}
	if lowest == 0 {
		return engine.DefaultPort, nil
	}
	return lowest, nil
}

// withUser resolves the image's USER by the files in the image. Without one
// there is nothing to look up, which saves mounting it.
func withUser(user string) oci.SpecOpts {
	return func(ctx context.Context, client oci.Client, c *containers.Container, s *specs.Spec) error {
		if user == "" || user == "0" || user == "root" {
			return nil
		}
		if err := oci.WithUser(user)(ctx, client, c, s); err != nil {
			return &paas.Error{Code: paas.Invalid, Message: fmt.Sprintf("the image has no user %q", user), Err: err}
		}
		uid := strconv.FormatUint(uint64(s.Process.User.UID), 10)
		return oci.WithAdditionalGIDs(uid)(ctx, client, c, s)
	}
}

// withOwnCgroup shows a process its own control group, read only: run-times
// size their heaps and thread pools by it.
func withOwnCgroup(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
	s.Mounts = append(s.Mounts, specs.Mount{
		Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
		Options: []string{"ro", "nosuid", "noexec", "nodev"},
	})
	if _, err := os.Stat(cgroup2); err == nil {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	} else { // in version 1 the groups are below a tmpfs, which runc leaves open
		s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/sys/fs/cgroup")
	}
	return nil
}

// withNetworkSysctls lets any user listen on port 80 and use ping, in its own network namespace.
func withNetworkSysctls(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
	s.Linux.Sysctl = map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "0",
		"net.ipv4.ping_group_range":           "0 2147483647",
	}
	return nil
}

// withKilledFirst makes the kernel take instances before daemons when the machine has no memory left.
func withKilledFirst(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
	adjust := oomScoreAdjust
	s.Process.OOMScoreAdj = &adjust
	return nil
}

// withMemoryLimit makes the limit one of memory and swap together, where the kernel counts swap:
// otherwise an instance at its limit would slow the whole machine down instead of being killed.
func withMemoryLimit(limit int64) oci.SpecOpts {
	return func(ctx context.Context, client oci.Client, c *containers.Container, s *specs.Spec) error {
		if err := oci.WithMemoryLimit(uint64(limit))(ctx, client, c, s); err != nil {
			return err
		}
		if countsSwap() {
			s.Linux.Resources.Memory.Swap = &limit
		}
		return nil
	}
}

// countsSwap tells for version 2 and version 1 of control groups.
func countsSwap() bool {
	for _, path := range []string{cgroup2, "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"} {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}

// withScratch adds what a process may write to when its root is read-only.
func withScratch(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
	for _, path := range []string{"/tmp", "/var/tmp", "/run"} {
		s.Mounts = append(s.Mounts, specs.Mount{
			Destination: path, Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "nodev", "mode=1777", "size=" + scratchSize},
		})
	}
	return nil
}
