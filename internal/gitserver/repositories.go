package gitserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/deis/deis/internal/paas"
)

// appUUID keeps anything else than a UUID out of paths.
var appUUID = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

var errBusy = paas.Errorf(paas.Conflict, "Another git push is ongoing. Aborting...")

// Repositories is a directory of bare repositories, <app UUID>.git. Its methods
// may be called concurrently.
type Repositories struct {
	dir  string
	hook string // directory of the hook
}

// OpenRepositories makes the directory and what it needs, and removes what an earlier
// process left half done.
func OpenRepositories(dir string) (*Repositories, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("repositories: %w", err)
	}
	r := &Repositories{dir: dir, hook: filepath.Join(dir, ".hooks")}
	if err := os.MkdirAll(r.hook, 0o700); err != nil {
		return nil, fmt.Errorf("repositories: %w", err)
	}
	if err := installHook(r.hook); err != nil {
		return nil, fmt.Errorf("repositories: %w", err)
	}
	leftovers, err := filepath.Glob(filepath.Join(dir, temporary+"*"))
	if err != nil {
		return nil, fmt.Errorf("repositories: %w", err)
	}
	for _, path := range leftovers {
		if err := os.RemoveAll(path); err != nil {
			return nil, fmt.Errorf("repositories: %w", err)
		}
	}
	return r, r.sweep()
}

// sweep removes what pushes left whose server was killed.
func (r *Repositories) sweep() error {
	uuids, err := r.List()
	if err != nil {
		return err
	}
	for _, uuid := range uuids {
		unlock, err := r.lock(uuid)
		if errors.Is(err, errBusy) {
			continue // not killed after all
		}
		if err != nil {
			return err
		}
		err = sweepQuarantine(r.path(uuid))
		unlock()
		if err != nil {
			return fmt.Errorf("repositories: %w", err)
		}
	}
	return nil
}

// temporary begins the names of directories that are not repositories yet, or no longer.
const temporary = ".tmp-"

func (r *Repositories) path(uuid string) string { return filepath.Join(r.dir, uuid+".git") }

// List returns the UUIDs of the apps that have a repository.
func (r *Repositories) List() ([]string, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fmt.Errorf("list repositories: %w", err)
	}
	var uuids []string
	for _, e := range entries {
		if uuid, ok := strings.CutSuffix(e.Name(), ".git"); ok && appUUID.MatchString(uuid) {
			uuids = append(uuids, uuid)
		}
	}
	return uuids, nil
}

// Remove removes a repository, except while a push to it is under way.
func (r *Repositories) Remove(uuid string) error {
	unlock, err := r.lock(uuid)
	if err != nil {
		return err
	}
	defer unlock()
	gone, err := os.MkdirTemp(r.dir, temporary)
	if err != nil {
		return fmt.Errorf("remove repository: %w", err)
	}
	if err := os.Rename(r.path(uuid), filepath.Join(gone, "repository")); err != nil {
		return errors.Join(fmt.Errorf("remove repository: %w", err), os.Remove(gone))
	}
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("remove repository: %w", err)
	}
	return nil
}

// Pack lets git pack what many pushes have left in a repository, if it is worth it.
func (r *Repositories) Pack(ctx context.Context, uuid string) error {
	return r.git(ctx, r.path(uuid), "gc", "--auto", "--quiet")
}

// open returns the path of an app's repository and makes it if need be.
func (r *Repositories) open(ctx context.Context, uuid string) (string, error) {
	if !appUUID.MatchString(uuid) {
		return "", fmt.Errorf("app UUID %q is none", uuid)
	}
	path := r.path(uuid)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	tmp, err := os.MkdirTemp(r.dir, temporary)
	if err != nil {
		return "", fmt.Errorf("make repository: %w", err)
	}
	defer os.RemoveAll(tmp)
	fresh := filepath.Join(tmp, "repository")
	if err := r.git(ctx, r.dir, "init", "--quiet", "--bare", "--template=", "--initial-branch=master", fresh); err != nil {
		return "", fmt.Errorf("make repository: %w", err)
	}
	if err := syncTree(fresh); err != nil {
		return "", fmt.Errorf("make repository: %w", err)
	}
	// The other of two first contacts may have been faster.
	if err := os.Rename(fresh, path); err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("make repository: %w", err)
	}
	return path, syncDir(r.dir)
}

func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncDir(path)
	})
}

// lock takes the one push that an app may have under way; errBusy if there is one. The
// kernel frees it when its holder dies.
func (r *Repositories) lock(uuid string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(r.path(uuid), "push.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock repository: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errBusy
		}
		return nil, fmt.Errorf("lock repository: %w", err)
	}
	return func() {
		// Closing alone would leave it to a process that is just being forked.
		_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		f.Close()
	}, nil
}

// sweepQuarantine removes what a killed receive-pack left. The caller holds the lock.
func sweepQuarantine(repo string) error {
	stale, err := filepath.Glob(filepath.Join(repo, "objects", "tmp_objdir-*"))
	if err != nil {
		return err
	}
	for _, dir := range stale {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// aimHEAD lets clones of an app whose only deploy branch is main check it out.
func (r *Repositories) aimHEAD(ctx context.Context, repo string) error {
	if r.git(ctx, repo, "show-ref", "--quiet", "--verify", "refs/heads/master") == nil {
		return nil
	}
	return r.git(ctx, repo, "symbolic-ref", "HEAD", "refs/heads/main")
}

func (r *Repositories) git(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	cmd.Env = gitEnv(dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

// gitEnv is all that git gets to see: nothing of ours and nothing of the machine's git configuration.
func gitEnv(home string) []string {
	path := os.Getenv("PATH")
	if path == "" {
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	return []string{
		"PATH=" + path,
		"HOME=" + home,
		"LC_ALL=C.UTF-8",
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=" + os.DevNull,
		"GIT_TERMINAL_PROMPT=0",
	}
}
