package controller

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/api"
)

// following is a client that follows logs; lines is closed at the end.
type following struct {
	t     *testing.T
	body  io.Closer
	lines chan string
}

func (c *client) follow(query string) *following {
	c.p.t.Helper()
	req, err := http.NewRequestWithContext(c.p.t.Context(), http.MethodGet, c.p.url+"/v1/apps/shop/logs?follow=true"+query, nil)
	if err != nil {
		c.p.t.Fatal(err)
	}
	req.Header = c.header.Clone()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.p.t.Fatal(err)
	}
	c.p.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/plain" || resp.Header.Get(api.HeaderFollow) != "true" {
		c.p.t.Fatalf("following: %d %v", resp.StatusCode, resp.Header)
	}
	f := &following{t: c.p.t, body: resp.Body, lines: make(chan string, 1000)}
	go func() {
		defer close(f.lines)
		for s := bufio.NewScanner(resp.Body); s.Scan(); {
			_, text, _ := strings.Cut(s.Text(), " ")
			f.lines <- text
		}
	}()
	return f
}

// want waits for these lines, which come next.
func (f *following) want(lines ...string) {
	f.t.Helper()
	for _, want := range lines {
		select {
		case got, ok := <-f.lines:
			if !ok || got != want {
				f.t.Fatalf("line %q (%v), want %q", got, ok, want)
			}
		case <-time.After(patience):
			f.t.Fatalf("no line, want %q", want)
		}
	}
}

func (f *following) wantEnd() {
	f.t.Helper()
	for {
		select {
		case _, ok := <-f.lines:
			if !ok {
				return
			}
		case <-time.After(patience):
			f.t.Fatal("following goes on")
		}
	}
}

// write makes the app's only instance of web write a line.
func (p *platform) write(text string) {
	p.t.Helper()
	list, err := p.engine.Instances(p.t.Context(), "")
	if err != nil || len(list) != 1 || !p.engine.Write(list[0].ID, text) {
		p.t.Fatalf("cannot write: %v, %v", list, err)
	}
}

func TestFollowLogs(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	p.write("old")
	all, last, web := alice.follow(""), alice.follow("&log_lines=1"), alice.follow("&process=web&log_lines=5")
	none := alice.follow("&process=we")
	past := strings.Split(strings.TrimSpace(alice.want(200, "GET", "/v1/apps/shop/logs", nil)), "\n")
	for _, line := range past {
		_, text, _ := strings.Cut(line, " ")
		all.want(text)
	}
	last.want("shop[web.1]: old")
	web.want("shop[web.1]: old")

	p.write("new")
	all.want("shop[web.1]: new")
	last.want("shop[web.1]: new")
	web.want("shop[web.1]: new")
	alice.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"shop.example.com"}`)
	all.want("shop[deis-controller]: domain shop.example.com added")
	p.write("newer")
	all.want("shop[web.1]: newer")
	web.want("shop[web.1]: newer")

	// One that hangs up leaves nothing behind that the controller would wait for.
	last.body.Close()
	alice.want(204, "DELETE", "/v1/apps/shop", nil)
	all.wantEnd()
	web.wantEnd()
	if line, ok := <-none.lines; ok {
		t.Errorf("process=we gives %q", line)
	}
}

// TestFollowEndsWithPermission: who loses an app does not hear of it any more.
func TestFollowEndsWithPermission(t *testing.T) {
	p := newPlatform(t)
	alice, bob := p.user("alice"), p.user("bob")
	alice.app("shop", "web")
	alice.want(201, "POST", "/v1/apps/shop/perms", map[string]string{"username": "bob"})
	f := bob.follow("&log_lines=1")
	f.want("shop[deis-controller]: User bob was granted access to shop")
	alice.want(204, "DELETE", "/v1/apps/shop/perms/bob", nil)
	f.wantEnd()
}

func TestFollowEndsWithController(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	f := alice.follow("")
	p.stop()
	f.wantEnd()
}

func TestLogsSince(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	p.write("old")
	now := time.Now().UTC()
	alice.want(204, "GET", "/v1/apps/shop/logs?since="+now.Add(time.Minute).Format(api.TimeLayout), nil)
	all := alice.want(200, "GET", "/v1/apps/shop/logs", nil)
	alice.says(all, 200, "GET", "/v1/apps/shop/logs?since="+now.Add(-time.Minute).Format(api.TimeLayout), nil)
	alice.want(400, "GET", "/v1/apps/shop/logs?since=yesterday", nil)
	if got := alice.want(200, "GET", "/v1/apps/shop/logs?process=web.1&log_lines=1", nil); !strings.HasSuffix(got, "shop[web.1]: old\n") {
		t.Errorf("of web.1: %s", got)
	}
}
