// Package buildpacks holds the recipe of the base images.
package buildpacks

import _ "embed"

// MakeRootfs is the script base/make-rootfs: it makes the layers of deis/run and
// deis/build in the directory that is its argument.
//
//go:embed base/make-rootfs
var MakeRootfs []byte
