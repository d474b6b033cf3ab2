package gitserver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// The hook talks to the server through three pipes that git hands on from
// receive-pack to its hook: no socket, no token, and no program of ours has to
// be started. It decides nothing, and without a server at the other end it
// rejects the push.
//
//	3  hook to server: the quarantine's path, git's "<old> <new> <ref>" lines, an empty line
//	4  server to hook: what the pusher shall see, until the end
//	5  server to hook: the exit status, a line; an end without one means 1
const hookScript = `#!/bin/sh
# Written by the builder, which is at the other end of the descriptors 3, 4 and 5.
{ printf '%s\n' "$GIT_QUARANTINE_PATH" && cat && echo; } >&3 || exit 1
exec 3>&-
cat <&4
read -r status <&5
exit "${status:-1}"
`

func installHook(dir string) error {
	path := filepath.Join(dir, "pre-receive")
	if err := writeFile(path, []byte(hookScript), 0o700); err != nil {
		return err
	}
	// git silently skips a hook that it cannot run, on a noexec file system for example, and takes the push.
	if err := unix.Access(path, unix.X_OK); err != nil {
		return fmt.Errorf("%s cannot be run: %w", path, err)
	}
	return nil
}

const (
	// maxRefs is more than one push of a busy project's branches and tags, and little to hold.
	maxRefs = 10000
	// maxRefLine fits git's own limit on names of refs (file names) and two hashes.
	maxRefLine = 4096 + 256
)

var hash = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// errNoPush is the end of a receive-pack that had nothing to decide.
var errNoPush = errors.New("no push")

// readHook reads what the hook hands over. It is errNoPush if the hook was never run.
func readHook(r io.Reader) (quarantine string, refs []Ref, err error) {
	lines := bufio.NewReaderSize(r, maxRefLine)
	quarantine, err = readLine(lines)
	if errors.Is(err, io.EOF) {
		return "", nil, errNoPush
	}
	for err == nil {
		var line string
		if line, err = readLine(lines); err != nil || line == "" {
			break
		}
		if len(refs) == maxRefs {
			return "", nil, fmt.Errorf("more than %d refs in one push", maxRefs)
		}
		var ref Ref
		ref, err = parseRef(line)
		refs = append(refs, ref)
	}
	if err == nil && len(refs) == 0 {
		err = errors.New("no refs")
	}
	if err != nil {
		return "", nil, fmt.Errorf("pre-receive hook: %w", err)
	}
	return quarantine, refs, nil
}

// readLine returns a line without its newline. It is io.EOF only where nothing is left.
func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, io.EOF) && len(line) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return "", err
	}
	return string(line[:len(line)-1]), nil
}

func parseRef(line string) (Ref, error) {
	old, rest, _ := strings.Cut(line, " ")
	updated, name, _ := strings.Cut(rest, " ")
	if !hash.MatchString(old) || !hash.MatchString(updated) || !strings.HasPrefix(name, "refs/") {
		return Ref{}, fmt.Errorf("%q is no update of a ref", line)
	}
	return Ref{Old: old, New: updated, Name: name}, nil
}

// Deletes reports whether a push of the ref removes it.
func (r Ref) Deletes() bool { return strings.Trim(r.New, "0") == "" }

// Creates reports whether the ref was not there before.
func (r Ref) Creates() bool { return strings.Trim(r.Old, "0") == "" }
