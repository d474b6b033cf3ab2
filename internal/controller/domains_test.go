package controller

import (
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
