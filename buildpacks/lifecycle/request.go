package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/buildpacks/lifecycle/env"
	"github.com/buildpacks/lifecycle/platform"
	"github.com/buildpacks/lifecycle/platform/files"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Limits of what is read into memory. Buildpacks write some of these files.
const (
	maxRequest = 32 << 20 // config values, certificates and thousands of diff ids
	maxState   = 16 << 20
	maxSBOM    = 64 << 20 // real ones of big apps have a few MiB
)

// request is what the host asks for.
type request struct {
	// Env is the CNB platform environment: the app's config. Its values are secret.
	Env map[string]string `json:"env"`
	// RunImage is what the app's image is made on.
	RunImage struct {
		// Reference has a digest, Name is the tag that a later rebase looks for.
		Reference string `json:"reference"`
		Name      string `json:"name"`
		// Config is the OCI image configuration. The layers themselves are not needed.
		Config json.RawMessage `json:"config"`
	} `json:"runImage"`
	// Order is the groups of buildpacks to try; empty is the builder's.
	Order []struct {
		Group []orderElement `json:"group"`
	} `json:"order"`
	// Have is the diff ids of layers that the host has: their bytes are left out.
	Have []string `json:"have"`
	// CA is certificates (PEM) to trust besides those of the builder image.
	CA string `json:"ca"`
}

// orderElement is a buildpack of the builder (ID, Version) or a directory with one.
type orderElement struct {
	ID       string `json:"id"`
	Version  string `json:"version"`
	Optional bool   `json:"optional"`
	Dir      string `json:"dir"`
}

// readRequest never says what is in the request: values are secret, and errors of
// encoding/json quote what they stumble over.
func readRequest(path string) (*request, error) {
	data, err := readFile(path, maxRequest)
	if err != nil {
		return nil, fmt.Errorf("read the build's request: %w", err)
	}
	r := &request{}
	if json.Unmarshal(data, r) != nil {
		return nil, errors.New("the build's request is not the JSON that this program expects")
	}
	return r, nil
}

// runImage parses the run image's configuration.
func (r *request) runImage() (*v1.ConfigFile, error) {
	config, err := v1.ParseConfigFile(bytes.NewReader(r.RunImage.Config))
	if err != nil {
		return nil, fmt.Errorf("configuration of the run image %s: %w", r.RunImage.Name, err)
	}
	if len(config.RootFS.DiffIDs) == 0 {
		return nil, fmt.Errorf("the run image %s has no layers", r.RunImage.Name)
	}
	return config, nil
}

// analyzed is what the lifecycle's analyze phase would find: the target that buildpacks build for.
func (r *request) analyzed() (files.Analyzed, error) {
	config, err := r.runImage()
	if err != nil {
		return files.Analyzed{}, err
	}
	target := &files.TargetMetadata{
		ID: config.Config.Labels[platform.TargetLabel],
		OS: config.OS, Arch: config.Architecture, ArchVariant: config.Variant,
	}
	if name := config.Config.Labels[platform.OSDistroNameLabel]; name != "" {
		target.Distro = &files.OSDistro{Name: name, Version: config.Config.Labels[platform.OSDistroVersionLabel]}
	}
	return files.Analyzed{RunImage: &files.RunImage{
		Reference: r.RunImage.Reference, Image: r.RunImage.Name, TargetMetadata: target,
	}}, nil
}

// writePlatformEnv writes dir/env/NAME (CNB platform interface, "Provided by the Platform").
func writePlatformEnv(dir string, values map[string]string) error {
	dir = filepath.Join(dir, "env")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("platform environment: %w", err)
	}
	for name, value := range values {
		if name == "" || strings.ContainsAny(name, "/=\x00") || name == "." || name == ".." {
			return fmt.Errorf("%q cannot be the name of an environment variable", name)
		}
		if strings.ContainsRune(value, 0) {
			return fmt.Errorf("the value of %s has a zero byte", name)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
			return fmt.Errorf("platform environment: %w", err)
		}
	}
	return nil
}

// trustCertificates makes buildpacks and the tools that they run trust more
// certificates. It sets variables of this process, which buildpacks then inherit;
// an app's own config has precedence. The image gets none of it.
func trustCertificates(extra, bundle, dir string) error {
	if extra == "" {
		return nil
	}
	image, err := os.ReadFile(bundle)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("certificates of the builder image: %w", err)
	}
	extraFile, allFile := filepath.Join(dir, "deis-ca-extra.pem"), filepath.Join(dir, "deis-ca-all.pem")
	all := append(append(image, '\n'), extra...)
	if err := errors.Join(os.WriteFile(extraFile, []byte(extra), 0o644), os.WriteFile(allFile, all, 0o644)); err != nil {
		return fmt.Errorf("certificates to trust: %w", err)
	}
	variables := map[string]string{"NODE_EXTRA_CA_CERTS": extraFile}
	for _, name := range []string{
		"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO",
		"BUNDLE_SSL_CA_CERT", "CARGO_HTTP_CAINFO", "AWS_CA_BUNDLE", "COMPOSER_CAFILE",
	} {
		variables[name] = allFile
	}
	for name, value := range variables {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
		env.BuildEnvIncludelist = append(env.BuildEnvIncludelist, name)
	}
	return nil
}

// readFile reads a file that buildpacks may have written: a regular one, not through
// a symbolic link, of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	// Not blocking, because opening a named pipe waits for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	data := make([]byte, 0, info.Size()+1)
	buffer := bytes.NewBuffer(data)
	_, err = io.Copy(buffer, io.LimitReader(f, limit))
	return buffer.Bytes(), err
}
