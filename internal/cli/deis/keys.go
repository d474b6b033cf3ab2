package deis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
)

// maxKeyFile bounds what is read of a file that is said to be a public key, in
// bytes: the longest RSA keys in use take about 3 KB.
const maxKeyFile = 64 << 10

func (c *cli) keyCommands() []*cobra.Command {
	list := &cobra.Command{
		Use:     "keys:list",
		Aliases: []string{"keys"},
		Short:   "List the SSH keys that you may push with",
		Example: "deis keys",
		Args:    exactly(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.listKeys(cmd.Context()) },
	}
	c.withList(list)
	add := &cobra.Command{
		Use:   "keys:add [<file>]",
		Short: "Add an SSH key to push with",
		Long: `The file is a public key (.pub). Without one, the public keys in ~/.ssh are offered.
The key is named after its comment, or else after the file.`,
		Example: "deis keys:add ~/.ssh/id_ed25519.pub",
		Args:    between(0, 1),
		RunE:    func(cmd *cobra.Command, args []string) error { return c.addKey(cmd.Context(), args) },
	}
	remove := &cobra.Command{
		Use:     "keys:remove <name>",
		Short:   "Remove an SSH key",
		Example: "deis keys:remove alice@laptop",
		Args:    exactly(1),

		ValidArgsFunction: first(c.completing(c.keyNames)),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.removeKey(cmd.Context(), args[0]) },
	}
	return []*cobra.Command{list, add, remove}
}

func (c *cli) listKeys(ctx context.Context) error {
	s, err := c.loggedIn()
	if err != nil {
		return err
	}
	page, err := list[api.Key](ctx, c, "/v1/keys/")
	if err != nil {
		return err
	}
	return show(c, s.Username+" Keys", page, func(k api.Key) []string {
		return []string{k.ID, shortKey(k.Public)}
	})
}

// shortKey is "ssh-rsa AAAA...Q== name": enough to tell keys apart.
func shortKey(public string) string {
	kind, blob, _ := strings.Cut(strings.TrimSpace(public), " ")
	blob, _, _ = strings.Cut(blob, " ")
	if len(blob) > 40 {
		blob = blob[:20] + "..." + blob[len(blob)-12:]
	}
	return kind + " " + blob
}

func (c *cli) addKey(ctx context.Context, args []string) error {
	s, err := c.loggedIn()
	if err != nil {
		return err
	}
	var file string
	if len(args) == 1 {
		file = args[0]
	} else if file, err = c.chooseKey(ctx); err != nil {
		return err
	}
	key, err := readKey(file)
	if err != nil {
		return err
	}
	err = c.progress("Uploading "+filepath.Base(file)+" to deis", func() (string, error) {
		return "", s.api.Call(ctx, http.MethodPost, "/v1/keys/", key, nil)
	})
	switch {
	case fieldError(err, "public", notUnique):
		return fail("The controller has this key already, as yours or another user's.", "deis keys", "ssh-keygen -t ed25519   for a key of your own")
	case fieldError(err, "id", notUnique):
		return fail("You have another key called "+key.ID+".", "deis keys:remove "+shellQuote(key.ID))
	}
	return err
}

// chooseKey offers the public keys in ~/.ssh.
func (c *cli) chooseKey(ctx context.Context) (string, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(home, ".ssh", "*.pub"))
	if err != nil {
		return "", err
	}
	switch {
	case len(files) == 0:
		return "", fail("There is no SSH key in "+filepath.Join(home, ".ssh")+".",
			"ssh-keygen -t ed25519 && deis keys:add", "deis keys:add <file>")
	case len(files) == 1:
		return files[0], nil
	case !isTerminal(c.in):
		return "", &failure{text: "There are several SSH keys.", next: prefixed("deis keys:add ", files), status: statusUsage}
	}
	fmt.Fprintln(c.err, "Found the following SSH public keys:")
	for i, file := range files {
		fmt.Fprintf(c.err, "%d) %s\n", i+1, filepath.Base(file))
	}
	answer, err := c.ask(ctx, "Which would you like to use with Deis? ")
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(answer)
	if err != nil || n < 1 || n > len(files) {
		return "", fail(fmt.Sprintf("%q is none of them.", answer), prefixed("deis keys:add ", files)...)
	}
	return files[n-1], nil
}

func prefixed(prefix string, all []string) []string {
	out := []string{}
	for _, s := range all {
		out = append(out, prefix+s)
	}
	return out
}

// readKey reads a public key of any type that OpenSSH has.
func readKey(file string) (api.Key, error) {
	text, err := readFile(file, maxKeyFile)
	if err != nil {
		return api.Key{}, err
	}
	if bytes.Contains(text, []byte("PRIVATE KEY")) {
		return api.Key{}, fail(file+" is a private key, which never leaves your machine.", "deis keys:add "+file+".pub")
	}
	key, comment, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return api.Key{}, fail(file+" is not a public SSH key.", "ssh-keygen -y -f <private key> > "+file)
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return api.Key{}, fail(file + " is an SSH certificate; the platform knows keys only.")
	}
	id := strings.TrimSpace(comment)
	if id == "" {
		id, _, _ = strings.Cut(filepath.Base(file), ".")
	}
	public := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " " + id
	return api.Key{ID: id, Public: public}, nil
}

// readFile reads a file that should not be larger than limit bytes.
func readFile(file string, limit int64) ([]byte, error) {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &failure{text: "There is no file " + file + ".", err: err}
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fail(file + " is not a file of the kind expected.")
	}
	return os.ReadFile(file)
}

func (c *cli) removeKey(ctx context.Context, id string) error {
	s, err := c.loggedIn()
	if err != nil {
		return err
	}
	err = c.progress("Removing "+id+" SSH Key", func() (string, error) {
		return "", s.api.Call(ctx, http.MethodDelete, "/v1/keys/"+url.PathEscape(id), nil, nil)
	})
	if paas.CodeOf(err) == paas.NotFound {
		return fail("You have no key "+id+".", "deis keys")
	}
	return err
}
