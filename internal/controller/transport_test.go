package controller

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/deis/deis/internal/api"
)

// TestHeaders: the headers of contract 1, spelled as the original has them, on
// every kind of answer.
func TestHeaders(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	token := "Authorization: " + alice.header.Get("Authorization") + "\r\n"
	for _, c := range []struct {
		method, path, headers, status string
		want                          []string
	}{
		{"GET", "/healthz", "", "200 OK", []string{"Content-Type: text/plain"}},
		{"GET", "/v1/", "", "401 UNAUTHORIZED", []string{"WWW-Authenticate: Token\r\n", "Allow: GET, HEAD, OPTIONS\r\n", "Content-Type: application/json\r\n"}},
		{"GET", "/v1/", token, "200 OK", []string{"Allow: GET, HEAD, OPTIONS\r\n", "Content-Type: application/json\r\n"}},
		{"GET", "/v1/apps", token, "200 OK", []string{"Allow: GET, POST, HEAD, OPTIONS\r\n", "Content-Type: application/json\r\n"}},
		{"PUT", "/v1/apps", token, "405 METHOD NOT ALLOWED", []string{"Allow: GET, POST, HEAD, OPTIONS\r\n"}},
		{"GET", "/v1/apps/nope", token, "404 NOT FOUND", []string{"Allow: GET, POST, DELETE, HEAD, OPTIONS\r\n"}},
		{"GET", "/v1/users", "Authorization: token nonsense\r\n", "401 UNAUTHORIZED", []string{"WWW-Authenticate: Token\r\n"}},
		{"GET", "/nowhere", "", "404 NOT FOUND", []string{"Content-Type: text/html"}},
		{"GET", "/v1/apps", token + "DEIS_VERSION: 9\r\n", "405 METHOD NOT ALLOWED", []string{"Content-Type: application/json\r\n"}},
		{"OPTIONS", "/v1/apps", "Origin: http://a.test\r\nAccess-Control-Request-Method: POST\r\n", "200 OK", nil},
	} {
		got := p.raw(c.method, c.path, c.headers)
		head, _, _ := strings.Cut(got, "\r\n\r\n")
		want := append(c.want, "DEIS_API_VERSION: 1.7\r\n", "X_DEIS_API_VERSION: 1.7\r\n",
			"DEIS_PLATFORM_VERSION: 1.13.4\r\n", "X_DEIS_PLATFORM_VERSION: 1.13.4\r\n", "HTTP/1.1 "+c.status+"\r\n")
		for _, w := range want {
			if !strings.Contains(head+"\r\n", w) {
				t.Errorf("%s %s: no %q in\n%s", c.method, c.path, w, head)
			}
		}
		if strings.Contains(head, "\r\nLocation:") {
			t.Errorf("%s %s: Location is sent", c.method, c.path)
		}
	}
	created := p.raw("POST", "/v1/apps", token+"Content-Length: 0\r\n")
	if !strings.HasPrefix(created, "HTTP/1.1 201 CREATED\r\n") || strings.Contains(created, "Location:") {
		t.Errorf("creation is answered %s", created)
	}
}

// raw is an exchange of bytes with the controller.
func (p *platform) raw(method, path, headers string) string {
	p.t.Helper()
	return exchange(p.t, strings.TrimPrefix(p.url, "http://"), method+" "+path+" HTTP/1.1\r\nHost: deis.example.test\r\nConnection: close\r\n"+headers+"\r\n")
}

// TestClientVersions is the check of contract 1: before authentication, before
// routing.
func TestClientVersions(t *testing.T) {
	p := newPlatform(t)
	anon := p.anonymous()
	refused := `{"error":"Client and server versions do not match. Client version: 9 Server version: 1"}`
	p.rows([]row{
		{anon.with("DEIS_VERSION", "9"), "GET", "/v1/apps", nil, 405, refused},
		{anon.with("Deis-Version", "9"), "GET", "/nowhere", nil, 405, refused},
		{anon.with("DEIS_VERSION", "9"), "GET", "/healthz", nil, 405, refused},
		{anon.with("DEIS_VERSION", "1.13"), "GET", "/healthz", nil, 405, strings.Replace(refused, "9", "1.13", 1)},
		{anon.with("DEIS_VERSION", "1"), "GET", "/healthz", nil, 200, "OK"},
		{anon.with("X-Deis-Version", "9"), "GET", "/healthz", nil, 200, "OK"},
	})
}

// TestCredentials is the part of contract 2.3 about who asks.
func TestCredentials(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	hex := strings.TrimPrefix(alice.header.Get("Authorization"), "token ")
	as := func(header string) *client { return p.anonymous().with("Authorization", header) }
	p.rows([]row{
		{p.anonymous(), "GET", "/v1/", nil, 401, noCredentials},
		{as(""), "GET", "/v1/", nil, 401, noCredentials},
		{as("Bearer " + hex), "GET", "/v1/", nil, 401, noCredentials},
		{as("Basic " + hex), "GET", "/v1/", nil, 401, noCredentials},
		{as("token"), "GET", "/v1/", nil, 401, `{"detail":"Invalid token header. No credentials provided."}`},
		{as("token " + hex + " x"), "GET", "/v1/", nil, 401, `{"detail":"Invalid token header. Token string should not contain spaces."}`},
		{as("token 0123"), "GET", "/v1/", nil, 401, `{"detail":"Invalid token"}`},
		{as("token " + strings.ToUpper(hex)), "GET", "/v1/", nil, 401, `{"detail":"Invalid token"}`},
		{as("token " + hex), "GET", "/v1/", nil, 200, `{}`},
		{as("Token " + hex), "GET", "/v1/", nil, 200, `{}`},
		{as("TOKEN " + hex), "GET", "/v1/", nil, 200, `{}`},
	})
}

// TestPaths is contract 2.1.
func TestPaths(t *testing.T) {
	p := newPlatform(t)
	root := p.user("root")
	root.app("foo")
	root.want(201, "POST", "/v1/keys", map[string]any{"id": "a//b/../c", "public": sshKey(t)})
	missing := "<h1>Not Found</h1>"
	p.rows([]row{
		{root, "GET", "/v1", nil, 404, missing},
		{root, "GET", "/", nil, 404, missing},
		{root, "GET", "/healthz/", nil, 404, missing},
		{root, "GET", "/v1/appsfoo", nil, 404, missing},
		{root, "GET", "/v1/users/xyz", nil, 404, missing},
		{root, "GET", "/v1/apps/foo/nothing", nil, 404, missing},
		{root, "GET", "/v1//apps", nil, 404, missing},
		{root, "GET", "/v1/apps/../apps", nil, 404, missing},
		{root, "GET", "//v1/apps", nil, 404, missing},
		{root, "DELETE", "/v1/apps/foo_bar", nil, 404, notFound},
		{root, "GET", "/v1/apps/foo", nil, 200, "*"},
		{root, "GET", "/v1/apps/fo%6f", nil, 200, "*"},
		{root, "GET", "/v1/apps/foo%2Fconfig", nil, 404, notFound},
		{root, "GET", "/v1/hooks/key/", nil, 403, forbidden},
		{root, "GET", "/v1/keys/a//b/../c", nil, 200, "*"},
		{root, "GET", "/v1/keys/a//b/../c/", nil, 404, notFound},
		{root, "GET", "/v1/keys/a%2F%2Fb%2F..%2Fc", nil, 200, "*"},
		{root, "DELETE", "/v1/keys/a//b/../c", nil, 204, ""},
	})
	for _, e := range endpoints {
		if e.method != get || e.policy == daemons {
			continue
		}
		var seen []int
		for _, path := range bothSlashes(pathOf(e.path, "foo", "root")) {
			resp, _ := root.do(get, path, nil)
			seen = append(seen, resp.StatusCode)
		}
		if len(slices.Compact(seen)) != 1 {
			t.Errorf("%s: %v without and with a slash", e.path, seen)
		}
	}
}

// TestHeadAndOptions: HEAD is GET without a body, OPTIONS says what a path is
// for, and both are in Allow.
func TestHeadAndOptions(t *testing.T) {
	p := newPlatform(t)
	root := p.user("root")
	root.app("foo")
	for _, res := range resources() {
		who := root
		if res.gate == daemons {
			who = p.builder()
		}
		path := pathOf(res.path, "foo", "root")
		resp, body := who.do("OPTIONS", path, nil)
		var d description
		if err := json.Unmarshal([]byte(body), &d); err != nil || resp.StatusCode != 200 || d.Name == "" ||
			!slices.Equal(d.Renders, []string{"application/json"}) || len(d.Parses) != 3 || resp.Header.Get("Allow") != res.allow {
			t.Errorf("OPTIONS %s = %d %s, Allow %q", path, resp.StatusCode, body, resp.Header.Get("Allow"))
		}
		if strings.HasSuffix(path, "/hooks/routes") {
			continue // a stream has no end
		}
		e := res.methods[get]
		resp, body = who.do("HEAD", path, nil)
		want := 405
		if e != nil {
			again, _ := who.do("GET", path, nil)
			want = again.StatusCode
		}
		if resp.StatusCode != want || body != "" || strings.Contains(res.allow, "HEAD") != (e != nil) {
			t.Errorf("HEAD %s = %d %q, want %d; Allow %s", path, resp.StatusCode, body, want, res.allow)
		}
	}
}

// TestNegotiation: JSON is all that there is (contract 2.2).
func TestNegotiation(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("foo")
	list := `{"count":0,"next":null,"previous":null,"results":[]}`
	refused := `{"detail":"Could not satisfy the request Accept header"}`
	accept := func(values ...string) *client { return alice.with("Accept", values...) }
	var all []row
	for _, ok := range []string{"*/*", "application/json", "application/*", "text/html, */*;q=0.1", "APPLICATION/JSON; indent=4", "application/json;q=0.5"} {
		all = append(all, row{accept(ok), "GET", "/v1/keys", nil, 200, list})
	}
	all = append(all,
		row{accept("text/html", "application/json"), "GET", "/v1/keys", nil, 200, list},
		row{accept("text/html"), "GET", "/v1/keys", nil, 406, refused},
		row{accept("application/xml, text/*"), "PUT", "/v1/keys", nil, 406, refused},
		row{accept("application/xml"), "GET", "/v1/apps/nothing", nil, 406, refused},
		row{p.anonymous().with("Accept", "text/html"), "GET", "/v1/keys", nil, 401, noCredentials},
		row{alice, "GET", "/v1/keys?format=json", nil, 200, list},
		row{alice, "GET", "/v1/keys?format=xml", nil, 404, notFound},
		row{accept("text/html"), "GET", "/healthz", nil, 200, "OK"},
		row{accept("text/plain"), "GET", "/v1/apps/foo/logs", nil, 200, "*"},
		row{p.builder().with("Accept", "application/x-ndjson"), "POST", "/v1/hooks/access", `{}`, 406, refused},
	)
	p.rows(all)
}

// TestBodies is contract 2.2: what a request may hold.
func TestBodies(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	as := func(kind string) *client { return alice.with("Content-Type", kind) }
	multipart := "--x\r\nContent-Disposition: form-data; name=\"id\"\r\n\r\nparts\r\n--x--\r\n"
	app := func(id string) string { return `{"id":["` + id + ` is a reserved name."]}` }
	p.rows([]row{
		{as("text/plain"), "POST", "/v1/apps", "x", 415, `{"detail":"Unsupported media type 'text/plain' in request."}`},
		{as("text/plain; charset=x"), "POST", "/v1/apps", "x", 415, `{"detail":"Unsupported media type 'text/plain; charset=x' in request."}`},
		{as("text/plain"), "POST", "/v1/apps", nil, 201, "*"},
		{alice, "POST", "/v1/apps", nil, 201, "*"},
		{alice, "POST", "/v1/apps", `{}`, 201, "*"},
		{alice, "POST", "/v1/apps", " \n", 201, "*"},
		{as("Application/JSON; charset=utf-8"), "POST", "/v1/apps", `{"id":"deis"}`, 400, app("deis")},
		{alice, "POST", "/v1/apps", `{"id":"deis","owner":"bob","uuid":7,"nonsense":[]}`, 400, app("deis")},
		{alice, "POST", "/v1/apps", "{", 400, `{"detail":"JSON parse error - unexpected EOF"}`},
		{alice, "POST", "/v1/apps", "{} {}", 400, `{"detail":"JSON parse error - more than one value"}`},
		{alice, "POST", "/v1/apps", "[1]", 400, `{"non_field_errors":["Invalid data. Expected a dictionary, but got list."]}`},
		{alice, "POST", "/v1/apps", `"x"`, 400, `{"non_field_errors":["Invalid data. Expected a dictionary, but got unicode."]}`},
		{alice, "POST", "/v1/apps", `7`, 400, `{"non_field_errors":["Invalid data. Expected a dictionary, but got int."]}`},
		{alice, "POST", "/v1/apps", `null`, 400, `["This field may not be null."]`},
		{alice, "POST", "/v1/apps", `{"id":null}`, 400, `{"id":["This field may not be null."]}`},
		{as("application/x-www-form-urlencoded"), "POST", "/v1/apps", "id=first&id=deis", 400, app("deis")},
		{as("application/x-www-form-urlencoded"), "POST", "/v1/apps", "id=%zz", 400, `{"detail":"Form parse error"}`},
		{as("application/x-www-form-urlencoded"), "DELETE", "/v1/auth/cancel", "username=bob", 404, notFound},
		{as("multipart/form-data; boundary=x"), "POST", "/v1/apps", multipart, 201, "*"},
		{as("multipart/form-data"), "POST", "/v1/apps", multipart, 400, `{"detail":"Form parse error"}`},
		{alice, "GET", "/v1/apps/parts", `{`, 200, "*"},
		{alice, "POST", "/v1/apps", `{"id":"` + strings.Repeat("a", maxBody) + `"}`, 413, `{"detail":"The request is larger than 4194304 bytes."}`},
	})
	// Non-ASCII text stays as it is, and so does what HTML would escape.
	alice.want(201, "POST", "/v1/apps/parts/config", `{"values":{"WORLD":"<мир> & \u20ac"}}`)
	if body := alice.want(200, "GET", "/v1/apps/parts/config", nil); !strings.Contains(body, `"values":{"WORLD":"<мир> & €"}`) {
		t.Errorf("config = %s", body)
	}
}

// TestCrossOrigin is the part of contract 1 about browsers.
func TestCrossOrigin(t *testing.T) {
	p := newPlatform(t)
	browser := p.anonymous().with("Origin", "https://dash.test")
	for path, status := range map[string]int{"/healthz": 200, "/v1/apps": 401, "/nowhere": 404} {
		resp, _ := browser.do("GET", path, nil)
		want := map[string]string{
			"Access-Control-Allow-Origin": "*",
			"Access-Control-Expose-Headers": "DEIS_API_VERSION, DEIS_PLATFORM_VERSION, X_DEIS_API_VERSION, X_DEIS_PLATFORM_VERSION, " +
				"Deis-Release, X-Deis-Release",
			"Access-Control-Allow-Methods": "",
		}
		for name, value := range want {
			if got := resp.Header.Get(name); got != value || resp.StatusCode != status {
				t.Errorf("GET %s = %d, %s: %q, want %q", path, resp.StatusCode, name, got, value)
			}
		}
	}
	// Browsers ask first, without a token and with a body of no type.
	resp, body := browser.with("Access-Control-Request-Method", "DELETE").do("OPTIONS", "/v1/apps/shop", nil)
	if resp.StatusCode != 200 || body != "" || resp.Header.Get("Access-Control-Allow-Headers") != "content-type, accept, origin, Authorization, Host" ||
		resp.Header.Get("Access-Control-Allow-Methods") != "GET, POST, PUT, PATCH, DELETE, OPTIONS" {
		t.Errorf("preflight = %d %q %v", resp.StatusCode, body, resp.Header)
	}
	if resp, _ := p.anonymous().do("GET", "/healthz", nil); resp.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("who is no browser is told about origins")
	}
}

// TestPages is contract 2.4.
func TestPages(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	for i := range 5 {
		alice.app(fmt.Sprintf("app%d", i))
	}
	link := func(query string) string { return p.url + "/v1/apps?" + query }
	for _, c := range []struct{ query, next, previous, ids string }{
		{"", "", "", "app0 app1 app2 app3 app4"},
		{"page_size=2", link("page=2&page_size=2"), "", "app0 app1"},
		{"page_size=2&page=2", link("page=3&page_size=2"), link("page=1&page_size=2"), "app2 app3"},
		{"page_size=2&page=3", "", link("page=2&page_size=2"), "app4"},
		{"page_size=2&page=last", "", link("page=2&page_size=2"), "app4"},
		{"z=1&page_size=4&a=%26", link("a=%26&page=2&page_size=4&z=1"), "", "app0 app1 app2 app3"},
		{"page_size=0", "", "", "app0 app1 app2 app3 app4"},
		{"page_size=-1", "", "", "app0 app1 app2 app3 app4"},
		{"page_size=x", "", "", "app0 app1 app2 app3 app4"},
		{"page_size=9223372036854775807", "", "", "app0 app1 app2 app3 app4"},
		{"page=", "", "", "app0 app1 app2 app3 app4"},
		{"page=last", "", "", "app0 app1 app2 app3 app4"},
	} {
		var l api.List[api.App]
		alice.json(&l, 200, "GET", "/v1/apps?"+c.query, nil)
		var ids []string
		for _, a := range l.Results {
			ids = append(ids, a.ID)
		}
		text := func(s *string) string {
			if s == nil {
				return ""
			}
			return *s
		}
		if l.Count != 5 || text(l.Next) != c.next || text(l.Previous) != c.previous || strings.Join(ids, " ") != c.ids {
			t.Errorf("?%s = %d %v next %q previous %q", c.query, l.Count, ids, text(l.Next), text(l.Previous))
		}
	}
	for _, query := range []string{"page=2", "page=0", "page=-1", "page=x", "page=99999999999999999999", "page_size=2&page=4"} {
		alice.says(notFound, 404, "GET", "/v1/apps?"+query, nil)
	}
	var l api.List[api.App]
	alice.with("X-Forwarded-Proto", "https").json(&l, 200, "GET", "/v1/apps/?page_size=1", nil)
	if want := strings.Replace(p.url, "http://", "https://", 1) + "/v1/apps/?page=2&page_size=1"; *l.Next != want {
		t.Errorf("behind TLS next = %s, want %s", *l.Next, want)
	}
}

// TestPanic: a fault in a handler is a page and no broken connection, but an
// answer that has begun does not look whole.
func TestPanic(t *testing.T) {
	p := newPlatform(t)
	h := p.s.frame(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			fmt.Fprint(w, "half")
		}
		panic("a fault")
	}))
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	srv := server.URL
	resp, body := (&client{&platform{t: t, url: srv}, http.Header{}}).do("GET", "/early", nil)
	if resp.StatusCode != 500 || body != "<h1>Server Error (500)</h1>" || resp.Header.Get("DEIS_API_VERSION") != "1.7" {
		t.Errorf("a panic is answered %d %s", resp.StatusCode, body)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", srv+"/late", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.DefaultClient.Do(req); err == nil {
		t.Errorf("half an answer is taken for a whole one: %d", resp.StatusCode)
		resp.Body.Close()
	}
}
