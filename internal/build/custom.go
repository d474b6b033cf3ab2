package build

import (
	"encoding/base64"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/distribution/reference"
)

// sourceKind says how a buildpack is fetched.
type sourceKind int

const (
	sourceGit sourceKind = iota
	sourceArchive
	sourceImage
	sourceBuilder // it is in the builder image
	sourceTree    // it is in the pushed files
)

// buildpackSource is where a buildpack that the pusher chose comes from. Its credentials are in auth only, so
// all else may be shown.
type buildpackSource struct {
	kind sourceKind
	// location is a URL, an image's name, a buildpack's id or a directory of the tree.
	location string
	// ref is git's branch, tag or commit, or a version; may be empty.
	ref string
	// dir is a directory inside of a git repository; may be empty.
	dir string
	// auth is the value of the Authorization header; secret.
	auth string
}

// String is the source for people.
func (s buildpackSource) String() string {
	shown := s.location
	if s.kind == sourceArchive {
		shown, _, _ = strings.Cut(shown, "?") // a query often holds a token
	}
	if s.ref != "" {
		sep := "#"
		if s.kind == sourceBuilder {
			sep = "@"
		}
		shown += sep + s.ref
	}
	if s.dir != "" {
		shown += ":" + s.dir
	}
	return clip(printable(shown), maxName)
}

// redact replaces in an error's text what may hold credentials.
func (s buildpackSource) redact(text string) string {
	if _, query, ok := strings.Cut(s.location, "?"); ok {
		text = strings.NewReplacer("?"+query, "", query, "...").Replace(text)
	}
	if s.auth != "" {
		text = strings.ReplaceAll(text, strings.TrimPrefix(s.auth, "Basic "), "...")
	}
	return text
}

var (
	archiveName = regexp.MustCompile(`\.(tgz|tar\.gz|tar|zip)$`)
	gitRef      = regexp.MustCompile(`^[A-Za-z0-9._/+-]+$`)
)

// howToName ends errors about a source that cannot be.
const howToName = "want a git URL (https://host/repository.git#branch), the URL of a .tgz or .zip archive, or an image (docker://registry/name:tag)"

// parseSource reads how people name a buildpack: in BUILDPACK_URL, or as a uri in project.toml. where names
// that place in errors, which never hold credentials. has reports whether the builder has a buildpack.
func parseSource(where, text string, has func(id string) bool) (buildpackSource, error) {
	text = strings.TrimSpace(text)
	scheme, rest, ok := strings.Cut(text, "://")
	switch scheme = strings.ToLower(scheme); {
	case !ok:
		return parseNameOrPath(where, text, has)
	case scheme == "docker":
		return imageSource(where, rest)
	case scheme == "ssh" || strings.HasSuffix(scheme, "+ssh"):
		return buildpackSource{}, userErrorf("%s: git over SSH needs a key, which builds do not have; %s", where, howToName)
	case scheme == "http" || scheme == "https" || scheme == "git+http" || scheme == "git+https" || scheme == "git":
		return parseURL(where, text)
	}
	return buildpackSource{}, userErrorf("%s: %q is not fetched here; %s", where, clip(printable(scheme), 20)+"://", howToName)
}

func parseURL(where, text string) (buildpackSource, error) {
	isGit := strings.HasPrefix(text, "git")
	u, err := url.Parse(strings.TrimPrefix(text, "git+"))
	if err != nil || u.Host == "" || u.Opaque != "" || strings.Trim(u.Path, "/") == "" { // err quotes the URL
		return buildpackSource{}, userErrorf("%s is not a URL; %s", where, howToName)
	}
	s := buildpackSource{kind: sourceGit}
	if u.User != nil {
		password, _ := u.User.Password()
		s.auth = "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password))
		u.User = nil
	}
	fragment := u.Fragment
	u.Fragment, u.RawFragment = "", ""
	if archiveName.MatchString(strings.ToLower(u.Path)) && !isGit {
		s.kind = sourceArchive
		s.location = u.String()
		return s, nil
	}
	s.ref, s.dir, _ = strings.Cut(fragment, ":")
	if s.ref != "" && (!gitRef.MatchString(s.ref) || strings.HasPrefix(s.ref, "-")) {
		return buildpackSource{}, userErrorf("%s: %q is no branch, tag or commit of git", where, clip(printable(s.ref), maxName))
	}
	if s.dir = strings.Trim(path.Clean("/"+s.dir), "/"); u.RawQuery != "" {
		return buildpackSource{}, userErrorf("%s: the URL of a git repository has no query; %s", where, howToName)
	}
	s.location = u.String()
	return s, nil
}

// parseNameOrPath reads what has no scheme: a directory of the tree ("./..."), a buildpack of the builder, or an image.
func parseNameOrPath(where, text string, has func(id string) bool) (buildpackSource, error) {
	if rest, ok := strings.CutPrefix(text, "urn:cnb:registry:"); ok {
		return buildpackSource{}, userErrorf("%s: the registry of buildpacks is not used here: name the image of %s (docker://registry/name:tag)", where, clip(printable(rest), maxName))
	}
	id, named := strings.CutPrefix(text, "urn:cnb:builder:")
	id, version, _ := strings.Cut(id, "@")
	switch {
	case named || has(id):
		return buildpackSource{kind: sourceBuilder, location: id, ref: version}, nil
	case strings.HasPrefix(text, "./"), strings.HasPrefix(text, "../"), strings.HasPrefix(text, "/"), text == ".":
		return treeSource(where, text)
	case strings.HasPrefix(text, "git@"):
		return buildpackSource{}, userErrorf("%s: git over SSH needs a key, which builds do not have; %s", where, howToName)
	}
	return imageSource(where, strings.TrimPrefix(text, "docker:/"))
}

func imageSource(where, name string) (buildpackSource, error) {
	ref, err := reference.ParseDockerRef(strings.Trim(name, "/"))
	if err != nil {
		return buildpackSource{}, userErrorf("%s is neither a URL nor the name of an image; %s", where, howToName)
	}
	return buildpackSource{kind: sourceImage, location: ref.String()}, nil
}

func treeSource(where, dir string) (buildpackSource, error) {
	clean, ok := localPath(dir)
	if !ok || clean == "." {
		return buildpackSource{}, userErrorf("%s: %q is not a directory below the app's", where, clip(printable(dir), maxName))
	}
	return buildpackSource{kind: sourceTree, location: clean}, nil
}
