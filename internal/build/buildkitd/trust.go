package buildkitd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/executor"
	resources "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/sys/user"

	"github.com/deis/deis/internal/paas"
)

// trustPath is where steps find the certificates. It is in the container's own /dev, so that no layer
// gets anything of it.
const trustPath = "/dev/deis-ca-certificates.pem"

// trustNames are the variables by which programs are told of certificates to trust: OpenSSL and Go, curl, git,
// Node.js, Python (requests, pip), Ruby's bundler, Rust's cargo.
var trustNames = []string{
	"SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "PIP_CERT",
	"BUNDLE_SSL_CA_CERT", "CARGO_HTTP_CAINFO",
}

// systemBundles are where Linux distributions keep the certificates that all trust.
var systemBundles = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
}

// trusting runs steps that trust more certificates: a file of this host, with the host's own in it. Most of
// the variables name all that is trusted and not what is trusted too.
type trusting struct {
	executor.Executor
	bundle string
}

// writeBundle writes what this host trusts and the certificates of a file (PEM) to a new file.
func writeBundle(path, caFile string) error {
	text, err := os.ReadFile(caFile)
	if err != nil {
		return fmt.Errorf("certificates for builds: %w", err)
	}
	extra, err := paas.TrustedCertificates(string(text))
	if err != nil {
		return fmt.Errorf("certificates for builds: %s: %w", caFile, err)
	}
	var system []byte
	for _, name := range systemBundles {
		system, err = os.ReadFile(name)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("certificates of this host: %w", err)
		}
	}
	if len(system) > 0 && system[len(system)-1] != '\n' {
		system = append(system, '\n')
	}
	return os.WriteFile(path, append(system, extra...), 0o644)
}

// Run is part of executor.Executor.
func (e trusting) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (resources.Recorder, error) {
	mounts = append(slices.Clone(mounts), executor.Mount{Src: hostFile(e.bundle), Dest: trustPath, Readonly: true})
	process.Meta.Env = slices.Clone(process.Meta.Env)
	for _, name := range trustNames {
		if !slices.ContainsFunc(process.Meta.Env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") }) {
			process.Meta.Env = append(process.Meta.Env, name+"="+trustPath)
		}
	}
	return e.Executor.Run(ctx, id, root, mounts, process, started)
}

// hostFile is a file of this host that is mounted read only.
type hostFile string

// Mount is part of executor.Mountable.
func (f hostFile) Mount(context.Context, bool) (executor.MountableRef, error) {
	return hostMount(f), nil
}

type hostMount string

// Mount is part of executor.MountableRef.
func (m hostMount) Mount() ([]mount.Mount, func() error, error) {
	return []mount.Mount{{Type: "bind", Source: string(m), Options: []string{"rbind", "ro"}}}, func() error { return nil }, nil
}

// IdentityMapping is part of executor.MountableRef.
func (hostMount) IdentityMapping() *user.IdentityMapping { return nil }
