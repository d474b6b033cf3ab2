package build

import (
	"bytes"
	"encoding/json"
	"maps"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/deis/deis/internal/daemon"
)

// The words of a provenance: an in-toto statement v1 (https://github.com/in-toto/attestation/tree/main/spec/v1)
// whose predicate is SLSA's provenance v1 (https://slsa.dev/spec/v1.0/provenance).
const (
	statementType  = "https://in-toto.io/Statement/v1"
	provenanceType = "https://slsa.dev/provenance/v1"
	// buildType says what externalParameters are; docs/builds.md has the list.
	buildType = "https://github.com/deis/deis/blob/master/docs/builds.md#provenance"
	builderID = "https://github.com/deis/deis"
)

type statement struct {
	Type          string       `json:"_type"`
	Subject       []descriptor `json:"subject"`
	PredicateType string       `json:"predicateType"`
	Predicate     predicate    `json:"predicate"`
}

// descriptor is in-toto's ResourceDescriptor.
type descriptor struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest,omitempty"`
	// Annotations are what else is known, such as a buildpack's homepage.
	Annotations map[string]string `json:"annotations,omitempty"`
}

type predicate struct {
	Definition struct {
		BuildType    string       `json:"buildType"`
		External     parameters   `json:"externalParameters"`
		Dependencies []descriptor `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	Details struct {
		Builder struct {
			ID           string            `json:"id"`
			Version      map[string]string `json:"version"`
			Dependencies []descriptor      `json:"builderDependencies,omitempty"`
		} `json:"builder"`
		Metadata struct {
			Started  time.Time `json:"startedOn"`
			Finished time.Time `json:"finishedOn"`
		} `json:"metadata"`
	} `json:"runDetails"`
}

// parameters are what the pusher chose.
type parameters struct {
	Commit    string `json:"commit"`
	Strategy  string `json:"strategy"`
	Directory string `json:"directory,omitempty"`
	Builder   string `json:"builder,omitempty"`
	// Buildpacks are the sources of those that are not the builder's choice, without credentials.
	Buildpacks []string `json:"buildpacks,omitempty"`
}

// origin is what a build came from: it is noted while the build goes on, for the provenance.
type origin struct {
	builder    string
	sources    []string
	buildpacks []buildpackReport

	mu sync.Mutex
	// images maps names to digests, of all images that the build used.
	images map[string]string
}

// image notes an image that was used, pinned ("name@sha256:...") or not.
func (o *origin) image(pinned string) {
	name, digest, ok := strings.Cut(pinned, "@")
	if !ok {
		return // of an image without digest there is nothing to say
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.images == nil {
		o.images = map[string]string{}
	}
	o.images[name] = digest
}

// fromStep matches how BuildKit names the step that brings a base image of a Dockerfile.
var fromStep = regexp.MustCompile(`^\[[^\]]*\] FROM (\S+@sha256:[0-9a-f]{64})$`)

// observe notes the base images of a Dockerfile.
func (o *origin) observe(status *client.SolveStatus) {
	for _, v := range status.Vertexes {
		if m := fromStep.FindStringSubmatch(v.Name); m != nil {
			o.image(m[1])
		}
	}
}

// provenance is the statement about a build that began at a time and has just ended. But for the times, equal
// builds have equal statements. Config values are not in it, except for those that steer the build.
func (j *job) provenance(imageDigest string, started time.Time) (json.RawMessage, error) {
	commit := j.Tree.Commit
	s := statement{
		Type: statementType, PredicateType: provenanceType,
		Subject: []descriptor{{Name: ImageName(j.App, commit), Digest: digestSet(imageDigest)}},
	}
	def := &s.Predicate.Definition
	def.BuildType = buildType
	def.External = parameters{
		Commit: commit, Strategy: string(j.plan.strategy), Directory: clip(printable(j.Config[configAppDir]), maxName),
		Builder: j.origin.builder, Buildpacks: j.origin.sources,
	}
	def.Dependencies = []descriptor{{Name: "source", Digest: map[string]string{"gitCommit": commit}}}
	for _, name := range slices.Sorted(maps.Keys(j.origin.images)) {
		def.Dependencies = append(def.Dependencies, descriptor{Name: name, URI: "docker-image://" + name, Digest: digestSet(j.origin.images[name])})
	}
	run := &s.Predicate.Details
	run.Builder.ID = builderID
	run.Builder.Version = map[string]string{"deis": daemon.Version, "buildkit": buildkitVersion()}
	for _, b := range j.origin.buildpacks {
		run.Builder.Dependencies = append(run.Builder.Dependencies, b.descriptor())
	}
	run.Metadata.Started, run.Metadata.Finished = started.UTC().Truncate(time.Second), time.Now().UTC().Truncate(time.Second)

	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(s)
	return bytes.TrimSpace(buf.Bytes()), err
}

// buildkitVersion is that of the module in this program, which is BuildKit too: what BuildKit says of itself is
// set only where its own scripts make it.
var buildkitVersion = sync.OnceValue(func() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "github.com/moby/buildkit" {
				return m.Version
			}
		}
	}
	return "unknown" // Go's tests know no modules
})

// digestSet is in-toto's form of "sha256:...".
func digestSet(digest string) map[string]string {
	algorithm, hex, _ := strings.Cut(digest, ":")
	return map[string]string{algorithm: hex}
}

// descriptor names a buildpack as project.toml does, with its version.
func (b buildpackReport) descriptor() descriptor {
	id, version := clip(printable(b.ID), maxName), clip(printable(b.Version), maxName)
	d := descriptor{Name: id, URI: "urn:cnb:builder:" + id + "@" + version, Annotations: map[string]string{"version": version}}
	if b.Homepage != "" {
		d.Annotations["homepage"] = clip(printable(b.Homepage), maxName)
	}
	return d
}
