package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/build/builders"
	"github.com/deis/deis/internal/build/imagestore"
	"github.com/deis/deis/internal/daemon"
	"github.com/deis/deis/internal/paas"
)

// Rebase is the role that puts apps on the present base image, without building them again: one by one, each
// as an ordinary release. One that fails does not stop the others.
func Rebase(ctx context.Context, d *daemon.Daemon, args []string) error {
	var all bool
	var controllerURL, root string
	d.Switch(&all, "all", "every app")
	d.String(&controllerURL, "controller-url", "", "`URL` of the controller")
	images, words, err := openStore(d, args, &root)
	if err != nil {
		return err
	}
	defer func() { _ = images.Close() }()
	app := strings.Join(words, " ")
	switch {
	case all != (len(words) == 0) || len(words) > 1:
		return errors.New("say which app to rebase, or --all")
	case controllerURL == "":
		return errors.New("DEIS_CONTROLLER_URL is not set")
	}
	key, err := os.ReadFile(filepath.Join(root, "builder.key"))
	if err != nil {
		return fmt.Errorf("read the daemons' key: %w", err)
	}
	r := rebase{
		controller: &controller{&api.Client{URL: controllerURL, BuilderKey: strings.TrimSpace(string(key)), UserAgent: "deis-rebase"}},
		images:     storeBases{builders.New(images, func(line string) { fmt.Fprintf(os.Stderr, " !     %s\n", line) }), images},
		out:        os.Stdout,
	}
	return r.apps(ctx, app)
}

// bases is what a rebase needs of images.
type bases interface {
	NameOf(ctx context.Context, d digest.Digest) (string, error)
	Base(ctx context.Context, name string) (builders.Base, error)
	Rebase(ctx context.Context, from, to string) (digest.Digest, error)
}

type storeBases struct {
	*builders.Client
	images *imagestore.Store
}

func (s storeBases) NameOf(ctx context.Context, d digest.Digest) (string, error) {
	return s.images.NameOf(ctx, d)
}

// rebase is one call. What it did is said line by line.
type rebase struct {
	controller *controller
	images     bases
	out        io.Writer
}

// apps rebases one app, or with "" all of them.
func (r *rebase) apps(ctx context.Context, app string) error {
	releases, err := r.controller.releases(ctx, app)
	if err != nil {
		return err
	}
	if app != "" && len(releases) == 0 {
		return fmt.Errorf("%s was not deployed yet", app)
	}
	counts := map[outcome]int{}
	for _, release := range releases {
		result, err := r.app(ctx, release)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			result = failed
			fmt.Fprintf(r.out, " !     %s: %s\n", release.App, strings.ReplaceAll(reason(err), "\n", "\n !     "))
		}
		counts[result]++
	}
	if app == "" {
		fmt.Fprintf(r.out, "-----> %d rebased, %d on the present base already, %d without buildpacks, %d failed\n",
			counts[rebased], counts[current], counts[foreign], counts[failed])
	}
	if counts[failed] > 0 {
		return fmt.Errorf("%d of %d apps were not rebased; they run as before", counts[failed], len(releases))
	}
	return nil
}

type outcome int

const (
	rebased outcome = iota
	current
	foreign
	failed
)

func (r *rebase) app(ctx context.Context, release api.HookRelease) (outcome, error) {
	if release.Strategy != string(paas.StrategyBuildpacks) {
		fmt.Fprintf(r.out, "       %s: not made by buildpacks; build it again to put it on a newer base\n", release.App)
		return foreign, nil
	}
	name := release.Image
	if release.Digest != "" { // the name may be another build's by now
		known, err := r.images.NameOf(ctx, digest.Digest(release.Digest))
		if err != nil {
			return failed, err
		}
		name = known
	}
	base, err := r.images.Base(ctx, name)
	if err != nil {
		return failed, err
	}
	if base.Current {
		fmt.Fprintf(r.out, "       %s: on the present %s already\n", release.App, base.RunImage)
		return current, nil
	}
	began := time.Now()
	to := rebaseName(release, base.RunDigest)
	made, err := r.images.Rebase(ctx, name, to)
	if err != nil {
		return failed, err
	}
	line := fmt.Sprintf("-----> %s: rebased on %s@%s (%.1fs)", release.App, base.RunImage, base.RunDigest, time.Since(began).Seconds())
	fmt.Fprintln(r.out, line)
	answer, err := r.controller.launch(ctx, api.BuildHook{
		RepoHook: api.RepoHook{ReceiveUser: release.Owner, ReceiveRepo: release.App},
		Image:    to, Digest: made.String(), SHA: release.SHA, Procfile: release.Procfile, Strategy: release.Strategy,
		Log: line + "\n", RebaseOf: release.Build,
	}, func(line string) { fmt.Fprintln(r.out, "       "+line) })
	if err != nil {
		return failed, err
	}
	fmt.Fprintf(r.out, "       done, %s:v%d\n", release.App, answer.Release.Version)
	return rebased, nil
}

// rebaseName is where a rebased image is kept: with the commit and the base in its name.
func rebaseName(release api.HookRelease, base digest.Digest) string {
	return fmt.Sprintf("%s%s:rebase-%.12s-%.8s", paas.LocalImages, release.UUID, release.SHA, base.Encoded())
}

// reason is an error's text for the operator: of one for the pusher, what failed.
func reason(err error) string {
	if known, ok := errors.AsType[*paas.Error](err); ok {
		return strings.TrimPrefix(strings.TrimSuffix(known.Text(), "\n"+oldStays), "ERROR: ")
	}
	return err.Error()
}

// releases asks for the latest release of an app, or with "" of all that were deployed.
func (c *controller) releases(ctx context.Context, app string) ([]api.HookRelease, error) {
	path := "/v1/hooks/releases"
	if app != "" {
		path += "?app=" + url.QueryEscape(app)
	}
	var answer api.ReleasesHookAnswer
	err := c.ask(ctx, http.MethodGet, path, nil, &answer)
	if paas.CodeOf(err) == paas.NotFound {
		return nil, &paas.Error{Code: paas.NotFound, Message: fmt.Sprintf("there is no app %s", app), Err: err}
	}
	return answer.Releases, err
}
