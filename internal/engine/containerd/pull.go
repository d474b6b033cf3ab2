package containerd

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	ctd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

const (
	// maxDocument bounds a manifest or configuration, which are read into memory; registries take no
	// more than 4 MiB.
	maxDocument = 4 << 20
	// diskFactor is how much disk an image takes at least, compared with the download: the
	// layers are kept as they came, and unpacked.
	diskFactor = 2
	// diskReserve is which part of the disk a pull leaves free, one in so many, as builds do: below it, apps and the database
	// are at stake.
	diskReserve = 50
	// diskTick is how often the disk is looked at during a pull, which may unpack to any size: a disk of
	// 10 GB has a reserve of 200 MB, and takes longer to write them.
	diskTick = 100 * time.Millisecond
	// pullLease is how long what a pull has fetched is kept that nobody ended: as long as the client's own leases are.
	pullLease = 24 * time.Hour

	dockerHub = "docker.io"
	// dockerHubHost serves what is called docker.io in references.
	dockerHubHost = "registry-1.docker.io"
)

// pull is one image on its way from a registry.
type pull struct {
	e   *Engine
	ref reference.Named // with tag or digest
	app string
	// registry is the host in ref.
	registry           string
	username, password string
	say                func(string)
	// fault, if there is one, is the reason to give up that was found on the way.
	fault error
}

// pull fetches an image and unpacks it. It gets the app's own name, and no other.
func (e *Engine) pull(ctx context.Context, app string, ref reference.Named, auth engine.Credentials, say func(string)) (images.Image, error) {
	p := &pull{e: e, ref: ref, app: app, registry: reference.Domain(ref), say: say}
	p.username, p.password = auth.For(p.registry)
	transport := e.registryTransport(p.registry)
	defer transport.CloseIdleConnections()
	began := time.Now()
	var got ctd.Image
	err := p.guarded(ctx, func(ctx context.Context) (err error) {
		got, err = e.client.Pull(quiet(ctx), ref.String(),
			ctd.WithResolver(&appResolver{p.resolver(transport), ref.String(), app}),
			ctd.WithImageHandlerWrapper(p.inspect),
			ctd.WithPullUnpack, ctd.WithPullSnapshotter(snapshotter))
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			return images.Image{}, ctx.Err()
		}
		return images.Image{}, p.explain(cmp.Or(p.fault, err))
	}
	say(fmt.Sprintf("Pulled %s in %s", reference.FamiliarString(ref), time.Since(began).Round(100*time.Millisecond)))
	return got.Metadata(), nil
}

// guarded calls f, and ends it when the disk has nothing to spare any more. What f leaves where it fails goes at once.
func (p *pull) guarded(ctx context.Context, f func(context.Context) error) error {
	// The client's own lease would outlive a context that has ended.
	service := p.e.client.LeasesService()
	lease, err := service.Create(ctx, leases.WithRandomID(), leases.WithExpiration(pullLease))
	if err != nil {
		return wrap(err, "lease an image")
	}
	group, leased := errgroup.WithContext(leases.WithLease(ctx, lease.ID))
	ended := make(chan struct{})
	group.Go(func() error {
		defer close(ended)
		return f(leased)
	})
	group.Go(func() error { return p.watchDisk(ended) })
	err = group.Wait()
	var how []leases.DeleteOpt
	if err != nil {
		how = append(how, leases.SynchronousDelete)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	_ = service.Delete(ctx, lease, how...) // it expires by itself
	return err
}

// watchDisk returns an error when the disk has nothing to spare, or nil when the pull has ended.
func (p *pull) watchDisk(ended <-chan struct{}) error {
	tick := time.NewTicker(diskTick)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return nil
		case <-tick.C:
		}
		if spare, known := p.e.spare(); known && spare < 0 {
			return paas.Errorf(paas.Unavailable, "%s does not fit on the platform's disk: unpacked it is larger than what is free. "+
				"Make the image smaller, or ask the platform's operator for room.", p.name())
		}
	}
}

// quiet keeps containerd's client from writing to our log: its lines may have addresses with signatures in them.
func quiet(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

// appResolver gives what it resolves the app's own name.
type appResolver struct {
	remotes.Resolver
	ref, app string
}

// Resolve is part of remotes.Resolver.
func (r *appResolver) Resolve(ctx context.Context, ref string) (string, ocispec.Descriptor, error) {
	_, desc, err := r.Resolver.Resolve(ctx, ref)
	return pinName(r.app, desc.Digest), desc, err
}

// Fetcher is part of remotes.Resolver. It is asked for the name that Resolve gave.
func (r *appResolver) Fetcher(ctx context.Context, _ string) (remotes.Fetcher, error) {
	return r.Resolver.Fetcher(ctx, r.ref)
}

func (p *pull) resolver(transport http.RoundTripper) remotes.Resolver {
	client := &http.Client{Transport: &registryClient{transport, p.e.insecure, pullSilence}}
	auth := docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(func(host string) (string, string, error) {
		if host != apiHost(p.registry) { // it was sent on to another
			return "", "", nil
		}
		return p.username, p.password, nil
	}))
	if p.e.insecure(p.registry) {
		client.Transport = docker.NewHTTPFallback(client.Transport)
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: func(host string) ([]docker.RegistryHost, error) {
		return []docker.RegistryHost{{
			Client: client, Authorizer: auth, Host: apiHost(host), Scheme: "https", Path: "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		}}, nil
	}})
}

// apiHost is where the API of a registry is.
func apiHost(registry string) string {
	if registry == dockerHub {
		return dockerHubHost
	}
	return registry
}

// inspect looks at the documents of an image as they come, before its layers do.
func (p *pull) inspect(next images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		index, manifest := images.IsIndexType(desc.MediaType), images.IsManifestType(desc.MediaType)
		config := images.IsConfigType(desc.MediaType)
		if (index || manifest || config) && desc.Size > maxDocument {
			return nil, p.give("%s is no image that can run here: its description has %s", p.name(), size(desc.Size))
		}
		children, err := next.Handle(ctx, desc)
		store := p.e.client.ContentStore()
		switch {
		case index && (err == nil && len(children) == 0 || errdefs.IsNotFound(err)):
			if offered := offers(ctx, store, desc); offered != nil {
				return nil, p.notForUs(offered)
			}
		case err != nil:
		case manifest:
			err = p.announce(children)
		case config:
			var doc ocispec.Image
			if err = readDocument(ctx, store, desc, &doc); err == nil && doc.Architecture != "" && !platforms.Default().Match(doc.Platform) {
				return nil, p.notForUs([]string{platforms.Format(doc.Platform)})
			}
		}
		return children, err
	})
}

// give is the reason to give up, for the user.
func (p *pull) give(format string, args ...any) error {
	p.fault = paas.Errorf(paas.Unavailable, format, args...)
	return p.fault
}

func (p *pull) notForUs(offered []string) error {
	return p.give("%s is not made for this machine, which is %s, but for %s. Use an image for this platform, or one for several.",
		p.name(), platforms.Format(platforms.DefaultSpec()), strings.Join(offered, ", "))
}

// announce says how much comes, and refuses what there is no room for.
func (p *pull) announce(children []ocispec.Descriptor) error {
	if !slices.ContainsFunc(children, func(d ocispec.Descriptor) bool { return images.IsConfigType(d.MediaType) }) {
		return p.give("%s is no container image that can run here, but another kind of artifact.", p.name())
	}
	var total int64
	for _, layer := range children {
		if images.IsLayerType(layer.MediaType) {
			total += layer.Size
		}
	}
	if spare, known := p.e.spare(); known && total > spare/diskFactor {
		return p.give("%s does not fit on the platform's disk: it takes at least %s, and %s may be used. Make the image smaller, or ask the platform's operator for room.",
			p.name(), size(diskFactor*total), size(max(spare, 0)))
	}
	p.say(fmt.Sprintf("Pulling %s (%s)", p.name(), size(total)))
	return nil
}

// name is how people write the reference.
func (p *pull) name() string { return reference.FamiliarString(p.ref) }

// spare is what may be written to the disk, in bytes: what is free but for the reserve. It is known where containerd's
// data is below the platform's own directory.
func (e *Engine) spare() (int64, bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Join(e.opts.Root, "containerd"), &st); err != nil {
		return 0, false
	}
	return (int64(st.Bavail) - int64(st.Blocks)/diskReserve) * st.Bsize, true
}

// offers lists the platforms of an index, nil if it cannot be read.
func offers(ctx context.Context, store content.Provider, desc ocispec.Descriptor) []string {
	var index ocispec.Index
	if err := readDocument(ctx, store, desc, &index); err != nil {
		return nil
	}
	list := []string{}
	for _, m := range index.Manifests {
		if m.Platform != nil && m.Platform.OS != "unknown" { // those are attestations
			list = append(list, platforms.Format(*m.Platform))
		}
	}
	if len(list) == 0 {
		return []string{"no platform"}
	}
	return list
}

func readDocument(ctx context.Context, store content.Provider, desc ocispec.Descriptor, doc any) error {
	data, err := content.ReadBlob(ctx, store, desc)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, doc)
}

// size is for people.
func size(n int64) string {
	const unit = 1000
	switch {
	case n < unit*unit:
		return fmt.Sprintf("%d kB", (n+unit-1)/unit)
	case n < unit*unit*unit:
		return fmt.Sprintf("%.1f MB", float64(n)/unit/unit)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/unit/unit/unit)
}

// explain turns the end of a pull into words for the user. What servers and
// addresses say stays out of it, but for what is known to be harmless.
func (p *pull) explain(err error) error {
	if known := (*paas.Error)(nil); errors.As(err, &known) {
		return known
	}
	if errdefs.IsUnavailable(err) { // containerd
		return wrap(err, "pull an image")
	}
	return &paas.Error{Code: paas.Unavailable, Message: p.reason(err), Err: errors.New(p.redact(err.Error()))}
}

func (p *pull) reason(err error) string {
	name, host := p.name(), p.registry
	switch status := statusOf(err); {
	case status == http.StatusUnauthorized, status == http.StatusForbidden, errors.Is(err, docker.ErrInvalidAuthorization):
		return p.denied()
	case status == http.StatusTooManyRequests:
		return fmt.Sprintf("%s gives no more images for now (429 Too Many Requests). Wait, or set %s and %s with 'deis config:set'.",
			host, paas.ConfigRegistryUsername, paas.ConfigRegistryPassword)
	case status != 0:
		return fmt.Sprintf("%s cannot be pulled: %s answers %d %s. Please try again later.", name, host, status, http.StatusText(status))
	case errdefs.IsNotFound(err):
		return fmt.Sprintf("%s has no image %s. Check its name and its tag.", host, name)
	case strings.Contains(err.Error(), syscall.ENOSPC.Error()):
		return fmt.Sprintf("%s does not fit on the platform's disk. Make the image smaller, or ask the platform's operator for room.", name)
	}
	return p.unreachable(err)
}

// statusOf is the HTTP status that ended a pull, 0 if none did.
func statusOf(err error) int {
	if e, ok := errors.AsType[remoteerrors.ErrUnexpectedStatus](err); ok {
		return e.StatusCode
	}
	return 0
}

func (p *pull) denied() string {
	name, host := p.name(), p.registry
	if p.username == "" && p.password == "" {
		return fmt.Sprintf("%s does not give %s to everybody, or has no such image. Check the name, or set %s and %s with 'deis config:set'.",
			host, name, paas.ConfigRegistryUsername, paas.ConfigRegistryPassword)
	}
	return fmt.Sprintf("%s does not give %s to the user that %s and %s say, or has no such image. Check them and the name.",
		host, name, paas.ConfigRegistryUsername, paas.ConfigRegistryPassword)
}

// unreachable is for what goes wrong between us and a registry.
func (p *pull) unreachable(err error) string {
	name, host := p.name(), p.registry
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Sprintf("%s cannot be pulled: there is no host %s.", name, e.Name)
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Sprintf("%s cannot be pulled: the certificate of %s is not trusted: %v. An operator can add its authority to those of the machine.", name, host, e.Err)
	}
	if errors.Is(err, http.ErrSchemeMismatch) || errors.Is(err, errPlain) {
		return fmt.Sprintf("%s cannot be pulled from %s: %v. An operator can allow that with DEIS_INSECURE_REGISTRIES.", name, host, errPlain)
	}
	for _, known := range []error{errSilent, errPlace, syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ECONNRESET} {
		if errors.Is(err, known) {
			return fmt.Sprintf("%s cannot be pulled from %s: %v.", name, host, known)
		}
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return fmt.Sprintf("%s cannot be pulled: %s does not answer. Please try again later.", name, host)
	}
	return fmt.Sprintf("%s cannot be pulled from %s. The platform's log says more.", name, host)
}

// query is the part of an address that holds signatures and tokens.
var query = regexp.MustCompile(`\?[^\s"]*`)

// redact leaves the credentials out of a text.
func (p *pull) redact(text string) string {
	text = query.ReplaceAllString(text, "?...")
	if p.password != "" {
		basic := base64.StdEncoding.EncodeToString([]byte(p.username + ":" + p.password))
		text = strings.NewReplacer(basic, "[password]", p.password, "[password]").Replace(text)
	}
	return text
}
