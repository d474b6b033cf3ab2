package builders_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/deis/deis/internal/paas"
)

// publish puts an image with labels into a registry.
func publish(t *testing.T, as string, labels map[string]string) {
	t.Helper()
	img, err := random.Image(1000, 1)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config = "linux", runtime.GOARCH, v1.Config{Labels: labels}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(as)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// publicRegistry is one that, like the large ones, gives tokens to anybody, and nothing to who has none.
func publicRegistry(t *testing.T) *httptest.Server {
	images := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			fmt.Fprint(w, `{"token":"anybody"}`)
		case r.Header.Get("Authorization") != "Bearer anybody":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+server.URL+`/token",service="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			images.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server
}

// TestPull: with a builder of a registry comes the run image that builds with it need.
func TestPull(t *testing.T) {
	server := publicRegistry(t)
	host := strings.TrimPrefix(server.URL, "http://")
	run, other := host+"/their/run:1", host+"/their/other:1"
	publish(t, run, nil)
	publish(t, other, nil)
	publish(t, host+"/their/builder:1", map[string]string{
		"io.buildpacks.builder.metadata": `{"buildpacks":[],"stack":{"runImage":{"image":"` + run + `"}},"images":[{"image":"` + run + `"}]}`,
		"io.buildpacks.buildpack.order":  "[]", "io.buildpacks.buildpack.layers": "{}", "io.buildpacks.stack.id": "their.stack",
	})
	b, err := client(t).Pull(t.Context(), host+"/their/builder:1")
	if err != nil || !slices.Equal(b.RunImages, []string{run}) {
		t.Fatalf("%+v, %v", b, err)
	}
	for _, name := range []string{run, host + "/their/builder:1"} {
		if img := image(t, name); len(img.Config.RootFS.DiffIDs) != 1 || !shared.store.Has(t.Context(), img.Manifest.Layers[0].Digest) {
			t.Errorf("%s is not all here: %+v", name, img)
		}
	}

	if _, err := client(t).Pull(t.Context(), other); paas.CodeOf(err) != paas.Invalid || !strings.Contains(err.Error(), "is no builder") {
		t.Errorf("no builder: %v", err)
	}
	if _, err := shared.store.Image(t.Context(), other); paas.CodeOf(err) != paas.NotFound {
		t.Errorf("what is no builder stays: %v", err)
	}
	// What was here before stays, and may be in use.
	if _, err := client(t).Pull(t.Context(), run); paas.CodeOf(err) != paas.Invalid {
		t.Errorf("a run image as builder: %v", err)
	}
	if _, err := shared.store.Image(t.Context(), run); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"deis/builder", "deis/run:cnb", host + "/their/none", paas.LocalImages + "x:1", "NO SUCH"} {
		if _, err := client(t).Pull(t.Context(), name); paas.CodeOf(err) != paas.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
