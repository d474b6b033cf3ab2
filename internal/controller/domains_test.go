package controller

import (
	"regexp"
	"strings"
	"testing"

	"github.com/deis/deis/internal/api"
)

func TestDomains(t *testing.T) {
	p := newPlatform(t)
	p.user("root")
	alice, bob := p.user("alice"), p.user("bob")
	alice.app("shop")
	bob.app("blog")
	for name, want := range map[string]string{
		"*.foo.test": "Adding a wildcard subdomain is currently not supported.", "domain1": "Hostname does not look valid.",
		"3333.com": "Hostname does not look valid.", "a.1": "Hostname does not look valid.", "x--y.com": "Hostname does not look valid.",
		"this_is_an.invalid.domain": "Hostname does not look valid.", "deis.example.test": "deis.example.test is a reserved name.",
		"shop.EXAMPLE.test.": "shop.example.test is a reserved name.", "example.test": "example.test is a reserved name.",
		strings.Repeat("a.", 128): "Hostname must be 255 characters or less.",
	} {
		bob.says(`{"domain":["`+want+`"]}`, 400, "POST", "/v1/apps/blog/domains", map[string]any{"domain": name})
	}
	for _, name := range []string{"domain", "3com.com", "a.b.example.test", "x.10.0.0.1.xip.io"} {
		alice.want(201, "POST", "/v1/apps/shop/domains", map[string]any{"domain": name})
	}
	var d api.Domain
	alice.json(&d, 201, "POST", "/v1/apps/shop/domains", `{"domain":"WWW.Shop.com."}`)
	if d.Domain != "WWW.Shop.com" || d.App != "shop" || d.Owner != "alice" {
		t.Errorf("domain = %+v", d)
	}
	bob.says(`{"domain":["This field must be unique."]}`, 400, "POST", "/v1/apps/blog/domains", `{"domain":"www.shop.com"}`)
	bob.want(404, "DELETE", "/v1/apps/blog/domains/www.shop.com", nil)
	alice.want(204, "DELETE", "/v1/apps/shop/domains/www.shop.com", nil)
	bob.want(201, "POST", "/v1/apps/blog/domains", `{"domain":"www.shop.com"}`)
}

// TestDomainRules is contract 5.9.
func TestDomainRules(t *testing.T) {
	p := newPlatform(t)
	alice, bob := p.user("alice"), p.user("bob")
	alice.app("shop")
	bob.app("blog")
	const path, invalid = "/v1/apps/shop/domains", `{"domain":["Hostname does not look valid."]}`
	label := strings.Repeat("a", 63)
	for name, want := range map[string]string{
		"":                       `{"domain":["This field may not be blank."]}`,
		strings.Repeat("a", 256): `{"domain":["Hostname must be 255 characters or less."]}`,
		"*.foo.com":              `{"domain":["Adding a wildcard subdomain is currently not supported."]}`,
		"*":                      `{"domain":["Adding a wildcard subdomain is currently not supported."]}`,
		"domain1":                invalid, "3333.com": invalid, "a.1": invalid, "x--y.com": invalid, "this_is_an.invalid.domain": invalid,
		"-a.com": invalid, "a-.com": invalid, "a..com": invalid, ".com": invalid, ".": invalid, "a.com..": invalid, "a b.com": invalid,
		"a.com\n": invalid, "xn--bcher-kva.ch": invalid, "bücher.ch": invalid, label + "a.com": invalid, "a.*.com": invalid, "www.foo.com/x": invalid,
		"a_b.1.2.3.4.xip.io": invalid, "-.xip.io": invalid,
		"deis.example.test": `{"domain":["deis.example.test is a reserved name."]}`,
		"blog.EXAMPLE.test": `{"domain":["blog.example.test is a reserved name."]}`,
		"example.test.":     `{"domain":["example.test is a reserved name."]}`,
	} {
		alice.says(want, 400, "POST", path, map[string]any{"domain": name})
	}
	for _, name := range []string{
		"test-domain.example.com", "django.paas-sandbox", "domain", "not.too.loooong", "3com.com", "w3.example.com", "MYDOMAIN.NET",
		"autotest.127.0.0.1.xip.io", label + ".com", "a.b.example.test",
	} {
		body := alice.want(201, "POST", path+"/", map[string]any{"domain": name})
		stamp := `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dUTC`
		if !regexpMatch(`^{"app":"shop","owner":"alice","domain":"`+regexp.QuoteMeta(name)+`","created":"`+stamp+`","updated":"`+stamp+`"}$`, body) {
			t.Errorf("%s = %s", name, body)
		}
		// A host is one in whatever spelling.
		bob.says(`{"domain":["This field must be unique."]}`, 400, "POST", "/v1/apps/blog/domains", map[string]any{"domain": strings.ToUpper(name) + "."})
		var l api.List[api.Domain]
		alice.json(&l, 200, "GET", path, nil)
		if l.Count != 1 || l.Results[0].Domain != name {
			t.Errorf("domains = %+v, want %s", l.Results, name)
		}
		p.rows([]row{
			{bob, "DELETE", "/v1/apps/blog/domains/" + name, nil, 404, notFound},
			{alice, "DELETE", path + "/" + name, nil, 204, ""},
			{alice, "DELETE", path + "/" + name + "/", nil, 404, notFound},
		})
	}
	p.rows([]row{
		{alice, "POST", path, `{}`, 400, `{"domain":["This field is required."]}`},
		{alice, "POST", path, `{"domain":null}`, 400, `{"domain":["This field may not be null."]}`},
	})
	for _, name := range []string{"b.com", "a.com", "c.com"} {
		alice.want(201, "POST", path, map[string]any{"domain": name})
	}
	var l api.List[api.Domain]
	if alice.json(&l, 200, "GET", path, nil); l.Results[0].Domain != "b.com" || l.Results[2].Domain != "c.com" {
		t.Errorf("in the order of insertion: %+v", l.Results)
	}
}
