package build_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/paas"
)

// walk returns the paths and what fsutil learns of them.
func walk(t *testing.T, f fsutil.FS, target string) (paths []string, stats map[string]*types.Stat) {
	t.Helper()
	stats = map[string]*types.Stat{}
	err := f.Walk(t.Context(), target, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		paths = append(paths, p)
		stats[p] = info.Sys().(*types.Stat)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths, stats
}

func TestTreeWalk(t *testing.T) {
	r := newRepo(t)
	files := map[string]string{"a.txt": "1", "a/b": "22", "a/c/d": "333", "a-b": "4", "100755:z": "55555", "120000:l": "a/b"}
	tree := r.open(r.commit(files))
	paths, stats := walk(t, tree, "/")
	// fsutil's order: '/' comes before all other characters.
	if want := []string{"a", "a/b", "a/c", "a/c/d", "a-b", "a.txt", "l", "z"}; !slices.Equal(paths, want) {
		t.Errorf("got %q, want %q", paths, want)
	}
	for p, want := range map[string]string{"a": "drwxr-xr-x 0", "a/c/d": "-rw-r--r-- 3", "z": "-rwxr-xr-x 5", "l": "Lrwxrwxrwx 3"} {
		s := stats[p]
		if got := fmt.Sprint(fs.FileMode(s.Mode), " ", s.Size); got != want {
			t.Errorf("%s: got %s, want %s", p, got, want)
		}
		if day := time.Unix(0, s.ModTime).UTC().Format(time.DateOnly); day != "2000-01-01" {
			t.Errorf("%s: changed %s", p, day)
		}
	}
	if stats["l"].Linkname != "a/b" {
		t.Errorf("link to %q", stats["l"].Linkname)
	}
	for target, want := range map[string]string{"a": "a a/b a/c a/c/d", "/a/c": "a/c a/c/d", "a/b": "a/b", "b": "", ".": "a a/b a/c a/c/d a-b a.txt l z"} {
		if got, _ := walk(t, tree, target); strings.Join(got, " ") != want {
			t.Errorf("walk %s: got %q, want %s", target, got, want)
		}
	}

	// Content decides the time, so that BuildKit sees a change of equal length.
	files["a/b"] = "23"
	_, changed := walk(t, r.open(r.commit(files)), "")
	if changed["a/b"].ModTime == stats["a/b"].ModTime || changed["a-b"].ModTime != stats["a-b"].ModTime {
		t.Error("times do not follow content")
	}
}

func TestTreeWalkSkips(t *testing.T) {
	r := newRepo(t)
	tree := r.open(r.commit(map[string]string{"a/b": "", "a/c/d": "", "b/1": "", "b/2": "", "c": ""}))
	for _, tt := range []struct {
		at   string
		err  error
		want string
	}{{"a", fs.SkipDir, "a b b/1 b/2 c"}, {"b/1", fs.SkipDir, "a a/b a/c a/c/d b b/1 c"}, {"a/c", fs.SkipAll, "a a/b a/c"}, {"a", context.Canceled, "a"}} {
		var got []string
		err := tree.Walk(t.Context(), "", func(p string, _ fs.DirEntry, _ error) error {
			got = append(got, p)
			if p == tt.at {
				return tt.err
			}
			return nil
		})
		if strings.Join(got, " ") != tt.want || errors.Is(tt.err, context.Canceled) != (err != nil) {
			t.Errorf("%v at %s: got %q, %v", tt.err, tt.at, got, err)
		}
	}
}

func TestTreeParts(t *testing.T) {
	r := newRepo(t)
	tree := r.open(r.commit(map[string]string{"a/b/c": "1", "a/b/d": "2", "a/e": "3", "a-b": "4", "ab/x": "5", "120000:a/b/l": "../e", "160000:m": strings.Repeat("1", 40)}))
	sub, err := tree.Sub("a/b")
	if err != nil {
		t.Fatal(err)
	}
	if paths, _ := walk(t, sub, ""); !slices.Equal(paths, []string{"c", "d", "l"}) || sub.Commit != tree.Commit || len(sub.Notes) != 1 {
		t.Errorf("got %q, notes %q", paths, sub.Notes)
	}
	if got, err := sub.ReadFile("d", 10); err != nil || string(got) != "2" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := sub.ReadFile("l", 10); !errors.Is(err, fs.ErrNotExist) { // it leads outside
		t.Errorf("read through a link: %v", err)
	}
	for _, dir := range []string{"a/e", "nothing", "a/b/l"} {
		if _, err := tree.Sub(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	some := tree.Filter(func(path string) bool { return strings.HasSuffix(path, "d") || path == "a-b" })
	if paths, _ := walk(t, some, ""); !slices.Equal(paths, []string{"a", "a/b", "a/b/d", "a-b"}) {
		t.Errorf("got %q", paths)
	}
	if tree.Files() != 10 {
		t.Errorf("the whole tree has %d files now", tree.Files())
	}
}

func TestTreeReads(t *testing.T) {
	r := newRepo(t)
	big := strings.Repeat("0123456789abcdef", 1<<20) // beyond git's streaming limit
	tree := r.open(r.commit(map[string]string{"f": "content", "big": big, "d/f": "x", "120000:link": "d/../f", "120000:loop": "loop", "120000:out": "../../etc/passwd"}))

	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for name, want := range map[string]string{"f": "content", "/big": big, "d/f": "x"} {
				f, err := tree.Open(name)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := io.ReadAll(f); err != nil || string(got) != want {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
				f.Close()
			}
		})
	}
	wg.Wait()

	// Closing early must leave the next file intact.
	f, err := tree.Open("big")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(f, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	f.Close()
	if got, err := tree.ReadFile("link", 100); err != nil || string(got) != "content" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, name := range []string{"missing", "d", "out"} {
		if _, err := tree.ReadFile(name, 100); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := tree.Open(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open %s: %v", name, err)
		}
	}
	for _, name := range []string{"big", "loop"} {
		if _, err := tree.ReadFile(name, 100); paas.CodeOf(err) != paas.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	tree.Close()
	if _, err := tree.ReadFile("f", 100); err == nil {
		t.Error("read after Close")
	}
}

func TestTreeRefusals(t *testing.T) {
	r := newRepo(t)
	for name, want := range map[string]string{
		"latin-\xe9":    `the file name "latin-\xe9" is not UTF-8; rename it`,
		"120000:target": "the target of the symbolic link target is longer than 4096 bytes",
		"120000:bytes":  "the target of the symbolic link bytes is not UTF-8",
	} {
		content := strings.Repeat("x", 5000)
		if name == "120000:bytes" {
			content = "\xff"
		}
		_, err := build.OpenTree(t.Context(), build.TreeOptions{GitDir: r.dir, Commit: r.commit(map[string]string{name: content})})
		if e, ok := errors.AsType[*paas.Error](err); !ok || e.Message != want {
			t.Errorf("%q: got %v", name, err)
		}
	}
	blob := r.git("x", "hash-object", "-w", "--stdin")
	file := func(name string) string { return "100644 blob " + blob + "\t" + name + "\x00" }
	var many strings.Builder
	for n := range 20_000 {
		many.WriteString(file(fmt.Sprint("f", 10_000+n)))
	}
	below := "040000 tree " + r.git(many.String(), "mktree", "-z") + "\t" + strings.Repeat("d", 3_400) + "\x00"
	for tree, want := range map[string]string{ // git itself bounds neither
		file(strings.Repeat("n", 5_000)):     "a file has a path of more than 4096 bytes; rename it",
		file(strings.Repeat("n", 1_000_000)): "a file has a path of more than 4096 bytes; rename it",
		below:                                "the paths of the files have more than 67108864 bytes in all",
	} {
		commit := r.git("", "commit-tree", "-m", "test", r.git(tree, "mktree", "-z"))
		_, err := build.OpenTree(t.Context(), build.TreeOptions{GitDir: r.dir, Commit: commit})
		if e, ok := errors.AsType[*paas.Error](err); !ok || e.Message != want {
			t.Errorf("%d bytes: got %v", len(tree), err)
		}
	}
	for _, commit := range []string{"", "HEAD", "--help", strings.Repeat("0", 39), strings.Repeat("0", 40)} {
		if tree, err := build.OpenTree(t.Context(), build.TreeOptions{GitDir: r.dir, Commit: commit}); err == nil {
			t.Errorf("opened %q", commit)
			tree.Close()
		}
	}
}

// TestTreeIgnoresReplacements: whoever may push refs must not swap what a
// commit holds.
func TestTreeIgnoresReplacements(t *testing.T) {
	r := newRepo(t)
	good, evil := r.commit(map[string]string{"f": "good"}), r.commit(map[string]string{"f": "evil"})
	r.git("", "replace", good, evil)
	if got, err := r.open(good).ReadFile("f", 10); err != nil || string(got) != "good" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestTreeInQuarantine reads a pushed commit while git still keeps it apart, as a pack.
func TestTreeInQuarantine(t *testing.T) {
	source, target := newRepo(t), newRepo(t)
	commit := source.commit(map[string]string{"dir/f": "pushed", "g": "also"})
	source.git("", "update-ref", "refs/heads/main", commit)
	target.git("", "config", "receive.unpackLimit", "1")
	hook := "#!/bin/sh\nenv | grep ^GIT_ >env.new && mv env.new env\nwhile [ ! -e go ]; do sleep 0.02; done\n"
	if err := os.WriteFile(filepath.Join(target.dir, "hooks", "pre-receive"), []byte(hook), 0o700); err != nil {
		t.Fatal(err)
	}
	push := exec.CommandContext(t.Context(), "git", "--git-dir", source.dir, "push", "--quiet", target.dir, "main")
	var output bytes.Buffer
	push.Stderr = &output
	if err := push.Start(); err != nil {
		t.Fatal(err)
	}
	var env []byte
	waitFor(t, func() bool {
		var err error
		env, err = os.ReadFile(filepath.Join(target.dir, "env"))
		return err == nil
	})
	var objects []string
	for line := range strings.Lines(string(env)) {
		if strings.HasPrefix(line, "GIT_OBJECT_DIRECTORY=") || strings.HasPrefix(line, "GIT_ALTERNATE_OBJECT_DIRECTORIES=") {
			objects = append(objects, strings.TrimSpace(line))
		}
	}
	if _, err := build.OpenTree(t.Context(), build.TreeOptions{GitDir: target.dir, Commit: commit}); err == nil {
		t.Error("the commit is there already")
	}
	tree, err := build.OpenTree(t.Context(), build.TreeOptions{GitDir: target.dir, Commit: commit, Env: objects})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if got, err := tree.ReadFile("dir/f", 10); err != nil || string(got) != "pushed" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(target.dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := push.Wait(); err != nil {
		t.Errorf("%v\n%s", err, output.String())
	}
}

// BenchmarkOpenTree lists 20,000 files.
func BenchmarkOpenTree(b *testing.B) {
	r := newRepo(b)
	blob := r.git("x", "hash-object", "-w", "--stdin")
	var index strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&index, "100644 %s\td%d/e%d/f%d\x00", blob, i%50, i%400, i)
	}
	r.git(index.String(), "update-index", "-z", "--index-info")
	commit := r.git("", "commit-tree", "-m", "x", r.git("", "write-tree"))
	r.git("", "update-ref", "refs/heads/main", commit)
	r.git("", "repack", "-adq")
	for b.Loop() {
		r.open(commit).Close()
	}
}

// TestLFSOfDirectories: any directory may say which of its files are in Git LFS.
func TestLFSOfDirectories(t *testing.T) {
	r := newRepo(t)
	pointer := "version https://git-lfs.github.com/spec/v1\noid sha256:" + strings.Repeat("0", 64) + "\nsize 12345\n"
	files := map[string]string{".gitattributes": "* text=auto\n", "a/.gitattributes": "*.bin -text\n", "a/b/.gitattributes": "*.bin filter=lfs\n", "a/b/x.bin": pointer, "a/b/y.bin": pointer}
	if notes := r.open(r.commit(files)).Notes; len(notes) != 1 || !strings.HasPrefix(notes[0], "2 files are in Git LFS, for example a/b/x.bin: ") {
		t.Errorf("got %q", notes)
	}
	delete(files, "a/b/.gitattributes")
	if notes := r.open(r.commit(files)).Notes; len(notes) != 0 {
		t.Errorf("got %q", notes)
	}
}
