package build

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/build/imagestore"
	"github.com/deis/deis/internal/paas"
)

// Limits on what a build may hand out. It is a stranger's work.
const (
	maxIndex    = 64 << 10
	maxManifest = 4 << 20 // as registries have it
	maxReport   = 1 << 20
	// maxLayers is what Docker allows; overlayfs takes more.
	maxLayers = 127
	// readChunk is how much of a file comes in one message of BuildKit, which may have 16 MiB.
	readChunk = 4 << 20
)

// errLost is returned when an image needs a layer that its build left out, because the store had it, and that
// the store has no more. Building again without the cache mends it.
var errLost = errors.New("a layer of the image is in no store any more")

// outputFiles are the files that a build left.
type outputFiles interface {
	// size is fs.ErrNotExist where there is no such file.
	size(ctx context.Context, name string) (int64, error)
	// read returns at most n bytes from an offset on; none at the end.
	read(ctx context.Context, name string, offset, n int64) ([]byte, error)
}

// gatewayFiles are those below a directory of a BuildKit result.
type gatewayFiles struct {
	ref gateway.Reference
	dir string
}

func (g gatewayFiles) size(ctx context.Context, name string) (int64, error) {
	st, err := g.ref.StatFile(ctx, gateway.StatRequest{Path: path.Join(g.dir, name)})
	switch {
	case err != nil && strings.Contains(err.Error(), syscall.ENOENT.Error()): // BuildKit gives it no code
		return 0, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	case err != nil:
		return 0, fmt.Errorf("read %s: %w", name, err)
	case !fs.FileMode(st.Mode).IsRegular():
		return 0, badLayout("%s is no file", name)
	}
	return st.Size, nil
}

func (g gatewayFiles) read(ctx context.Context, name string, offset, n int64) ([]byte, error) {
	return g.ref.ReadFile(ctx, gateway.ReadRequest{Filename: path.Join(g.dir, name), Range: &gateway.FileRange{Offset: int(offset), Length: int(n)}})
}

// document reads a small file; fs.ErrNotExist where there is none.
func document(ctx context.Context, files outputFiles, name string, limit int64) ([]byte, error) {
	size, err := files.size(ctx, name)
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, badLayout("%s has %d bytes; the limit is %d", name, size, limit)
	}
	return io.ReadAll(open(ctx, files, name, size))
}

// open returns the content of a file, which must have size bytes. The next piece is fetched while one is used.
func open(ctx context.Context, files outputFiles, name string, size int64) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		for offset := int64(0); offset < size; {
			data, err := files.read(ctx, name, offset, min(readChunk, size-offset))
			if err == nil && len(data) == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err == nil {
				_, err = w.Write(data)
			}
			if err != nil {
				_ = w.CloseWithError(fmt.Errorf("read %s: %w", name, err)) // never fails
				return
			}
			offset += int64(len(data))
		}
		_ = w.Close() // never fails
	}()
	return r
}

// badLayout is a result that no build of ours makes: a buildpack tampered with it.
func badLayout(format string, args ...any) error {
	return userErrorf("the build left an image that cannot be used: "+format, args...)
}

// report is what the program says of its build (report.json).
type report struct {
	Processes []struct {
		Type    string   `json:"type"`
		Command []string `json:"command"`
		Args    []string `json:"args"`
		Direct  bool     `json:"direct"`
		Default bool     `json:"default"`
	} `json:"processes"`
	Buildpacks []buildpackReport `json:"buildpacks"`
	// Phases are durations in seconds: detect, restore, build, export.
	Phases map[string]float64 `json:"phases"`
}

// buildpackReport is a buildpack that took part.
type buildpackReport struct {
	ID       string `json:"id"`
	Version  string `json:"version"`
	Homepage string `json:"homepage"`
	// Name is for people.
	Name string `json:"name"`
}

// language is what the app is called by: the first buildpack. But that of Node.js only helps where our builder has it before that of
// another language.
func (r report) language() string {
	if len(r.Buildpacks) == 0 {
		return "the app"
	}
	main := r.Buildpacks[0]
	if main.ID == "deis/nodejs" && len(r.Buildpacks) > 1 && slices.Contains([]string{"deis/ruby", "deis/python"}, r.Buildpacks[1].ID) {
		main = r.Buildpacks[1]
	}
	return clip(printable(cmp.Or(main.Name, main.ID)), maxName)
}

// procfile is the report's process types, each as one line for people.
func (r report) procfile() (map[string]string, error) {
	types := map[string]string{}
	for _, p := range r.Processes {
		if !processType.MatchString(p.Type) || len(types) == maxProcessTypes || len(p.Command) == 0 {
			return nil, badLayout("process type %q", clip(printable(p.Type), maxName))
		}
		types[p.Type] = clip(printable(commandLine(append(slices.Clone(p.Command), p.Args...))), maxProcfile)
	}
	return types, nil
}

// commandLine is a command as one would type it.
func commandLine(words []string) string {
	if len(words) == 3 && words[1] == "-c" && (path.Base(words[0]) == "bash" || path.Base(words[0]) == "sh") {
		return words[2]
	}
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = w
		if w == "" || strings.ContainsAny(w, " \t\n\r'\"\\`|&;<>()*?[]#~!{}") {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// output is what a build left besides the image.
type output struct {
	report report
	sbom   json.RawMessage
}

// readOutput reads report.json and sbom.cdx.json. An SBOM that is too large or none is left out, with a note.
func readOutput(ctx context.Context, files outputFiles, note func(string)) (output, error) {
	var o output
	data, err := document(ctx, files, "report.json", maxReport)
	if err != nil {
		return output{}, err
	}
	if err := json.Unmarshal(data, &o.report); err != nil {
		return output{}, badLayout("report.json: %v", err)
	}
	switch data, err := document(ctx, files, "sbom.cdx.json", api.MaxBuildDocument); {
	case errors.Is(err, fs.ErrNotExist):
	case paas.CodeOf(err) == paas.Invalid:
		note("the bill of materials is not kept: it is too large")
	case err != nil:
		return output{}, err
	case !json.Valid(data) || data[0] != '{':
		note("the bill of materials is not kept: it is no JSON object")
	default:
		o.sbom = data
	}
	return o, nil
}

// layoutImport brings the image of a layout into the store.
type layoutImport struct {
	files outputFiles
	store *imagestore.Store
	// known are the layers that the build may leave out, by diff ID.
	known map[digest.Digest]ocispec.Descriptor
	// limit bounds the bytes of the layers that it brings; 0 is no limit.
	limit int64
}

// image returns the configuration and the layers of the layout's image, which are in the store then: call it
// with a Lease. fetch is the context for reading the layout: BuildKit must not see a lease.
//
// A layer must be in known, or its bytes in the layout: naming what another app has is of no use.
func (l layoutImport) image(leased, fetch context.Context) (ocispec.Image, []ocispec.Descriptor, error) {
	none := ocispec.Image{}
	var index ocispec.Index
	if err := l.json(fetch, "index.json", maxIndex, &index); err != nil {
		return none, nil, err
	}
	if len(index.Manifests) != 1 || index.Manifests[0].MediaType != ocispec.MediaTypeImageManifest {
		return none, nil, badLayout("the index does not name one manifest")
	}
	var manifest ocispec.Manifest
	if err := l.blob(fetch, index.Manifests[0], &manifest); err != nil {
		return none, nil, err
	}
	if manifest.Config.MediaType != ocispec.MediaTypeImageConfig {
		return none, nil, badLayout("the configuration is of type %q", clip(printable(manifest.Config.MediaType), maxName))
	}
	var config ocispec.Image
	if err := l.blob(fetch, manifest.Config, &config); err != nil {
		return none, nil, err
	}
	if n := len(manifest.Layers); n == 0 || n > maxLayers || n != len(config.RootFS.DiffIDs) || config.RootFS.Type != "layers" {
		return none, nil, badLayout("%d layers for %d in the configuration; the limit is %d", len(manifest.Layers), len(config.RootFS.DiffIDs), maxLayers)
	}
	config.Platform = ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	layers := make([]ocispec.Descriptor, len(manifest.Layers))
	for i, desc := range manifest.Layers {
		layer, err := l.layer(leased, fetch, desc, config.RootFS.DiffIDs[i])
		if err != nil {
			return none, nil, err
		}
		layers[i] = layer
	}
	return config, layers, nil
}

// layer makes sure that a layer is in the store.
func (l *layoutImport) layer(leased, fetch context.Context, desc ocispec.Descriptor, diffID digest.Digest) (ocispec.Descriptor, error) {
	known, ok := l.known[diffID]
	if ok && l.store.Has(leased, known.Digest) {
		return known, nil
	}
	if desc.Digest != diffID || desc.MediaType != ocispec.MediaTypeImageLayer || !validDigest(diffID) {
		if ok {
			return desc, fmt.Errorf("layer %s: %w", diffID, errLost)
		}
		return desc, badLayout("layer %q is no plain tar", clip(printable(desc.Digest.String()), maxName))
	}
	size, err := l.files.size(fetch, blobName(diffID))
	if errors.Is(err, fs.ErrNotExist) {
		return desc, fmt.Errorf("layer %s: %w", diffID, errLost)
	}
	if err != nil {
		return desc, err
	}
	if l.limit > 0 {
		if l.limit -= size; l.limit <= 0 {
			return desc, userErrorf("the image is too large: its layers exceed what a build may write")
		}
	}
	desc = ocispec.Descriptor{MediaType: desc.MediaType, Digest: diffID, Size: size}
	content := open(fetch, l.files, blobName(diffID), size)
	defer content.Close()
	proof := &hashing{r: content, hash: sha256.New()}
	if err := l.store.Write(leased, desc, proof); errdefs.IsFailedPrecondition(err) { // digest or size differ
		return desc, badLayout("layer %s has another content", diffID)
	} else if err != nil {
		return desc, fmt.Errorf("import: %w", err)
	}
	// The store does not read what it has already: that the build has these bytes is still to be shown.
	if _, err := io.Copy(io.Discard, proof); err != nil {
		return desc, err
	}
	if hex.EncodeToString(proof.hash.Sum(nil)) != diffID.Encoded() {
		return desc, badLayout("layer %s has another content", diffID)
	}
	l.known[diffID] = desc
	return desc, nil
}

func (l *layoutImport) json(ctx context.Context, name string, limit int64, into any) error {
	data, err := document(ctx, l.files, name, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return badLayout("there is no %s", name)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return badLayout("%s: %v", name, err)
	}
	return nil
}

// blob decodes a JSON document that a descriptor names.
func (l *layoutImport) blob(ctx context.Context, desc ocispec.Descriptor, into any) error {
	if !validDigest(desc.Digest) {
		return badLayout("digest %q", clip(printable(desc.Digest.String()), maxName))
	}
	data, err := document(ctx, l.files, blobName(desc.Digest), maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return badLayout("there is no %s", desc.Digest)
	}
	if err != nil {
		return err
	}
	if digest.FromBytes(data) != desc.Digest || int64(len(data)) != desc.Size {
		return badLayout("%s has another content", desc.Digest)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return badLayout("%s: %v", desc.Digest, err)
	}
	return nil
}

// validDigest: it becomes a part of a path.
func validDigest(d digest.Digest) bool { return d.Validate() == nil && d.Algorithm() == digest.SHA256 }

func blobName(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

// hashing hashes what is read through it.
type hashing struct {
	r    io.Reader
	hash hash.Hash
}

func (h *hashing) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.hash.Write(p[:n])
	return n, err
}
