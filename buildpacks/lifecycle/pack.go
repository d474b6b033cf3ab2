package main

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/buildpacks/lifecycle/archive"
	"github.com/buildpacks/lifecycle/launch"
	"github.com/buildpacks/lifecycle/layers"
)

// packBlock is how much of a layer is written and hashed at a time.
const packBlock = 256 << 10

// layerFactory packs layers as the lifecycle's does, but not intact ones, and directories with a
// quarter of the system calls: an app may have tens of thousands of small files.
type layerFactory struct {
	*layers.Factory
	intact map[string]string       // directory -> diff id of what need not be packed
	made   map[string]layers.Layer // by id; the exporter asks twice, the second time with another directory
}

// DirLayer is of phase.LayerFactory.
func (f *layerFactory) DirLayer(id, dir, createdBy string) (layers.Layer, error) {
	if layer, ok := f.made[id]; ok {
		return layer, nil
	}
	var layer layers.Layer
	if diffID, ok := f.intact[dir]; ok {
		layer = layers.Layer{ID: id, Digest: diffID}
	} else {
		path := filepath.Join(f.ArtifactsDir, fmt.Sprintf("%d.tar", len(f.made)))
		digest, err := packDir(path, dir, f.UID, f.GID)
		if err != nil {
			return layer, fmt.Errorf("pack %s: %w", dir, err)
		}
		layer = layers.Layer{ID: id, TarPath: path, Digest: digest}
	}
	layer.History.CreatedBy = createdBy
	f.made[id] = layer
	return layer, nil
}

// SliceLayers is of phase.LayerFactory.
func (f *layerFactory) SliceLayers(dir string, slices []layers.Slice) ([]layers.Layer, error) {
	if len(slices) > 0 {
		return f.Factory.SliceLayers(dir, slices)
	}
	layer, err := f.DirLayer("app", dir, layers.AppLayerName)
	return []layers.Layer{layer}, err
}

// LauncherLayer is of phase.LayerFactory.
func (f *layerFactory) LauncherLayer(path string) (layers.Layer, error) {
	layer, err := f.Factory.LauncherLayer(path)
	f.made[layer.ID] = layer
	return layer, err
}

// ProcessTypesLayer is of phase.LayerFactory.
func (f *layerFactory) ProcessTypesLayer(metadata launch.Metadata) (layers.Layer, error) {
	layer, err := f.Factory.ProcessTypesLayer(metadata)
	f.made[layer.ID] = layer
	return layer, err
}

// packDir writes a tar of a directory to path and returns its digest. Entries have absolute
// names; those of the directory belong to uid and gid, its parents to whom they belong on disk.
// Times and names of users are left out, sockets too. Symbolic links are not followed.
func packDir(path, dir string, uid, gid int) (string, error) {
	out, err := newBlockWriter(path)
	if err != nil {
		return "", err
	}
	p := &packer{tar: tar.NewWriter(out), buffer: make([]byte, packBlock)}
	if err = p.addParents(filepath.Dir(dir)); err == nil {
		err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			return p.add(path, info, func(h *tar.Header) { h.Uid, h.Gid = uid, gid })
		})
	}
	if err == nil {
		err = p.tar.Close()
	}
	digest, closeErr := out.close()
	return digest, errors.Join(err, closeErr)
}

type packer struct {
	tar    *tar.Writer
	buffer []byte
}

func (p *packer) addParents(dir string) error {
	if dir == "/" {
		return nil
	}
	if err := p.addParents(filepath.Dir(dir)); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	return p.add(dir, info, func(*tar.Header) {})
}

func (p *packer) add(path string, info fs.FileInfo, change func(*tar.Header)) error {
	if info.Mode()&fs.ModeSocket != 0 {
		return nil
	}
	var target string
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	header.Name = path
	header.ModTime, header.Uname, header.Gname = archive.NormalizedModTime, "", ""
	change(header)
	if err := p.tar.WriteHeader(header); err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return nil
	}
	return p.copy(path, info.Size())
}

// copy adds the content of a file. It uses plain system calls, because package os makes three more for each file.
func (p *packer) copy(path string, size int64) error {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer syscall.Close(fd)
	for size > 0 {
		n, err := syscall.Read(fd, p.buffer[:min(size, packBlock)])
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return &fs.PathError{Op: "read", Path: path, Err: err}
		}
		if _, err := p.tar.Write(p.buffer[:n]); err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}

// blockWriter writes a file in blocks, which it hashes at the same time.
type blockWriter struct {
	file    *os.File
	block   []byte
	filled  chan []byte
	emptied chan []byte
	digest  chan string
}

func newBlockWriter(path string) (*blockWriter, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	w := &blockWriter{
		file: file, block: make([]byte, 0, packBlock),
		filled: make(chan []byte), emptied: make(chan []byte, 1), digest: make(chan string),
	}
	w.emptied <- make([]byte, 0, packBlock)
	go func() {
		hash := sha256.New()
		for block := range w.filled {
			hash.Write(block)
			w.emptied <- block[:0]
		}
		w.digest <- fmt.Sprintf("sha256:%x", hash.Sum(nil))
	}()
	return w, nil
}

func (w *blockWriter) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		n := min(len(p), packBlock-len(w.block))
		w.block = append(w.block, p[:n]...)
		p = p[n:]
		if len(w.block) == packBlock {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return written, nil
}

func (w *blockWriter) flush() error {
	w.filled <- w.block
	_, err := w.file.Write(w.block) // the hash only reads it
	w.block = <-w.emptied
	return err
}

// close completes the file and returns its digest.
func (w *blockWriter) close() (string, error) {
	err := w.flush()
	close(w.filled)
	return <-w.digest, errors.Join(err, w.file.Close())
}
