package build_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/daemon"
)

type descriptor struct {
	Name, URI           string
	Digest, Annotations map[string]string
}

// statement is what the tests read of a provenance.
type statement struct {
	Type          string `json:"_type"`
	Subject       []descriptor
	PredicateType string
	Predicate     struct {
		BuildDefinition struct {
			BuildType            string
			ExternalParameters   map[string]any
			ResolvedDependencies []descriptor
		}
		RunDetails struct {
			Builder struct {
				ID                  string
				Version             map[string]string
				BuilderDependencies []descriptor
			}
			Metadata struct{ StartedOn, FinishedOn time.Time }
		}
	}
}

// provenanceOf decodes and checks what all have in common.
func provenanceOf(t *testing.T, b *build.Result, commit string) statement {
	t.Helper()
	var s statement
	if err := json.Unmarshal(b.Provenance, &s); err != nil {
		t.Fatalf("%v\n%s", err, b.Provenance)
	}
	if s.Type != "https://in-toto.io/Statement/v1" || s.PredicateType != "https://slsa.dev/provenance/v1" {
		t.Errorf("types %s, %s", s.Type, s.PredicateType)
	}
	if len(s.Subject) != 1 || s.Subject[0].Name != b.Image || "sha256:"+s.Subject[0].Digest["sha256"] != b.Digest {
		t.Errorf("subject %+v, the image is %s, %s", s.Subject, b.Image, b.Digest)
	}
	def, run := s.Predicate.BuildDefinition, s.Predicate.RunDetails
	if def.ExternalParameters["commit"] != commit || def.ExternalParameters["strategy"] != string(b.Strategy) {
		t.Errorf("parameters %v", def.ExternalParameters)
	}
	if d := def.ResolvedDependencies[0]; d.Name != "source" || d.Digest["gitCommit"] != commit {
		t.Errorf("first dependency %+v", d)
	}
	if def.BuildType == "" || run.Builder.ID == "" || run.Builder.Version["deis"] != daemon.Version || run.Builder.Version["buildkit"] == "" {
		t.Errorf("type %q, builder %+v", def.BuildType, run.Builder)
	}
	m := run.Metadata
	if time.Since(m.StartedOn) > 10*time.Minute || m.FinishedOn.Before(m.StartedOn) || m.FinishedOn.After(time.Now()) {
		t.Errorf("times %+v", m)
	}
	return s
}

// images are the dependencies that are images, as "name digest".
func (s statement) images() (list []string) {
	for _, d := range s.Predicate.BuildDefinition.ResolvedDependencies[1:] {
		if d.URI == "docker-image://"+d.Name {
			list = append(list, d.Name+" sha256:"+d.Digest["sha256"])
		}
	}
	return list
}

// digest is that of an image in the store, with its name before it.
func (p *platform) digest(t *testing.T, name string) string {
	t.Helper()
	img, err := p.client(t).ImageService().Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return name + " " + img.Target.Digest.String()
}

var provenanceTimes = regexp.MustCompile(`"(started|finished)On":"[^"]*"`)

func TestProvenanceOfADockerfile(t *testing.T) {
	p, r := sharedPlatform(t), newRepo(t)
	const canary = "canary-provenance-17"
	commit := r.commit(map[string]string{
		"sub/Dockerfile": "FROM deis/run AS fetch\nRUN echo \"[x 1/1] FROM docker.io/evil@sha256:" + strings.Repeat("a", 64) + "\"\n" +
			"FROM scratch\nCOPY --from=fetch /etc/debian_version /v\nCMD [\"/v\"]\n",
	})
	once := func() *build.Result {
		res, err := p.builder.Build(t.Context(), build.Request{
			App: "app-origin", Tree: r.open(commit), Log: func(string) {},
			Config: map[string]string{"SECRET": canary, "DEIS_APP_DIR": "sub"},
		})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	first, second := once(), once()
	s := provenanceOf(t, first, commit)
	if got, want := fmt.Sprint(s.images()), fmt.Sprint([]string{p.digest(t, "docker.io/deis/run:latest")}); got != want {
		t.Errorf("images %s, want %s", got, want)
	}
	if dir := s.Predicate.BuildDefinition.ExternalParameters["directory"]; dir != "sub" {
		t.Errorf("directory %v", dir)
	}
	if strings.Contains(string(first.Provenance), canary) {
		t.Error("a config value is in the provenance")
	}
	if a, b := provenanceTimes.ReplaceAll(first.Provenance, nil), provenanceTimes.ReplaceAll(second.Provenance, nil); string(a) != string(b) {
		t.Errorf("the same build has another provenance:\n%s\n%s", a, b)
	}
	if first.SBOM != nil {
		t.Errorf("a Dockerfile's SBOM: %s", first.SBOM)
	}
}

func TestProvenanceOfBuildpacks(t *testing.T) {
	const canary = "canary-provenance-42"
	p, r := buildpackPlatform(t), newRepo(t)
	b := mustPush(t, r, build.Request{App: "bp-origin", Config: map[string]string{"GREETING": canary}}, map[string]string{"app.sh": "true\n"})
	s := provenanceOf(t, b.Result, b.config.Config.Labels["org.opencontainers.image.revision"])
	var want []string
	for _, name := range []string{testBuilder, "docker.io/deis/run:cnb", build.LifecycleImage} {
		want = append(want, p.digest(t, name))
	}
	slices.Sort(want)
	if got := s.images(); !slices.Equal(got, want) {
		t.Errorf("images %q, want %q", got, want)
	}
	if builder := s.Predicate.BuildDefinition.ExternalParameters["builder"]; builder != "deis/test-builder" {
		t.Errorf("builder %v", builder)
	}
	buildpacks := s.Predicate.RunDetails.Builder.BuilderDependencies
	if len(buildpacks) != 1 || buildpacks[0].Name != "test/shell" || buildpacks[0].URI != "urn:cnb:builder:test/shell@1.0.0" || buildpacks[0].Annotations["version"] != "1.0.0" {
		t.Errorf("buildpacks %+v", buildpacks)
	}
	if strings.Contains(string(b.Provenance), canary) {
		t.Error("a config value is in the provenance")
	}
}
