package build

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/buildpacks/pack/pkg/project/types"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// fetchedDir holds the buildpacks of the pusher's choice while the program runs, by number.
const fetchedDir = "/deis/buildpacks"

// fetchedBuildpack is a state and the directory in it that is mounted.
type fetchedBuildpack struct {
	state llb.State
	mount string
}

// order is which buildpacks to try: those of BUILDPACK_URL, else of project.toml; none for the builder's own. It
// fetches what is not in the builder.
func (j *buildpacksJob) order(ctx context.Context, c gateway.Client) ([]orderGroup, error) {
	project := j.plan.project
	if value := j.Config[configBuildpack]; value != "" {
		e, err := j.source(ctx, c, configBuildpack, value)
		if err != nil {
			return nil, err
		}
		return []orderGroup{{Group: j.withProcfile([]groupElement{e})}}, nil
	}
	if len(project.group) > 0 {
		group, err := j.elements(ctx, c, project.group)
		return []orderGroup{{Group: j.withProcfile(group)}}, err
	}
	if len(project.pre) == 0 && len(project.post) == 0 {
		return nil, nil
	}
	pre, err := j.elements(ctx, c, project.pre)
	if err != nil {
		return nil, err
	}
	post, err := j.elements(ctx, c, project.post)
	if err != nil {
		return nil, err
	}
	var order []orderGroup
	for _, g := range j.builder.order {
		order = append(order, orderGroup{Group: append(append(append([]groupElement{}, pre...), g.Group...), post...)})
	}
	return order, nil
}

// withProcfile adds the builder's buildpack for Procfiles to a group that has none: a Procfile counts with every buildpack (contract 9.3).
func (j *buildpacksJob) withProcfile(group []groupElement) []groupElement {
	isProcfile := func(b groupElement) bool { return strings.HasSuffix(b.ID, "/procfile") }
	i := slices.IndexFunc(j.builder.metadata.Buildpacks, isProcfile)
	if i < 0 || slices.ContainsFunc(group, isProcfile) {
		return group
	}
	b := j.builder.metadata.Buildpacks[i]
	return append(group, groupElement{ID: b.ID, Version: b.Version, Optional: true})
}

// elements are the buildpacks that project.toml names.
func (j *buildpacksJob) elements(ctx context.Context, c gateway.Client, list []types.Buildpack) ([]groupElement, error) {
	var group []groupElement
	for _, b := range list {
		var e groupElement
		var err error
		switch {
		case b.Script.Inline != "":
			e = j.script(b)
		case b.URI != "":
			e, err = j.source(ctx, c, "project.toml", b.URI)
		default:
			e, err = j.builtIn("project.toml", b.ID, b.Version)
		}
		if err != nil {
			return nil, err
		}
		group = append(group, e)
	}
	return group, nil
}

// builtIn is a buildpack of the builder.
func (j *buildpacksJob) builtIn(where, id, version string) (groupElement, error) {
	for _, b := range j.builder.metadata.Buildpacks {
		if b.ID == id && b.Version == version {
			return groupElement{ID: id, Version: version}, nil
		}
	}
	if newest := j.builder.version(id); newest != "" && version == "" {
		return groupElement{ID: id, Version: newest}, nil
	}
	var names []string
	for _, b := range j.builder.metadata.Buildpacks {
		names = append(names, b.ID+"@"+b.Version)
	}
	return groupElement{}, userErrorf("%s names the buildpack %s, which the builder %s does not have\nIt has %s",
		where, clip(printable(strings.TrimSuffix(id+"@"+version, "@")), maxName), j.builder.name, clip(strings.Join(names, ", "), maxLine))
}

// script is a buildpack that project.toml holds itself. It always takes part.
func (j *buildpacksJob) script(b types.Buildpack) groupElement {
	version, shell := b.Version, b.Script.Shell
	if version == "" {
		version = "0.0.0"
	}
	if shell == "" {
		shell = "/bin/sh"
	}
	toml := fmt.Sprintf("api = %s\n[buildpack]\nid = %s\nversion = %s\n", quoteTOML(b.Script.API), quoteTOML(b.ID), quoteTOML(version))
	state := llb.Scratch().File(llb.Mkdir("/bin", 0o755).
		Mkfile("/buildpack.toml", 0o644, []byte(toml)).
		Mkfile("/bin/detect", 0o755, []byte("#!"+shell+"\nexit 0\n")).
		Mkfile("/bin/build", 0o755, []byte("#!"+shell+"\n"+b.Script.Inline+"\n")), quiet("write the buildpack of project.toml"))
	return groupElement{Dir: j.add(state, "/")}
}

// quoteTOML is a basic string of TOML, which JSON's strings are too.
func quoteTOML(s string) string {
	data, _ := json.Marshal(s) // of a string it never fails
	return string(data)
}

// add mounts a buildpack and returns where.
func (j *buildpacksJob) add(state llb.State, mount string) string {
	j.fetched = append(j.fetched, fetchedBuildpack{state, mount})
	return path.Join(fetchedDir, strconv.Itoa(len(j.fetched)-1))
}

// source fetches a buildpack that people name by text.
func (j *buildpacksJob) source(ctx context.Context, c gateway.Client, where, text string) (groupElement, error) {
	s, err := parseSource(where, text, j.builder.has)
	if err != nil {
		return groupElement{}, err
	}
	switch s.kind {
	case sourceBuilder:
		return j.builtIn(where, s.location, s.ref)
	case sourceTree:
		if _, err := j.plan.tree.Sub(s.location); err != nil {
			return groupElement{}, userErrorf("%s names the buildpack %s, but there is no such directory among the files", where, s)
		}
		return groupElement{Dir: j.add(j.workspace(), path.Join(ownedDir, s.location))}, nil
	}
	j.say("-----> Fetching custom buildpack")
	j.say(indent + s.String())
	j.origin.sources = append(j.origin.sources, s.String())
	if s.kind == sourceImage {
		return j.packaged(ctx, c, s)
	}
	state, err := j.fetch(c, s)
	if err != nil {
		return groupElement{}, err
	}
	ref, err := evaluate(ctx, c, state)
	if err != nil {
		return groupElement{}, cannotFetch(s, err)
	}
	root, err := buildpackRoot(ctx, ref, s)
	if err != nil {
		return groupElement{}, err
	}
	return groupElement{Dir: j.add(state, root)}, nil
}

// HeaderFileLabel is a label of BuildKit's workers whose git takes, in place of the value of an Authorization header, a
// reference to it: the path of an open file (/proc/PID/fd/N), a blank, and a mark that nobody can guess. The file has
// the mark in its first line and the value in its second. The value itself would be in git's arguments, which
// everybody on the host can read.
const HeaderFileLabel = "deis.git.header-file"

// fetch is the files of a git repository or an archive. Credentials go by a secret of the session.
func (j *buildpacksJob) fetch(c gateway.Client, s buildpackSource) (llb.State, error) {
	name := quiet("fetch the buildpack " + s.String())
	git := []llb.GitOption{llb.GitRef(s.ref), llb.GitSubDir(s.dir), name}
	http := []llb.HTTPOption{llb.Filename("archive"), llb.Chmod(0o444), name}
	if s.auth != "" {
		secret := fmt.Sprintf("buildpack-%d", len(j.fetched))
		git = append(git, llb.AuthHeaderSecret(secret))
		http = append(http, llb.AuthHeaderSecret(secret))
		var err error
		if j.secrets[secret], err = j.authorization(c, s); err != nil {
			return llb.State{}, err
		}
	}
	if s.kind == sourceGit {
		return llb.Git(s.location, "", git...), nil
	}
	// The program is one of the builder image, run like the rest of the build: bounded, and without rights.
	archive := llb.HTTP(s.location, http...)
	command := []string{"tar", "-xf", "/in/archive", "-C", "/out", "--no-same-owner"}
	if withoutQuery, _, _ := strings.Cut(s.location, "?"); strings.HasSuffix(strings.ToLower(withoutQuery), ".zip") {
		command = []string{"unzip", "-q", "/in/archive", "-d", "/out"}
	}
	return j.root.Run(append(j.exec(), llb.Args(command), llb.Dir("/"), llb.Network(llb.NetModeNone), quiet("unpack the buildpack"),
		llb.AddMount("/in", archive, llb.Readonly))...).AddMount("/out", j.owned, llb.SourcePath(ownedDir)), nil
}

// authorization is what BuildKit is told of a source's credentials: the value of the header, or a reference to it.
func (j *buildpacksJob) authorization(c gateway.Client, s buildpackSource) ([]byte, error) {
	takesFile := func(w gateway.WorkerInfo) bool { return w.Labels[HeaderFileLabel] != "" }
	if s.kind != sourceGit || !slices.ContainsFunc(c.BuildOpts().Workers, takesFile) {
		return []byte(s.auth), nil
	}
	mark := rand.Text()
	f, err := memoryFile(fmt.Sprintf("%s\n%s\n", mark, s.auth))
	if err != nil {
		return nil, err
	}
	j.files = append(j.files, f)
	return fmt.Appendf(nil, "/proc/%d/fd/%d %s", os.Getpid(), f.Fd(), mark), nil
}

// memoryFile is an open file that is on no disk, and gone with this process.
func memoryFile(content string) (*os.File, error) {
	fd, err := unix.MemfdCreate("deis", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "deis")
	if _, err := f.WriteString(content); err != nil {
		return nil, errors.Join(fmt.Errorf("file in memory: %w", err), f.Close())
	}
	return f, nil
}

// buildpackRoot finds the buildpack in what was fetched: archives often hold one directory with all else in it.
func buildpackRoot(ctx context.Context, ref gateway.Reference, s buildpackSource) (string, error) {
	dir := "/"
	if s.kind == sourceArchive {
		dir = ownedDir
	}
	for range 2 {
		list, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: dir})
		if err != nil {
			return "", fmt.Errorf("read the buildpack: %w", err)
		}
		for _, st := range list {
			if name := path.Base(st.Path); name == "buildpack.toml" || name == "bin" {
				return dir, nil
			}
		}
		if len(list) != 1 || !fs.FileMode(list[0].Mode).IsDir() {
			break
		}
		dir = path.Join(dir, path.Base(list[0].Path))
	}
	return "", userErrorf("%s holds no buildpack: there is neither buildpack.toml nor bin/compile in it", s)
}

// packaged is a buildpack in an image, as pack makes them.
func (j *buildpacksJob) packaged(ctx context.Context, c gateway.Client, s buildpackSource) (groupElement, error) {
	pinned, raw, err := resolve(ctx, c, s.location)
	if err != nil {
		return groupElement{}, cannotFetch(s, err)
	}
	var config ocispec.Image
	var metadata groupElement
	if err := json.Unmarshal(raw, &config); err != nil {
		return groupElement{}, fmt.Errorf("configuration of %s: %w", s, err)
	}
	label := config.Config.Labels[packageLabel]
	if json.Unmarshal([]byte(label), &metadata) != nil || metadata.ID == "" || metadata.Version == "" {
		return groupElement{}, userErrorf("the image %s is no package of a buildpack: its label %s is missing or broken", s, packageLabel)
	}
	state := llb.Image(pinned, llb.ResolveModePreferLocal, quiet("fetch the buildpack "+s.String()))
	// The program finds all of its buildpacks (cnb/buildpacks/...): the named one may be composed of the others.
	return groupElement{ID: metadata.ID, Version: metadata.Version, Dir: j.add(state, "/")}, nil
}
