// Command builder receives git pushes, builds them and hands the builds to the
// controller. Its program has more roles, asked for by the first argument: buildkitd serves
// builds, base-images makes the images that they start from, builders lists, shows and makes builder
// images, rebase puts apps on a newer base image.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/deis/deis/internal/build/buildkitd"
	"github.com/deis/deis/internal/builder"
	"github.com/deis/deis/internal/daemon"
)

func main() {
	role, args := "builder", os.Args[1:]
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		role, args = args[0], args[1:]
	}
	switch role {
	case "builder":
		daemon.Main(role, args, builder.Main)
	case "buildkitd":
		daemon.Main(role, args, buildkitd.Main)
	case "base-images":
		daemon.Command(role, args, builder.BaseImages)
	case "builders":
		daemon.Command(role, args, builder.Builders)
	case "rebase":
		daemon.Command(role, args, builder.Rebase)
	default:
		fmt.Fprintf(os.Stderr, "builder: unknown role %q: it has buildkitd, base-images, builders and rebase\n", role)
		os.Exit(2)
	}
}
