package router

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/deis/deis/routerconf"
)

// table is the routing table in memory. Requests read it without locks; apply
// changes it at the cost of the change. Routes, targets and certificates that a
// change does not touch stay the very same objects.
type table struct {
	routes *cowMap[*route]
	certs  *cowMap[*certificate]
	// loaded is false until the first table was applied: until then an unknown
	// host may well be an app.
	loaded atomic.Bool
	// newPool makes the data path's part of a target.
	newPool func(t routerconf.Target, controller bool) pool
	log     *slog.Logger

	mu         sync.Mutex
	generation uint64
	applied    uint64 // how many changes
	domain     string
	targets    map[routerconf.Target]*target
	apps       map[string]*app
	draining   []*target // removed, with requests under way
	watchers   []chan struct{}
}

// route is immutable.
type route struct {
	conf    routerconf.Route
	app     *app
	targets []*target
}

// app is what the routes of one app share.
type app struct {
	id   string
	refs int // routes; the table's lock guards it
	// answers counts by status class, 1 to 5.
	answers [6]atomic.Uint64
}

func newTable(newPool func(routerconf.Target, bool) pool, log *slog.Logger) *table {
	return &table{
		routes:  newCOWMap[*route](),
		certs:   newCOWMap[*certificate](),
		newPool: newPool,
		log:     log,
		targets: map[routerconf.Target]*target{},
		apps:    map[string]*app{},
	}
}

// acquire finds the route of a host (see hostKey) and counts a request on one
// of its targets; the caller releases it. tried are not chosen again. route is
// nil for an unknown host, target where no instance remains.
func (tb *table) acquire(host string, tried []*target) (*route, *target) {
	for {
		r := tb.routes.get(host)
		if r == nil {
			return nil, nil
		}
		t := r.pick(tried)
		// A target is marked as removed after its successors were published,
		// so the next look finds them.
		if t == nil || t.acquire() {
			return r, t
		}
	}
}

// errGap says that changes were missed: only a snapshot helps.
var errGap = errors.New("changes were missed")

// apply makes a change effective for all requests that begin afterwards. What
// is faulty in it is left out, so that one bad entry harms nobody else, and
// reported in the error; the rest is applied. errGap: nothing was applied.
func (tb *table) apply(c routerconf.Change) error {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	if s := c.Snapshot; s != nil {
		generation := max(c.Generation, s.Generation)
		tb.domain = s.Domain
		c = tb.difference(s)
		c.Generation = generation
	} else if c.Generation <= tb.generation {
		return nil
	} else if c.Generation != tb.generation+1 {
		return fmt.Errorf("%w: generation %d after %d", errGap, c.Generation, tb.generation)
	}
	// What a snapshot removes may have gone with any of the generations that
	// were missed, the first of them at the earliest.
	removedAt := max(1, min(tb.generation+1, c.Generation))
	err := errors.Join(tb.applyRoutes(c, removedAt), tb.applyCertificates(c))
	for _, t := range tb.draining {
		t.removedAt = min(t.removedAt, c.Generation)
	}
	tb.generation = c.Generation
	tb.applied++
	tb.loaded.Store(true)
	tb.forgetDrained()
	tb.notify()
	return err
}

// difference is the change that turns the present table into s.
func (tb *table) difference(s *routerconf.Table) (c routerconf.Change) {
	hosts := make(map[string]bool, len(s.Routes))
	for _, r := range s.Routes {
		hosts[r.Host] = true
		if old := tb.routes.get(r.Host); old == nil || !equalRoutes(&old.conf, &r) {
			c.SetRoutes = append(c.SetRoutes, r)
		}
	}
	for host := range tb.routes.all() {
		if !hosts[host] {
			c.DropRoutes = append(c.DropRoutes, host)
		}
	}
	names := make(map[string]bool, len(s.Certificates))
	for _, cert := range s.Certificates {
		names[cert.Name] = true
		if old := tb.certs.get(cert.Name); old == nil || old.conf != cert {
			c.SetCertificates = append(c.SetCertificates, cert)
		}
	}
	for name := range tb.certs.all() {
		if !names[name] {
			c.DropCertificates = append(c.DropCertificates, name)
		}
	}
	return c
}

func equalRoutes(a, b *routerconf.Route) bool {
	return a.Host == b.Host && a.App == b.App && a.Controller == b.Controller && slices.Equal(a.Targets, b.Targets)
}

func (tb *table) applyRoutes(c routerconf.Change, removedAt uint64) error {
	var errs []error
	var gone []*route
	edit := tb.routes.edit()
	for _, conf := range c.SetRoutes {
		if err := conf.Validate(); err != nil {
			errs = append(errs, err)
			continue
		}
		if old := edit.get(conf.Host); old != nil {
			gone = append(gone, old)
		}
		edit.set(conf.Host, tb.newRoute(conf))
	}
	for _, host := range c.DropRoutes {
		if old := edit.get(host); old != nil {
			gone = append(gone, old)
			edit.delete(host)
		}
	}
	edit.publish()
	for _, r := range gone {
		tb.unref(r, removedAt)
	}
	return errors.Join(errs...)
}

func (tb *table) newRoute(conf routerconf.Route) *route {
	r := &route{conf: conf, app: tb.apps[conf.App], targets: make([]*target, len(conf.Targets))}
	if r.app == nil {
		r.app = &app{id: conf.App}
		tb.apps[conf.App] = r.app
	}
	r.app.refs++
	for i, tc := range conf.Targets {
		t := tb.targets[tc]
		if t == nil {
			t = &target{conf: tc, pool: tb.newPool(tc, conf.Controller), onIdle: tb.targetIdle}
			tb.targets[tc] = t
		}
		t.refs++
		r.targets[i] = t
	}
	return r
}

// unref lets go of what only a replaced route held. Its successor must be
// published.
func (tb *table) unref(r *route, removedAt uint64) {
	if r.app.refs--; r.app.refs == 0 {
		delete(tb.apps, r.app.id)
	}
	for _, t := range r.targets {
		if t.refs--; t.refs > 0 {
			continue
		}
		delete(tb.targets, t.conf)
		t.removedAt = removedAt
		if !t.remove() {
			tb.draining = append(tb.draining, t)
		}
		t.pool.closeIdle()
	}
}

func (tb *table) applyCertificates(c routerconf.Change) error {
	var errs []error
	edit := tb.certs.edit()
	for _, conf := range c.SetCertificates {
		if err := conf.Validate(); err != nil {
			errs = append(errs, err)
			continue
		}
		edit.set(conf.Name, newCertificate(conf, tb.log))
	}
	for _, name := range c.DropCertificates {
		edit.delete(name)
	}
	edit.publish()
	return errors.Join(errs...)
}

// targetIdle is called by requests, which must not wait for a large change.
func (tb *table) targetIdle() {
	go func() {
		tb.mu.Lock()
		defer tb.mu.Unlock()
		if tb.forgetDrained() {
			tb.notify()
		}
	}()
}

func (tb *table) forgetDrained() (some bool) {
	before := len(tb.draining)
	tb.draining = slices.DeleteFunc(tb.draining, func(t *target) bool {
		if !t.idle() {
			return false
		}
		t.pool.closeIdle()
		return true
	})
	return len(tb.draining) < before
}

// status tells how far the table is. Drained is never more than a router that
// missed changes can know.
func (tb *table) status() routerconf.Status {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	s := routerconf.Status{Applied: tb.generation, Drained: tb.generation}
	for _, t := range tb.draining {
		s.Drained = min(s.Drained, t.removedAt-1)
	}
	return s
}

// snapshot returns the whole table, sorted.
func (tb *table) snapshot() routerconf.Table {
	tb.mu.Lock()
	s := routerconf.Table{Generation: tb.generation, Domain: tb.domain, Routes: []routerconf.Route{}}
	for _, r := range tb.routes.all() {
		s.Routes = append(s.Routes, r.conf)
	}
	for _, c := range tb.certs.all() {
		s.Certificates = append(s.Certificates, c.conf)
	}
	tb.mu.Unlock()
	slices.SortFunc(s.Routes, func(a, b routerconf.Route) int { return cmp.Compare(a.Host, b.Host) })
	slices.SortFunc(s.Certificates, func(a, b routerconf.Certificate) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

// revision differs after each change that was applied.
func (tb *table) revision() uint64 {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	return tb.applied
}

// allApps lists the apps that have a route.
func (tb *table) allApps() []*app {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	return slices.Collect(maps.Values(tb.apps))
}

// platformDomain is the table's, or "" if it has none.
func (tb *table) platformDomain() string {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	return tb.domain
}

// watch returns a channel that gets a value after each change of status;
// several changes may share one.
func (tb *table) watch() <-chan struct{} {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	ch := make(chan struct{}, 1)
	tb.watchers = append(tb.watchers, ch)
	return ch
}

func (tb *table) notify() {
	for _, ch := range tb.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
