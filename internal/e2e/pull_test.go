package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// registryPassword is looked for in everything that the platform writes.
const registryPassword = "canary-in-the-mine-93aa"

// newRegistry is a private one, on loopback.
func newRegistry(t *testing.T) *httptest.Server {
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ann" || password != registryPassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv
}

// pushImage puts the tests' app with a message into a registry.
func pushImage(t *testing.T, ref, message string) {
	t.Helper()
	program, err := os.ReadFile(filepath.Join(testApp, "app"))
	if err != nil {
		t.Fatal(err)
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	for name, data := range map[string][]byte{"app": program, "message": []byte(message)} {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(data))}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: v1.Config{Cmd: []string{"/app"}}})
	if err == nil {
		img, err = mutate.AppendLayers(img, layer)
	}
	if err == nil {
		err = crane.Push(img, ref, crane.WithAuth(&authn.Basic{Username: "ann", Password: registryPassword}))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// An image of a private registry is deployed, and is the same one until it is pulled again.
func TestPull(t *testing.T) {
	p := shared
	u := p.newUser(t, "puller")
	srv := newRegistry(t)
	image := srv.Listener.Addr().String() + "/team/app:v1"
	pushImage(t, image, "old")
	dir := t.TempDir()
	u.must(t, dir, "deis", "create", "e2e-pull", "--no-remote")
	deis := func(args ...string) string {
		t.Helper()
		return u.must(t, dir, "deis", append(args, "-a", "e2e-pull")...)
	}
	serves := func(message, release string) {
		t.Helper()
		status, body, err := p.get(t.Context(), p.client(false), "e2e-pull.localhost", "/")
		if err != nil || status != http.StatusOK || !strings.Contains(body, "message="+message+" release="+release) {
			t.Errorf("got %d %q, %v; want %s of %s", status, body, err, message, release)
		}
	}
	out, err := u.run(t.Context(), dir, "deis", "pull", image, "-a", "e2e-pull")
	if err == nil || !strings.Contains(out, "set DEIS_REGISTRY_USERNAME and DEIS_REGISTRY_PASSWORD") {
		t.Errorf("without credentials: %v %s", err, out)
	}
	deis("config:set", "DEIS_REGISTRY_USERNAME=ann", "DEIS_REGISTRY_PASSWORD="+registryPassword) // v2
	deis("pull", image)                                                                          // v3
	serves("old", "v3")
	pushImage(t, image, "new")
	deis("ps:restart")
	serves("old", "v3")
	deis("pull", image) // v4
	serves("new", "v4")
	srv.Close()
	deis("scale", "cmd=2")
	deis("rollback", "v3") // v5
	serves("old", "v5")
	out, err = u.run(t.Context(), dir, "deis", "pull", image, "-a", "e2e-pull")
	if err == nil || !strings.Contains(out, "connection refused") {
		t.Errorf("without a registry: %v %s", err, out)
	}
	serves("old", "v5")
	deis("destroy", "--confirm=e2e-pull")
	for _, sub := range []string{"log", "logs", "run"} {
		for _, path := range filesWith(t, filepath.Join(p.root, sub), registryPassword) {
			t.Errorf("%s has the password", path)
		}
	}
}

// filesWith lists the files below a directory that have a text.
func filesWith(t *testing.T, dir, text string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "netns" { // files there are network namespaces, which cannot be read
			return fs.SkipDir
		}
		if err != nil || !entry.Type().IsRegular() {
			return unlessGone(err)
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(text)) {
			found = append(found, path)
		}
		return unlessGone(err)
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
