// Package buildpacks holds this repository's buildpacks, the builder that they make, and the recipe
// of the base images.
package buildpacks

import "embed"

// MakeRootfs is the script base/make-rootfs: it makes the layers of deis/run and
// deis/build in the directory that is its argument.
//
//go:embed base/make-rootfs
var MakeRootfs []byte

// Files are builder.toml and the buildpacks that it names, a directory each.
//
//go:embed builder.toml go nodejs python ruby static procfile fallback classic
var Files embed.FS
