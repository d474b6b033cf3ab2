package controller

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/deis/deis/internal/api"
)

func TestRegisterAndLogin(t *testing.T) {
	p := newPlatform(t)
	anon := p.anonymous()
	var first, second api.User
	anon.json(&first, 201, "POST", "/v1/auth/register/", map[string]any{"username": "alice", "password": "secret-alice", "is_superuser": false})
	anon.json(&second, 201, "POST", "/v1/auth/register", map[string]any{"username": "bob", "password": "secret-bob", "is_superuser": true})
	if !first.IsSuperuser || !first.IsStaff || second.IsSuperuser {
		t.Errorf("superusers: first %v, second %v; want the first only", first.IsSuperuser, second.IsSuperuser)
	}
	for body, want := range map[string]string{
		`{}`:                                  `{"password":["This field is required."],"username":["This field is required."]}`,
		`{"username":"alice","password":"x"}`: `{"username":["This field must be unique."]}`,
		`{"username":"a b","password":""}`:    `{"password":["This field may not be blank."],"username":["Enter a valid username."]}`,
		`{"username":null,"password":"x"}`:    `{"username":["This field may not be null."]}`,
		`[1]`:                                 `{"non_field_errors":["Invalid data. Expected a dictionary, but got list."]}`,
	} {
		anon.says(want, 400, "POST", "/v1/auth/register", body)
	}
	alice := p.login("alice")
	again := p.login("alice")
	if alice.header.Get("Authorization") != again.header.Get("Authorization") {
		t.Error("the second login gave another token")
	}
	refused := `{"non_field_errors":["Unable to log in with provided credentials."]}`
	anon.says(refused, 400, "POST", "/v1/auth/login", `{"username":"alice","password":"wrong"}`)
	anon.says(refused, 400, "POST", "/v1/auth/login", `{"username":"nobody","password":"wrong"}`)
	form := &client{p, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}}
	form.want(200, "POST", "/v1/auth/login/", "username=bob&password=secret-bob")

	alice.want(200, "POST", "/v1/auth/tokens/", `{"username":"bob"}`)
	alice.want(200, "GET", "/v1/users", nil)
	var renewed struct{ Token string }
	alice.json(&renewed, 200, "POST", "/v1/auth/tokens", nil)
	alice.says(`{"detail":"Invalid token"}`, 401, "GET", "/v1/apps", nil)
	alice.header.Set("Authorization", "TOKEN "+renewed.Token)
	alice.says(`{}`, 200, "GET", "/v1/", nil)

	bob := p.login("bob")
	bob.says(`{"detail":"Current password does not match"}`, 400, "POST", "/v1/auth/passwd", `{"password":"x","new_password":"y"}`)
	bob.want(200, "POST", "/v1/auth/passwd", `{"password":"secret-bob","new_password":"y"}`)
	alice.want(200, "POST", "/v1/auth/passwd", `{"username":"bob","new_password":"secret-bob"}`)
	p.login("bob")
	bob.want(403, "POST", "/v1/auth/passwd", `{"username":"alice","new_password":"z","password":"z"}`)
}

func TestCancelKeepsOthersApps(t *testing.T) {
	p := newPlatform(t)
	root, alice, bob := p.user("root"), p.user("alice"), p.user("bob")
	alice.app("shop", "web")
	alice.want(201, "POST", "/v1/apps/shop/perms", `{"username":"bob"}`)
	bob.want(201, "POST", "/v1/apps/shop/config", `{"values":{"A":"1"}}`)
	bob.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"www.shop.com"}`)
	bob.want(403, "DELETE", "/v1/auth/cancel", `{"username":"alice"}`)
	bob.says("", 204, "DELETE", "/v1/auth/cancel", nil)
	bob.want(401, "GET", "/v1/apps", nil)
	var d api.List[api.Domain]
	alice.json(&d, 200, "GET", "/v1/apps/shop/domains", nil)
	var c api.Config
	alice.json(&c, 200, "GET", "/v1/apps/shop/config", nil)
	if d.Count != 1 || d.Results[0].Owner != "alice" || c.Values["A"] != "1" || len(alice.containers("shop")) != 1 {
		t.Errorf("after the cancellation: %+v %+v", d, c)
	}
	root.want(404, "DELETE", "/v1/auth/cancel", `{"username":"bob"}`)
	root.want(201, "POST", "/v1/admin/perms", `{"username":"alice"}`)
	alice.want(200, "GET", "/v1/admin/perms", nil)
	root.want(204, "DELETE", "/v1/admin/perms/alice", nil)
	alice.want(403, "GET", "/v1/admin/perms", nil)
}

// TestRegister is contract 3.1.
func TestRegister(t *testing.T) {
	p := newPlatform(t)
	anon := p.anonymous()
	body := anon.want(201, "POST", "/v1/auth/register/", `{"username":"Al.i-c+e@x","password":"pw","first_name":"Al","is_staff":false}`)
	if !regexpMatch(`^{"username":"Al\.i-c\+e@x","email":"","first_name":"Al","last_name":"","is_superuser":true,"is_staff":true,"is_active":true,`+
		`"groups":\[\],"user_permissions":\[\],"last_login":"`+userStamp+`","date_joined":"`+userStamp+`"}$`, body) {
		t.Errorf("register answers %s", body)
	}
	name := func(n int) string { return strings.Repeat("x", n) }
	register := func(fields string) (string, string, string) {
		return "POST", "/v1/auth/register", `{"password":"pw",` + fields + `}`
	}
	for fields, want := range map[string]string{
		`"username":"` + name(31) + `"`:                  `{"username":["Ensure this field has no more than 30 characters."]}`,
		`"username":"!` + name(30) + `"`:                 `{"username":["Enter a valid username.","Ensure this field has no more than 30 characters."]}`,
		`"username":"über"`:                              `{"username":["Enter a valid username."]}`,
		`"username":"a\n"`:                               `{"username":["Enter a valid username."]}`,
		`"username":"Al.i-c+e@x"`:                        `{"username":["This field must be unique."]}`,
		`"username":""`:                                  `{"username":["This field may not be blank."]}`,
		`"username":"b","password":null`:                 `{"password":["This field may not be null."]}`,
		`"username":"b","email":"x"`:                     `{"email":["Enter a valid email address."]}`,
		`"username":"b","email":"a@b"`:                   `{"email":["Enter a valid email address."]}`,
		`"username":"b","email":"@` + name(75) + `"`:     `{"email":["Ensure this field has no more than 75 characters.","Enter a valid email address."]}`,
		`"username":"b","first_name":"` + name(31) + `"`: `{"first_name":["Ensure this field has no more than 30 characters."]}`,
		`"username":"b","last_name":"` + name(31) + `"`:  `{"last_name":["Ensure this field has no more than 30 characters."]}`,
		`"username":"b","email":["x"]`:                   `{"email":["Not a valid string."]}`,
		`"email":"x","first_name":null`:                  `{"email":["Enter a valid email address."],"first_name":["This field may not be null."],"username":["This field is required."]}`,
	} {
		method, path, body := register(fields)
		anon.says(want, 400, method, path, body)
	}
	bad := anon.with("Authorization", "token nonsense")
	p.rows([]row{
		{bad, "POST", "/v1/auth/register", `{"username":"al.i-c+e@x","password":"pw","email":"a@localhost"}`, 201, "*"}, // names have a case
		{anon, "POST", "/v1/auth/register", `{"username":` + `123` + `,"password":7}`, 201, "*"},
		{anon, "POST", "/v1/auth/login/", `{"username":"123","password":"7"}`, 200, "*"},
		{anon.with("Content-Type", "application/x-www-form-urlencoded"), "POST", "/v1/auth/register", "username=form&password=pw&email=", 201, "*"},
	})
}

const userStamp = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z`

// TestLogin is contract 3.2.
func TestLogin(t *testing.T) {
	p := newPlatform(t)
	p.user("root")
	anon := p.anonymous()
	body := anon.want(200, "POST", "/v1/auth/login/", `{"username":"root","password":"secret-root"}`)
	if !regexpMatch(`^{"token":"[0-9a-f]{40}"}$`, body) {
		t.Errorf("login answers %s", body)
	}
	form := anon.with("Content-Type", "application/x-www-form-urlencoded")
	refused := `{"non_field_errors":["Unable to log in with provided credentials."]}`
	p.rows([]row{
		{form, "POST", "/v1/auth/login/", "username=root&password=secret-root", 200, body},
		{anon, "POST", "/v1/auth/login", `{"username":"root","password":"secret-root"}`, 200, body},
		{anon.with("Authorization", "token nonsense"), "POST", "/v1/auth/login/", `{"username":"root","password":"secret-root"}`, 200, body},
		{anon, "POST", "/v1/auth/login/", nil, 400, `{"password":["This field is required."],"username":["This field is required."]}`},
		{anon, "POST", "/v1/auth/login/", `{"username":"root","password":""}`, 400, `{"password":["This field may not be blank."]}`},
		{anon, "POST", "/v1/auth/login/", `{"username":"Root","password":"secret-root"}`, 400, refused},
		{anon, "POST", "/v1/auth/login/", `{"username":"root","password":"secret-root "}`, 400, refused},
	})
}

// TestPasswords is contract 3.3.
func TestPasswords(t *testing.T) {
	p := newPlatform(t)
	root, bob := p.user("root"), p.user("bob")
	p.user("carol")
	const done, wrong = `{"status":"password set"}`, `{"detail":"Current password does not match"}`
	p.rows([]row{
		{bob, "POST", "/v1/auth/passwd", `{"password":"x","new_password":"y"}`, 400, wrong},
		{bob, "POST", "/v1/auth/passwd", `{"new_password":"y"}`, 400, `{"password":["This field is required."]}`},
		{bob, "POST", "/v1/auth/passwd", `{"password":"secret-bob"}`, 400, `{"new_password":["This field is required."]}`},
		{bob, "POST", "/v1/auth/passwd", `{"password":"secret-bob","new_password":""}`, 400, `{"new_password":["This field may not be blank."]}`},
		{bob, "POST", "/v1/auth/passwd", `{"username":"carol","password":"secret-carol","new_password":"y"}`, 403, forbidden},
		{bob, "POST", "/v1/auth/passwd", `{"username":"nobody","password":"secret-bob","new_password":"y"}`, 403, forbidden},
		{bob, "POST", "/v1/auth/passwd", `{"username":"bob","password":"secret-bob","new_password":"new"}`, 200, done},
		{bob, "GET", "/v1/", nil, 200, `{}`}, // the token stays
		{bob, "POST", "/v1/auth/passwd/", `{"password":"new","new_password":"secret-bob"}`, 200, done},
		{root, "POST", "/v1/auth/passwd", `{"username":"nobody","new_password":"y"}`, 404, notFound},
		{root, "POST", "/v1/auth/passwd", `{"username":"bob"}`, 400, `{"new_password":["This field is required."]}`},
		{root, "POST", "/v1/auth/passwd", `{"username":"bob","password":"secret-root","new_password":"y"}`, 400, wrong},
		{root, "POST", "/v1/auth/passwd", `{"username":"bob","password":"secret-bob","new_password":"y"}`, 200, done},
		{root, "POST", "/v1/auth/passwd", `{"username":"bob","new_password":"secret-bob"}`, 200, done},
		{root, "POST", "/v1/auth/passwd", `{"new_password":"secret-root"}`, 200, done},
		{root, "POST", "/v1/auth/passwd", `{"password":"x","new_password":"secret-root"}`, 400, wrong},
	})
	p.login("bob")
}

// TestTokens is contract 3.4.
func TestTokens(t *testing.T) {
	p := newPlatform(t)
	root, bob := p.user("root"), p.user("bob")
	p.rows([]row{
		{bob, "POST", "/v1/auth/tokens/", `{"username":"bob"}`, 403, forbidden},
		{bob, "POST", "/v1/auth/tokens/", `{"all":false}`, 403, forbidden},
		{root, "POST", "/v1/auth/tokens/", `{"username":"nobody"}`, 404, notFound},
		{bob, "GET", "/v1/", nil, 200, `{}`},
	})
	dead := func(c *client) row { return row{c, "GET", "/v1/", nil, 401, `{"detail":"Invalid token"}`} }
	var renewed struct{ Token string }
	root.json(&renewed, 200, "POST", "/v1/auth/tokens/", `{"username":"bob"}`)
	now := p.anonymous().with("Authorization", "token "+renewed.Token)
	p.rows([]row{dead(bob), {now, "GET", "/v1/", nil, 200, `{}`}})
	now.json(&renewed, 200, "POST", "/v1/auth/tokens", nil)
	again := p.login("bob")
	if again.header.Get("Authorization") != "token "+renewed.Token {
		t.Error("a login gives another token than the renewal")
	}
	p.rows([]row{
		dead(now),
		{root, "POST", "/v1/auth/tokens/", `{"all":false}`, 200, `""`}, // any value will do
		dead(root), dead(again),
	})
	p.login("root")
}

// TestCancel is contract 3.5.
func TestCancel(t *testing.T) {
	p := newPlatform(t)
	root, bob, carol := p.user("root"), p.user("bob"), p.user("carol")
	chain, key := certificate(t, "www.bob.com")
	public := sshKey(t)
	bob.want(201, "POST", "/v1/keys", map[string]any{"id": "laptop", "public": public})
	bob.want(201, "POST", "/v1/certs", map[string]any{"certificate": chain, "key": key})
	bob.app("blog")
	p.rows([]row{
		{bob, "DELETE", "/v1/auth/cancel", nil, 409, `{"detail":"bob still has applications assigned. Delete or transfer ownership"}`},
		{root, "DELETE", "/v1/auth/cancel", `{"username":"bob"}`, 409, `{"detail":"bob still has applications assigned. Delete or transfer ownership"}`},
		{carol, "DELETE", "/v1/auth/cancel", `{"username":"bob"}`, 403, forbidden},
		{carol, "DELETE", "/v1/auth/cancel", `{"username":"nobody"}`, 403, forbidden},
		{root, "DELETE", "/v1/auth/cancel", `{"username":"nobody"}`, 404, notFound},
		{bob, "DELETE", "/v1/apps/blog", nil, 204, ""},
		{root, "DELETE", "/v1/auth/cancel", `{"username":"bob"}`, 204, ""},
		{bob, "GET", "/v1/", nil, 401, `{"detail":"Invalid token"}`},
		{carol, "DELETE", "/v1/auth/cancel/", `{"username":"carol"}`, 204, ""},
		{p.builder(), "POST", "/v1/hooks/key", map[string]any{"key": public}, 404, notFound},
		{root, "POST", "/v1/keys", map[string]any{"id": "laptop", "public": public}, 201, "*"},
		{root, "POST", "/v1/certs", map[string]any{"certificate": chain, "key": key}, 201, "*"},
		{p.anonymous(), "POST", "/v1/auth/register", `{"username":"bob","password":"x"}`, 201, "*"},
	})
}

// TestUsersAndAdmins is contract 3.6 and 3.7.
func TestUsersAndAdmins(t *testing.T) {
	p := newPlatform(t)
	root, bob := p.user("root"), p.user("bob")
	var users api.List[api.User]
	root.json(&users, 200, "GET", "/v1/users/", nil)
	if users.Count != 2 || users.Results[0].Username != "root" || users.Results[1].Username != "bob" {
		t.Errorf("users = %+v", users)
	}
	admins := func(names ...string) string {
		for i, n := range names {
			names[i] = `{"username":"` + n + `","is_superuser":true}`
		}
		return fmt.Sprintf(`{"count":%d,"next":null,"previous":null,"results":[%s]}`, len(names), strings.Join(names, ","))
	}
	p.rows([]row{
		{root, "GET", "/v1/admin/perms", nil, 200, admins("root")},
		{root, "POST", "/v1/admin/perms", `{"username":"nobody"}`, 404, notFound},
		{root, "POST", "/v1/admin/perms", `{}`, 400, `{"username":["This field is required."]}`},
		{root, "POST", "/v1/admin/perms/", `{"username":"bob"}`, 201, ""},
		{root, "POST", "/v1/admin/perms", `{"username":"bob"}`, 201, ""},
		{bob, "GET", "/v1/admin/perms/", nil, 200, admins("root", "bob")},
		{bob, "DELETE", "/v1/admin/perms/nobody", nil, 404, notFound},
		{bob, "DELETE", "/v1/admin/perms/root", nil, 204, ""},
		{bob, "DELETE", "/v1/admin/perms/root/", nil, 204, ""},
		{root, "GET", "/v1/users", nil, 403, forbidden},
		{bob, "DELETE", "/v1/admin/perms/bob", nil, 204, ""},
		{bob, "GET", "/v1/users", nil, 403, forbidden},
	})
	// With no superuser left, the next to register is one.
	p.rows([]row{{p.user("carol"), "GET", "/v1/users", nil, 200, "*"}})
}
