package enginetest

import (
	"context"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// applyStarts: the instances exist and run when Apply returns, and say who they are.
func (s *suite) applyStarts() {
	before := time.Now()
	s.apply(s.set("web", 3, s.fix.Serve))
	list := s.list(s.app)
	s.wantNums(1, 2, 3)
	seen := map[string]bool{}
	for _, inst := range list {
		if inst.State != paas.StateUp || inst.Reason != "" {
			s.Errorf("instance %d is %s (%s), want up", inst.Num, inst.State, inst.Reason)
		}
		if inst.App != s.app || inst.Type != "web" || inst.Generation != 1 || inst.AppID != "conform" || inst.Version != 7 {
			s.Errorf("instance %d has another identity: %+v", inst.Num, inst)
		}
		if host, port, err := net.SplitHostPort(inst.Address); err != nil || host == "" || port == "" {
			s.Errorf("instance %d has address %q, want host:port", inst.Num, inst.Address)
		}
		// A clock of whole seconds is good enough.
		if inst.Started.Before(before.Add(-time.Second)) || inst.Started.After(time.Now().Add(time.Second)) {
			s.Errorf("instance %d started at %s, not now", inst.Num, inst.Started)
		}
		if inst.ID == "" || seen[inst.ID] || seen[inst.Address] {
			s.Errorf("instance %d shares its id or address with another: %+v", inst.Num, inst)
		}
		seen[inst.ID], seen[inst.Address] = true, true
	}
}

// applyAgain: repeating Apply changes nothing, also with other inputs.
func (s *suite) applyAgain() {
	spec := s.set("worker", 2, s.fix.Sleep)
	s.apply(spec)
	want := ids(s.list(s.app))
	s.apply(spec)
	spec.Process = s.process(s.fix.Lines)
	spec.Process.Version = 8
	s.apply(spec)
	if got := ids(s.list(s.app)); !maps.Equal(got, want) {
		s.Errorf("Apply replaced running instances: %v, want %v", got, want)
	}
}

// applyConcurrently: calls for one set at the same time end as one call does.
func (s *suite) applyConcurrently() {
	spec := s.set("worker", 3, s.fix.Sleep)
	var calls sync.WaitGroup
	for range 4 {
		calls.Go(func() {
			if err := s.Apply(s.ctx, spec); err != nil {
				s.Errorf("Apply: %v", err)
			}
		})
	}
	calls.Wait()
	s.wantNums(1, 2, 3)
}

// applyScales: growing keeps what runs, shrinking removes what is not named.
func (s *suite) applyScales() {
	spec := s.set("worker", 1, s.fix.Sleep)
	s.apply(spec)
	first := s.only().ID
	spec.Nums = []int{1, 2, 4}
	s.apply(spec)
	s.wantNums(1, 2, 4)
	spec.Nums = []int{1, 4}
	s.apply(spec)
	s.wantNums(1, 4)
	if got := ids(s.list(s.app))[1]; got != first {
		s.Errorf("scaling replaced instance 1")
	}
	spec.Nums = nil
	s.apply(spec)
	s.nothingLeft(s.app)
}

// applyReplacesEnded: instances that have ended are replaced by ones with
// another ID, the others are left alone.
func (s *suite) applyReplacesEnded() {
	spec := s.set("worker", 1, s.fix.Crash)
	s.apply(spec)
	dead := s.crashed().ID
	spec.Process = s.process(s.fix.Sleep)
	spec.Nums = []int{1, 2}
	s.apply(spec)
	s.wantNums(1, 2)
	list := s.list(s.app)
	for _, inst := range list {
		if inst.State != paas.StateUp {
			s.Errorf("instance %d is %s (%s), want up", inst.Num, inst.State, inst.Reason)
		}
	}
	if ids(list)[1] == dead {
		s.Error("the replacement has the ID of the instance that it replaces")
	}
}

// applyFails: of instances that cannot be created nothing remains, and what was there before does.
func (s *suite) applyFails() {
	bad := s.set("worker", 2, s.fix.Sleep)
	bad.Process.Image, bad.Process.Digest = s.fix.MissingImage, ""
	s.wantUserError(s.Apply(s.ctx, bad))
	s.nothingLeft(s.app)

	good := s.set("worker", 1, s.fix.Sleep)
	s.apply(good)
	first := s.only().ID
	s.wantUserError(s.Apply(s.ctx, bad))
	if got := s.only(); got.ID != first || got.State != paas.StateUp {
		s.Errorf("a failed Apply touched what ran before: %+v", got)
	}
}

func (s *suite) wantUserError(err error) {
	s.Helper()
	if code := paas.CodeOf(err); code == "" || code == paas.Internal {
		s.Errorf("with an image that is not there: error %v with code %q, want one for the user", err, code)
	}
}

// applySeenFromOutside: what is being started is never taken for ended by who
// looks at the same time.
func (s *suite) applySeenFromOutside() {
	spec := s.set("worker", 3, s.fix.Sleep)
	var looks sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		looks.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, inst := range s.list(s.app) {
					if inst.State != paas.StateCreated && inst.State != paas.StateUp {
						s.Errorf("an instance that is being started looks %s (%s)", inst.State, inst.Reason)
						return
					}
				}
			}
		})
	}
	for range 3 {
		s.apply(spec)
		spec.Generation++
	}
	close(stop)
	looks.Wait()
}

// applyOutlivesContext: contexts bound the call, never the life of what it started.
func (s *suite) applyOutlivesContext() {
	ctx, cancel := context.WithCancel(s.ctx)
	if err := s.Apply(ctx, s.set("worker", 1, s.fix.Sleep)); err != nil {
		s.Fatal(err)
	}
	cancel()
	time.Sleep(10 * poll)
	if got := s.only(); got.State != paas.StateUp {
		s.Errorf("the instance is %s (%s) after the call's context ended", got.State, got.Reason)
	}
	if err := s.Apply(ctx, s.set("worker", 2, s.fix.Sleep)); err == nil {
		s.Error("Apply with a context that has ended: no error")
	}
}

// port: the config's PORT is where an instance serves.
func (s *suite) port() {
	spec := s.set("web", 1, s.fix.Serve)
	spec.Process.Env["PORT"] = "8123"
	s.apply(spec)
	inst := s.only()
	if !strings.HasSuffix(inst.Address, ":8123") {
		s.Errorf("address %s, want port 8123", inst.Address)
	}
	s.soon("it serves on PORT", func() bool { return s.Probe(s.ctx, inst, engine.Check{}) == nil })
}

// instancesOfApps: the list is that of one app or of all, by type, number, generation.
func (s *suite) instancesOfApps() {
	next := s.set("web", 2, s.fix.Sleep)
	next.Generation = 2
	next.Nums = []int{1}
	s.apply(next)
	s.apply(s.set("web", 2, s.fix.Sleep))
	s.apply(s.set("cron", 2, s.fix.Sleep))
	other := s.set("web", 1, s.fix.Sleep)
	other.App = s.newApp()
	s.apply(other)

	type row struct {
		processType string
		num         int
		generation  int64
	}
	var got []row
	for _, inst := range s.list(s.app) {
		got = append(got, row{inst.Type, inst.Num, inst.Generation})
	}
	if want := []row{{"cron", 1, 1}, {"cron", 2, 1}, {"web", 1, 1}, {"web", 1, 2}, {"web", 2, 1}}; !slices.Equal(got, want) {
		s.Errorf("Instances: %v, want %v", got, want)
	}
	count := map[string]int{}
	for _, inst := range s.list("") {
		count[inst.App]++
	}
	if count[s.app] != 5 || count[other.App] != 1 {
		s.Errorf("of all apps: %d and %d instances, want 5 and 1", count[s.app], count[other.App])
	}
}

// crash: a process that ends at once is no error of Apply but a state.
func (s *suite) crash() {
	s.apply(s.set("web", 1, s.fix.Crash))
	inst := s.crashed()
	if inst.Address != "" {
		s.Errorf("a crashed instance has address %s", inst.Address)
	}
	if !strings.Contains(inst.Reason, "3") {
		s.Errorf("reason %q does not name exit code 3", inst.Reason)
	}
}

// remove: a set goes without a trace, others stay, and it may be repeated.
func (s *suite) remove() {
	gone := s.set("worker", 2, s.fix.Sleep)
	if err := s.Remove(s.ctx, gone.SetKey); err != nil {
		s.Errorf("Remove of nothing: %v", err)
	}
	s.apply(gone)
	stays := s.set("worker", 1, s.fix.Sleep)
	stays.Generation = 2
	s.apply(stays)
	for range 2 {
		if err := s.Remove(s.ctx, gone.SetKey); err != nil {
			s.Errorf("Remove: %v", err)
		}
		if inst := s.only(); inst.Generation != 2 || inst.State != paas.StateUp {
			s.Errorf("what remains: %+v", inst)
		}
	}
	if err := s.Remove(s.ctx, stays.SetKey); err != nil {
		s.Errorf("Remove: %v", err)
	}
	s.nothingLeft(s.app)

	crashed := s.set("worker", 1, s.fix.Crash)
	s.apply(crashed)
	s.crashed()
	if err := s.Remove(s.ctx, crashed.SetKey); err != nil {
		s.Errorf("Remove of a crashed instance: %v", err)
	}
	s.nothingLeft(s.app)
}

// removeAgainstApply: calls that race leave the set in one state or the other,
// never in between, and a last Remove wins.
func (s *suite) removeAgainstApply() {
	spec := s.set("worker", 2, s.fix.Sleep)
	var calls sync.WaitGroup
	for range 3 {
		calls.Go(func() {
			if err := s.Apply(s.ctx, spec); err != nil {
				s.Errorf("Apply: %v", err)
			}
		})
		calls.Go(func() {
			if err := s.Remove(s.ctx, spec.SetKey); err != nil {
				s.Errorf("Remove: %v", err)
			}
		})
	}
	calls.Wait()
	if n := len(s.list(s.app)); n != 0 && n != 2 {
		s.Errorf("%d instances, want none or 2", n)
	}
	if err := s.Remove(s.ctx, spec.SetKey); err != nil {
		s.Errorf("Remove: %v", err)
	}
	s.nothingLeft(s.app)
}

// forget: nothing of an app remains, its logs included; other apps stay.
func (s *suite) forget() {
	other := s.set("worker", 1, s.fix.Lines)
	other.App = s.newApp()
	s.apply(other)
	s.apply(s.set("web", 1, s.fix.Lines))
	next := s.set("worker", 1, s.fix.Sleep)
	next.Generation = 2
	s.apply(next)
	s.soon("both apps have logs", func() bool { return len(s.lines(s.app, 99)) == 52 && len(s.lines(other.App, 99)) == 52 })
	for range 2 {
		if err := s.Forget(s.ctx, s.app); err != nil {
			s.Errorf("Forget: %v", err)
		}
		s.nothingLeft(s.app)
		if lines := s.lines(s.app, 99); len(lines) > 0 {
			s.Errorf("%d lines of log remain", len(lines))
		}
	}
	if len(s.list(other.App)) != 1 || len(s.lines(other.App, 99)) != 52 {
		s.Error("Forget touched another app")
	}
	if err := s.Forget(s.ctx, s.newApp()); err != nil {
		s.Errorf("Forget of an app that never was: %v", err)
	}
}
