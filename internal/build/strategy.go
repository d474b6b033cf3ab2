package build

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"path"
	"strings"

	"github.com/deis/deis/internal/paas"
)

// Values of an app's config that steer its builds. Buildpacks do not see them.
const (
	// configBuildpack is the source of a buildpack to use instead of the builder's (contract 9.5).
	configBuildpack = "BUILDPACK_URL"
	// configBuilder is the name of another builder image.
	configBuilder = "DEIS_BUILDER"
	// configAppDir is the directory of the app in its repository.
	configAppDir = "DEIS_APP_DIR"
	// configLimits begins the names of limits (DEIS_BUILD_MEMORY and others).
	configLimits = "DEIS_BUILD_"
	// configRegistry begins the names of credentials for pulling images, which no build needs.
	configRegistry = "DEIS_REGISTRY"
)

// envCommit is the variable in which buildpacks and the scripts that they run find the commit (contract 9.3).
const envCommit = "SOURCE_VERSION"

// plan is how a commit is built, and from what.
type plan struct {
	strategy paas.Strategy
	// tree is the files of the app's directory that go into the build.
	tree *Tree
	// procfile is what the commit declares; never nil.
	procfile map[string]string
	project  projectFile
}

// choose decides how to build: a Dockerfile in the app's directory wins, also over the name of a buildpack (contract 9.3), unless the
// config names a builder; anything else is for buildpacks. It refuses what cannot be built.
func choose(req Request, note func(line string)) (plan, error) {
	p := plan{strategy: paas.StrategyDockerfile}
	var err error
	if p.tree, err = appTree(req); err != nil {
		return plan{}, err
	}
	switch dockerfile, err := p.tree.ReadFile("Dockerfile", maxDockerfile); {
	case req.Config[configBuilder] != "" || errors.Is(err, fs.ErrNotExist):
		p.strategy = paas.StrategyBuildpacks
	case err != nil:
		return plan{}, err
	case len(bytes.TrimSpace(dockerfile)) == 0:
		return plan{}, userErrorf("the Dockerfile is empty")
	case req.Config[configBuildpack] != "":
		note(configBuildpack + " is not used, because there is a Dockerfile; " + configBuilder + "=" + familiar(DefaultBuilder) + " uses it all the same")
	}
	if p.strategy == paas.StrategyBuildpacks {
		if p.project, err = readProject(p.tree, note); err != nil {
			return plan{}, err
		}
		if p.project.keep != nil {
			p.tree = p.tree.Filter(p.project.keep)
		}
		if p.tree.Files() == 0 {
			return plan{}, userErrorf("there are no files to build")
		}
	}
	p.procfile, err = p.tree.Procfile()
	return p, err
}

// appTree is the directory that DEIS_APP_DIR names, or the whole commit.
func appTree(req Request) (*Tree, error) {
	value := req.Config[configAppDir]
	if value == "" {
		return req.Tree, nil
	}
	dir, ok := localPath(value)
	if !ok {
		return nil, userErrorf("%s is %q, which is outside of the repository", configAppDir, clip(printable(value), maxName))
	}
	if dir == "." {
		return req.Tree, nil
	}
	sub, err := req.Tree.Sub(dir)
	if err != nil {
		return nil, userErrorf("%s is %q, but this commit has no such directory", configAppDir, clip(printable(value), maxName))
	}
	return sub, nil
}

// localPath cleans a path that people give: "/a/b/", "./a/b" and "a/b" are the same. It is not ok when
// it leads outside.
func localPath(name string) (string, bool) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == "" {
		clean = "."
	}
	return clean, fs.ValidPath(clean)
}

// platformEnv is the environment that buildpacks get (CNB platform specification, "Provided by the platform"):
// project.toml's and, before it, the app's config, without what steers the build; and the commit.
func platformEnv(config map[string]string, project projectFile, commit string) map[string]string {
	env := maps.Clone(project.env)
	if env == nil {
		env = map[string]string{}
	}
	for name, value := range config {
		if !steers(name) {
			env[name] = value
		}
	}
	env[envCommit] = commit
	return env
}

func steers(name string) bool {
	return name == configBuildpack || name == configBuilder || name == configAppDir ||
		strings.HasPrefix(name, configLimits) || strings.HasPrefix(name, configRegistry)
}
