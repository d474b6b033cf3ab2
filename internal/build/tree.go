package build

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// Limits on a pushed tree. They bound our memory, not the user: a file takes
// about 100 bytes here and its path, twice.
const (
	MaxFiles      = 200_000
	maxPath       = 4096     // PATH_MAX
	maxPaths      = 64 << 20 // all paths together: 335 bytes each of MaxFiles
	maxLinkTarget = 4096     // PATH_MAX
	// lfsPointerSize is above the size of any Git LFS pointer file that git-lfs writes.
	lfsPointerSize = 200
	// maxAttributes bounds a .gitattributes file that is looked at, maxAttributesFiles how many are: trees with
	// tens of thousands of directories need not wait for a note.
	maxAttributes      = 64 << 10
	maxAttributesFiles = 1000
	// streamFrom is where git streams a blob instead of holding it in memory.
	streamFrom = "4m"
)

// Git's file modes.
const (
	gitTree       = 0o040000
	gitExecutable = 0o100755
	gitLink       = 0o120000
	gitSubmodule  = 0o160000
)

// Tree is the files of one commit, read from git's objects: nothing is checked
// out. It is an fsutil.FS. Methods may be called concurrently; Close ends them all.
//
// Symbolic links are passed on as links wherever they point to: who follows
// them does so inside of a container. Submodules are empty directories.
type Tree struct {
	// Commit is the full object id.
	Commit string
	// Notes are lines for the user about what the tree holds and the build does not get.
	Notes []string

	paths   int     // bytes of all paths
	entries []entry // sorted as fsutil wants: by path, '/' before all else
	objects *objectReader
}

type entry struct {
	path string
	mode uint32 // git's
	hash string
	size int64
	link string
}

// TreeOptions say where a commit is.
type TreeOptions struct {
	// GitDir is the bare repository.
	GitDir string
	// Env is added to git's environment: GIT_OBJECT_DIRECTORY and GIT_ALTERNATE_OBJECT_DIRECTORIES while
	// the pushed objects are still in quarantine (githooks(5), pre-receive).
	Env []string
	// Commit is a full object id.
	Commit string
}

// OpenTree lists the files of a commit and keeps one git process to read them,
// until Close or the end of ctx.
//
// It runs git instead of reading the objects itself, because git sees the packs in quarantine, and
// keeps neither deltas nor large files in our memory.
func OpenTree(ctx context.Context, opts TreeOptions) (*Tree, error) {
	if b, err := hex.DecodeString(opts.Commit); err != nil || len(b) != 20 && len(b) != 32 {
		return nil, fmt.Errorf("commit %q is not a full object id", opts.Commit)
	}
	t := &Tree{Commit: opts.Commit}
	if err := t.list(ctx, opts); err != nil {
		return nil, fmt.Errorf("list files of %s: %w", opts.Commit[:12], err)
	}
	var err error
	if t.objects, err = startObjectReader(ctx, opts); err != nil {
		return nil, err
	}
	if err := errors.Join(t.readLinks(), t.noteLFS()); err != nil {
		t.Close()
		return nil, fmt.Errorf("read files of %s: %w", opts.Commit[:12], err)
	}
	return t, nil
}

// git makes a git command that sees this repository and nothing of the
// machine's or a user's configuration.
func git(ctx context.Context, opts TreeOptions, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", append([]string{"--git-dir=" + opts.GitDir, "-c", "core.bigFileThreshold=" + streamFrom}, args...)...)
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0",
		"GIT_NO_REPLACE_OBJECTS=1", // a pushed refs/replace must not swap files
	}, opts.Env...)
	return cmd
}

func (t *Tree) list(ctx context.Context, opts TreeOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := git(ctx, opts, "ls-tree", "-r", "-t", "-l", "-z", "--full-tree", opts.Commit)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	parseErr := t.parse(bufio.NewReaderSize(out, 64<<10))
	if parseErr != nil {
		cancel()
	}
	if err := cmd.Wait(); err != nil && parseErr == nil {
		return fmt.Errorf("git ls-tree: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return parseErr
}

var errPathTooLong = userErrorf("a file has a path of more than %d bytes; rename it", maxPath)

// parse reads "<mode> <type> <hash> <size>\t<path>\0" (git-ls-tree(1)).
func (t *Tree) parse(r *bufio.Reader) error {
	for {
		line, err := r.ReadSlice(0)
		if err == io.EOF && len(line) == 0 {
			slices.SortFunc(t.entries, func(a, b entry) int { return fsutil.ComparePath(a.path, b.path) })
			return nil
		}
		if errors.Is(err, bufio.ErrBufferFull) { // before it is read on: git bounds no name
			return errPathTooLong
		}
		if err != nil {
			return err
		}
		if err := t.add(string(line[:len(line)-1])); err != nil {
			return err
		}
	}
}

func (t *Tree) add(line string) error {
	meta, name, ok := strings.Cut(line, "\t")
	f := strings.Fields(meta)
	if !ok || len(f) != 4 {
		return fmt.Errorf("git ls-tree said %q", line)
	}
	mode, err := strconv.ParseUint(f[0], 8, 32)
	if err != nil {
		return fmt.Errorf("git ls-tree said %q", line)
	}
	if !utf8.ValidString(name) {
		return userErrorf("the file name %q is not UTF-8; rename it", name)
	}
	if !fs.ValidPath(name) {
		return userErrorf("the file name %q cannot be built", name)
	}
	e := entry{path: name, mode: uint32(mode), hash: f[2]}
	switch e.mode {
	case gitSubmodule:
		t.Notes = append(t.Notes, fmt.Sprintf("submodule %s is not part of a push; its directory is empty", printable(name)))
		e.mode = gitTree
	case gitTree:
	default:
		if e.size, err = strconv.ParseInt(f[3], 10, 64); err != nil {
			return fmt.Errorf("git ls-tree said %q", line)
		}
	}
	if len(t.entries) == MaxFiles {
		return userErrorf("more than %d files and directories", MaxFiles)
	}
	t.paths += len(name)
	switch {
	case len(name) > maxPath:
		return errPathTooLong
	case t.paths > maxPaths:
		return userErrorf("the paths of the files have more than %d bytes in all", maxPaths)
	}
	t.entries = append(t.entries, e)
	return nil
}

func (t *Tree) readLinks() error {
	for i := range t.entries {
		e := &t.entries[i]
		if e.mode != gitLink {
			continue
		}
		if e.size > maxLinkTarget {
			return userErrorf("the target of the symbolic link %s is longer than %d bytes", printable(e.path), maxLinkTarget)
		}
		target, err := t.read(*e)
		if err != nil {
			return err
		}
		if e.link = string(target); !utf8.ValidString(e.link) {
			return userErrorf("the target of the symbolic link %s is not UTF-8", printable(e.path))
		}
	}
	return nil
}

// noteLFS notes files that are only pointers of Git LFS, where .gitattributes say that there are some.
func (t *Tree) noteLFS() error {
	if uses, err := t.usesLFS(); err != nil || !uses {
		return err
	}
	count, first := 0, ""
	for _, e := range t.entries {
		if e.mode == gitTree || e.mode == gitLink || e.size < 100 || e.size > lfsPointerSize {
			continue
		}
		content, err := t.read(e)
		if err != nil {
			return err
		}
		if bytes.HasPrefix(content, []byte("version https://git-lfs.github.com/spec/")) {
			if count++; count == 1 {
				first = printable(e.path)
			}
		}
	}
	switch {
	case count == 1:
		t.Notes = append(t.Notes, fmt.Sprintf("1 file is in Git LFS: the build gets only the pointer of %s", first))
	case count > 1:
		t.Notes = append(t.Notes, fmt.Sprintf("%d files are in Git LFS, for example %s: the build gets only their pointers", count, first))
	}
	return nil
}

// usesLFS reports whether a .gitattributes file, of which every directory may have one, gives files to Git LFS.
func (t *Tree) usesLFS() (bool, error) {
	looked := 0
	for _, e := range t.entries {
		if path.Base(e.path) != ".gitattributes" || e.mode == gitTree || e.mode == gitLink || e.size > maxAttributes {
			continue
		}
		if looked++; looked > maxAttributesFiles {
			break
		}
		if attributes, err := t.read(e); err != nil || bytes.Contains(attributes, []byte("filter=lfs")) {
			return err == nil, err
		}
	}
	return false, nil
}

// Files is the number of files and directories.
func (t *Tree) Files() int { return len(t.entries) }

// Sub is the tree below a directory ("a/b"), as if it were a whole commit; fs.ErrNotExist where there is no such
// directory. It shares the git process: closing the whole tree ends it.
func (t *Tree) Sub(dir string) (*Tree, error) {
	if i, ok := t.find(dir); !ok || t.entries[i].mode != gitTree {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: fs.ErrNotExist}
	}
	sub := &Tree{Commit: t.Commit, Notes: t.Notes, objects: t.objects}
	for _, e := range t.entries {
		if rest, ok := strings.CutPrefix(e.path, dir+"/"); ok {
			e.path = rest
			sub.entries = append(sub.entries, e)
		}
	}
	return sub, nil
}

// Filter is the tree with only the files and links for which keep is true, and the directories that hold
// them. It shares the git process.
func (t *Tree) Filter(keep func(path string) bool) *Tree {
	kept := map[string]bool{}
	for _, e := range t.entries {
		if e.mode != gitTree && keep(e.path) {
			for p := e.path; p != "." && !kept[p]; p = path.Dir(p) {
				kept[p] = true
			}
		}
	}
	some := slices.DeleteFunc(slices.Clone(t.entries), func(e entry) bool { return !kept[e.path] })
	return &Tree{Commit: t.Commit, Notes: t.Notes, objects: t.objects, entries: some}
}

// find returns the index of a path, or where it would be.
func (t *Tree) find(name string) (int, bool) {
	return slices.BinarySearchFunc(t.entries, name, func(e entry, name string) int { return fsutil.ComparePath(e.path, name) })
}

// Has reports whether a path is a file or a link.
func (t *Tree) Has(name string) bool {
	i, ok := t.find(name)
	return ok && t.entries[i].mode != gitTree
}

// ReadFile returns a file's content. Links in the tree are followed. It is
// fs.ErrNotExist where there is none, and an error for the user when it is
// larger than limit bytes.
func (t *Tree) ReadFile(name string, limit int64) ([]byte, error) {
	for range 8 {
		i, ok := t.find(name)
		if !ok || t.entries[i].mode == gitTree {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		e := t.entries[i]
		if e.mode == gitLink {
			name = path.Join(path.Dir(name), e.link)
			continue
		}
		if e.size > limit {
			return nil, userErrorf("%s has %d bytes; the limit is %d", printable(name), e.size, limit)
		}
		return t.read(e)
	}
	return nil, userErrorf("%s: too many symbolic links", printable(name))
}

func (t *Tree) read(e entry) ([]byte, error) {
	r, err := t.objects.open(e.hash)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// Walk implements fsutil.FS.
func (t *Tree) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	target = strings.TrimPrefix(path.Clean("/"+target), "/")
	i := 0
	if target != "" {
		i, _ = t.find(target)
	}
	skip := ""
	for ; i < len(t.entries); i++ {
		e := &t.entries[i]
		if target != "" && e.path != target && !strings.HasPrefix(e.path, target+"/") {
			return nil
		}
		if skip != "" && strings.HasPrefix(e.path, skip) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		switch err := fn(e.path, &fsutil.DirEntryInfo{Stat: e.stat()}, nil); {
		case errors.Is(err, fs.SkipAll):
			return nil
		case errors.Is(err, fs.SkipDir) && e.mode == gitTree:
			skip = e.path + "/"
		case errors.Is(err, fs.SkipDir): // of a file: the rest of its directory
			if dir := path.Dir(e.path); dir != "." {
				skip = dir + "/"
				continue
			}
			return nil
		case err != nil:
			return err
		}
	}
	return nil
}

// Open implements fsutil.FS, for regular files. One file is open at a time:
// another Open waits until it is closed.
func (t *Tree) Open(name string) (io.ReadCloser, error) {
	i, ok := t.find(strings.TrimPrefix(path.Clean("/"+name), "/"))
	if !ok || t.entries[i].mode == gitTree || t.entries[i].mode == gitLink {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return t.objects.open(t.entries[i].hash)
}

// Close ends the git process.
func (t *Tree) Close() { t.objects.close() }

func (e *entry) stat() *types.Stat {
	st := &types.Stat{Path: e.path, Size: e.size, Linkname: e.link, ModTime: modTime(e.hash)}
	switch e.mode {
	case gitTree:
		st.Mode, st.ModTime = uint32(fs.ModeDir|0o755), epoch.UnixNano()
	case gitLink:
		st.Mode = uint32(fs.ModeSymlink | 0o777)
	case gitExecutable:
		st.Mode = 0o755
	default:
		st.Mode = 0o644
	}
	return st
}

// epoch is the day on which all files were last changed.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// modTime makes the time of a file from its content's hash. BuildKit fetches a
// file again when size or time changed, so equal content is never sent twice,
// and other content is missed once in 2^46.
func modTime(hash string) int64 {
	b, _ := hex.DecodeString(hash[:16])
	return epoch.UnixNano() + int64(binary.BigEndian.Uint64(b)%uint64(24*time.Hour))
}

// objectReader reads blobs through one "git cat-file --batch", one at a time.
type objectReader struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader

	mu  sync.Mutex // held while a blob is open
	err error      // sticky: the stream is out of step
}

func startObjectReader(ctx context.Context, opts TreeOptions) (*objectReader, error) {
	cmd := git(ctx, opts, "cat-file", "--batch")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("git cat-file: %w", err)
	}
	return &objectReader{cmd: cmd, in: in, out: bufio.NewReaderSize(out, 64<<10)}, nil
}

// open returns a blob's content. It waits until the one opened before is closed.
func (o *objectReader) open(hash string) (io.ReadCloser, error) {
	o.mu.Lock()
	size, err := o.request(hash)
	if err != nil {
		o.mu.Unlock()
		return nil, fmt.Errorf("read git object %s: %w", hash, err)
	}
	return &blob{o: o, left: size}, nil
}

func (o *objectReader) request(hash string) (int64, error) {
	if o.err != nil {
		return 0, o.err
	}
	if _, o.err = io.WriteString(o.in, hash+"\n"); o.err != nil {
		return 0, o.err
	}
	var line string
	if line, o.err = o.out.ReadString('\n'); o.err != nil {
		return 0, o.err
	}
	f := strings.Fields(line) // "<hash> blob <size>" or "<hash> missing"
	if len(f) == 2 {
		return 0, errors.New(f[1])
	}
	if len(f) != 3 {
		o.err = fmt.Errorf("git cat-file said %q", line)
		return 0, o.err
	}
	var size int64
	size, o.err = strconv.ParseInt(f[2], 10, 64)
	return size, o.err
}

// close ends the process. Having killed it, there is nothing to learn from errors.
func (o *objectReader) close() {
	_ = o.in.Close()
	_ = o.cmd.Process.Kill()
	_ = o.cmd.Wait()
}

type blob struct {
	o      *objectReader
	left   int64
	closed bool
}

func (b *blob) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.o.out.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err != nil {
		b.o.err = err
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Close skips what was not read, and the newline after it.
func (b *blob) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	defer b.o.mu.Unlock()
	if b.o.err == nil {
		_, b.o.err = io.CopyN(io.Discard, b.o.out, b.left+1)
	}
	return nil
}
