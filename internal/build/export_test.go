package build

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/internal/build/imagestore"
)

// ErrLost is errLost.
var ErrLost = errLost

// MemFiles are the files of a layout in memory.
type MemFiles map[string][]byte

func (m MemFiles) size(_ context.Context, name string) (int64, error) {
	data, ok := m[name]
	if !ok {
		return 0, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return int64(len(data)), nil
}

func (m MemFiles) read(_ context.Context, name string, offset, n int64) ([]byte, error) {
	return m[name][offset:min(offset+n, int64(len(m[name])))], nil
}

// ImportLayout brings a layout's image into a store.
func ImportLayout(leased context.Context, store *imagestore.Store, files MemFiles, known map[digest.Digest]ocispec.Descriptor, limit int64) (ocispec.Image, []ocispec.Descriptor, error) {
	l := layoutImport{files: files, store: store, known: known, limit: limit}
	return l.image(leased, context.WithoutCancel(context.Background()))
}

// BuildsIdle reports whether the kernel takes the builds with this CgroupParent for idle.
func BuildsIdle(parent string) (bool, error) {
	text, err := os.ReadFile((&cgroup{path: parent}).file("cpu", "cpu.idle"))
	return strings.TrimSpace(string(text)) == "1", err
}

// BuildsCPU is what the builds with this CgroupParent have used of the CPUs.
func BuildsCPU(parent string) (time.Duration, error) { return (&cgroup{path: parent}).cpuTime() }
