package controller

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/md5" // the fingerprint's form
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/deis/deis/internal/api"
)

func TestKeys(t *testing.T) {
	p := newPlatform(t)
	alice, bob := p.user("alice"), p.user("bob")
	public := sshKey(t)
	alice.says(`{"public":["Incorrect padding"]}`, 400, "POST", "/v1/keys", `{"id":"a","public":"ssh-rsa foo_bar"}`)
	alice.want(400, "POST", "/v1/keys", `{"id":"a","public":"junk AAAA"}`)
	alice.want(400, "POST", "/v1/keys", `{"id":"a","public":"AAAA"}`)
	var key api.Key
	alice.json(&key, 201, "POST", "/v1/keys/", map[string]any{"id": "my laptop/home", "public": public + " alice@home\n"})
	if !regexpMatch(`^([0-9a-f]{2}:){15}[0-9a-f]{2}$`, key.Fingerprint) || key.Public != public+" alice@home\n" {
		t.Errorf("key = %+v", key)
	}
	bob.says(`{"public":["This field must be unique."]}`, 400, "POST", "/v1/keys", map[string]any{"id": "mine", "public": public + " other"})
	alice.says(`{"id":["This field must be unique."]}`, 400, "POST", "/v1/keys", map[string]any{"id": "my laptop/home", "public": sshKey(t)})
	alice.want(200, "GET", "/v1/keys/my%20laptop/home", nil)
	bob.want(404, "GET", "/v1/keys/my%20laptop/home", nil)

	var owner api.KeyHookAnswer
	p.builder().json(&owner, 200, "POST", "/v1/hooks/key", api.KeyHook{Key: public})
	if owner.Username != "alice" || owner.Fingerprint != key.Fingerprint {
		t.Errorf("owner of the key = %+v", owner)
	}
	p.builder().want(404, "POST", "/v1/hooks/key", api.KeyHook{Key: sshKey(t)})
	alice.want(204, "DELETE", "/v1/keys/my%20laptop/home", nil)
	p.builder().want(404, "POST", "/v1/hooks/key", api.KeyHook{Key: public})
}

// line is the authorized_keys form of a blob.
func line(kind string, fields any) string {
	return kind + " " + base64.StdEncoding.EncodeToString(ssh.Marshal(fields))
}

// keyKinds are public keys of every type that OpenSSH has.
func keyKinds(t *testing.T) map[string]string {
	t.Helper()
	kinds := map[string]string{}
	add := func(public any) {
		key, err := ssh.NewPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		kinds[key.Type()] = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	}
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	add(&private.PublicKey)
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		add(&key.PublicKey)
		if curve == elliptic.P256() {
			point, err := key.PublicKey.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			kinds[ssh.KeyAlgoSKECDSA256] = line(ssh.KeyAlgoSKECDSA256, struct {
				Name, Curve string
				Point       []byte
				Application string
			}{ssh.KeyAlgoSKECDSA256, "nistp256", point, "ssh:"})
		}
	}
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	add(public)
	kinds[ssh.KeyAlgoSKED25519] = line(ssh.KeyAlgoSKED25519, struct {
		Name        string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKED25519, public, "ssh:"})
	p := new(big.Int).Lsh(big.NewInt(1), 1023)
	q := new(big.Int).Lsh(big.NewInt(1), 159)
	kinds["ssh-dss"] = line("ssh-dss", struct {
		Name       string
		P, Q, G, Y *big.Int
	}{"ssh-dss", p, q, big.NewInt(2), big.NewInt(3)})
	return kinds
}

// TestKeyRules is contract 5.11.
func TestKeyRules(t *testing.T) {
	p := newPlatform(t)
	alice, bob := p.user("alice"), p.user("bob")
	kinds := keyKinds(t)
	if len(kinds) != 8 {
		t.Fatalf("%d types of keys, want 8", len(kinds))
	}
	for kind, public := range kinds {
		var k api.Key
		alice.json(&k, 201, "POST", "/v1/keys", map[string]any{"id": kind, "public": public + " alice@home comment\n", "fingerprint": "x", "owner": "bob"})
		blob, err := base64.StdEncoding.DecodeString(strings.Fields(public)[1])
		if err != nil {
			t.Fatal(err)
		}
		sum := fmt.Sprintf("% x", md5.Sum(blob))
		if k.Fingerprint != strings.ReplaceAll(sum, " ", ":") || k.Owner != "alice" || k.Public != public+" alice@home comment\n" || k.ID != kind {
			t.Errorf("%s: %+v", kind, k)
		}
		// One key, one user: in whatever words.
		bob.says(`{"public":["This field must be unique."]}`, 400, "POST", "/v1/keys", map[string]any{"id": kind, "public": public})
		alice.says(`{"public":["This field must be unique."]}`, 400, "POST", "/v1/keys", map[string]any{"id": "again", "public": "  " + public})
	}
	public := kinds["ssh-rsa"]
	const useless = "This is not a public key that SSH can use."
	for text, want := range map[string]string{
		"ssh-rsa foo_bar": "Incorrect padding",
		"ssh-rsa AAA":     "Incorrect padding",
		"ssh-rsa":         "Enter a public key: its type, the key in base64 and a comment.",
		" ":               "Enter a public key: its type, the key in base64 and a comment.",
		"junk AAAA":       useless,
		"ssh-rsa AAAA":    useless,
		strings.Replace(public, "ssh-rsa", "ssh-dss", 1): useless,
		public + "\n" + kinds["ssh-ed25519"]:             "Enter one key, in one line.",
		strings.Repeat("x", 20000):                       "Ensure this field has no more than 16384 characters.",
	} {
		resp, body := alice.do("POST", "/v1/keys", map[string]any{"id": "bad", "public": text})
		if resp.StatusCode != 400 || !strings.HasPrefix(body, `{"public":["`+want) {
			t.Errorf("%.40q = %d %.200s, want %s", text, resp.StatusCode, body, want)
		}
	}
	long := strings.Repeat("ä", 128)
	p.rows([]row{
		{alice, "POST", "/v1/keys", `{}`, 400, `{"id":["This field is required."],"public":["This field is required."]}`},
		{alice, "POST", "/v1/keys", `{"id":"","public":""}`, 400, `{"id":["This field may not be blank."],"public":["This field may not be blank."]}`},
		{alice, "POST", "/v1/keys", map[string]any{"id": long + "x", "public": sshKey(t)}, 400, `{"id":["Ensure this field has no more than 128 characters."]}`},
		{alice, "POST", "/v1/keys", map[string]any{"id": long, "public": sshKey(t)}, 201, "*"},
		{alice, "GET", "/v1/keys/" + url.PathEscape(long), nil, 200, "*"},
		{alice, "POST", "/v1/keys", map[string]any{"id": "ssh-rsa", "public": sshKey(t)}, 400, `{"id":["This field must be unique."]}`},
		{bob, "POST", "/v1/keys", map[string]any{"id": "ssh-rsa", "public": sshKey(t)}, 201, "*"}, // ids are each user's own
		{alice, "PUT", "/v1/keys/ssh-rsa", `{}`, 405, `{"detail":"Method 'PUT' not allowed."}`},
		{alice, "GET", "/v1/keys/ssh-rsa/", nil, 404, notFound},
		{alice, "DELETE", "/v1/keys/ssh-rsa/", nil, 404, notFound},
		{alice, "DELETE", "/v1/keys/ssh-rsa", nil, 204, ""},
		{alice, "DELETE", "/v1/keys/ssh-rsa", nil, 404, notFound},
		{bob, "POST", "/v1/keys", map[string]any{"id": "found", "public": public}, 201, "*"},
	})
}
