package daemon

import (
	"errors"
	"os"
	"path/filepath"
)

// WriteFile replaces a file as a whole: a reader sees the old or the new one, and so does who comes after a
// crash or a power cut. When it returns, it is the new one. One writer at a time.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
