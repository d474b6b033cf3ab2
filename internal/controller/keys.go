package controller

import (
	"net/http"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/store"
)

// maxPublicKey bounds an authorized_keys line: RSA keys of 16384 bits have
// less than 3 KB.
const maxPublicKey = 16 << 10

func apiKey(k paas.Key) api.Key {
	return api.Key{
		UUID: k.UUID, Owner: k.Owner, ID: k.ID, Public: k.Public, Fingerprint: k.Fingerprint,
		Created: date(k.Created), Updated: date(k.Updated),
	}
}

// parseKey reads one authorized_keys line and returns the key's blob, or what
// is wrong with it.
func parseKey(line string) ([]byte, string) {
	blob, fault := paas.KeyBlob(line)
	if fault != "" {
		return nil, fault
	}
	key, err := ssh.ParsePublicKey(blob)
	_, certificate := key.(*ssh.Certificate)
	if err != nil || certificate || key.Type() != strings.Fields(line)[0] {
		return nil, "This is not a public key that SSH can use."
	}
	if strings.Contains(strings.TrimSpace(line), "\n") {
		return nil, "Enter one key, in one line."
	}
	return blob, ""
}

func (c *call) listKeys() error {
	return listed(c, func(p store.Page) (store.List[paas.Key], error) { return c.s.store.Keys(c.ctx, c.user.Username, p) }, apiKey)
}

// addKey is contract 5.11.
func (c *call) addKey() error {
	f, err := c.form()
	if err != nil {
		return err
	}
	k := paas.Key{Owner: c.user.Username, ID: f.required("id", atMost(paas.MaxKeyID))}
	k.Public = f.required("public", atMost(maxPublicKey), func(public string) []string {
		blob, fault := parseKey(public)
		if fault != "" {
			return []string{fault}
		}
		k.Fingerprint = paas.Fingerprint(blob)
		return nil
	})
	if err := f.err(); err != nil {
		return err
	}
	if err := c.s.store.CreateKey(c.ctx, &k); err != nil {
		return err
	}
	return c.reply(http.StatusCreated, apiKey(k))
}

func (c *call) getKey() error {
	k, err := c.s.store.Key(c.ctx, c.user.Username, c.r.PathValue("id"))
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, apiKey(k))
}

func (c *call) removeKey() error {
	if err := c.s.store.DeleteKey(c.ctx, c.user.Username, c.r.PathValue("id")); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}
