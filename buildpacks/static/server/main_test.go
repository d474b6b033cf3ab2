package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// newTestSite serves a directory with these files; all have the same date, as in an image.
func newTestSite(t *testing.T, args ...string) (*site, string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"index.html": "home", "about.html": "about", "404.html": "lost", "docs/index.html": "docs", "docs/a.txt": "0123456789",
		"app.mjs": "1", "font.woff2": "x", "UPPER.CSS": "a{}", "noending": "plain text", ".env": "SECRET", ".git/config": "SECRET",
		".well-known/acme": "token", "empty/.keep": "",
	} {
		write(t, filepath.Join(dir, name), text)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "leak.txt")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("about.html", filepath.Join(dir, "link.html")); err != nil {
		t.Fatal(err)
	}
	s, err := newSite(append([]string{"-root", dir}, args...))
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	date := time.Date(1980, 1, 1, 0, 0, 1, 0, time.UTC)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, date, date); err != nil {
		t.Fatal(err)
	}
}

func request(s *site, method, target string, header ...string) *http.Response {
	r := httptest.NewRequest(method, "http://site.example/", nil)
	r.URL.Path, r.URL.RawQuery, _ = strings.Cut(target, "?")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestPaths(t *testing.T) {
	plain, _ := newTestSite(t)
	clean, _ := newTestSite(t, "-clean-urls")
	routed, _ := newTestSite(t, "-route", "/docs/*.old=docs/a.txt", "-route", "/**=/index.html", "-error-page", "none.html")
	for _, test := range []struct {
		site        *site
		target      string
		status      int
		body        string // or Location
		contentType string
	}{
		{plain, "/", 200, "home", "text/html; charset=utf-8"},
		{plain, "/index.html", 200, "home", "text/html; charset=utf-8"},
		{plain, "/docs/", 200, "docs", "text/html; charset=utf-8"},
		{plain, "/docs", 301, "./docs/", ""},
		{plain, "/docs?a=b", 301, "./docs/?a=b", ""},
		{plain, "/docs/a.txt", 200, "0123456789", "text/plain; charset=utf-8"},
		{plain, "/docs/a.txt/", 404, "lost", "text/html; charset=utf-8"},
		{plain, "/app.mjs", 200, "1", "text/javascript; charset=utf-8"},
		{plain, "/font.woff2", 200, "x", "font/woff2"},
		{plain, "/UPPER.CSS", 200, "a{}", "text/css; charset=utf-8"},
		{plain, "/noending", 200, "plain text", "text/plain; charset=utf-8"},
		{plain, "/link.html", 200, "about", "text/html; charset=utf-8"},
		{plain, "/about", 404, "lost", "text/html; charset=utf-8"},
		{plain, "/empty/", 404, "lost", ""},
		{plain, "/.env", 404, "lost", ""},
		{plain, "/.git/config", 404, "lost", ""},
		{plain, "/docs/../.env", 404, "lost", ""},
		{plain, "/../../etc/passwd", 404, "lost", ""},
		{plain, "/leak.txt", 404, "lost", ""},
		{plain, "/a\x00b", 404, "lost", ""},
		{plain, "//other.example/docs", 404, "lost", ""},
		{plain, "/.well-known/acme", 200, "token", ""},
		{clean, "/about", 200, "about", "text/html; charset=utf-8"},
		{clean, "/nothing", 404, "lost", ""},
		{routed, "/some/page", 200, "home", "text/html; charset=utf-8"},
		{routed, "/docs/x.old", 200, "0123456789", "text/plain; charset=utf-8"},
		{routed, "/.env", 404, "404 page not found\n", ""},
	} {
		r := request(test.site, "GET", test.target)
		got := body(t, r)
		if r.StatusCode == http.StatusMovedPermanently {
			got = r.Header.Get("Location")
		}
		if r.StatusCode != test.status || got != test.body {
			t.Errorf("%s: %d %q, want %d %q", test.target, r.StatusCode, got, test.status, test.body)
		}
		if test.contentType != "" && r.Header.Get("Content-Type") != test.contentType {
			t.Errorf("%s: type %q, want %q", test.target, r.Header.Get("Content-Type"), test.contentType)
		}
		if r.Header.Get("Last-Modified") != "" {
			t.Errorf("%s: has a date", test.target)
		}
	}
}

func TestRequests(t *testing.T) {
	s, dir := newTestSite(t)
	tag := request(s, "GET", "/docs/a.txt").Header.Get("ETag")
	for _, test := range []struct {
		name, method string
		header       []string
		status       int
		body         string
	}{
		{"head", "HEAD", nil, 200, ""},
		{"post", "POST", nil, 405, "method not allowed\n"},
		{"range", "GET", []string{"Range", "bytes=2-4"}, 206, "234"},
		{"suffix", "GET", []string{"Range", "bytes=-2"}, 206, "89"},
		{"beyond", "GET", []string{"Range", "bytes=99-"}, 416, "invalid range: failed to overlap\n"},
		{"same", "GET", []string{"If-None-Match", tag}, 304, ""},
		{"other", "GET", []string{"If-None-Match", `"x"`}, 200, "0123456789"},
		{"date", "GET", []string{"If-Modified-Since", "Tue, 01 Jan 2030 00:00:00 GMT"}, 200, "0123456789"},
		{"range of the same", "GET", []string{"Range", "bytes=0-0", "If-Range", tag}, 206, "0"},
		{"range of another", "GET", []string{"Range", "bytes=0-0", "If-Range", `"x"`}, 200, "0123456789"},
	} {
		r := request(s, test.method, "/docs/a.txt", test.header...)
		if got := body(t, r); r.StatusCode != test.status || got != test.body {
			t.Errorf("%s: %d %q, want %d %q", test.name, r.StatusCode, got, test.status, test.body)
		}
	}
	if r := request(s, "HEAD", "/docs/a.txt"); r.Header.Get("Content-Length") != "10" {
		t.Errorf("HEAD: length %q", r.Header.Get("Content-Length"))
	}

	// A release that changes a file but neither its size nor its date.
	write(t, filepath.Join(dir, "docs/a.txt"), "9876543210")
	next, err := newSite([]string{"-root", dir})
	if err != nil {
		t.Fatal(err)
	}
	if r := request(next, "GET", "/docs/a.txt", "If-None-Match", tag); r.StatusCode != http.StatusOK || body(t, r) != "9876543210" {
		t.Errorf("the browser would keep the old file: %d", r.StatusCode)
	}
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{{"-root", "/does/not/exist"}, {"-route", "nothing"}, {"-what"}} {
		if _, err := newSite(args); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}
