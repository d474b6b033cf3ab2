package fake_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/enginetest"
	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/paas"
)

func TestConformance(t *testing.T) {
	fix := enginetest.Fixture{
		Image: "app", MissingImage: "missing",
		Serve: []string{"serve"}, Lines: []string{"lines"}, Crash: []string{"crash"},
		Short: []string{"short"}, Job: []string{"job"}, Sleep: []string{"sleep"}, Terminal: []string{"terminal"},
		Wait: 5 * time.Second,
	}
	enginetest.Run(t, func(*testing.T) engine.Engine {
		e := fake.New()
		e.SetPrograms(program)
		e.SetProbe(probe)
		e.SetFetch(func(p engine.Process, _ func(string)) (string, error) {
			_, err := program(engine.Process{Image: p.Image, Command: []string{"sleep"}})
			return "sha256:" + strings.Repeat("0", 64), err
		})
		return e
	}, fix)
}

// program is what the fixture's commands do.
func program(p engine.Process) (fake.Program, error) {
	if p.Image == "missing" {
		return fake.Program{}, paas.Errorf(paas.Unavailable, "image missing is not there")
	}
	greeting := fake.Line{Text: p.Env["GREETING"]}
	oops := fake.Line{Text: "oops", Stderr: true}
	switch p.Command[0] {
	case "lines":
		var out []fake.Line
		for n := range 50 {
			out = append(out, fake.Line{Text: fmt.Sprintf("line %d", n+1)})
		}
		return fake.Program{Print: append(out, greeting, oops)}, nil
	case "crash":
		return fake.Program{Print: []fake.Line{{Text: "last words"}}, Ends: true, Code: 3}, nil
	case "short":
		return fake.Program{Ends: true, After: 500 * time.Millisecond}, nil
	case "sleep":
		return fake.Program{Deaf: true}, nil
	case "terminal":
		return fake.Program{Run: terminal}, nil
	case "job":
		return fake.Program{Print: []fake.Line{greeting, oops}, Ends: true, Code: 3}, nil
	}
	return fake.Program{}, nil
}

// terminal is Fixture.Terminal.
func terminal(ctx context.Context, job engine.Job) (int, error) {
	if job.Terminal == nil {
		return 5, nil
	}
	typed := make(chan string)
	go func() {
		for lines := bufio.NewScanner(job.Stdin); lines.Scan(); {
			typed <- lines.Text()
		}
	}()
	size := job.Terminal.Size
	for {
		select {
		case size = <-job.Terminal.Resize:
		case line := <-typed:
			if line == "end" {
				return 4, nil
			}
			fmt.Fprintf(job.Stdout, "%d %d\r\n", size.Rows, size.Columns)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func probe(_ engine.Instance, check engine.Check) error {
	if check.Path == "/missing" {
		return fmt.Errorf("GET /missing answered 404, expected 200")
	}
	return nil
}

func up(t *testing.T, e *fake.Engine) (list []engine.Instance) {
	t.Helper()
	all, err := e.Instances(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, inst := range all {
		if inst.State == paas.StateUp {
			list = append(list, inst)
		}
	}
	return list
}

var web = engine.SetSpec{
	SetKey: engine.SetKey{App: "u1", Type: "web", Generation: 1}, Nums: []int{1, 2},
	Process: engine.Process{AppID: "blog", Version: 2, Image: "blog:v2"},
}

func TestChaos(t *testing.T) {
	tests := []struct {
		name   string
		chaos  fake.Chaos
		apply  bool // whether Apply succeeds
		remove bool
		after  []paas.InstanceState
	}{
		{"none", fake.Chaos{}, true, true, nil},
		{"create", fake.Chaos{Create: 1}, false, true, nil},
		{"start", fake.Chaos{Start: 1}, true, true, nil},
		{"stop", fake.Chaos{Stop: 1}, true, true, nil},
		{"destroy", fake.Chaos{Destroy: 1}, true, false, []paas.InstanceState{paas.StateError, paas.StateError}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := fake.New()
			e.SetChaos(test.chaos)
			if err := e.Apply(t.Context(), web); (err == nil) != test.apply {
				t.Errorf("Apply: %v", err)
			}
			if err := e.Remove(t.Context(), web.SetKey); (err == nil) != test.remove {
				t.Errorf("Remove: %v", err)
			}
			var states []paas.InstanceState
			list, _ := e.Instances(t.Context(), "u1")
			for _, inst := range list {
				states = append(states, inst.State)
			}
			if !slices.Equal(states, test.after) {
				t.Errorf("left: %v, want %v", states, test.after)
			}
			e.SetChaos(fake.Chaos{})
			if err := e.Remove(t.Context(), web.SetKey); err != nil || len(up(t, e)) > 0 {
				t.Errorf("Remove once more: %v", err)
			}
		})
	}
}

// One that cannot be created does not keep the others from running.
func TestApplyInPart(t *testing.T) {
	e := fake.New()
	calls := 0
	e.SetPrograms(func(engine.Process) (fake.Program, error) {
		if calls++; calls == 2 {
			return fake.Program{}, paas.Errorf(paas.Unavailable, "no room")
		}
		return fake.Program{}, nil
	})
	spec := engine.SetSpec{SetKey: engine.SetKey{App: "a", Type: "web", Generation: 1}, Nums: []int{1, 2, 3}}
	nums := func() (up []int) {
		list, err := e.Instances(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		for _, inst := range list {
			up = append(up, inst.Num)
		}
		return up
	}
	if err := e.Apply(t.Context(), spec); paas.CodeOf(err) != paas.Unavailable {
		t.Errorf("error %v", err)
	}
	if got := nums(); !slices.Equal(got, []int{1, 3}) {
		t.Errorf("up are %v", got)
	}
	if err := e.Apply(t.Context(), spec); err != nil || !slices.Equal(nums(), []int{1, 2, 3}) {
		t.Errorf("then up are %v, %v", nums(), err)
	}
}

func TestExitAndWrite(t *testing.T) {
	e := fake.New()
	if err := e.Apply(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	id := up(t, e)[0].ID
	if !e.Write(id, "hello") || !e.Exit(id, "killed by signal 9") || e.Exit(id, "twice") || e.Write(id, "dead") {
		t.Error("Exit and Write must work on running instances and on no others")
	}
	list, _ := e.Instances(t.Context(), "u1")
	if list[0].State != paas.StateCrashed || list[0].Reason != "killed by signal 9" {
		t.Errorf("after Exit: %+v", list[0])
	}
	var texts []string
	e.Logs(t.Context(), "u1", engine.LogQuery{Lines: 9}, func(l engine.LogLine) error { texts = append(texts, l.Text); return nil })
	if !slices.Equal(texts, []string{"hello"}) {
		t.Errorf("logs %q", texts)
	}
}

func TestLogsAreBounded(t *testing.T) {
	e := fake.New()
	if err := e.Apply(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	id := up(t, e)[0].ID
	for n := range 1500 {
		e.Write(id, fmt.Sprint(n))
	}
	var texts []string
	e.Logs(t.Context(), "u1", engine.LogQuery{Lines: 5000}, func(l engine.LogLine) error { texts = append(texts, l.Text); return nil })
	if len(texts) != 1000 || texts[0] != "500" || texts[999] != "1499" {
		t.Errorf("%d lines from %s", len(texts), texts[0])
	}
}

func TestRunDescribesItsArguments(t *testing.T) {
	e := fake.New()
	var out bytes.Buffer
	job := engine.Job{App: "u1", Num: 4, Stdout: &out, Process: web.Process}
	job.Process.Command = []string{"/bin/bash", "-c", "echo 'hi'"}
	code, err := e.Run(t.Context(), job)
	if err != nil || code != 0 {
		t.Fatalf("Run: %d, %v", code, err)
	}
	var got map[string]string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"name": "blog_v2.run.4", "image": "blog:v2", "entrypoint": "/bin/bash", "command": `-c 'echo '\''hi'\'''`}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %q, want %q", k, got[k], v)
		}
	}
	e.SetChaos(fake.Chaos{Create: 1})
	if _, err := e.Run(t.Context(), job); err == nil || !strings.Contains(err.Error(), "exit code 1") {
		t.Errorf("with chaos: %v", err)
	}
}

func TestFollowGoesOnAfterForget(t *testing.T) {
	e := fake.New()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan string, 1)
	go e.Logs(ctx, "u1", engine.LogQuery{Lines: 9, Follow: true}, func(l engine.LogLine) error { seen <- l.Text; return nil })
	for range 2 {
		if err := e.Apply(ctx, web); err != nil {
			t.Fatal(err)
		}
		id := up(t, e)[0].ID
		got := ""
		for deadline := time.Now().Add(5 * time.Second); got == "" && time.Now().Before(deadline); {
			e.Write(id, "hello")
			select {
			case got = <-seen:
			case <-time.After(10 * time.Millisecond):
			}
		}
		if got != "hello" {
			t.Fatal("no line came")
		}
		if err := e.Forget(ctx, "u1"); err != nil {
			t.Fatal(err)
		}
	}
}
