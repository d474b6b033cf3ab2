package controller

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
)

func FuzzParseKey(f *testing.F) {
	for _, s := range []string{
		"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@host\n",
		"ssh-rsa foo_bar", "junk AAAA", "ssh-rsa", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA==",
		"ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBA==",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		blob, fault := parseKey(line)
		if fault != "" {
			return
		}
		key, err := ssh.ParsePublicKey(blob)
		if err != nil || !strings.HasPrefix(strings.TrimSpace(line), key.Type()) {
			t.Errorf("%q passes: %v", line, err)
		}
		known, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil || len(rest) > 0 || string(known.Marshal()) != string(blob) {
			t.Errorf("sshd would read another key of %q: %v", line, err)
		}
	})
}

func FuzzRequestToken(f *testing.F) {
	for _, s := range []string{"", "token", "token abc", "TOKEN  abc\t", "token a b", "Bearer abc", "token\u00a0x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		token, err := requestToken(header)
		switch {
		case err != nil && paas.CodeOf(err) != paas.Unauthorized:
			t.Errorf("%q: %v", header, err)
		case err == nil && (len(strings.Fields(token)) != 1 || !strings.HasSuffix(strings.TrimSpace(header), token)):
			t.Errorf("%q has the token %q", header, token)
		}
	})
}

// Whatever the body, the form is an object or the caller's fault.
func FuzzForm(f *testing.F) {
	f.Add("application/json", `{"a":"1","values":"{\"A\":1}","n":[null,1.5,true]}`)
	f.Add("application/json; charset=utf-8", ``)
	f.Add("application/json", `[1] 2`)
	f.Add("application/x-www-form-urlencoded", "a=1&a=2&values=%7B%7D&n")
	f.Add("multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--x--\r\n")
	f.Add("multipart/form-data", "--")
	f.Add("text/plain", "a")
	f.Fuzz(func(t *testing.T, kind, body string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body))
		r.Header.Set("Content-Type", kind)
		form, err := (&call{r: r, ctx: t.Context()}).form()
		if err == nil {
			for _, name := range []string{"a", "values", "n", "missing"} {
				form.required(name, atMost(3))
				form.filled(name)
				form.object(name)
				form.texts(name)
			}
			err = form.err()
		}
		if _, unsupported := err.(*statusError); err != nil && !unsupported && api.StatusOf(err) >= 500 {
			t.Errorf("%s %q: %v", kind, body, err)
		}
	})
}

func FuzzPage(f *testing.F) {
	for _, q := range []string{"", "page=2&page_size=1", "page=last", "page_size=0", "page=-1", "page=9223372036854775808", "page=%zz&x;y", "page_size=9223372036854775807&page=3"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		c := &call{r: &http.Request{Host: "deis.example.test", URL: &url.URL{Path: "/v1/apps", RawQuery: query}}}
		p, err := c.page()
		switch {
		case err != nil && paas.CodeOf(err) != paas.NotFound:
			t.Errorf("%q: %v", query, err)
		case err == nil && (p.Size < 1 || p.Number < 0):
			t.Errorf("%q is page %+v", query, p)
		}
		link, err := url.Parse(*c.pageLink(7))
		if err != nil || link.Query().Get("page") != "7" || link.Host != c.r.Host {
			t.Errorf("%q leads to %v, %v", query, link, err)
		}
	})
}
