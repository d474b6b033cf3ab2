package buildkitd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/git"
)

// gitScript is the git that BuildKit finds. BuildKit tells git of a header in its arguments, which everybody on the host can
// read. So builders put a reference there (build.HeaderFileLabel), which the script replaces by settings in git's
// environment; the file may be gone, and its path another one's, so the header counts only below the reference's own mark. Where git
// is led by a redirect, it would send the header along: with one, it follows none. Only what follows -c is
// BuildKit's own: other arguments are a pusher's.
const gitScript = `#!/bin/sh
PROXY
before=
for arg; do
	shift
	case $arg in
	http.*.extraheader='Authorization: /proc/'*)
		if [ "$before" = -c ]; then
			reference=${arg##*Authorization: }
			mark= value=
			{ IFS= read -r mark && IFS= read -r value; } <"${reference% *}"
			if [ "$mark" != "${reference##* }" ]; then
				echo "fatal: the credentials are gone, with the build that brought them" >&2
				exit 128
			fi
			export GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0="${arg%=Authorization: *}" GIT_CONFIG_VALUE_0="Authorization: $value"
			export GIT_CONFIG_KEY_1=http.followRedirects GIT_CONFIG_VALUE_1=false
			arg=advice.detachedHead=false
		fi
		;;
	esac
	set -- "$@" "$arg"
	before=$arg
done
exec 'PROGRAM' -c SETTING "$@"
`

// wrapGit puts gitScript into a directory, and that first into this process's PATH. BuildKit takes git from PATH and hands it no
// configuration. git reaches HTTP servers by our proxy, unless the operator has one: that is asked as it is, and what
// need not be asked for by it is not guarded, so git follows no redirect there.
func wrapGit(dir, proxy string) error {
	program, err := exec.LookPath("git")
	if err != nil {
		return err
	}
	environment, setting := "unset NO_PROXY no_proxy", "http.proxy="+proxy
	if slices.ContainsFunc(proxyNames, func(name string) bool { return os.Getenv(name) != "" }) {
		// gitGuard heeds HTTP_PROXY, which git does not.
		environment, setting = `export http_proxy="${http_proxy:-$HTTP_PROXY}"`, "http.followRedirects=false"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	script := strings.NewReplacer("\nPROXY\n", "\n"+environment+"\n", "PROGRAM", program, "SETTING", setting).Replace(gitScript)
	if err := os.WriteFile(filepath.Join(dir, "git"), []byte(script), 0o755); err != nil { //nolint:gosec // it is a program
		return err
	}
	return os.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
}

// gitProxy leads git, another program, where builds may fetch from and nowhere else: to what the name of a server means when it
// connects, and wherever that server redirects it.
type gitProxy struct {
	listener net.Listener
	server   *http.Server
	fetch    *fetcher
	plain    httputil.ReverseProxy
}

// openGitProxy serves on this host until it is closed.
func openGitProxy(fetch *fetcher) (*gitProxy, error) {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &gitProxy{listener: l, fetch: fetch, plain: httputil.ReverseProxy{
		Transport: fetch.direct, FlushInterval: -1,
		Rewrite:      func(*httputil.ProxyRequest) {},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { refuse(w, err) },
		ErrorLog:     log.New(io.Discard, "", 0), // git says what fails
	}}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: fetchTimeout, IdleTimeout: fetchTimeout}
	go func() { _ = p.server.Serve(l) }() // ends with Close
	return p, nil
}

func (p *gitProxy) url() string { return "http://" + p.listener.Addr().String() }

// Close ends it. Connections of git that are under way end with git.
func (p *gitProxy) Close() error { return p.server.Close() }

// ServeHTTP implements http.Handler: a proxy (RFC 9110, sections 7.3.2 and 9.3.6).
func (p *gitProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		p.tunnel(w, r)
	case r.URL.Scheme == "http":
		p.plain.ServeHTTP(w, r)
	default:
		http.Error(w, "this is a proxy for git", http.StatusBadRequest)
	}
}

func refuse(w http.ResponseWriter, err error) {
	status := http.StatusBadGateway
	if errors.Is(err, errForbidden) {
		status = http.StatusForbidden
	}
	http.Error(w, err.Error(), status)
}

// tunnel copies until either side ends.
func (p *gitProxy) tunnel(w http.ResponseWriter, r *http.Request) {
	server, err := p.fetch.direct.DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		refuse(w, err)
		return
	}
	defer server.Close()
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(w, err)
		return
	}
	defer client.Close()
	if _, err := io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	ended := make(chan struct{}, 2)
	pass := func(to io.Writer, from io.Reader) {
		_, _ = io.Copy(to, from) // git says what fails
		ended <- struct{}{}
	}
	go pass(server, buffered)
	go pass(client, server)
	<-ended
}

// gitGuard looks where a repository is before git, which cannot say so precisely, tries to fetch it.
type gitGuard struct {
	*git.Source
	allow []netip.Prefix
}

// Resolve is part of source.Source.
func (g gitGuard) Resolve(ctx context.Context, id source.Identifier, sm *session.Manager, v solver.Vertex) (source.SourceInstance, error) {
	if repo, ok := id.(*git.GitIdentifier); ok {
		repo.SkipSubmodules = true // they may be anything that git knows, not only HTTP
		if err := g.check(ctx, repo.Remote); err != nil {
			return nil, err
		}
	}
	return g.Source.Resolve(ctx, id, sm, v)
}

func (g gitGuard) check(ctx context.Context, remote string) error {
	host, _, _ := strings.Cut(remote, ":") // user@host:path
	host = host[strings.LastIndex(host, "@")+1:]
	if u, err := url.Parse(remote); err == nil && u.Scheme != "" {
		if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u}); err == nil && proxy != nil {
			return nil // git asks it too
		}
		host = u.Hostname()
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return fmt.Errorf("git repository on %s: %w", host, err)
	}
	for _, addr := range addrs {
		if forbidden(addr, g.allow) {
			return fmt.Errorf("git repository on %s: %w", host, errForbidden)
		}
	}
	return nil
}
