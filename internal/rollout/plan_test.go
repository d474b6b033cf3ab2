package rollout

import (
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

func TestNextFormation(t *testing.T) {
	procfile := func(types ...string) paas.Build {
		b := paas.Build{UUID: "b", SHA: "abc", Procfile: map[string]string{}}
		for _, t := range types {
			b.Procfile[t] = "run"
		}
		return b
	}
	image := paas.Build{UUID: "b", Image: "example/app"}
	none := paas.Build{}
	type m = map[string]int
	tests := []struct {
		name           string
		structure      m
		previous, next paas.Build
		want           m
	}{
		{"no build yet", m{}, none, none, m{}},
		{"first, with web", m{}, none, procfile("web", "worker"), m{"web": 1}},
		{"first, without web", m{}, none, procfile("worker"), m{"cmd": 1}},
		{"first, no procfile", m{}, none, procfile(), m{"cmd": 1}},
		{"first, an image", m{}, none, image, m{"cmd": 1}},
		{"as before", m{"web": 3, "worker": 0}, procfile("web", "worker"), procfile("web", "worker"), m{"web": 3, "worker": 0}},
		{"scaled to nothing stays", m{"web": 0}, procfile("web"), procfile("web"), m{"web": 0}},
		{"scaled to nothing stays without the type", m{"web": 0}, procfile("web"), procfile("worker"), m{"web": 0}},
		{"a type went", m{"web": 1, "worker": 2}, procfile("web", "worker"), procfile("web"), m{"web": 1}},
		{"all types went", m{"web": 2}, procfile("web"), procfile(), m{"cmd": 1}},
		{"cmd stays", m{"cmd": 2}, procfile(), procfile("web"), m{"cmd": 2}},
		{"cmd of a procfile went", m{"cmd": 2}, procfile("cmd"), procfile("web"), m{"web": 1}},
		{"from git to an image", m{"web": 2}, procfile("web"), image, m{"cmd": 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := nextFormation(test.structure, test.previous, test.next); !maps.Equal(got, test.want) {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
}

func TestNumbers(t *testing.T) {
	tests := []struct {
		have  []int
		count int
		want  []int
	}{
		{nil, 0, []int{}},
		{nil, 3, []int{1, 2, 3}},
		{[]int{2, 1}, 4, []int{1, 2, 3, 4}},
		{[]int{3, 1, 2}, 1, []int{1}},
		{[]int{1, 5}, 3, []int{1, 5, 6}},
		{[]int{1, 2}, 2, []int{1, 2}},
	}
	for _, test := range tests {
		if got := numbers(test.have, test.count); !slices.Equal(got, test.want) {
			t.Errorf("numbers(%v, %d) = %v, want %v", test.have, test.count, got, test.want)
		}
	}
}

func TestPlan(t *testing.T) {
	set := func(processType string, generation int64, version int, nums ...int) paas.Set {
		return paas.Set{App: "a", Type: processType, Generation: generation, Version: version, Build: "b", Config: "c", Nums: nums}
	}
	live := []paas.Set{set("web", 3, 2, 1, 3), set("web", 5, 2, 2, 4), set("worker", 3, 2, 1)}
	type counts = map[string]int
	tests := []struct {
		name string
		r    paas.Rollout
		live []paas.Set
		want []paas.Set
	}{
		{
			"first deploy",
			paas.Rollout{Kind: paas.RolloutDeploy, Version: 2, Formation: counts{"web": 2, "worker": 0}},
			nil,
			[]paas.Set{set("web", 9, 2, 1, 2)},
		},
		{
			"deploy replaces all",
			paas.Rollout{Kind: paas.RolloutDeploy, Version: 3, Formation: counts{"web": 4, "worker": 1}},
			live,
			[]paas.Set{set("web", 9, 3, 1, 2, 3, 4), set("worker", 9, 3, 1)},
		},
		{
			"deploy drops a type",
			paas.Rollout{Kind: paas.RolloutRollback, Version: 3, Formation: counts{"web": 4}},
			live,
			[]paas.Set{set("web", 9, 3, 1, 2, 3, 4)},
		},
		{
			"grow",
			paas.Rollout{Kind: paas.RolloutScale, Version: 2, Formation: counts{"web": 6, "worker": 1}},
			live,
			[]paas.Set{set("web", 3, 2, 1, 3), set("web", 5, 2, 2, 4), set("web", 9, 2, 5, 6), set("worker", 3, 2, 1)},
		},
		{
			"shrink across generations",
			paas.Rollout{Kind: paas.RolloutScale, Version: 2, Formation: counts{"web": 2, "worker": 1}},
			live,
			[]paas.Set{set("web", 3, 2, 1), set("web", 5, 2, 2), set("worker", 3, 2, 1)},
		},
		{
			"shrink to nothing",
			paas.Rollout{Kind: paas.RolloutScale, Version: 2, Formation: counts{"web": 0, "worker": 1}},
			live,
			[]paas.Set{set("worker", 3, 2, 1)},
		},
		{
			"restart some",
			paas.Rollout{
				Kind: paas.RolloutRestart, Version: 2, Formation: counts{"web": 4, "worker": 1},
				Restart: map[string][]int{"web": {2, 3}},
			},
			live,
			[]paas.Set{set("web", 3, 2, 1), set("web", 5, 2, 4), set("web", 9, 2, 2, 3), set("worker", 3, 2, 1)},
		},
		{"restart what has gone", paas.Rollout{
			Kind: paas.RolloutRestart, Version: 2, Formation: counts{"web": 4, "worker": 1},
			Restart: map[string][]int{"web": {7}},
		}, live, live},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.r.ID, test.r.App, test.r.Build, test.r.Config = 9, "a", "b", "c"
			before := slices.Clone(test.live)
			if got := plan(test.r, test.live); !reflect.DeepEqual(got, test.want) {
				t.Errorf("\n got  %+v\n want %+v", got, test.want)
			}
			if !reflect.DeepEqual(test.live, before) {
				t.Errorf("plan changed the live sets: %+v", test.live)
			}
		})
	}
	if got := plan(paas.Rollout{ID: 9, App: "a", Kind: paas.RolloutConfig, Config: "c"}, nil); len(got) > 0 {
		t.Errorf("without a build: %+v", got)
	}
}

func TestRestartNums(t *testing.T) {
	live := []paas.Set{
		{Type: "web", Generation: 1, Nums: []int{1, 3}},
		{Type: "web", Generation: 2, Nums: []int{2}},
		{Type: "worker", Generation: 1, Nums: []int{1}},
	}
	type m = map[string][]int
	tests := []struct {
		processType string
		num         int
		want        m
	}{
		{"", 0, m{"web": {1, 2, 3}, "worker": {1}}},
		{"web", 0, m{"web": {1, 2, 3}}},
		{"web", 2, m{"web": {2}}},
		{"", 1, m{"web": {1}, "worker": {1}}},
		{"web", 7, m{}},
		{"cron", 0, m{}},
	}
	for _, test := range tests {
		if got := restartNums(live, test.processType, test.num); !reflect.DeepEqual(got, test.want) {
			t.Errorf("restart of %q %d: %v, want %v", test.processType, test.num, got, test.want)
		}
	}
}

func TestSpec(t *testing.T) {
	in := inputs{
		app:   paas.App{UUID: "u", ID: "blog"},
		build: paas.Build{Image: "i", Digest: "sha256:d", Procfile: map[string]string{"web": `serve "$PORT"`}},
		config: paas.Config{
			Values: map[string]string{"A": "b"}, Memory: map[string]string{"web": "512M"},
			CPU: map[string]int{"web": 300},
		},
	}
	got, err := in.spec(paas.Set{App: "u", Type: "web", Generation: 4, Version: 7, Nums: []int{1}})
	if err != nil {
		t.Fatal(err)
	}
	want := engine.SetSpec{SetKey: engine.SetKey{App: "u", Type: "web", Generation: 4}, Nums: []int{1}, Process: engine.Process{
		AppID: "blog", Version: 7, Image: "i", Digest: "sha256:d",
		Command: paas.ShellCommand(`serve "$PORT"`),
		Env:     map[string]string{"A": "b", "DEIS_APP": "blog", "DEIS_RELEASE": "v7"},
		Memory:  512 << 20, CPUShares: 300,
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got  %+v\n want %+v", got, want)
	}
	if len(in.config.Values) != 1 {
		t.Error("spec changed the config")
	}
	got, err = in.spec(paas.Set{App: "u", Type: "cmd", Generation: 4, Version: 7, Nums: []int{1}})
	if err != nil || got.Process.Command != nil || got.Process.Memory != 0 {
		t.Errorf("cmd: %+v, %v; want the image's own command without limits", got.Process, err)
	}
	in.config.Memory["web"] = "much"
	if _, err := in.spec(paas.Set{Type: "web"}); paas.CodeOf(err) != paas.Invalid {
		t.Errorf("a bad memory limit: %v", err)
	}
}

func TestHealthOf(t *testing.T) {
	type values = map[string]string
	second := time.Second
	tests := []struct {
		values values
		want   health
		fails  bool
	}{
		{nil, health{check: engine.Check{Timeout: second}}, false},
		{values{"HEALTHCHECK_URL": "/up"}, health{check: engine.Check{Path: "/up", Timeout: second}}, false},
		{
			values{"HEALTHCHECK_URL": "up", "HEALTHCHECK_TIMEOUT": "3", "HEALTHCHECK_INITIAL_DELAY": "1.5"},
			health{check: engine.Check{Path: "/up", Timeout: 3 * second}, delay: 3 * second / 2},
			false,
		},
		{values{"HEALTHCHECK_TIMEOUT": "soon"}, health{}, true},
		{values{"HEALTHCHECK_TIMEOUT": "-1"}, health{}, true},
		{values{"HEALTHCHECK_TIMEOUT": "NaN"}, health{}, true},
		{values{"HEALTHCHECK_INITIAL_DELAY": "1e9"}, health{}, true},
	}
	for _, test := range tests {
		got, err := healthOf(paas.Config{Values: test.values})
		if test.fails != (paas.CodeOf(err) == paas.Invalid) || (!test.fails && got != test.want) {
			t.Errorf("%v: %+v, %v; want %+v", test.values, got, err, test.want)
		}
	}
}

func TestRedactor(t *testing.T) {
	redact := redactor(paas.Config{Values: map[string]string{
		"PORT": "5000", "TOKEN": "s3cret", "URL": "db://u:s3cret@h", "DEBUG": "on", "KEY": "first line\nsecond line\n",
	}})
	tests := map[string]string{
		"listening on 5000":            "listening on 5000",
		"bad token s3cret":             "bad token [TOKEN]",
		"cannot reach db://u:s3cret@h": "cannot reach [URL]",
		"go on with second line":       "go on with [KEY]",
	}
	for in, want := range tests {
		if got := redact(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestCut(t *testing.T) {
	if got := cut("äääää", 5); got != "ää..." {
		t.Errorf("cut: %q", got)
	}
	if got := cut("abc", 5); got != "abc" {
		t.Errorf("cut: %q", got)
	}
}
