package build

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"

	"github.com/deis/deis/internal/paas"
)

const (
	// DefaultBuilder is the builder image of apps that choose none.
	DefaultBuilder = "docker.io/deis/builder:latest"
	// LifecycleImage holds the program that builds (/build, from buildpacks/lifecycle) and CNB's lifecycle.
	LifecycleImage = "docker.io/deis/lifecycle:latest"

	// Labels of builder images and packages of buildpacks (CNB distribution specification, and pack).
	builderLabel = "io.buildpacks.builder.metadata"
	orderLabel   = "io.buildpacks.buildpack.order"
	packageLabel = "io.buildpacks.buildpackage.metadata"

	// programStep is the step that runs the program. progress shows its output as it stands.
	programStep   = "[buildpacks]"
	requestSecret = "request"
	// ownedDir is the directory of states of ours that belongs to the user that builds: roots are root's.
	ownedDir = "/owned"

	// maxHave bounds the list of layers that the program is told of; they are of the newest images.
	maxHave = 1000
)

// buildRequest is what the program gets as a secret (/deis/request.json).
type buildRequest struct {
	// Env is the platform environment: secret.
	Env      map[string]string `json:"env"`
	RunImage runImage          `json:"runImage"`
	// Order is empty for the builder's own.
	Order []orderGroup `json:"order,omitempty"`
	// Have are the diff IDs of layers whose bytes may be left out.
	Have []digest.Digest `json:"have"`
	// CA is certificates (PEM) to trust besides those of the builder.
	CA string `json:"ca,omitempty"`
}

type runImage struct {
	// Reference is pinned by digest, Name is what the image records for rebasing.
	Reference string          `json:"reference"`
	Name      string          `json:"name"`
	Config    json.RawMessage `json:"config"`
}

type orderGroup struct {
	Group []groupElement `json:"group"`
}

// groupElement is a buildpack of the builder (ID, Version), or one that was fetched (Dir).
type groupElement struct {
	ID       string `json:"id,omitempty"`
	Version  string `json:"version,omitempty"`
	Optional bool   `json:"optional,omitempty"`
	Dir      string `json:"dir,omitempty"`
}

// key is what the cache key of a build says of its request: everything but Have and the commit, so that the same files and
// config are built once, and nothing that one could guess config values from.
func (r buildRequest) key(secret []byte) (string, error) {
	r.Have = nil
	r.Env = maps.Clone(r.Env)
	delete(r.Env, envCommit)
	data, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(data)
	return hex.EncodeToString(mac.Sum(nil)), nil
}

// builderImage is a resolved builder.
type builderImage struct {
	// name is for people and pinned for BuildKit.
	name, pinned string
	raw          []byte // the configuration
	config       ocispec.Image
	metadata     struct {
		Buildpacks []groupElement `json:"buildpacks"`
		Stack      struct {
			RunImage struct {
				Image string `json:"image"`
			} `json:"runImage"`
		} `json:"stack"`
		Images []struct {
			Image string `json:"image"`
		} `json:"images"`
	}
	order []orderGroup
	// uid and gid are of the user that builds.
	uid, gid int
}

// has reports whether the builder holds a buildpack.
func (i *builderImage) has(id string) bool { return i.version(id) != "" }

// version is that of a buildpack of the builder, the last listed where there are several; empty
// where there is none.
func (i *builderImage) version(id string) string {
	version := ""
	for _, b := range i.metadata.Buildpacks {
		if b.ID == id {
			version = b.Version
		}
	}
	return version
}

// buildpacksJob is one build with buildpacks.
type buildpacksJob struct {
	*job
	builder builderImage
	run     imagestoreImage
	request buildRequest
	// root is the builder image, owned a state whose ownedDir belongs to the user that builds.
	root, owned llb.State
	// fetched are the buildpacks of the pusher's choice, in order.
	fetched []fetchedBuildpack
	secrets map[string][]byte
	// files are what secrets name by their paths.
	files []*os.File
}

// imagestoreImage is the run image, with its configuration as it stands.
type imagestoreImage struct {
	name, reference string
	raw             json.RawMessage
	layers          []ocispec.Descriptor
	diffIDs         []digest.Digest
}

// buildpacks is the strategy for commits without a Dockerfile.
func (j *job) buildpacks(ctx context.Context) (*Result, error) {
	bp := &buildpacksJob{job: j, secrets: map[string][]byte{}}
	defer func() {
		for _, f := range bp.files {
			_ = f.Close() // it was in memory
		}
	}()
	opt := client.SolveOpt{
		LocalMounts: map[string]fsutil.FS{contextName: j.plan.tree},
		Session:     []session.Attachable{secretsprovider.NewSecretProvider(bp)},
	}
	var res Result
	_, err := j.solve(ctx, opt, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		return gateway.NewResult(), bp.build(ctx, c, &res)
	})
	return &res, err
}

// GetSecret implements secrets.SecretStore.
func (j *buildpacksJob) GetSecret(_ context.Context, id string) ([]byte, error) {
	data, ok := j.secrets[id]
	if !ok {
		return nil, fmt.Errorf("secret %s: %w", id, secrets.ErrNotFound)
	}
	return data, nil
}

// build solves, and once more without the cache when layers were lost that an earlier build left to the store.
func (j *buildpacksJob) build(ctx context.Context, c gateway.Client, res *Result) error {
	if err := j.prepare(ctx, c); err != nil {
		return err
	}
	err := j.once(ctx, c, res, true)
	if errors.Is(err, errLost) {
		j.say(indent + "parts of the last image are gone; building all of it again")
		err = j.once(ctx, c, res, false)
	}
	if errors.Is(err, errLost) {
		return &paas.Error{Code: paas.Invalid, Message: "the build left an image that cannot be used: layers are missing", Err: err}
	}
	return err
}

// prepare resolves the images, fetches buildpacks, and makes the request.
func (j *buildpacksJob) prepare(ctx context.Context, c gateway.Client) (err error) {
	name := DefaultBuilder
	switch {
	case j.Config[configBuilder] != "":
		name = j.Config[configBuilder]
	case j.plan.project.builder != "":
		name = j.plan.project.builder
	}
	if j.builder, err = resolveBuilder(ctx, c, name); err != nil {
		return err
	}
	if j.root, err = llb.Image(j.builder.pinned, llb.ResolveModePreferLocal, quiet("builder image")).WithImageConfig(j.builder.raw); err != nil {
		return fmt.Errorf("configuration of %s: %w", j.builder.name, err)
	}
	j.owned = llb.Scratch().File(llb.Mkdir(ownedDir, 0o755, llb.WithUIDGID(j.builder.uid, j.builder.gid)), quiet("make directories"))
	if j.run, err = j.runImage(ctx); err != nil {
		return err
	}
	j.origin.builder = j.builder.name
	j.origin.image(j.builder.pinned)
	_, runDigest, _ := strings.Cut(j.run.reference, "@")
	j.origin.image(j.run.name + "@" + runDigest)
	j.request = buildRequest{
		Env:      platformEnv(j.Config, j.plan.project, j.Tree.Commit),
		RunImage: runImage{Reference: j.run.reference, Name: j.run.name, Config: j.run.raw},
	}
	if j.request.CA, err = readCertificates(j.opts.CAFile); err != nil {
		return err
	}
	j.request.Order, err = j.order(ctx, c)
	return err
}

// resolve returns an image's pinned name and its configuration. BuildKit fetches what is not here.
func resolve(ctx context.Context, c gateway.Client, name string) (pinned string, config []byte, err error) {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", nil, userErrorf("%q is not the name of an image", clip(printable(name), maxName))
	}
	_, dgst, config, err := c.ResolveImageConfig(ctx, ref.String(), sourceresolver.Opt{
		LogName:  "[internal] resolve " + familiar(ref.String()),
		ImageOpt: &sourceresolver.ResolveImageOpt{ResolveMode: llb.ResolveModePreferLocal.String()},
	})
	if err != nil {
		return "", nil, err
	}
	if _, ok := ref.(reference.Digested); ok || dgst == "" {
		return ref.String(), config, nil
	}
	return ref.String() + "@" + dgst.String(), config, nil
}

func resolveBuilder(ctx context.Context, c gateway.Client, name string) (builderImage, error) {
	i := builderImage{name: familiar(name), uid: 1000, gid: 1000}
	var err error
	if i.pinned, i.raw, err = resolve(ctx, c, name); err != nil {
		return builderImage{}, missingBuilder(err, i.name)
	}
	if err := json.Unmarshal(i.raw, &i.config); err != nil {
		return builderImage{}, fmt.Errorf("configuration of %s: %w", i.name, err)
	}
	metadata, ok := i.config.Config.Labels[builderLabel]
	if !ok || json.Unmarshal([]byte(metadata), &i.metadata) != nil {
		return builderImage{}, userErrorf("the image %s is no builder of Cloud Native Buildpacks: its label %s is missing or broken", i.name, builderLabel)
	}
	if order, ok := i.config.Config.Labels[orderLabel]; ok && json.Unmarshal([]byte(order), &i.order) != nil {
		return builderImage{}, userErrorf("the label %s of the builder image %s is broken", orderLabel, i.name)
	}
	for _, kv := range i.config.Config.Env {
		switch name, value, _ := strings.Cut(kv, "="); name {
		case "CNB_USER_ID":
			i.uid, err = strconv.Atoi(value)
		case "CNB_GROUP_ID":
			i.gid, err = strconv.Atoi(value)
		}
		if err != nil || i.uid <= 0 || i.gid < 0 {
			return builderImage{}, userErrorf("the builder image %s says %s, which is no user that may build", i.name, clip(printable(kv), maxName))
		}
	}
	return i, nil
}

// runImage is the image that the builder's apps run on. It must be in the store.
func (j *buildpacksJob) runImage(ctx context.Context) (imagestoreImage, error) {
	name := j.builder.metadata.Stack.RunImage.Image
	if images := j.builder.metadata.Images; len(images) > 0 {
		name = images[0].Image
	}
	ref, err := reference.ParseDockerRef(name)
	if err != nil || strings.HasPrefix(ref.String(), paas.LocalImages) { // those are apps'
		return imagestoreImage{}, userErrorf("the builder image %s names no run image", j.builder.name)
	}
	img, err := j.images.Image(ctx, ref.String())
	if paas.CodeOf(err) == paas.NotFound {
		return imagestoreImage{}, userErrorf("the run image %s of the builder %s is not on this machine\nAsk the operator of the platform to bring it there (deisctl builders pull %s)",
			familiar(ref.String()), j.builder.name, j.builder.name)
	}
	if err != nil {
		return imagestoreImage{}, err
	}
	run := imagestoreImage{
		name: ref.String(), reference: ref.Name() + "@" + img.ManifestDesc.Digest.String(),
		layers: img.Manifest.Layers, diffIDs: img.Config.RootFS.DiffIDs,
	}
	return run, j.images.ReadJSON(ctx, img.Manifest.Config, &run.raw)
}

// knownLayers are those of the run image and of the app's own images, by diff ID.
func (j *buildpacksJob) knownLayers(ctx context.Context) (map[digest.Digest]ocispec.Descriptor, error) {
	known := map[digest.Digest]ocispec.Descriptor{}
	add := func(layers []ocispec.Descriptor, diffIDs []digest.Digest) {
		for i := range min(len(layers), len(diffIDs)) {
			known[diffIDs[i]] = layers[i]
		}
	}
	own := regexp.QuoteMeta(paas.LocalImages + j.App)
	list, err := j.images.Client().ImageService().List(ctx, fmt.Sprintf("name~=%s", strconv.Quote("^"+own+"[:@]")))
	if err != nil {
		return nil, fmt.Errorf("list the app's images: %w", err)
	}
	slices.SortFunc(list, func(a, b images.Image) int { return b.UpdatedAt.Compare(a.UpdatedAt) })
	for _, record := range list {
		if len(known) > maxHave {
			break
		}
		img, err := j.images.Image(ctx, record.Name)
		if errdefs.IsNotFound(err) || paas.CodeOf(err) == paas.NotFound { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		add(img.Manifest.Layers, img.Config.RootFS.DiffIDs)
	}
	add(j.run.layers, j.run.diffIDs)
	for id, desc := range known {
		if !j.images.Has(ctx, desc.Digest) {
			delete(known, id)
		}
	}
	return known, nil
}

// once runs the program and imports what it left. With cache, it may find the same done already, and
// leave out what the store has.
func (j *buildpacksJob) once(ctx context.Context, c gateway.Client, res *Result, cache bool) error {
	leased, done, err := j.images.Lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	known, err := j.knownLayers(leased)
	if err != nil {
		return err
	}
	j.request.Have = []digest.Digest{}
	if cache {
		for id := range known {
			j.request.Have = append(j.request.Have, id)
		}
		slices.Sort(j.request.Have)
	}
	if j.secrets[requestSecret], err = json.Marshal(j.request); err != nil {
		return err
	}
	if n := len(j.secrets[requestSecret]); n > secretsprovider.MaxSecretSize {
		return userErrorf("the app's config is too large to build with: with what else a build is told it has %d bytes, of at most %d", n, secretsprovider.MaxSecretSize)
	}
	ref, err := j.execute(ctx, c, cache)
	if err != nil {
		return err
	}
	files := gatewayFiles{ref: ref, dir: ownedDir}
	out, err := readOutput(ctx, files, func(line string) { j.say(indent + line) })
	if err != nil {
		return err
	}
	if res.Procfile, err = out.report.procfile(); err != nil {
		return err
	}
	if len(res.Procfile) == 0 {
		return userErrorf("the buildpacks found nothing to run: add a Procfile with a line \"web: command\"")
	}
	res.SBOM, j.origin.buildpacks = out.sbom, out.report.Buildpacks
	j.sayTypes(out.report, res.Procfile)
	config, layers, err := layoutImport{files: files, store: j.images, known: known, limit: j.guard.limits.Disk}.image(leased, ctx)
	if err != nil {
		return err
	}
	j.mark(&config.Config)
	name := ImageName(j.App, j.Tree.Commit)
	desc, err := j.images.Put(leased, name, config, layers, nil)
	if err == nil {
		err = j.images.Unpack(leased, name)
	}
	if errdefs.IsNotFound(err) { // collected since it was looked for
		return errors.Join(errLost, err)
	}
	res.Digest = desc.Digest.String()
	return err
}

// sayTypes shows the process types as contract 9.4 has it.
func (j *buildpacksJob) sayTypes(report report, types map[string]string) {
	var declared, defaults []string
	for _, name := range slices.Sorted(maps.Keys(types)) {
		if _, ok := j.plan.procfile[name]; ok {
			declared = append(declared, name)
		} else {
			defaults = append(defaults, name)
		}
	}
	j.say(heading + "Discovering process types")
	if len(declared) > 0 {
		j.say(indent + "Procfile declares types -> " + strings.Join(declared, ", "))
	}
	if len(defaults) > 0 {
		j.say(indent + "Default process types for " + report.language() + " -> " + strings.Join(defaults, ", "))
	}
}

// execute runs the program on BuildKit and returns its output.
func (j *buildpacksJob) execute(ctx context.Context, c gateway.Client, cache bool) (gateway.Reference, error) {
	key, err := j.request.key(j.opts.Secret)
	if err != nil {
		return nil, err
	}
	lifecycle, _, err := resolve(ctx, c, LifecycleImage)
	if err != nil {
		return nil, missingBuilder(err, familiar(LifecycleImage))
	}
	j.origin.image(lifecycle)
	layers := fmt.Sprintf("deis-layers/%s/%d/%s", j.App, j.Cache, digest.FromString(j.builder.name).Encoded()[:16])
	options := append(j.exec(),
		llb.Args([]string{"/deis/lifecycle/build", "-key", key}), llb.Dir("/workspace"), llb.WithCustomName(programStep),
		llb.AddMount("/deis/lifecycle", llb.Image(lifecycle, llb.ResolveModePreferLocal, quiet("lifecycle image")), llb.Readonly, keyed),
		llb.AddMount("/workspace", j.workspace(), llb.SourcePath(ownedDir), llb.ForceNoOutput, keyed),
		llb.AddMount("/layers", j.owned, llb.SourcePath(ownedDir), llb.AsPersistentCacheDir(layers, llb.CacheMountLocked), keyed),
		// Not at /platform: builders have one that is root's, and a tmpfs takes over owner and mode.
		llb.AddMount("/deis/platform", llb.Scratch(), llb.Tmpfs()),
		llb.AddSecret("/deis/request.json", llb.SecretID(requestSecret), llb.SecretFileOpt(j.builder.uid, j.builder.gid, 0o400)),
	)
	for i, f := range j.fetched {
		options = append(options, llb.AddMount(path.Join(fetchedDir, strconv.Itoa(i)), f.state, llb.SourcePath(f.mount), llb.Readonly, keyed))
	}
	if !cache {
		options = append(options, llb.IgnoreCache)
	}
	out := j.root.Run(options...).AddMount("/deis/output", j.owned, llb.SourcePath(ownedDir))
	ref, err := evaluate(ctx, c, out)
	return ref, explainProgram(err)
}

// exec is what all steps of ours have in common.
func (j *buildpacksJob) exec() []llb.RunOption {
	options := []llb.RunOption{llb.User(fmt.Sprintf("%d:%d", j.builder.uid, j.builder.gid))}
	if parent := j.guard.cgroupParent(); parent != "" {
		options = append(options, llb.WithCgroupParent(parent))
	}
	return options
}

// workspace is the pushed files, owned by the user that builds.
func (j *buildpacksJob) workspace() llb.State {
	files := llb.Local(contextName, llb.SharedKeyHint(contextName), quiet("load the pushed files"))
	owner := llb.WithUIDGID(j.builder.uid, j.builder.gid)
	return llb.Scratch().File(
		llb.Mkdir(ownedDir, 0o755, owner).Copy(files, "/", ownedDir, &llb.CopyInfo{CopyDirContentsOnly: true}, owner),
		quiet("copy the pushed files"))
}

// evaluate solves a state.
func evaluate(ctx context.Context, c gateway.Client, state llb.State) (gateway.Reference, error) {
	def, err := state.Marshal(ctx)
	if err != nil {
		return nil, fmt.Errorf("definition of the build: %w", err)
	}
	res, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
	if err != nil {
		return nil, err
	}
	return res.SingleRef()
}

// quiet gives a step a name that is shown only when it takes long.
func quiet(name string) llb.ConstraintsOpt { return llb.WithCustomName("[internal] " + name) }

// keyed tells BuildKit that where a mount comes from says all of its content: it need not hash the files.
var keyed = llb.ContentCache(llb.MountContentCacheOff)
