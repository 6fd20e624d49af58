package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// replaceFile gives the file at path, or the one that it links to, another
// content. At any time, also after a crash, the file has the old content or
// the new one. Mode and owner stay; where they cannot, nothing is changed.
// undo puts the old content back.
func replaceFile(path string, text []byte) (undo func() error, err error) {
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return nil, saveErr(path, err)
	}
	old, err := readRegular(path)
	if err != nil {
		return nil, saveErr(path, err)
	}
	if err := swapContent(path, text); err != nil {
		return nil, saveErr(path, err)
	}
	undo = func() error { return saveErr(path, swapContent(path, old)) }
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return nil, errors.Join(saveErr(path, err), undo())
	}
	return undo, nil
}

func saveErr(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("save %s: %w", path, err)
}

// swapContent writes text beside the file and then moves it into its place.
func swapContent(path string, text []byte) (err error) {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	file, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("its folder cannot be written to: %w", err)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	_, err = file.Write(text)
	if err == nil {
		err = sameOwner(file, info)
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

// sameOwner gives a new file the owner and the mode of the one that it
// replaces.
func sameOwner(file *os.File, info os.FileInfo) error {
	created, err := file.Stat()
	if err != nil {
		return err
	}
	was, is := info.Sys().(*syscall.Stat_t), created.Sys().(*syscall.Stat_t)
	if was.Uid != is.Uid || was.Gid != is.Gid {
		if err := file.Chown(int(was.Uid), int(was.Gid)); err != nil {
			return fmt.Errorf("it belongs to user %d and group %d, which cannot be kept: %w", was.Uid, was.Gid, err)
		}
	}
	return file.Chmod(info.Mode().Perm()) // after chown(2), which may clear bits
}

// syncFolder makes a rename in dir outlast a crash.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
