package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/build/builders"
	"github.com/deis/deis/internal/build/imagestore"
	"github.com/deis/deis/internal/daemon"
)

const buildersUsage = `say one of
  list                                       the builder images that are here
  inspect NAME                               what one is made of
  pull NAME                                  fetch one from its registry, with its run image
  create NAME --config builder.toml          make one; --dir is where its paths begin
  package NAME --dir BUILDPACK               make an image of a buildpack, for builders to name`

// Builders is the role that lists, shows, fetches and makes builder images.
func Builders(ctx context.Context, d *daemon.Daemon, args []string) error {
	var opts builders.CreateOptions
	d.String(&opts.Config, "config", "", "`file` that describes a builder (builder.toml)")
	d.String(&opts.Dir, "dir", "", "`directory` where the paths in it begin (default its own), or of a buildpack")
	d.String(&opts.Lifecycle, "lifecycle", "", "`directory` of the programs of buildpack builds (default lifecycle beside this program)")
	var root string
	images, words, err := openStore(d, args, &root)
	if err != nil {
		return err
	}
	defer func() { _ = images.Close() }()
	c := builders.New(images, func(line string) { fmt.Fprintf(os.Stderr, " !     %s\n", line) })
	verb, name := "", ""
	if len(words) > 0 {
		verb, words = words[0], words[1:]
	}
	if len(words) > 0 {
		name, words = words[0], words[1:]
	}
	switch {
	case len(words) > 0:
		return fmt.Errorf("unknown argument %q; %s", words[0], buildersUsage)
	case verb == "list" && name == "":
		return listBuilders(ctx, c, os.Stdout)
	case verb == "inspect" && name != "":
		return inspectBuilder(ctx, c, name, os.Stdout)
	case verb == "pull" && name != "":
		b, err := c.Pull(ctx, name)
		if err != nil {
			return err
		}
		fmt.Printf("       builder %s is there, with its run image %s\n       an app builds with it after: deis config:set DEIS_BUILDER=%s\n", b.Name, b.RunImages[0], name)
		return nil
	case verb == "create" && name != "":
		opts.Name = name
		return createBuilder(ctx, c, opts, os.Stdout)
	case verb == "package" && name != "" && opts.Dir != "":
		if err := c.Package(ctx, name, opts.Dir); err != nil {
			return err
		}
		fmt.Printf("       buildpack %s is there; a builder.toml names it by: uri = \"docker://%s\"\n", name, name)
		return nil
	}
	return errors.New(buildersUsage)
}

// openStore reads the settings that roles on the images share, and arguments: words before flags, as
// in "create NAME --config FILE".
func openStore(d *daemon.Daemon, args []string, root *string) (*imagestore.Store, []string, error) {
	d.String(root, "root", "/var/lib/deis", "`directory` of the platform's state")
	where := containerdSettings(d)
	var words []string
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		words, args = append(words, args[0]), args[1:]
	}
	rest, err := d.Parse(args)
	if err != nil {
		return nil, nil, err
	}
	if *root, err = filepath.Abs(*root); err != nil {
		return nil, nil, err
	}
	images, err := imagestore.Open(where(*root))
	return images, append(words, rest...), err
}

func listBuilders(ctx context.Context, c *builders.Client, out io.Writer) error {
	list, err := c.List(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tBUILDPACKS\tLIFECYCLE\tRUN IMAGE")
	for _, b := range list {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", b.Name, len(b.Buildpacks), b.Lifecycle, strings.Join(b.RunImages, " "))
	}
	return w.Flush()
}

func inspectBuilder(ctx context.Context, c *builders.Client, name string, out io.Writer) error {
	b, err := c.Inspect(ctx, name)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "=== %s\n%s\n\ndigest:     %s\nrun image:  %s\nlifecycle:  %s\n\nbuildpacks\n",
		b.Name, b.Description, b.Digest, strings.Join(b.RunImages, " "), b.Lifecycle)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, bp := range b.Buildpacks {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", bp.ID, bp.Version, bp.Name)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out, "\norder: the first group that fits builds")
	for n, group := range b.Order {
		var members []string
		for _, m := range group {
			text := m.ID
			if m.Version != "" {
				text += "@" + m.Version
			}
			if m.Optional {
				text += " (optional)"
			}
			members = append(members, text)
		}
		fmt.Fprintf(out, "  %d. %s\n", n+1, strings.Join(members, ", "))
	}
	return nil
}

func createBuilder(ctx context.Context, c *builders.Client, opts builders.CreateOptions, out io.Writer) (err error) {
	if opts.Config == "" {
		return errors.New("say what the builder is made of: --config builder.toml")
	}
	if opts.Dir == "" {
		opts.Dir = filepath.Dir(opts.Config)
	}
	if opts.Dir, err = filepath.Abs(opts.Dir); err != nil {
		return err
	}
	if opts.Lifecycle, err = (build.BaseConfig{Lifecycle: opts.Lifecycle}).LifecycleDir(); err != nil {
		return err
	}
	if err := c.Create(ctx, opts); err != nil {
		return err
	}
	b, err := c.Inspect(ctx, opts.Name)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "       builder %s is there, with %d buildpacks (%s)\n", b.Name, len(b.Buildpacks), b.Digest)
	fmt.Fprintf(out, "       an app builds with it after: deis config:set DEIS_BUILDER=%s\n", opts.Name)
	return nil
}
