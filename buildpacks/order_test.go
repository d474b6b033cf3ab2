package buildpacks_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/buildpacks/lifecycle/api"
	"github.com/buildpacks/lifecycle/buildpack"
	"github.com/buildpacks/lifecycle/log"
	"github.com/buildpacks/lifecycle/phase"
	"github.com/buildpacks/lifecycle/platform"
	"github.com/buildpacks/lifecycle/platform/files"
	"github.com/buildpacks/pack/builder"
)

// TestOrder has the lifecycle choose among the groups of builder.toml.
func TestOrder(t *testing.T) {
	config, _, err := builder.ReadConfig("builder.toml")
	if err != nil {
		t.Fatal(err)
	}
	store := t.TempDir()
	var order buildpack.Order
	for _, group := range config.Order {
		var elements []buildpack.GroupElement
		for _, b := range group.Group {
			elements = append(elements, buildpack.GroupElement{ID: b.ID, Version: "1.0.0", Optional: b.Optional})
			linkBuildpack(t, store, b.ID)
		}
		order = append(order, buildpack.Group{Group: elements})
	}
	for _, test := range []struct{ files, want string }{
		{"go.mod", "go"},
		{"go.work Procfile", "go procfile"},
		{"go.work package.json", "nodejs"},
		{"go.mod package.json", "go"},
		{"package.json", "nodejs"},
		{"package.json Procfile", "nodejs procfile"},
		{"Gemfile", "ruby"},
		{"Gemfile package.json Procfile", "nodejs ruby procfile"},
		{"Gemfile requirements.txt", "python"},
		{"requirements.txt", "python"},
		{"requirements.txt package.json", "nodejs python"},
		{"pyproject.toml package.json", "nodejs"},
		{"index.html", "static"},
		{"Procfile", "procfile"},
	} {
		if got := detect(t, store, order, strings.Fields(test.files)); got != test.want {
			t.Errorf("%s: built by %q, want %q", test.files, got, test.want)
		}
	}

	// One that is chosen by itself does without Node.js.
	alone := buildpack.Order{{Group: []buildpack.GroupElement{{ID: "deis/ruby", Version: "1.0.0"}}}}
	if got := detect(t, store, alone, []string{"Gemfile", "package.json"}); got != "ruby" {
		t.Errorf("built by %q", got)
	}
}

// fixedOrder hands the lifecycle an order; detection reads nothing else.
type fixedOrder struct {
	phase.ConfigHandler
	order buildpack.Order
}

func (f fixedOrder) ReadAnalyzed(string, log.Logger) (files.Analyzed, error) {
	return files.Analyzed{RunImage: &files.RunImage{TargetMetadata: &files.TargetMetadata{OS: "linux", Arch: "amd64"}}}, nil
}

func (f fixedOrder) ReadOrder(string) (buildpack.Order, buildpack.Order, error) {
	return f.order, nil, nil
}

type anyAPI struct{}

func (anyAPI) VerifyBuildpackAPI(string, string, string, log.Logger) error { return nil }

// linkBuildpack puts a buildpack of ours where the lifecycle looks.
func linkBuildpack(t *testing.T, store, id string) {
	t.Helper()
	dir, err := filepath.Abs(strings.TrimPrefix(id, "deis/"))
	if err != nil {
		t.Fatal(err)
	}
	parent := filepath.Join(store, strings.ReplaceAll(id, "/", "_"))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(parent, "1.0.0")); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
}

// detect returns the names of the buildpacks that would build an app of these empty files.
func detect(t *testing.T, store string, order buildpack.Order, names []string) string {
	t.Helper()
	app := t.TempDir()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(app, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	factory := phase.NewHermeticFactory(api.MustParse("0.13"), anyAPI{}, fixedOrder{order: order}, platform.NewDirStore(store, ""))
	detector, err := factory.NewDetector(platform.LifecycleInputs{AppDir: app, PlatformDir: t.TempDir()}, log.NewDefaultLogger(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	group, plan, err := detector.Detect()
	if err != nil {
		t.Fatalf("%s: %v", names, err)
	}
	var found []string
	for _, element := range group.Group {
		found = append(found, strings.TrimPrefix(element.ID, "deis/"))
	}
	helps := len(found) > 1 && found[0] == "nodejs" && found[1] != "procfile"
	asked := false
	for _, entry := range plan.Entries {
		for _, require := range entry.Requires {
			asked = asked || require.Name == "nodejs" && require.Metadata["build"] == true
		}
	}
	if asked != helps {
		t.Errorf("%s: Node.js for the build of another language: %v in the plan %+v", names, asked, plan)
	}
	return strings.Join(found, " ")
}
