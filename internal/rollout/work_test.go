package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/fake"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/routerconf"
)

// A newer push takes the place of one that waits, which hears of it at once; the others come in order.
func TestNewestPushWins(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		for _, name := range []string{"b2", "b3", "b4"} {
			w.addBuild(name, map[string]string{"web": "serve"})
		}
		webApp(w)
		open := time.Now().Add(time.Minute)
		w.engine.SetProbe(func(engine.Instance, engine.Check) error {
			if time.Now().Before(open) {
				return errors.New("not yet")
			}
			return nil
		})
		type end struct {
			who     string
			version int
			err     error
			after   time.Duration
		}
		began := time.Now()
		ends := make(chan end, 10)
		do := func(who string, req Request) {
			go func() {
				req.App, req.Owner = paas.App{UUID: uuid}, who
				_, release, err := w.m.Do(t.Context(), req)
				ends <- end{who, release.Version, err, time.Since(began).Round(time.Second)}
			}()
			time.Sleep(time.Second)
		}
		do("alice", Request{Kind: paas.RolloutDeploy, Build: "b1"})
		do("bob", Request{Kind: paas.RolloutDeploy, Build: "b2"})
		do("carol", Request{Kind: paas.RolloutRestart})
		do("dan", Request{Kind: paas.RolloutDeploy, Build: "b3"})
		if e := <-ends; e.who != "bob" || paas.CodeOf(e.err) != paas.Conflict || e.after != 3*time.Second ||
			userText(e.err) != "superseded by a newer push of dan (abc)" {
			t.Errorf("the first that waited: %+v", e)
		}
		if e := <-ends; e.who != "carol" || paas.CodeOf(e.err) != paas.Conflict || e.after != 7*time.Second {
			t.Errorf("a restart waits for 5 s: %+v", e)
		}
		time.Sleep(50 * time.Second)
		do("erin", Request{Kind: paas.RolloutScale, Formation: map[string]int{"web": 2}})
		do("frank", Request{Kind: paas.RolloutDeploy, Build: "b4"})
		if e := <-ends; e.who != "dan" || userText(e.err) != "superseded by a newer push of frank (abc)" {
			t.Errorf("the second that waited: %+v", e)
		}
		versions := map[string]int{}
		for range 3 {
			e := <-ends
			if e.err != nil || e.after != time.Minute {
				t.Errorf("%+v, want it after a minute", e)
			}
			versions[e.who] = e.version
		}
		if want := map[string]int{"alice": 3, "erin": 3, "frank": 4}; !maps.Equal(versions, want) {
			t.Errorf("versions %v, want %v", versions, want)
		}
		if latest := w.store.releases[uuid]; latest[len(latest)-1].Build != "b4" {
			t.Errorf("the last release is %+v", latest[len(latest)-1])
		}
		synctest.Wait()
		w.m.mu.Lock()
		if len(w.m.apps[uuid].queue) != 0 || w.m.apps[uuid].busy {
			t.Error("the turn was not given back")
		}
		w.m.mu.Unlock()
	})
}

// Who gives up waiting leaves the queue in order.
func TestLeaveTheQueue(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		a := w.m.appOf(uuid)
		first := w.m.enqueue(a, paas.Rollout{Kind: paas.RolloutScale}, "")
		second := w.m.enqueue(a, paas.Rollout{Kind: paas.RolloutScale}, "")
		third := w.m.enqueue(a, paas.Rollout{Kind: paas.RolloutScale, Owner: "carol"}, "")
		<-first.ready
		w.m.leave(a, second)
		w.m.endTurn(a)
		<-third.ready
		if w.m.busy(a) != "a scale change by carol is under way." {
			t.Error(w.m.busy(a))
		}
		w.m.leave(a, third) // as when the turn came at the moment of leaving
		w.deploy("b1")
	})
}

// In batches, the order is: some new ones up, switch, the old ones in their place drain and go.
func TestBatches(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addConfig("c2", paas.Config{Memory: map[string]string{"web": "100M"}})
		webApp(w).scale(map[string]int{"web": 3, "worker": 1})
		w.set(func() { w.drain, w.least = 2*time.Second, 3 })
		w.engine.SetRoom(engine.Room{Total: 1000 << 20, Available: 270 << 20}) // of which 50 are reserved
		w.history()
		var said []string
		_, _, err := w.do(Request{Kind: paas.RolloutConfig, Config: "c2", Progress: func(s string) { said = append(said, s) }})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.want("said", said, []string{"Starting web=2", "Starting web=1", "Starting worker=1"})
		var events []string
		for _, e := range w.history() {
			if strings.HasPrefix(e, "apply") || strings.HasPrefix(e, "remove") || strings.HasPrefix(e, "targets") {
				events = append(events, e)
			}
		}
		slices.Sort(events[2:4]) // two sets go at the same time
		w.want("events", events, []string{
			"apply web@3 [1 2]", "targets 3", "apply web@2 [3]", "remove web@1",
			"apply web@3 [1 2 3]", "targets 3", "remove web@2",
			"apply worker@3 [1]", "remove worker@2",
		})
		w.want("instances", w.list(), []string{"web.1@3 up", "web.2@3 up", "web.3@3 up", "worker.1@3 up"})
		w.check(crashCase{web: 3})

		// What replaces nothing does not wait for room.
		w.history()
		w.scale(map[string]int{"web": 6})
		w.want("scale", w.history(), []string{"apply web@4 [4 5 6]", "targets 6"})
	})
}

func TestEstimates(t *testing.T) {
	w := &work{in: inputs{config: paas.Config{Memory: map[string]string{"web": "100M"}}}}
	room := engine.Room{Use: map[string]int64{"web": 1 << 30, "worker": 80 << 20}}
	for processType, want := range map[string]int64{"web": 100 << 20, "worker": 100 << 20, "clock": assumedMemory} {
		if got := w.estimate(paas.Set{Type: processType}, room); got != want {
			t.Errorf("%s: %d bytes, want %d", processType, got, want)
		}
	}
	todo := []paas.Set{{Type: "web", Nums: []int{1, 2, 3}}, {Type: "worker", Nums: []int{1, 2}}}
	each := func(paas.Set) int64 { return 10 }
	for free, want := range map[int64]string{-5: "web=1", 0: "web=1", 19: "web=1", 20: "web=2", 35: "web=3", 45: "web=3 worker=1", 50: "web=3 worker=2"} {
		if batch, need := fit(todo, free, each); counts(batch) != want || need != int64(10*total(batch)) {
			t.Errorf("%d bytes free: %s with %d bytes, want %s", free, counts(batch), need, want)
		}
	}
}

// Two apps do not count on the same memory.
func TestBatchesOfTwoApps(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w).scale(map[string]int{"web": 2})
		w.engine.SetRoom(engine.Room{Total: 1000 << 20, Available: (50 + 2*256) << 20})
		w.m.mu.Lock()
		w.m.claimed = 256 << 20 // another app's
		w.m.mu.Unlock()
		var said []string
		_, _, err := w.do(Request{Kind: paas.RolloutConfig, Progress: func(s string) { said = append(said, s) }})
		if err != nil {
			t.Fatal(err)
		}
		w.want("said", said, []string{"Starting web=1", "Starting web=1"})
	})
}

// A failure in a later batch brings back what the earlier ones replaced, while these serve.
func TestBatchFails(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w).scale(map[string]int{"web": 3})
		scarce(w)
		illFrom(w, "web", 3)
		w.set(func() { w.drain, w.least = 2*time.Second, 3 })
		before := w.list()
		_, _, err := w.do(Request{Kind: paas.RolloutConfig})
		w.wantFailure(err, msgHealth, "web.3: not healthy", "it is ill")
		time.Sleep(time.Minute)
		w.want("instances", w.list(), before)
		w.want("rows", w.rows(), before)
		w.check(crashCase{web: 3})
		if n := len(w.routed()); n != 3 {
			t.Errorf("in the end %d are routed", n)
		}
	})
}

// If the old ones do not come back either, the rollout fails all the same, and the reconciler goes on.
func TestBatchFailsForGood(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w).scale(map[string]int{"web": 3})
		scarce(w)
		var well atomic.Bool
		w.engine.SetProbe(func(i engine.Instance, _ engine.Check) error {
			if !well.Load() && (i.Version == 3 && i.Num == 2 || i.Version == 2 && i.Num == 1) {
				return errors.New("it is ill")
			}
			return nil
		})
		before := w.list()
		_, _, err := w.do(Request{Kind: paas.RolloutConfig})
		w.wantFailure(err, msgHealth, "web.2: not healthy")
		well.Store(true)
		time.Sleep(time.Minute)
		w.want("instances", w.list(), before)
		w.scale(map[string]int{"web": 1})
	})
}

// With stop-first, old workers are gone before new ones start, also when these fail; routed types roll.
func TestStopFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.addConfig("first", paas.Config{Values: map[string]string{paas.ConfigDeployStrategy: " stop-first "}})
		w.addConfig("bad", paas.Config{Values: map[string]string{paas.ConfigDeployStrategy: "blue-green"}})
		webApp(w).scale(map[string]int{"web": 1, "worker": 2})
		w.history()
		w.mustDo(Request{Kind: paas.RolloutConfig, Config: "first"})
		time.Sleep(time.Second)
		w.want("events", w.history(), []string{
			"apply web@3 [1]", "remove worker@2", "apply worker@3 [1 2]", "targets 1", "drain", "drained", "remove web@1",
		})
		w.mustDo(Request{Kind: paas.RolloutRestart, RestartType: "worker", RestartNum: 2})
		time.Sleep(time.Second)
		w.want("a restart of one leaves the other", w.history(), []string{"apply worker@3 [1]", "apply worker@4 [2]"})

		w.set(func() { w.met = nil })
		made := 0 // of v4; the second one ends
		w.engine.SetPrograms(func(p engine.Process) (fake.Program, error) {
			if p.Version == 4 && p.Command[len(p.Command)-1] == "work" {
				made++
			}
			return fake.Program{Ends: p.Version == 4 && made == 2, Code: 7}, nil
		})
		_, _, err := w.do(Request{Kind: paas.RolloutConfig, Config: "blog-c1"})
		w.wantFailure(err, "exit code 7")
		time.Sleep(time.Minute)
		w.set(func() { w.met, w.stopping = nil, 5*time.Second }) // blog-c1 says rolling
		made = 0
		w.mustDo(Request{Kind: paas.RolloutRestart, RestartType: "worker"})
		before := w.list()
		_, _, err = w.do(Request{Kind: paas.RolloutConfig, Config: "first"})
		w.wantFailure(err, "exit code 7")
		time.Sleep(time.Minute)
		w.want("instances", w.list(), before)
		w.check(crashCase{alone: true})
		_, _, err = w.do(Request{Kind: paas.RolloutConfig, Config: "bad"})
		if paas.CodeOf(err) != paas.Invalid || userText(err) != "DEIS_DEPLOY_STRATEGY must be rolling or stop-first" {
			t.Errorf("a bad strategy: %v", err)
		}
	})
}

// releaseApp has a release process that does what program says.
func releaseApp(w *world, program func(engine.Process) fake.Program) *world {
	webApp(w)
	w.addBuild("r", map[string]string{"web": "serve", "release": "migrate"})
	w.engine.SetPrograms(func(p engine.Process) (fake.Program, error) {
		if p.Command[len(p.Command)-1] == "migrate" {
			return program(p), nil
		}
		return fake.Program{}, nil
	})
	return w
}

func TestReleaseProcess(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var ran []string
		releaseApp(w, func(p engine.Process) fake.Program {
			ran = append(ran, fmt.Sprintf("%s %s memory %d", p.Env["DEIS_RELEASE"], p.Image, p.Memory))
			return fake.Program{Ends: true, Print: []fake.Line{{Text: "one s3cret"}, {Text: "two", Stderr: true}}}
		})
		w.addConfig("c2", paas.Config{
			Values: map[string]string{"TOKEN": "s3cret"}, Memory: map[string]string{"release": "1K"},
		})
		var said []string
		say := func(s string) { said = append(said, s) }
		w.history()
		w.mustDo(Request{Kind: paas.RolloutDeploy, Build: "r", Config: "c2", Progress: say})
		w.want("said", said, []string{"Running the release process", "  one [TOKEN]", "  two", "Starting web=1"})
		var logged []string
		_ = w.engine.Logs(w.Context(), uuid, engine.LogQuery{Lines: 10, Type: "release"}, func(l engine.LogLine) error {
			logged = append(logged, fmt.Sprintf("%s.%d %s", l.Type, l.Num, l.Text))
			return nil
		})
		w.want("logged", logged, []string{"release.1 one s3cret", "release.1 two"})
		w.mustDo(Request{Kind: paas.RolloutConfig, Config: "blog-c1"})
		w.mustDo(Request{Kind: paas.RolloutRollback, Build: "r", Config: "c2"})
		w.mustDo(Request{Kind: paas.RolloutRollback, Build: "b1", Config: "c2"}) // which has none
		w.mustDo(Request{Kind: paas.RolloutDeploy, Build: "r"})
		w.scale(map[string]int{"web": 2})
		w.mustDo(Request{Kind: paas.RolloutRestart})
		w.want("ran", ran, []string{
			"v3 image-r memory 1024", "v4 image-r memory 0", "v5 image-r memory 1024", "v7 image-r memory 1024",
		})
		for _, line := range w.list() {
			if strings.HasPrefix(line, "release") {
				t.Errorf("an instance %s", line)
			}
		}
		_, _, err := w.do(Request{Kind: paas.RolloutScale, Formation: map[string]int{"release": 1}})
		if paas.CodeOf(err) != paas.Invalid {
			t.Errorf("release was scaled: %v", err)
		}
	})
}

func TestReleaseProcessFails(t *testing.T) {
	lines := func(n int) (list []fake.Line) {
		for i := range n {
			list = append(list, fake.Line{Text: fmt.Sprintf("line %d s3cret", i+1)})
		}
		return list
	}
	tests := []struct {
		name    string
		program fake.Program
		texts   []string
		took    time.Duration
		said    int
	}{
		{"exit", fake.Program{Ends: true, Code: 3, Print: lines(22)}, []string{
			"aborting, the release process failed\nrelease: exited with code 3\nThe last lines that it wrote:\n  line 3 [TOKEN]\n  line 4",
		}, 0, 23},
		{"signal", fake.Program{Ends: true, Code: 137}, []string{"exited with code 137 (signal 9)\nIt wrote nothing."}, 0, 1},
		{"silence", fake.Program{}, []string{"it wrote nothing for 20m0s and was ended"}, releaseSilence, 40},
		{"much output", fake.Program{Ends: true, Code: 1, Print: lines(2000)}, []string{"line 2000"}, 0, 1002},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				releaseApp(w, func(engine.Process) fake.Program { return test.program })
				w.addConfig("c2", paas.Config{Values: map[string]string{"TOKEN": "s3cret"}})
				before := w.list()
				var said []string
				began := time.Now()
				_, _, err := w.do(Request{
					Kind: paas.RolloutDeploy, Build: "r", Config: "c2",
					Progress: func(s string) { said = append(said, s) },
				})
				w.wantFailure(err, test.texts...)
				if took := time.Since(began); took != test.took {
					t.Errorf("it took %s, want %s", took, test.took)
				}
				// The last word may fall together with the end.
				if len(said) < test.said || len(said) > test.said+1 || strings.Contains(strings.Join(said, "\n"), "s3cret") {
					t.Errorf("said %d lines, want %d: %q", len(said), test.said, said[:min(5, len(said))])
				}
				synctest.Wait()
				w.want("instances", w.list(), before)
				if n := len(w.store.releases[uuid]); n != 2 {
					t.Errorf("%d releases", n)
				}
			})
		})
	}
}

// Lines may come in pieces, and without an end.
func TestReleaseOutput(t *testing.T) {
	var said []string
	o := &releaseOutput{
		say: func(s string) { said = append(said, s) }, redact: func(s string) string { return s },
		silence: time.NewTimer(time.Hour),
	}
	for _, piece := range []string{"a", "b\r\nc\n\nd", strings.Repeat("x", 2*maxLine), "\ne\xff"} {
		if n, err := o.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
	}
	o.flush()
	long := "  d" + strings.Repeat("x", tailWidth-1) + "..."
	want := []string{"  ab", "  c", "  ", long, "  ", "  e?"}
	if !slices.Equal(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}
}

// An app that goes takes its release process with it.
func TestDestroyEndsReleaseProcess(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		ended := false
		releaseApp(w, func(engine.Process) fake.Program {
			return fake.Program{Run: func(ctx context.Context, _ engine.Job) (int, error) {
				<-ctx.Done()
				ended = true
				return 0, ctx.Err()
			}}
		})
		done := make(chan error, 1)
		go func() {
			_, _, err := w.do(Request{Kind: paas.RolloutDeploy, Build: "r"})
			done <- err
		}()
		time.Sleep(time.Second)
		if r := w.store.rollout(); r.State != paas.RolloutReleasing || r.Step != "running the release process" {
			t.Errorf("the journal has %s: %s", r.State, r.Step)
		}
		if err := w.m.Destroy(t.Context(), paas.App{UUID: uuid}); err != nil {
			t.Error(err)
		}
		if err := <-done; paas.CodeOf(err) != paas.Conflict || !ended {
			t.Errorf("the deploy: %v, ended %v", err, ended)
		}
	})
}

// identities is a router that checks at every change that each target is the running instance of that
// app that has this very address.
type identities struct {
	*world
	seen *[]string
}

func (r identities) SetTargets(app string, list []routerconf.Target) uint64 {
	instances, err := r.engine.Instances(context.Background(), "")
	if err != nil {
		r.Error(err)
	}
	for _, target := range list {
		i := slices.IndexFunc(instances, func(i engine.Instance) bool { return i.ID == target.ID })
		if i < 0 || instances[i].App != app || instances[i].Address != target.Address || instances[i].State != paas.StateUp {
			r.Errorf("app %s is routed to %+v", app, target)
		}
	}
	*r.seen = append(*r.seen, fmt.Sprintf("%s %d", app, len(list)))
	return r.world.SetTargets(app, list)
}

// After a reboot addresses belong to others; each app is found behind its own.
func TestRebootSwapsAddresses(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w)
		other := strings.Repeat("2", 8) + uuid[8:]
		w.addApp(other, "shop")
		w.store.set(func() {
			b := w.store.builds["b1"]
			b.App, b.UUID = other, "s1"
			w.store.builds["s1"] = b
		})
		if _, _, err := w.m.Do(t.Context(), Request{Kind: paas.RolloutDeploy, App: paas.App{UUID: other}, Build: "s1"}); err != nil {
			t.Fatal(err)
		}
		addresses := func() map[string]string {
			instances, _ := w.engine.Instances(t.Context(), "")
			m := map[string]string{}
			for _, i := range instances {
				m[i.App] = i.Address
			}
			return m
		}
		before := addresses()
		w.stop()
		w.engine = fake.New()
		// The other app comes up first, and has the address that was the first one's.
		if err := w.engine.Apply(t.Context(), engine.SetSpec{
			SetKey: engine.SetKey{App: other, Type: "web", Generation: 2}, Nums: []int{1},
		}); err != nil {
			t.Fatal(err)
		}
		var seen []string
		ctx, cancel := context.WithCancel(t.Context())
		m := New(Options{Store: w.store, Engine: spy{w.engine, w}, Router: identities{w, &seen}})
		ended := make(chan error, 1)
		go func() { ended <- m.Run(ctx) }()
		time.Sleep(time.Minute)
		cancel()
		<-ended
		after := addresses()
		if after[other] != before[uuid] {
			t.Errorf("the addresses did not change hands: %v, then %v; the test proves nothing", before, after)
		}
		if !slices.Contains(seen, uuid+" 1") || !slices.Contains(seen, other+" 1") {
			t.Errorf("routes %q", seen)
		}
	})
}

// The journal has all that undoing needs, and rows carry the engine's IDs.
func TestJournal(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		webApp(w).scale(map[string]int{"web": 2})
		var journal []string
		w.engine.SetProbe(func(engine.Instance, engine.Check) error {
			r := w.store.rollout()
			journal = append(journal, fmt.Sprintf("%s: %s, before %v", r.State, r.Step, byKey(r.Before)))
			return nil
		})
		w.mustDo(Request{Kind: paas.RolloutRestart, RestartNum: 2})
		time.Sleep(time.Second)
		want := fmt.Sprintf("starting: starting web=1, before %v", map[engine.SetKey][]int{
			{App: uuid, Type: "web", Generation: 1}: {1}, {App: uuid, Type: "web", Generation: 2}: {2},
		})
		if !slices.Equal(journal, []string{want}) {
			t.Errorf("journal %q, want %q", journal, want)
		}
		ids := map[string]string{}
		for _, row := range w.store.instances[uuid] {
			ids[fmt.Sprintf("%s.%d", row.Type, row.Num)] = row.Container
		}
		if !maps.Equal(ids, w.ids()) {
			t.Errorf("rows have %v, the engine %v", ids, w.ids())
		}
	})
}
