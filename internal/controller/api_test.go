package controller

import (
	"strings"
	"testing"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/fake"
)

func TestLogs(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	all, err := p.engine.Instances(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	p.engine.Write(all[0].ID, "hello from the app")
	alice.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"www.shop.com"}`)
	lines := strings.Split(strings.TrimSpace(alice.want(200, "GET", "/v1/apps/shop/logs?log_lines=2", nil)), "\n")
	if len(lines) != 2 || !regexpMatch(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dUTC shop\[web\.1\]: hello from the app$`, lines[0]) ||
		!strings.HasSuffix(lines[1], " shop[deis-controller]: domain www.shop.com added") {
		t.Errorf("logs = %q", lines)
	}
	all1 := alice.want(200, "GET", "/v1/apps/shop/logs/", nil)
	if !strings.Contains(all1, "[deis-controller]: alice deployed abc1234\n") {
		t.Errorf("logs = %s", all1)
	}
	alice.want(204, "GET", "/v1/apps/shop/logs?log_lines=0", nil)
	alice.want(204, "GET", "/v1/apps/shop/logs?log_lines=x", nil)
}

func TestRun(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	alice.says(`{"detail":"No build associated with this release to run this command"}`, 400, "POST", "/v1/apps/shop/run", `{"command":"ls"}`)
	alice.want(400, "POST", "/v1/apps/shop/run", `{}`)
	alice.want(201, "POST", "/v1/apps/shop/builds", build("abc", "web"))
	p.engine.SetPrograms(func(proc engine.Process) (fake.Program, error) {
		return fake.Program{Print: []fake.Line{{Text: proc.Command[3] + " " + proc.Env["DEIS_RELEASE"]}}, Ends: true, Code: 3}, nil
	})
	resp, body := alice.do("POST", "/v1/apps/shop/run", `{"command":"echo hi"}`)
	if body != `[3,"echo hi v2\n"]` || resp.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("run = %s %q", body, resp.Header.Get("Content-Type"))
	}
}
