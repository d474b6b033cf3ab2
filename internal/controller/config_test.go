package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/fake"
)

func TestConfigAndReleases(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	post := func(status int, body string) (c api.Config, header http.Header) {
		t.Helper()
		resp, text := alice.do("POST", "/v1/apps/shop/config", body)
		if resp.StatusCode != status {
			t.Fatalf("config %s = %d %s, want %d", body, resp.StatusCode, text, status)
		}
		if status == 201 {
			if err := json.Unmarshal([]byte(text), &c); err != nil {
				t.Fatal(err)
			}
		}
		return c, resp.Header
	}
	c, header := post(201, `{"values":"{\"PORT\": 5000, \"A\": true, \"B\": 1.5, \"C\": \"\"}"}`)
	if want := map[string]any{"PORT": "5000", "A": "True", "B": "1.5", "C": ""}; !reflect.DeepEqual(c.Values, want) {
		t.Errorf("values = %v, want %v", c.Values, want)
	}
	if header.Get("Deis-Release") != "2" || header.Get("X-Deis-Release") != "2" {
		t.Errorf("release headers = %q %q", header.Get("Deis-Release"), header.Get("X-Deis-Release"))
	}
	c, _ = post(201, `{"values":{"A":null,"NOT":null,"B":"2","D":"x"},"memory":{"web":"128M"},"cpu":{"web":"512"},"tags":{"rack":"x1"}}`)
	if want := map[string]any{"PORT": "5000", "B": "2", "C": "", "D": "x"}; !reflect.DeepEqual(c.Values, want) {
		t.Errorf("values = %v, want %v", c.Values, want)
	}
	if c.Memory["web"] != "128M" || c.CPU["web"] != 512.0 || c.Tags["rack"] != "x1" {
		t.Errorf("limits = %v %v %v", c.Memory, c.CPU, c.Tags)
	}
	post(400, `{"values":{"1A":"x"}}`)
	post(400, `{"values":{"A\n":"x"}}`)
	post(400, `{"values":["x"]}`)
	post(400, `{"memory":{"web":"1T"}}`)
	post(400, `{"cpu":{"web":"many"}}`)
	post(201, ``)

	alice.want(201, "POST", "/v1/apps/shop/builds", build("abc1234567", "web"))
	c, _ = post(201, `{"values":{"E":"1"}}`)
	if c.Values["DEIS_APP"] != "shop" || c.Values["DEIS_RELEASE"] != "v6" {
		t.Errorf("values after a build = %v", c.Values)
	}
	var summaries []string
	var l api.List[api.Release]
	alice.json(&l, 200, "GET", "/v1/apps/shop/releases", nil)
	for _, r := range l.Results {
		summaries = append(summaries, fmt.Sprintf("v%d %s", r.Version, r.Summary))
	}
	want := []string{
		"v6 alice added E", "v5 alice deployed abc1234", "v4 alice changed nothing",
		"v3 alice added D, changed B, deleted A and alice changed limits for memory, cpu and alice added tag rack",
		"v2 alice added A, B, C, PORT", "v1 alice created initial release",
	}
	if !slices.Equal(summaries, want) {
		t.Errorf("summaries = %q, want %q", summaries, want)
	}

	alice.want(404, "GET", "/v1/apps/shop/releases/6", nil)
	alice.want(404, "GET", "/v1/apps/shop/releases/v7", nil)
	alice.says(`{"version":7}`, 201, "POST", "/v1/apps/shop/releases/rollback", nil)
	alice.says(`{"version":8}`, 201, "POST", "/v1/apps/shop/releases/rollback", `{"version":"5"}`)
	alice.want(404, "POST", "/v1/apps/shop/releases/rollback", `{"version":99}`)
	alice.want(400, "POST", "/v1/apps/shop/releases/rollback", `{"version":"x"}`)
	alice.says(`{"detail":"version cannot be below 0"}`, 400, "POST", "/v1/apps/shop/releases/rollback", `{"version":-1}`)
	var r7 api.Release
	alice.json(&r7, 200, "GET", "/v1/apps/shop/releases/v7", nil)
	if r7.Summary != "alice rolled back to v5" || r7.Build == nil {
		t.Errorf("release of a rollback = %+v", r7)
	}
	// A change builds on what is live, not on what was given up.
	c, _ = post(201, `{"values":{"F":"1"}}`)
	if c.Values["E"] != nil || c.Values["F"] != "1" {
		t.Errorf("values after a rollback = %v", c.Values)
	}
}

func TestFailedRolloutTakesNoNumber(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	before := alice.containers("shop")
	p.engine.SetChaos(fake.Chaos{Create: 1})
	resp, body := alice.do("POST", "/v1/apps/shop/config", `{"values":{"CANARY":"hunter2"}}`)
	if resp.StatusCode != 503 || !strings.Contains(body, "aborting, failed to create some containers") || resp.Header.Get("Deis-Release") != "" {
		t.Fatalf("config change that fails = %d %s", resp.StatusCode, body)
	}
	alice.want(503, "POST", "/v1/apps/shop/builds", build("def", "web"))
	p.engine.SetChaos(fake.Chaos{})
	if after := alice.containers("shop"); !slices.Equal(before, after) {
		t.Errorf("containers = %q, before %q", after, before)
	}
	var l api.List[api.Release]
	alice.json(&l, 200, "GET", "/v1/apps/shop/releases", nil)
	if l.Count != 2 {
		t.Errorf("%d releases, want 2", l.Count)
	}
	resp, _ = alice.do("POST", "/v1/apps/shop/config", `{"values":{"A":"1"}}`)
	if got := resp.Header.Get("Deis-Release"); got != "3" {
		t.Errorf("next release = %q, want 3", got)
	}
}

// TestConfigRules is contract 5.2: what a change may hold and what becomes of it.
func TestConfigRules(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	const (
		path     = "/v1/apps/shop/config"
		badKey   = `{"values":["Config keys must start with a letter or underscore and only contain [A-z0-9_]"]}`
		badLimit = `{"memory":["Limit format: <number><unit>, where unit = B, K, M or G"]}`
		noInt    = `{"cpu":["CPU shares must be an integer"]}`
		range1   = `{"cpu":["CPU shares must be between 0 and 1024"]}`
	)
	refused := map[string]string{
		`{"values":{"1A":"x"}}`: badKey, `{"values":{"A-B":"x"}}`: badKey, `{"values":{"A\n":"x"}}`: badKey, `{"values":{"":"x"}}`: badKey,
		`{"values":{"Ä":"x"}}`:       badKey,
		`{"values":{"1A":null}}`:     badKey,
		`{"values":{"A":"x\u0000"}}`: `{"values":["Null characters are not allowed."]}`,
		`{"values":["x"]}`:           `{"values":["Expected a dictionary of items but got list."]}`,
		`{"values":"x"}`:             `{"values":["Expected a dictionary of items but got unicode."]}`,
		`{"values":"[1]"}`:           `{"values":["Expected a dictionary of items but got list."]}`,
		`{"values":7}`:               `{"values":["Expected a dictionary of items but got int."]}`,
		`{"values":null}`:            `{"values":["This field may not be null."]}`,
		`{"memory":{"Web":"1G"}}`:    `{"memory":["Process types can only contain [a-z]"]}`,
		`{"memory":{"web":"1T"}}`:    badLimit, `{"memory":{"web":"G"}}`: badLimit, `{"memory":{"web":"1.5G"}}`: badLimit,
		`{"memory":{"web":128}}`: badLimit, `{"memory":{"web":"-1M"}}`: badLimit, `{"memory":{"web":"1 M"}}`: badLimit,
		`{"cpu":{"1":"5"}}`:      `{"cpu":["Process types can only contain [a-z]"]}`,
		`{"cpu":{"web":"many"}}`: noInt, `{"cpu":{"web":-1}}`: noInt, `{"cpu":{"web":[]}}`: noInt, `{"cpu":{"web":"1.9"}}`: noInt,
		`{"cpu":{"web":1025}}`:                   range1,
		`{"tags":{"r-1":"x"}}`:                   `{"tags":["Tag keys can only contain [a-z]"]}`,
		`{"tags":{"rack":"a b"}}`:                `{"tags":["Invalid tag value"]}`,
		`{"tags":{"rack":""}}`:                   `{"tags":["Invalid tag value"]}`,
		`{"values":{"1":"x"},"tags":["x"]}`:      `{"tags":["Expected a dictionary of items but got list."]}`,
		`{"cpu":{"web":-1},"memory":{"W":1}}`:    `{"cpu":["CPU shares must be an integer"],"memory":["Process types can only contain [a-z]"]}`,
		`{"values":{"HEALTHCHECK_TIMEOUT":"x"}}`: `{"values":["HEALTHCHECK_TIMEOUT must be a number of seconds from 0 to 1200"]}`,
	}
	for body, want := range refused {
		alice.says(want, 400, "POST", path, body)
	}
	for _, c := range []struct{ body, values, memory, cpu, tags string }{
		{`{"values":{"a":1,"_B":1.5,"C9":true,"D":false,"E":"","F":"x\ny"}}`, `{"C9":"True","D":"False","E":"","F":"x\ny","_B":"1.5","a":"1"}`, `{}`, `{}`, `{}`},
		{`{"values":{"a":null,"_B":null,"C9":null,"D":null,"E":null,"F":null,"NOT":null}}`, `{}`, `{}`, `{}`, `{}`},
		{`{"values":"{\"A\": 5000}","memory":"{\"web\": \"1g\"}","cpu":"{\"web\": \"512\"}","tags":"{\"rack\": \"x_1\"}"}`, `{"A":"5000"}`, `{"web":"1g"}`, `{"web":512}`, `{"rack":"x_1"}`},
		{`{"memory":{"web1":"2KB","worker":"3B"},"cpu":{"web":1.9,"worker":true}}`, `{"A":"5000"}`, `{"web":"1g","web1":"2KB","worker":"3B"}`, `{"web":1,"worker":1}`, `{"rack":"x_1"}`},
		{`{"values":{"B":12345678901234567890,"N":{"x":[1]}}}`, `{"A":"5000","B":"12345678901234567890","N":"{\"x\":[1]}"}`, `{"web":"1g","web1":"2KB","worker":"3B"}`, `{"web":1,"worker":1}`, `{"rack":"x_1"}`},
		{`{"values":{"B":null,"N":null},"memory":{"web":null,"web1":null,"worker":null},"cpu":{"web":null,"worker":null},"tags":{"rack":null}}`, `{"A":"5000"}`, `{}`, `{}`, `{}`},
		{`{}`, `{"A":"5000"}`, `{}`, `{}`, `{}`},
		{``, `{"A":"5000"}`, `{}`, `{}`, `{}`},
	} {
		body := alice.want(201, "POST", path, c.body)
		want := `"values":` + c.values + `,"memory":` + c.memory + `,"cpu":` + c.cpu + `,"tags":` + c.tags + `,"created":`
		if !strings.Contains(body, want) || !regexpMatch(`^{"uuid":"`+uuidForm+`","app":"shop","owner":"alice",`, body) {
			t.Errorf("%s\nbecomes %s\nwant %s", c.body, body, want)
		}
		alice.says(body, 200, "GET", path+"/", nil)
	}
	form := alice.with("Content-Type", "application/x-www-form-urlencoded")
	if body := form.want(201, "POST", path, `values={"A":"form"}`); !strings.Contains(body, `"values":{"A":"form"}`) {
		t.Errorf("by a form: %s", body)
	}
}

// TestRollbacks is contract 5.4.
func TestRollbacks(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop")
	const path, below = "/v1/apps/shop/releases/rollback", `{"detail":"version cannot be below 0"}`
	p.rows([]row{
		{alice, "POST", path, nil, 400, below},
		{alice, "POST", path, `{"version":-1}`, 400, below},
		{alice, "POST", path, `{"version":1}`, 201, `{"version":2}`}, // the current one
		{alice, "POST", path, `{"version":99}`, 404, notFound},
		{alice, "POST", path, `{"version":"x"}`, 400, `{"version":["A valid integer is required."]}`},
		{alice, "POST", "/v1/apps/shop/builds", build("abc", "web"), 201, "*"},
		{alice, "POST", "/v1/apps/shop/config", `{"values":{"A":"1"}}`, 201, "*"},
		{alice, "POST", path, nil, 201, `{"version":5}`},
		{alice, "POST", path + "/", `{"version":"4"}`, 201, `{"version":6}`},
		{alice, "POST", path, `{"version":0}`, 201, `{"version":7}`},
		{alice, "POST", path, `{"version":null}`, 201, `{"version":8}`},
		{alice, "GET", "/v1/apps/shop/releases/7", nil, 404, notFound},
		{alice, "GET", "/v1/apps/shop/releases/v99", nil, 404, notFound},
		{alice, "POST", "/v1/apps/shop/releases", nil, 405, `{"detail":"Method 'POST' not allowed."}`},
		{alice, "DELETE", "/v1/apps/shop/releases/v1", nil, 405, `{"detail":"Method 'DELETE' not allowed."}`},
	})
	var five, three api.Release
	alice.json(&five, 200, "GET", "/v1/apps/shop/releases/v5/", nil)
	alice.json(&three, 200, "GET", "/v1/apps/shop/releases/v3", nil)
	if five.Summary != "alice rolled back to v3" || five.Config != three.Config || *five.Build != *three.Build || five.UUID == three.UUID {
		t.Errorf("v5 = %+v, v3 = %+v", five, three)
	}
	// One without a build runs nothing, and keeps the formation for the next.
	alice.says(`{"version":9}`, 201, "POST", path, `{"version":1}`)
	if got := alice.containers("shop"); len(got) != 0 {
		t.Errorf("without a build run %q", got)
	}
	p.engine.SetChaos(fake.Chaos{Create: 1})
	if body := alice.want(503, "POST", path, `{"version":5}`); !strings.HasPrefix(body, `{"detail":"aborting, failed to create some containers`) {
		t.Errorf("a rollback that fails is answered %s", body)
	}
	p.engine.SetChaos(fake.Chaos{})
	alice.says(`{"version":10}`, 201, "POST", path, `{"version":5}`)
	if got := alice.containers("shop"); !slices.Equal(got, []string{"web.1 v10 up"}) {
		t.Errorf("after all = %q", got)
	}
}

// TestChangesBehindARolloutOfAnEarlierController: what they build on is what that rollout leaves, and not what was there
// when they were asked for.
func TestChangesBehindARolloutOfAnEarlierController(t *testing.T) {
	for _, test := range []struct{ name, path, body, values string }{
		{"config", "/v1/apps/shop/config", `{"values":{"B":"2"}}`, `"values":{"A":"1","B":"2"}`},
		{"rollback", "/v1/apps/shop/releases/rollback", ``, `"values":{"FIRST":"1"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPlatform(t)
			alice := p.user("alice")
			alice.app("shop", "web")
			alice.want(201, "POST", "/v1/apps/shop/config", `{"values":{"FIRST":"1"}}`)
			eventually(t, "the former instance is gone", func() bool { return instances(t, p.engine) == 1 })
			stopping := p.s.stopping
			p.engine.SetProbe(func(engine.Instance, engine.Check) error {
				<-stopping
				return errors.New("not yet")
			})
			req, err := http.NewRequestWithContext(t.Context(), "POST", p.url+"/v1/apps/shop/config", strings.NewReader(`{"values":{"A":"1","FIRST":null}}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Header = alice.header.Clone()
			req.Header.Set("Content-Type", "application/json")
			cut := make(chan struct{})
			go func() {
				defer close(cut)
				if resp, err := http.DefaultClient.Do(req); err == nil { // what it hears of the stop does not matter
					resp.Body.Close()
				}
			}()
			eventually(t, "the rollout has started instances", func() bool { return instances(t, p.engine) == 2 })
			p.stop()
			<-cut
			healthy := make(chan struct{})
			heal := sync.OnceFunc(func() { close(healthy) })
			defer heal()
			p.engine.SetProbe(func(engine.Instance, engine.Check) error {
				<-healthy
				return nil
			})
			p.start()
			done := make(chan int, 1)
			go func() {
				resp, _ := alice.do("POST", test.path, test.body)
				done <- resp.StatusCode
			}()
			eventually(t, "the change waits", func() bool { return p.metric("deis_rollouts_waiting") == 1 })
			heal()
			if status := <-done; status != 201 {
				t.Errorf("the change = %d, want 201", status)
			}
			var l api.List[api.Release]
			alice.json(&l, 200, "GET", "/v1/apps/shop/releases", nil)
			if body := alice.want(200, "GET", "/v1/apps/shop/config", nil); l.Count != 5 || !strings.Contains(body, test.values) {
				t.Errorf("after %d releases the config is %s, want 5 and %s", l.Count, body, test.values)
			}
			if got := alice.containers("shop"); !slices.Equal(got, []string{"web.1 v5 up"}) {
				t.Errorf("containers = %q", got)
			}
		})
	}
}

// metric reads a gauge without labels of the controller that runs.
func (p *platform) metric(name string) float64 {
	p.t.Helper()
	families, err := p.s.cfg.Metrics.(prometheus.Gatherer).Gather()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	p.t.Fatalf("no metric %s", name)
	return 0
}

// TestConfigAfterAFailure: a change that did not go live is not in the next one
// (contract 18).
func TestConfigAfterAFailure(t *testing.T) {
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	p.engine.SetChaos(fake.Chaos{Create: 1})
	alice.want(503, "POST", "/v1/apps/shop/config", `{"values":{"GIVEN_UP":"1"}}`)
	p.engine.SetChaos(fake.Chaos{})
	body := alice.want(201, "POST", "/v1/apps/shop/config", `{"values":{"A":"1"}}`)
	if !strings.Contains(body, `"values":{"A":"1","DEIS_APP":"shop","DEIS_RELEASE":"v3"}`) {
		t.Errorf("config = %s", body)
	}
	if body := alice.want(200, "GET", "/v1/apps/shop/config", nil); !strings.Contains(body, `"values":{"A":"1"}`) {
		t.Errorf("config = %s", body)
	}
}
