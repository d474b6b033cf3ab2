package controller

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/api"
)

func TestApps(t *testing.T) {
	p := newPlatform(t)
	p.user("root")
	alice := p.user("alice")
	p.user("bob")
	var app api.App
	alice.json(&app, 201, "POST", "/v1/apps", nil)
	if !regexpMatch(`^[a-z]{6}-[a-z]{8}$`, app.ID) || app.URL != app.ID+".example.test" || app.Owner != "alice" || len(app.Structure) != 0 {
		t.Errorf("generated app = %+v", app)
	}
	if _, err := time.Parse(api.TimeLayout, app.Created); err != nil {
		t.Error(err)
	}
	for body, want := range map[string]string{
		`{"id":"deis"}`:            `{"id":["deis is a reserved name."]}`,
		`{"id":"Foo"}`:             `{"id":["App IDs can only contain [a-z0-9-]."]}`,
		`{"id":"a b"}`:             `{"id":["App IDs can only contain [a-z0-9-].","Enter a valid 'slug' consisting of letters, numbers, underscores or hyphens."]}`,
		`{"id":""}`:                `{"id":["This field may not be blank."]}`,
		`{"id":"` + app.ID + `"}`:  `{"id":["This field must be unique."]}`,
		`{"id":{"a":1}}`:           `{"id":["Not a valid string."]}`,
		`{"id":"` + l65 + `"}`:     `{"id":["Ensure this field has no more than 64 characters."]}`,
		`{"id":"../../etc/pass"}`:  `{"id":["App IDs can only contain [a-z0-9-].","Enter a valid 'slug' consisting of letters, numbers, underscores or hyphens."]}`,
		`{"id":"a","id":"deis"}  `: `{"id":["deis is a reserved name."]}`,
	} {
		alice.says(want, 400, "POST", "/v1/apps", body)
	}
	alice.want(201, "POST", "/v1/apps", `{"id":123}`)
	alice.want(201, "POST", "/v1/apps", `{"id":"-a--b-","structure":{"web":9}}`)
	var release api.Release
	alice.json(&release, 200, "GET", "/v1/apps/123/releases/v1", nil)
	if release.Build != nil || release.Summary != "alice created initial release" {
		t.Errorf("first release = %+v", release)
	}

	alice.says("", 200, "POST", "/v1/apps/123", nil)
	alice.want(404, "POST", "/v1/apps/123", `{"owner":"nobody"}`)
	alice.want(409, "DELETE", "/v1/auth/cancel", nil)
	alice.want(200, "POST", "/v1/apps/123", `{"owner":"bob"}`)
	alice.want(403, "GET", "/v1/apps/123", nil)

	alice.want(201, "POST", "/v1/apps/-a--b-/builds", build("", "web"))
	if n := instances(t, p.engine); n != 1 {
		t.Errorf("%d instances before the deletion, want 1", n)
	}
	alice.says("", 204, "DELETE", "/v1/apps/-a--b-/", nil)
	alice.want(404, "GET", "/v1/apps/-a--b-", nil)
	if n := instances(t, p.engine); n != 0 {
		t.Errorf("%d instances after the deletion", n)
	}
	alice.want(201, "POST", "/v1/apps", `{"id":"-a--b-"}`)
}

var l65 = strings.Repeat("a", 65)

// TestAppRules is contract 5.1: names, fields that count and fields that do not.
func TestAppRules(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	const pattern, slug = "App IDs can only contain [a-z0-9-].", "Enter a valid 'slug' consisting of letters, numbers, underscores or hyphens."
	for id, faults := range map[string][]string{
		"a_b": {pattern}, "Foo": {pattern}, "a b": {pattern, slug}, "a.b": {pattern, slug}, "ä": {pattern, slug}, "a\n": {pattern, slug},
		strings.Repeat("a", 65): {"Ensure this field has no more than 64 characters."},
		strings.Repeat("A", 65): {pattern, "Ensure this field has no more than 64 characters."},
		strings.Repeat("!", 65): {pattern, "Ensure this field has no more than 64 characters.", slug},
		"deis":                  {"deis is a reserved name."}, "": {"This field may not be blank."},
	} {
		want, err := json.Marshal(map[string][]string{"id": faults})
		if err != nil {
			t.Fatal(err)
		}
		alice.says(string(want), 400, "POST", "/v1/apps", map[string]any{"id": id})
	}
	for _, id := range []string{"a", "0", "-a", "a-", strings.Repeat("a", 64)} {
		alice.want(201, "POST", "/v1/apps", map[string]any{"id": id})
	}
	body := alice.want(201, "POST", "/v1/apps/", `{"id":"shop","uuid":"x","owner":"bob","created":"x","structure":{"web":9},"url":"x"}`)
	stamp := `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dUTC`
	if !regexpMatch(`^{"uuid":"`+uuidForm+`","id":"shop","owner":"alice","url":"shop\.example\.test","structure":{},"created":"`+stamp+`","updated":"`+stamp+`"}$`, body) {
		t.Errorf("created app = %s", body)
	}
	alice.says(body, 200, "GET", "/v1/apps/shop/", nil)
	alice.says("", 200, "POST", "/v1/apps/shop", `{"id":"other","structure":{"web":1}}`)
	alice.says(body, 200, "GET", "/v1/apps/shop", nil)
	for _, method := range []string{"PUT", "PATCH"} {
		alice.says(`{"detail":"Method '`+method+`' not allowed."}`, 405, method, "/v1/apps/shop", `{"id":"other"}`)
	}
	alice.says(`{"owner":["This field may not be blank."]}`, 400, "POST", "/v1/apps/shop", `{"owner":""}`)
}

const uuidForm = `[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`

// TestAppLog: what is done to an app is in its log (contract 12), in the words
// of the original where it has some.
func TestAppLog(t *testing.T) {
	p := newPlatform(t)
	root, alice := p.user("root"), p.user("alice")
	p.user("bob")
	alice.app("shop")
	p.rows([]row{
		{alice, "POST", "/v1/apps/shop/builds", build("abc1234567", "web"), 201, "*"},
		{alice, "POST", "/v1/apps/shop/config", `{"values":{"A":"canary"},"memory":{"web":"1G"},"tags":{"rack":"x"}}`, 201, "*"},
		{alice, "POST", "/v1/apps/shop/scale", `{"web":2}`, 204, ""},
		{alice, "POST", "/v1/apps/shop/run", `{"command":"ls -l"}`, 200, "*"},
		{alice, "POST", "/v1/apps/shop/containers/restart", nil, 200, "*"},
		{alice, "POST", "/v1/apps/shop/domains", `{"domain":"WWW.shop.com"}`, 201, "*"},
		{alice, "DELETE", "/v1/apps/shop/domains/www.SHOP.com", nil, 204, ""},
		{alice, "POST", "/v1/apps/shop/perms", `{"username":"bob"}`, 201, ""},
		{root, "DELETE", "/v1/apps/shop/perms/bob", nil, 204, ""},
		{alice, "POST", "/v1/apps/shop/releases/rollback", `{"version":2}`, 201, "*"},
		{root, "POST", "/v1/apps/shop", `{"owner":"root"}`, 200, ""},
	})
	log := root.want(200, "GET", "/v1/apps/shop/logs", nil)
	for _, want := range []string{
		"alice created initial release", "alice deployed abc1234",
		"alice added A and alice changed limits for memory and alice added tag rack",
		"alice scaled containers web=2", "alice runs 'ls -l'", "alice restarted containers",
		"domain WWW.shop.com added", "domain www.SHOP.com removed",
		"User bob was granted access to shop", "User bob was revoked access to shop", "alice rolled back to v2", "root transferred shop to root",
	} {
		if !strings.Contains(log, " shop[deis-controller]: "+want+"\n") {
			t.Errorf("no line %q in\n%s", want, log)
		}
	}
	if strings.Contains(log, "canary") {
		t.Error("a value is in the log")
	}
}
