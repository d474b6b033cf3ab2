package router

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deis/deis/routerconf"
)

func TestHostKey(t *testing.T) {
	for host, want := range map[string]string{
		"App.Example.COM": "app.example.com", "a.b:8080": "a.b", "a.b.": "a.b", "a.b.:80": "a.b", "a.b..": "a.b.", "": "",
		"[::1]": "[::1]", "[::1]:80": "[::1]", "\u212a.test": "\u212a.test", "a:": "a",
		strings.Repeat("a", 254): "", strings.Repeat("A", 253): strings.Repeat("a", 253),
	} {
		if got := hostKey(host); got != want {
			t.Errorf("hostKey(%q) = %q, want %q", host, got, want)
		}
	}
}

func FuzzHostKey(f *testing.F) {
	for _, s := range []string{"a.b:80", "A.", "[::1]:1", ":", ".", "a:b:c", "]:1", "\u212a:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		key := hostKey(host)
		if len(key) > routerconf.MaxHostLength || strings.ContainsFunc(key, func(r rune) bool { return 'A' <= r && r <= 'Z' }) {
			t.Errorf("hostKey(%q) = %q", host, key)
		}
		// A valid host is found under any case, with a port, with a final dot.
		if r := (routerconf.Route{Host: key}); r.Validate() == nil {
			for _, form := range []string{key, strings.ToUpper(key), key + ":80", key + ".", key + ".:80"} {
				if hostKey(form) != key {
					t.Errorf("hostKey(%q) = %q, want %q", form, hostKey(form), key)
				}
			}
		}
	})
}

type nothing struct{ closed int }

func (n *nothing) closeIdle() { n.closed++ }

func emptyTable() *table {
	return newTable(func(routerconf.Target, bool) pool { return &nothing{} }, discard())
}

func mustApply(t testing.TB, tb *table, c routerconf.Change) {
	t.Helper()
	if err := tb.apply(c); err != nil {
		t.Fatal(err)
	}
}

func TestApplyKeepsWhatDoesNotChange(t *testing.T) {
	tb := emptyTable()
	first := routerconf.Table{Generation: 7, Routes: []routerconf.Route{
		routeTo("a.test", "a", "h:1", "h:2"), routeTo("custom.test", "a", "h:1", "h:2"), routeTo("b.test", "b", "h:3"),
	}}
	mustApply(t, tb, routerconf.Change{Generation: 7, Snapshot: &first})
	a, b := tb.routes.get("a.test"), tb.routes.get("b.test")
	if tb.routes.get("custom.test").targets[0] != a.targets[0] {
		t.Error("two hosts of one app count on different targets")
	}
	second := first
	second.Generation = 9
	second.Routes = []routerconf.Route{routeTo("a.test", "a", "h:2", "h:4"), first.Routes[2]}
	mustApply(t, tb, routerconf.Change{Generation: 9, Snapshot: &second})
	if tb.routes.get("b.test") != b {
		t.Error("an unchanged route was replaced")
	}
	if got := tb.routes.get("a.test").targets[0]; got != a.targets[1] {
		t.Error("a target that stays was replaced")
	}
	if tb.routes.get("custom.test") != nil {
		t.Error("a route that the snapshot does not have stays")
	}
	if !a.targets[0].idle() || a.targets[0].pool.(*nothing).closed == 0 {
		t.Error("a removed target keeps its connections")
	}
	if s := tb.status(); s.Applied != 9 || s.Drained != 9 {
		t.Errorf("status %+v", s)
	}
	got, want := tb.snapshot(), second
	if fmt.Sprint(got.Routes) != fmt.Sprint(want.Routes) {
		t.Errorf("snapshot %v, want %v", got.Routes, want.Routes)
	}
	if len(tb.apps) != 2 || len(tb.targets) != 3 {
		t.Errorf("%d apps, %d targets are left", len(tb.apps), len(tb.targets))
	}
}

func TestApplyOrder(t *testing.T) {
	tb := emptyTable()
	if err := tb.apply(routerconf.Change{Generation: 3, SetRoutes: []routerconf.Route{routeTo("a.test", "a")}}); !errors.Is(err, errGap) {
		t.Fatalf("a change after a gap: %v", err)
	}
	if tb.loaded.Load() || tb.routes.get("a.test") != nil {
		t.Error("a change after a gap was applied")
	}
	mustApply(t, tb, routerconf.Change{Generation: 1, SetRoutes: []routerconf.Route{routeTo("a.test", "a")}})
	mustApply(t, tb, routerconf.Change{Generation: 2, DropRoutes: []string{"a.test", "unknown.test"}})
	mustApply(t, tb, routerconf.Change{Generation: 1, SetRoutes: []routerconf.Route{routeTo("a.test", "a")}})
	if tb.routes.get("a.test") != nil {
		t.Error("an old change was applied again")
	}
	if len(tb.apps) != 0 {
		t.Error("an app without routes is still counted")
	}
}

func TestApplyLeavesOutFaultyEntries(t *testing.T) {
	tb := emptyTable()
	mustApply(t, tb, routerconf.Change{Generation: 1, SetRoutes: []routerconf.Route{routeTo("b.test", "b", "h:1")}})
	err := tb.apply(routerconf.Change{
		Generation:      2,
		SetRoutes:       []routerconf.Route{routeTo("a.test", "a", "h:1"), routeTo("b.test", "b", "nonsense"), routeTo("C.test", "c")},
		SetCertificates: []routerconf.Certificate{{Name: "a.test", Chain: "c", Key: "SECRET"}, {Name: "b.test", Key: "SECRET"}},
	})
	if err == nil || strings.Contains(err.Error(), "SECRET") {
		t.Errorf("error: %v", err)
	}
	if tb.routes.get("a.test") == nil || tb.certs.get("a.test") == nil {
		t.Error("a good entry was left out")
	}
	if b := tb.routes.get("b.test"); b == nil || b.targets[0].conf.Address != "h:1" {
		t.Error("a faulty entry replaced the good one")
	}
	if tb.status().Applied != 2 {
		t.Error("the generation was not applied")
	}
}

func TestDrained(t *testing.T) {
	tb := emptyTable()
	change := func(generation uint64, addrs ...string) {
		t.Helper()
		mustApply(t, tb, routerconf.Change{Generation: generation, SetRoutes: []routerconf.Route{routeTo("a.test", "a", addrs...)}})
	}
	expect := func(applied, drained uint64) {
		t.Helper()
		eventually(t, fmt.Sprintf("drained %d", drained), func() bool { return tb.status().Drained == drained })
		if s := tb.status(); s.Applied != applied {
			t.Errorf("applied %d, want %d", s.Applied, applied)
		}
	}
	change(1, "h:1")
	_, one := tb.acquire("a.test", nil)
	change(2, "h:2")
	expect(2, 1)
	_, two := tb.acquire("a.test", nil)
	if two == one {
		t.Fatal("a removed target was chosen")
	}
	change(3, "h:1") // back again: another object, the old one still drains
	expect(3, 1)
	two.release(true)
	expect(3, 1)
	watch := tb.watch()
	one.upgraded()
	one.release(false)
	expect(3, 3)
	select {
	case <-watch:
	case <-time.After(5 * time.Second):
		t.Error("nobody is told")
	}

	// Whoever misses generations cannot know which of them removed the target.
	_, one = tb.acquire("a.test", nil)
	mustApply(t, tb, routerconf.Change{Generation: 9, Snapshot: &routerconf.Table{Generation: 9}})
	expect(9, 3)
	// A controller that begins anew.
	mustApply(t, tb, routerconf.Change{Generation: 2, Snapshot: &routerconf.Table{Generation: 2}})
	expect(2, 1)
	one.release(true)
	expect(2, 2)
	if len(tb.draining) != 0 {
		t.Error("drained targets are kept")
	}
}

func TestRemovedTargetTakesNothing(t *testing.T) {
	idle := 0
	target := &target{onIdle: func() { idle++ }}
	if !target.acquire() || target.remove() || target.acquire() || target.idle() {
		t.Error("a removed target takes a request, or forgets one")
	}
	if target.release(true); !target.idle() || idle != 1 || target.busy.Load() != 0 {
		t.Errorf("idle %v, told %d times, busy %d", target.idle(), idle, target.busy.Load())
	}
}

// A request is counted either on a target of the table or before the target
// counts as drained.
func TestAcquireWhileTargetsChange(t *testing.T) {
	tb := emptyTable()
	mustApply(t, tb, routerconf.Change{Generation: 1, SetRoutes: []routerconf.Route{routeTo("a.test", "a", "h:1")}})
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, target := tb.acquire("a.test", nil)
				if target == nil {
					t.Error("no target")
					return
				}
				tb.mu.Lock()
				if target.removedAt != 0 && !slices.Contains(tb.draining, target) {
					t.Error("a target counts as drained while a request is under way")
				}
				tb.mu.Unlock()
				target.release(true)
			}
		})
	}
	for g := uint64(2); g < 5000; g++ {
		mustApply(t, tb, routerconf.Change{Generation: g, SetRoutes: []routerconf.Route{routeTo("a.test", "a", fmt.Sprintf("h:%d", g))}})
	}
	close(stop)
	workers.Wait()
	eventually(t, "all drained", func() bool { s := tb.status(); return s.Drained == s.Applied })
}

func TestPick(t *testing.T) {
	tb := emptyTable()
	addrs := []string{"h:1", "h:2", "h:3"}
	mustApply(t, tb, routerconf.Change{Generation: 1, SetRoutes: []routerconf.Route{routeTo("a.test", "a", addrs...)}})
	r := tb.routes.get("a.test")
	seen := map[*target]int{}
	for range 300 {
		_, target := tb.acquire("a.test", nil)
		seen[target]++ // never released: the least busy is another one each time
	}
	for _, target := range r.targets {
		if seen[target] != 100 {
			t.Errorf("%d requests of 300 on one of three", seen[target])
		}
		for range 100 {
			target.release(true)
		}
	}
	// An upgraded connection is no load.
	r.targets[0].acquire()
	r.targets[0].upgraded()
	clear(seen)
	for range 300 {
		seen[r.pick(nil)]++
	}
	if seen[r.targets[0]] < 50 {
		t.Errorf("an instance with a WebSocket gets %d of 300", seen[r.targets[0]])
	}
	r.targets[0].refused()
	for range 100 {
		if r.pick(nil) == r.targets[0] {
			t.Fatal("an instance that refused is chosen although others are there")
		}
	}
	if got := r.pick(r.targets[1:]); got != r.targets[0] {
		t.Error("an instance that refused is not chosen although it is the last")
	}
	if r.pick(r.targets) != nil {
		t.Error("a tried instance is chosen again")
	}
	r.targets[0].leftOut.Store(time.Now().Add(-1).UnixNano())
	eventually(t, "the instance is chosen again", func() bool { return r.pick(nil) == r.targets[0] })
}

// Whatever comes, the table stays consistent: what it says it holds is what a
// fresh table makes of it.
func FuzzApply(f *testing.F) {
	f.Add([]byte(`{"generation":1,"set_routes":[{"host":"a","app":"x","targets":[{"id":"1","address":"h:1"}]}]}
{"generation":2,"set_routes":[{"host":"a","app":"y"},{"host":"a","app":"z"}],"drop_routes":["a","b"]}
{"generation":9,"snapshot":{"generation":9,"routes":[{"host":"a"},{"host":"a","app":"q"}],"certificates":[{"name":"*.d","chain":"c","key":"k"}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		tb := emptyTable()
		for line := range strings.SplitSeq(string(data), "\n") {
			var c routerconf.Change
			if json.Unmarshal([]byte(line), &c) == nil {
				_ = tb.apply(c) // faulty entries are left out
			}
		}
		s := tb.snapshot()
		if err := s.Validate(); err != nil {
			t.Fatalf("the table holds what is not valid: %v", err)
		}
		again := emptyTable()
		mustApply(t, again, routerconf.Change{Generation: s.Generation, Snapshot: &s})
		if len(again.apps) != len(tb.apps) || len(again.targets) != len(tb.targets) {
			t.Fatalf("%d apps and %d targets, want %d and %d", len(tb.apps), len(tb.targets), len(again.apps), len(again.targets))
		}
		if st := tb.status(); st.Drained != st.Applied {
			t.Fatalf("status %+v without any request", st)
		}
	})
}

func manyRoutes(n int) routerconf.Table {
	table := routerconf.Table{Generation: 1}
	for i := range n {
		table.Routes = append(table.Routes, routeTo(fmt.Sprintf("app-%d.example.com", i), fmt.Sprintf("app-%d", i), fmt.Sprintf("10.1.%d.%d:5000", i/250, i%250)))
	}
	return table
}

// The cost of one change must hardly depend on the table.
func BenchmarkApplyChange(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprintf("hosts=%d", n), func(b *testing.B) {
			tb := newTable(newUpstream, discard())
			table := manyRoutes(n)
			mustApply(b, tb, routerconf.Change{Generation: 1, Snapshot: &table})
			routes := slices.Clone(table.Routes)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				r := &routes[i%n]
				r.Targets = []routerconf.Target{{ID: fmt.Sprint(i), Address: "10.2.0.1:5000"}}
				mustApply(b, tb, routerconf.Change{Generation: uint64(i) + 2, SetRoutes: []routerconf.Route{*r}})
			}
		})
	}
}

func BenchmarkApplySnapshot(b *testing.B) {
	table := manyRoutes(10_000)
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			mustApply(b, newTable(newUpstream, discard()), routerconf.Change{Generation: 1, Snapshot: &table})
		}
	})
	b.Run("unchanged", func(b *testing.B) {
		tb := newTable(newUpstream, discard())
		for b.Loop() {
			mustApply(b, tb, routerconf.Change{Generation: 1, Snapshot: &table})
		}
	})
}

func BenchmarkAcquire(b *testing.B) {
	tb := newTable(newUpstream, discard())
	table := manyRoutes(10_000)
	mustApply(b, tb, routerconf.Change{Generation: 1, Snapshot: &table})
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			_, target := tb.acquire(table.Routes[i%10_000].Host, nil)
			target.release(true)
		}
	})
}
