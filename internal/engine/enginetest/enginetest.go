package enginetest

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// defaultWait is long enough for a container on a busy machine.
const defaultWait = time.Minute

// poll is the time between two looks at what must happen soon.
const poll = 10 * time.Millisecond

// Run tests an engine against the contract of engine.Engine. open is called once; the tests use
// apps of their own, in parallel, and leave nothing behind.
func Run(t *testing.T, open func(*testing.T) engine.Engine, fix Fixture) {
	fix.Wait = cmp.Or(fix.Wait, defaultWait)
	e := open(t)
	tests := []struct {
		name string
		run  func(*suite)
	}{
		{"Fetch", (*suite).fetch},
		{"ApplyStarts", (*suite).applyStarts},
		{"ApplyAgain", (*suite).applyAgain},
		{"ApplyConcurrently", (*suite).applyConcurrently},
		{"ApplyScales", (*suite).applyScales},
		{"ApplyReplacesEnded", (*suite).applyReplacesEnded},
		{"ApplyFails", (*suite).applyFails},
		{"ApplySeenFromOutside", (*suite).applySeenFromOutside},
		{"ApplyOutlivesContext", (*suite).applyOutlivesContext},
		{"Port", (*suite).port},
		{"InstancesOfApps", (*suite).instancesOfApps},
		{"Crash", (*suite).crash},
		{"Remove", (*suite).remove},
		{"RemoveAgainstApply", (*suite).removeAgainstApply},
		{"Forget", (*suite).forget},
		{"Watch", (*suite).watch},
		{"WatchEnds", (*suite).watchEnds},
		{"ProbeServing", (*suite).probeServing},
		{"ProbeNotListening", (*suite).probeNotListening},
		{"ProbeGone", (*suite).probeGone},
		{"Room", (*suite).room},
		{"Logs", (*suite).logs},
		{"LogsFollow", (*suite).logsFollow},
		{"RunJob", (*suite).runJob},
		{"RunCancelled", (*suite).runCancelled},
		{"RunFails", (*suite).runFails},
		{"RunLogged", (*suite).runLogged},
		{"RunStreams", (*suite).runStreams},
		{"RunStdinEnds", (*suite).runStdinEnds},
		{"RunTerminal", (*suite).runTerminal},
		{"RunTerminalCancelled", (*suite).runTerminalCancelled},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(newSuite(t, e, fix))
		})
	}
}

// suite is one test with an app of its own.
type suite struct {
	*testing.T
	engine.Engine
	fix Fixture
	app string
	ctx context.Context
}

func newSuite(t *testing.T, e engine.Engine, fix Fixture) *suite {
	s := &suite{T: t, Engine: e, fix: fix, ctx: t.Context()}
	s.app = s.newApp()
	return s
}

// newApp returns a UUID whose app is forgotten at the end of the test.
func (s *suite) newApp() string {
	b := make([]byte, 16)
	rand.Read(b)
	app := fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	s.Cleanup(func() {
		if err := s.Engine.Forget(context.WithoutCancel(s.ctx), app); err != nil {
			s.Errorf("Forget at the end: %v", err)
		}
		s.nothingLeft(app)
	})
	return app
}

func (s *suite) process(command []string) engine.Process {
	return engine.Process{
		AppID: "conform", Version: 7, Image: s.fix.Image, Digest: s.fix.Digest,
		Command: command, Env: map[string]string{"GREETING": "hello there"},
	}
}

// set is generation 1 of a type that runs a command in instances 1 to n.
func (s *suite) set(processType string, n int, command []string) engine.SetSpec {
	spec := engine.SetSpec{
		SetKey:  engine.SetKey{App: s.app, Type: processType, Generation: 1},
		Process: s.process(command),
	}
	for num := range n {
		spec.Nums = append(spec.Nums, num+1)
	}
	return spec
}

func (s *suite) apply(spec engine.SetSpec) {
	s.Helper()
	if err := s.Apply(s.ctx, spec); err != nil {
		s.Fatalf("Apply %s %v: %v", spec.Type, spec.Nums, err)
	}
}

func (s *suite) list(app string) []engine.Instance {
	s.Helper()
	list, err := s.Instances(s.ctx, app)
	if err != nil {
		s.Fatalf("Instances: %v", err)
	}
	return list
}

// only returns the app's single instance.
func (s *suite) only() engine.Instance {
	s.Helper()
	list := s.list(s.app)
	if len(list) != 1 {
		s.Fatalf("the app has %d instances, want 1: %+v", len(list), list)
	}
	return list[0]
}

func (s *suite) wantNums(want ...int) {
	s.Helper()
	var nums []int
	for _, inst := range s.list(s.app) {
		nums = append(nums, inst.Num)
	}
	if !slices.Equal(nums, want) {
		s.Errorf("instances %v, want %v", nums, want)
	}
}

// soon waits until ok, and fails the test if that takes too long.
func (s *suite) soon(what string, ok func() bool) {
	s.Helper()
	for deadline := time.Now().Add(s.fix.Wait); !ok(); time.Sleep(poll) {
		if time.Now().After(deadline) {
			s.Fatalf("not within %s: %s", s.fix.Wait, what)
		}
	}
}

// crashed waits until the app's single instance has crashed.
func (s *suite) crashed() engine.Instance {
	s.Helper()
	s.soon("the instance has crashed", func() bool { return s.only().State == paas.StateCrashed })
	return s.only()
}

func (s *suite) nothingLeft(app string) {
	s.Helper()
	list, err := s.Instances(context.WithoutCancel(s.ctx), app)
	if err != nil || len(list) > 0 {
		s.Errorf("left over: %+v (error %v)", list, err)
	}
	if s.fix.Leftovers == nil {
		return
	}
	if left := s.fix.Leftovers(app); len(left) > 0 {
		s.Errorf("left over outside the engine's view: %v", left)
	}
}

// ids returns the instances' IDs by number.
func ids(list []engine.Instance) map[int]string {
	m := make(map[int]string, len(list))
	for _, inst := range list {
		m[inst.Num] = inst.ID
	}
	return m
}
