package containerd

import (
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
	// pidsLimit stops fork bombs; large thread pools stay far below it.
	pidsLimit = 4096
	// openFiles is enough for any server, and not so much that programs that
	// close every possible descriptor at their start take seconds.
	openFiles = 65536
	// minShares is the least that the kernel takes.
	minShares = 2

	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// spec is the OCI runtime configuration: Docker's defaults (capabilities,
// seccomp, devices, masked paths), no new privileges, and the limits.
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
		oci.WithPidsLimit(pidsLimit),
		oci.WithRlimit(&specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Hard: fileLimit(), Soft: fileLimit()}),
		// A core dump holds the config, which is secret.
		oci.WithRlimit(&specs.POSIXRlimit{Type: "RLIMIT_CORE", Hard: 0, Soft: 0}),
		oci.WithDefaultUnixDevices,
		oci.WithoutRunMount,
		oci.WithMounts(e.nameMounts(r.ID)),
		withOwnCgroup,
		withLowPorts,
		seccomp.WithDefaultProfile(),
	}
	if process.Memory > 0 {
		opts = append(opts, oci.WithMemoryLimit(uint64(process.Memory)))
	}
	if process.CPUShares > 0 {
		opts = append(opts, oci.WithCPUShares(uint64(max(process.CPUShares, minShares))))
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
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return nil
}

// withLowPorts lets any user listen on port 80, in its own network namespace.
func withLowPorts(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
	s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	return nil
}
