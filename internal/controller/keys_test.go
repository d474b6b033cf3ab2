package controller

import (
	"testing"

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
