package containerd

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/containerd/containerdtest"
	"github.com/deis/deis/internal/paas"
)

// The password is looked for in everything that is written.
const (
	registryUser = "ann"
	canary       = "canary-in-the-mine-7c1e"
	token        = "token-of-ann"
)

// testRegistry is a registry on loopback.
type testRegistry struct {
	t    *testing.T
	srv  *httptest.Server
	host string
	push http.Handler
	// auth is "", "basic" or "token".
	auth string
	// redirect, if set, is where blobs are.
	redirect string

	mu   sync.Mutex
	seen []string // the Authorization headers, and bodies of requests for tokens
}

func newRegistry(t *testing.T, auth string, start func(http.Handler) *httptest.Server) *testRegistry {
	r := &testRegistry{t: t, auth: auth, push: registry.New(registry.Logger(stdlog.New(io.Discard, "", 0)))}
	r.srv = start(r)
	t.Cleanup(r.srv.Close)
	r.host = r.srv.Listener.Addr().String()
	return r
}

// ServeHTTP serves who may read.
func (r *testRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	user, password, basic := req.BasicAuth()
	r.mu.Lock()
	if h := req.Header.Get("Authorization"); h != "" {
		r.seen = append(r.seen, h)
	}
	r.mu.Unlock()
	known := basic && user == registryUser && password == canary
	switch {
	case req.URL.Path == "/token":
		if req.Method == http.MethodPost {
			known = req.PostFormValue("username") == registryUser && req.PostFormValue("password") == canary
		}
		if !known {
			http.Error(w, "no such user, says "+canary, http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"token":%q,"access_token":%q}`, token, token)
		return
	case r.auth == "basic" && !known:
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
	case r.auth == "token" && req.Header.Get("Authorization") != "Bearer "+token:
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="here",scope="repository:x:pull"`, r.srv.URL))
	case r.redirect != "" && strings.Contains(req.URL.Path, "/blobs/"):
		http.Redirect(w, req, r.redirect+req.URL.Path+"?signature="+canary, http.StatusTemporaryRedirect)
		return
	default:
		r.push.ServeHTTP(w, req)
		return
	}
	http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
}

func (r *testRegistry) authorizations() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen)
}

// put sends a document or layer to the registry.
func (r *testRegistry) put(method, path, mediaType string, data []byte) {
	r.t.Helper()
	req := httptest.NewRequest(method, path, bytes.NewReader(data))
	req.Header.Set("Content-Type", mediaType)
	rec := httptest.NewRecorder()
	r.push.ServeHTTP(rec, req)
	if rec.Code > 299 {
		r.t.Fatalf("%s %s: %d %s", method, path, rec.Code, rec.Body)
	}
}

// add puts an image below a repository and returns its descriptor.
func (r *testRegistry) add(repo, tag string, img containerdtest.Image) ocispec.Descriptor {
	r.t.Helper()
	blobs, manifest, err := containerdtest.Blobs(img)
	if err != nil {
		r.t.Fatal(err)
	}
	for id, data := range blobs {
		r.put(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+id.String(), "application/octet-stream", data)
	}
	r.put(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, manifest.MediaType, blobs[manifest.Digest])
	return manifest
}

// index puts an index below a repository.
func (r *testRegistry) index(repo, tag string, manifests ...ocispec.Descriptor) digest.Digest {
	doc := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests}
	doc.SchemaVersion = 2
	data, err := json.Marshal(doc)
	if err != nil {
		r.t.Fatal(err)
	}
	r.put(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, ocispec.MediaTypeImageIndex, data)
	return digest.FromBytes(data)
}

func which(text string) containerdtest.Image {
	return containerdtest.Image{Files: map[string]string{"which": text}}
}

// pullBench is a bench whose log is kept.
type pullBench struct {
	*bench
	log bytes.Buffer
	mu  sync.Mutex
}

func (b *pullBench) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.log.Write(p)
}

func newPullBench(t *testing.T, insecure ...string) *pullBench {
	b := &pullBench{bench: newDaemonAndBench(t)}
	srv := httptest.NewTLSServer(http.NotFoundHandler()) // all of its kind have the same certificate
	defer srv.Close()
	b.Close()
	b.opts.RegistryCAs = x509.NewCertPool()
	b.opts.RegistryCAs.AddCert(srv.Certificate())
	b.opts.InsecureRegistries = insecure
	b.opts.Log = slog.New(slog.NewJSONHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
	b.open()
	return b
}

var ann = engine.Credentials{Username: registryUser, Password: canary}

// cat is a process that says which image it runs.
func cat(image string, auth engine.Credentials) engine.Process {
	return engine.Process{Image: image, Registry: auth, Command: []string{"cat", "/which"}}
}

// pulled fetches an image, runs it and returns its digest.
func (b *pullBench) pulled(app string, p engine.Process, want string) string {
	b.t.Helper()
	var lines []string
	d, err := b.Fetch(b.t.Context(), app, p, func(line string) { lines = append(lines, line) })
	if err != nil {
		b.t.Fatalf("fetch %s: %v", p.Image, err)
	}
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "Pulling ") || !strings.HasSuffix(lines[0], " MB)") || !strings.HasPrefix(lines[1], "Pulled ") {
		b.t.Errorf("%s: said %q", p.Image, lines)
	}
	p.Digest = d
	if got := b.outputOf(app, p); got != want {
		b.t.Errorf("%s runs %q, want %q", p.Image, got, want)
	}
	return d
}

func (b *pullBench) outputOf(app string, p engine.Process) string {
	b.t.Helper()
	var out bytes.Buffer
	if _, err := b.Run(b.t.Context(), engine.Job{App: app, Num: 1, Process: p, Stdout: &out}); err != nil {
		b.t.Fatal(err)
	}
	return out.String()
}

// refused fetches what cannot be had, and looks at the reason.
func (b *pullBench) refused(app string, p engine.Process, want string) {
	b.t.Helper()
	_, err := b.Fetch(b.t.Context(), app, p, func(string) {})
	known := (*paas.Error)(nil)
	if !errors.As(err, &known) || known.Code != paas.Unavailable || !strings.Contains(known.Text(), want) {
		b.t.Errorf("%s: error %v, want one with %q", p.Image, err, want)
		return
	}
	if strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), token) {
		b.t.Errorf("%s: the error has a secret in it: %v", p.Image, err)
	}
}

func (b *pullBench) names() (names []string) {
	b.t.Helper()
	list, err := b.Engine.client.ImageService().List(b.in(b.t.Context()))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, img := range list {
		names = append(names, img.Name)
		for k, v := range img.Labels {
			if strings.Contains(k+v, canary) {
				b.t.Errorf("label %s of %s has the password", k, img.Name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// TestPullTag: what a tag names at the first fetch runs for good, without the registry.
func TestPullTag(t *testing.T) {
	t.Parallel()
	b := newPullBench(t)
	reg := newRegistry(t, "", httptest.NewServer)
	old := reg.add("team/app", "v1", which("old"))
	image := reg.host + "/team/app:v1"
	if d := b.pulled(appA, cat(image, engine.Credentials{}), "old"); d != old.Digest.String() {
		t.Errorf("digest %s, want %s", d, old.Digest)
	}
	if names := b.names(); !slices.Equal(names, []string{pinName(appA, old.Digest), testImage}) {
		t.Errorf("images %v: the registry's name keeps it too, or none of the app's does", names)
	}
	spec := b.spec(appA, "web", 1, sh(`cat /which; echo; sleep 10000 & wait`))
	spec.Process.Image, spec.Process.Digest = image, old.Digest.String()
	b.apply(spec)

	moved := reg.add("team/app", "v1", which("new"))
	restarted := spec
	restarted.Generation = 2
	b.Close()
	b.open()
	b.apply(restarted)
	b.eventually("both have written", func() bool {
		var texts []string
		err := b.Logs(t.Context(), appA, engine.LogQuery{Lines: 10, Type: "web"}, func(l engine.LogLine) error { texts = append(texts, l.Text); return nil })
		return err == nil && slices.Equal(texts, []string{"old", "old"})
	})
	if d := b.pulled(appA, cat(image, engine.Credentials{}), "new"); d != moved.Digest.String() {
		t.Errorf("fetched anew: %s, want %s", d, moved.Digest)
	}
	b.pulled(appB, cat(reg.host+"/team/app@"+old.Digest.String(), engine.Credentials{}), "old")
	// A rollback needs no registry.
	reg.srv.Close()
	back := cat(image, engine.Credentials{})
	back.Digest = old.Digest.String()
	if got := b.output(back); got != "old" {
		t.Errorf("rolled back to %q", got)
	}
	b.refused(appB, cat(image, engine.Credentials{}), "connection refused")

	// Nothing keeps it but the app.
	if err := b.Collect(t.Context(), appA, func(img engine.Image) bool { return img.Digest == moved.Digest.String() }); err != nil {
		t.Fatal(err)
	}
	if names := b.names(); slices.Contains(names, pinName(appA, old.Digest)) || !slices.Contains(names, pinName(appA, moved.Digest)) {
		t.Errorf("after Collect: %v", names)
	}
	b.refused(appA, back, "connection refused")
	b.clean()
}

// TestPullCredentials: they are shown to their registry, and to nobody else.
func TestPullCredentials(t *testing.T) {
	t.Parallel()
	b := newPullBench(t)
	for _, auth := range []string{"basic", "token"} {
		reg := newRegistry(t, auth, httptest.NewTLSServer)
		manifest := reg.add("team/app", "v1", which("private"))
		image := reg.host + "/team/app:v1"
		b.refused(appA, cat(image, engine.Credentials{}), "or set DEIS_REGISTRY_USERNAME and DEIS_REGISTRY_PASSWORD")
		other := ann
		other.Host = "registry.example.com"
		b.refused(appA, cat(image, other), "or set DEIS_REGISTRY_USERNAME")
		if seen := reg.authorizations(); len(seen) > 0 {
			t.Errorf("credentials were shown to another registry: %d times", len(seen))
		}
		b.refused(appA, cat(image, engine.Credentials{Username: registryUser, Password: "wrong"}), "to the user that DEIS_REGISTRY_USERNAME and DEIS_REGISTRY_PASSWORD say")
		b.pulled(appA, cat(image, ann), "private")
		if seen := reg.authorizations(); len(seen) == 0 {
			t.Error("no credentials were asked for: the test proves nothing")
		}
		named := ann
		named.Host = reg.host
		b.pulled(appA, cat(image, named), "private")
		// Who knows the digest of another app's image has not got it.
		b.refused(appB, cat(reg.host+"/team/app@"+manifest.Digest.String(), engine.Credentials{}), "does not give")
		b.refused(appA, cat(reg.host+"/team/none:v1", ann), "has no image "+reg.host+"/team/none:v1")
		reg.redirect = "https://" + newRegistry(t, "", httptest.NewTLSServer).host
		reg.add("team/more", "v1", which("more"))
		b.refused(appA, cat(reg.host+"/team/more:v1", ann), "sends on to an address of this machine")
	}
	b.names()
	b.clean()
	b.mu.Lock()
	defer b.mu.Unlock()
	daemonLog, err := os.ReadFile(filepath.Join(b.daemon.Dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"the engine's log": b.log.String(), "containerd's log": string(daemonLog), "the format": fmt.Sprintf("%v %+v %#v %s", ann, ann, &ann, engine.Process{Registry: ann}.Registry)} {
		if strings.Contains(text, canary) || strings.Contains(text, registryUser+":") {
			t.Errorf("%s has the password", name)
		}
	}
	if text, err := json.Marshal(engine.Process{Registry: ann}); err != nil || strings.Contains(string(text), canary) {
		t.Errorf("JSON has the password, or %v", err)
	}
}

// TestPullWithoutTLS: only where the operator says so, and on loopback.
func TestPullWithoutTLS(t *testing.T) {
	t.Parallel()
	outside := func(h http.Handler) *httptest.Server {
		srv := httptest.NewUnstartedServer(h)
		srv.Listener.Close()
		l, err := net.Listen("tcp4", net.JoinHostPort(ownAddress(t), "0"))
		if err != nil {
			t.Fatal(err)
		}
		srv.Listener = l
		srv.Start()
		return srv
	}
	listed, other := newRegistry(t, "basic", outside), newRegistry(t, "basic", outside)
	b := newPullBench(t, listed.host)
	for _, reg := range []*testRegistry{listed, other} {
		reg.add("team/app", "v1", which("plain"))
	}
	b.pulled(appA, cat(listed.host+"/team/app:v1", ann), "plain")
	b.refused(appA, cat(other.host+"/team/app:v1", ann), "does not use TLS. An operator can allow that with DEIS_INSECURE_REGISTRIES")
	if seen := other.authorizations(); len(seen) > 0 {
		t.Error("the password went over the wire")
	}
	// A name that the certificate has not.
	local := newRegistry(t, "", httptest.NewTLSServer)
	_, port, _ := net.SplitHostPort(local.host)
	b.refused(appA, cat("localhost:"+port+"/team/app:v1", ann), "the certificate of localhost:"+port+" is not trusted")
	b.refused(appA, cat("registry.invalid/team/app:v1", ann), "there is no host registry.invalid")
	b.clean()
}

// ownAddress is one of this machine's that is not loopback.
func ownAddress(t *testing.T) string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() {
			return ip.IP.String()
		}
	}
	t.Fatal("this machine has no address but loopback")
	return ""
}

// TestPullPlatforms: this machine's image of several is taken; others are refused with a reason.
func TestPullPlatforms(t *testing.T) {
	t.Parallel()
	b := newPullBench(t)
	reg := newRegistry(t, "", httptest.NewServer)
	foreign := "s390x"
	if runtime.GOARCH == foreign {
		foreign = "amd64"
	}
	mine := reg.add("team/app", "mine", which("mine"))
	mine.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	img := which("foreign")
	img.Architecture = foreign
	theirs := reg.add("team/app", "theirs", img)
	theirs.Platform = &ocispec.Platform{OS: "linux", Architecture: foreign}
	want := reg.index("team/app", "both", theirs, mine)
	if d := b.pulled(appA, cat(reg.host+"/team/app:both", engine.Credentials{}), "mine"); d != want.String() {
		t.Errorf("digest %s, want that of the index %s", d, want)
	}
	reg.index("team/app", "none", theirs)
	for _, tag := range []string{"none", "theirs"} {
		b.refused(appA, cat(reg.host+"/team/app:"+tag, engine.Credentials{}), "is not made for this machine, which is linux/"+runtime.GOARCH+", but for linux/"+foreign)
	}
	artifact := []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","config":{"mediaType":"application/vnd.example+json","digest":"` +
		digest.FromString("{}").String() + `","size":2},"layers":[]}`)
	reg.put(http.MethodPost, "/v2/team/app/blobs/uploads/?digest="+digest.FromString("{}").String(), "application/json", []byte("{}"))
	reg.put(http.MethodPut, "/v2/team/app/manifests/artifact", ocispec.MediaTypeImageManifest, artifact)
	b.refused(appA, cat(reg.host+"/team/app:artifact", engine.Credentials{}), "another kind of artifact")
	huge := append(bytes.Repeat([]byte(" "), maxDocument), artifact...)
	reg.put(http.MethodPut, "/v2/team/app/manifests/huge", ocispec.MediaTypeImageManifest, huge)
	b.refused(appA, cat(reg.host+"/team/app:huge", engine.Credentials{}), "its description has 4.2 MB")
	if names := b.names(); len(names) != 2 {
		t.Errorf("images %v, want the bench's and one", names)
	}
	b.clean()
}

// TestRegistrySilence: a server that sends nothing is given up, a slow one is not.
func TestRegistrySilence(t *testing.T) {
	const silence = 2 * time.Second
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			for range 8 {
				fmt.Fprint(w, "x")
				http.NewResponseController(w).Flush()
				time.Sleep(silence / 4)
			}
			return
		case "/stops":
			fmt.Fprint(w, "x")
			http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	}))
	defer srv.Close()
	plain := true
	client := &http.Client{Transport: &registryClient{http.DefaultTransport, func(string) bool { return plain }, silence}}
	get := func(path string) (string, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+path, http.NoBody)
		if err != nil {
			return "", err
		}
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		time.Sleep(2 * silence) // our own slowness is none of the server's
		text, err := io.ReadAll(resp.Body)
		return string(text), err
	}
	if text, err := get("/slow"); text != "xxxxxxxx" || err != nil {
		t.Errorf("slow: %q, %v", text, err)
	}
	for _, path := range []string{"/never", "/stops"} {
		if text, err := get(path); !errors.Is(err, errSilent) {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
	plain = false
	if _, err := get("/slow"); !errors.Is(err, errPlain) {
		t.Errorf("without TLS: %v", err)
	}
	plain = true
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Do(req); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
