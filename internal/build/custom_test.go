package build_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"io"
	"maps"
	"net/http"
	"net/http/cgi" //nolint:gosec // of a test: git's own program
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/paas"
)

// customBuildpack says which one it is when it builds.
func customBuildpack(name string) map[string]string {
	return map[string]string{
		"buildpack.toml":    "api = \"0.11\"\n[buildpack]\nid = \"custom/" + name + "\"\nversion = \"0.1.0\"\nname = \"" + name + "\"\n",
		"100755:bin/detect": "#!/bin/sh\n",
		"100755:bin/build":  "#!/bin/sh\necho custom " + name + "\nprintf '[[processes]]\\ntype = \"web\"\\ncommand = [\"true\"]\\n' >$1/launch.toml\n",
	}
}

// below puts files into a directory, without git's modes.
func below(dir string, files map[string]string) map[string]string {
	moved := map[string]string{}
	for name, content := range files {
		moved[dir+strings.TrimPrefix(name, "100755:")] = content
	}
	return moved
}

func archives(t *testing.T) (tgz, zipped []byte) {
	t.Helper()
	var data bytes.Buffer
	w := gzip.NewWriter(&data)
	_, err := w.Write(layerOf(below("buildpack-1.2/", customBuildpack("tgz"))))
	if err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	var zipData bytes.Buffer
	z := zip.NewWriter(&zipData)
	for name, content := range below("", customBuildpack("zip")) {
		f, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(f, content)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return data.Bytes(), zipData.Bytes()
}

// serveBuildpacks serves archives, and a git repository to whoever knows the password.
func (p *platform) serveBuildpacks(t *testing.T) (url string) {
	t.Helper()
	r := newRepo(t)
	r.git("", "update-ref", "refs/heads/main", r.commit(customBuildpack("main")))
	files := customBuildpack("branch")
	maps.Copy(files, below("sub/", customBuildpack("sub")))
	for _, name := range []string{"bin/detect", "bin/build"} { // below takes the modes away
		files["100755:sub/"+name] = files["sub/"+name]
		delete(files, "sub/"+name)
	}
	r.git("", "update-ref", "refs/heads/side", r.commit(files))
	r.git("", "symbolic-ref", "HEAD", "refs/heads/main")
	execPath, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(execPath)), "git-http-backend"), Root: "/repo.git",
		Env: []string{"GIT_PROJECT_ROOT=" + r.dir, "GIT_HTTP_EXPORT_ALL=1"},
	}
	tgz, zipped := archives(t)
	own := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("git was led to this host") }))
	t.Cleanup(own.Close)
	mux := http.NewServeMux()
	serve := func(path string, data []byte) {
		mux.HandleFunc(path, func(w http.ResponseWriter, req *http.Request) {
			if _, password, ok := req.BasicAuth(); ok && password != "hunter2" || strings.HasPrefix(path, "/private/") && !ok {
				http.Error(w, "who are you", http.StatusUnauthorized)
				return
			}
			_, _ = w.Write(data)
		})
	}
	serve("/bp.tgz", tgz)
	serve("/private/bp.tgz", tgz)
	serve("/bp.zip", zipped)
	serve("/broken.tgz", []byte("this is no archive"))
	var empty bytes.Buffer
	_ = tar.NewWriter(&empty).Close()
	serve("/empty.tar", empty.Bytes())
	mux.HandleFunc("/repo.git/", func(w http.ResponseWriter, req *http.Request) {
		noArgument(t, "hunter2", base64.StdEncoding.EncodeToString([]byte("me:hunter2"))) // git waits for the answer
		if user, password, _ := req.BasicAuth(); user != "me" || password != "hunter2" {
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, req)
	})
	mux.HandleFunc("/public.git/", func(w http.ResponseWriter, req *http.Request) {
		if _, _, ok := req.BasicAuth(); ok {
			t.Error("credentials follow a redirect")
		}
		req.URL.Path = "/repo.git/" + strings.TrimPrefix(req.URL.Path, "/public.git/")
		backend.ServeHTTP(w, req)
	})
	mux.HandleFunc("/moved.git/", func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, "/public.git/"+strings.TrimPrefix(req.URL.RequestURI(), "/moved.git/"), http.StatusFound)
	})
	mux.HandleFunc("/inside.git/", func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, own.URL+"/inside.git/", http.StatusFound)
	})
	address, _ := p.outsideServing(t, mux)
	return "http://" + address
}

// noArgument checks that no program on this host has one of these words among its arguments.
func noArgument(t *testing.T, words ...string) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(files) == 0 {
		t.Errorf("programs: %v, %v", files, err)
	}
	for _, file := range files {
		text, _ := os.ReadFile(file) // it may have ended
		for _, word := range words {
			if bytes.Contains(text, []byte(word)) {
				t.Errorf("the password is in the arguments of a program: %q", text)
			}
		}
	}
}

func TestCustomBuildpacks(t *testing.T) {
	p := buildpackPlatform(t)
	server := p.serveBuildpacks(t)
	withPassword := strings.Replace(server, "://", "://me:hunter2@", 1)
	err := p.putImage(t.Context(), "docker.io/test/package:latest", "", below("cnb/buildpacks/custom_image/0.1.0/", customBuildpack("image")), func(c *ocispec.ImageConfig) {
		c.Labels = map[string]string{"io.buildpacks.buildpackage.metadata": `{"id":"custom/image","version":"0.1.0"}`}
	})
	if err != nil {
		t.Fatal(err)
	}
	composite := below("cnb/buildpacks/custom_part/0.1.0/", customBuildpack("part"))
	composite["cnb/buildpacks/custom_whole/0.2.0/buildpack.toml"] = "api = \"0.11\"\n[buildpack]\nid = \"custom/whole\"\nversion = \"0.2.0\"\n" +
		"[[order]]\n[[order.group]]\nid = \"custom/part\"\nversion = \"0.1.0\"\n"
	err = p.putImage(t.Context(), "docker.io/test/composite:latest", "", composite, func(c *ocispec.ImageConfig) {
		c.Labels = map[string]string{"io.buildpacks.buildpackage.metadata": `{"id":"custom/whole","version":"0.2.0"}`}
	})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"app.sh": "echo 1\n"}
	maps.Copy(files, map[string]string{"bp/buildpack.toml": customBuildpack("tree")["buildpack.toml"]})
	for _, name := range []string{"bin/detect", "bin/build"} {
		files["100755:bp/"+name] = customBuildpack("tree")["100755:"+name]
	}
	tests := []struct {
		url, shown string
		want       string // a line of the log
		err        string // or a beginning of the error
	}{
		{withPassword + "/repo.git", server + "/repo.git", "custom main", ""},
		{withPassword + "/repo.git#side", server + "/repo.git#side", "custom branch", ""},
		{withPassword + "/repo.git#side:sub", server + "/repo.git#side:sub", "custom sub", ""},
		{server + "/moved.git", server + "/moved.git", "built before", ""},
		{withPassword + "/moved.git", "", "", "cannot fetch the buildpack " + server + "/moved.git: "},
		{server + "/inside.git", "", "", "cannot fetch the buildpack " + server + "/inside.git: "},
		{withPassword + "/repo.git#nothing", "", "", "cannot fetch the buildpack " + server + "/repo.git#nothing: "},
		{server + "/repo.git", "", "", "cannot fetch the buildpack " + server + "/repo.git: "},
		{server + "/bp.tgz", server + "/bp.tgz", "custom tgz", ""},
		{server + "/bp.tgz?token=hunter2", server + "/bp.tgz", "built before", ""}, // its files are the same
		{withPassword + "/private/bp.tgz", server + "/private/bp.tgz", "built before", ""},
		{server + "/private/bp.tgz?token=hunter2", "", "", "cannot fetch the buildpack " + server + "/private/bp.tgz: "},
		{server + "/missing.tgz?token=hunter2", "", "", "cannot fetch the buildpack " + server + "/missing.tgz: "},
		{server + "/broken.tgz", "", "", "cannot fetch the buildpack " + server + "/broken.tgz: it cannot be unpacked"},
		{server + "/empty.tar", "", "", server + "/empty.tar holds no buildpack: there is neither buildpack.toml nor bin/compile in it"},
		// The test builder has no unzip.
		{server + "/bp.zip", "", "", "cannot fetch the buildpack " + server + "/bp.zip: the builder image has no program that unpacks it"},
		{"docker://test/package", "docker.io/test/package:latest", "custom image", ""},
		{"test/package", "docker.io/test/package:latest", "built before", ""},
		{"docker://test/composite", "docker.io/test/composite:latest", "custom part", ""},
		{"./bp", "", "custom tree", ""},
		{"./nothing", "", "", "BUILDPACK_URL names the buildpack nothing, but there is no such directory"},
		{"test/shell", "", "test/shell app detected", ""},
		{"urn:cnb:builder:test/shell@1.0.0", "", "built before", ""},
		{"test/shell@2", "", "", "BUILDPACK_URL names the buildpack test/shell@2, which the builder deis/test-builder does not have"},
	}
	for _, tt := range tests {
		t.Run(strings.TrimPrefix(strings.TrimPrefix(tt.url, server), withPassword), func(t *testing.T) {
			res, log, err := p.push(t, newRepo(t), build.Request{App: "bp-custom", Config: map[string]string{"BUILDPACK_URL": tt.url}}, files)
			if tt.err == "" && (err != nil || !strings.Contains(log, tt.want) || !strings.Contains(log, tt.shown)) ||
				tt.err != "" && (paas.CodeOf(err) != paas.Invalid || !strings.HasPrefix(err.Error(), tt.err)) {
				t.Errorf("got %v\n%s", err, log)
			}
			if err != nil {
				log += err.Error()
			} else {
				log += string(res.Provenance)
			}
			if strings.Contains(log, "hunter2") {
				t.Errorf("the password is in:\n%s", log)
			}
		})
	}
	if t.Failed() {
		return
	}
	// Equal groups need no second build: what is fetched is part of the key by its content.
	req := build.Request{App: "bp-custom", Config: map[string]string{"BUILDPACK_URL": withPassword + "/repo.git"}}
	if res, log, err := p.push(t, newRepo(t), req, files); err != nil || !strings.Contains(log, "built before") || !slices.Equal(slices.Collect(maps.Keys(res.Procfile)), []string{"web"}) {
		t.Errorf("%v\n%s", err, log)
	}
}
