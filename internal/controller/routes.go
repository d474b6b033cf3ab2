package controller

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/deis/deis/internal/rollout"
	"github.com/deis/deis/routerconf"
)

const (
	// maxHistory is how many changes a router may have missed before it gets
	// the whole table: some minutes of a busy platform.
	maxHistory = 1024
	// maxPending is how many changes wait for one slow router before they are
	// replaced by the whole table.
	maxPending = 256
	// settleTime is how long a router that has lost its stream, or that was
	// there before this controller, is given to come back: more than the pause
	// between two of its attempts.
	settleTime = 3 * time.Second
	// controllerApp is the app of the controller's own route.
	controllerApp = "deis"
)

// hub is the controller's side of the routing table. It holds the table in
// memory and tells each router of each change; the cost of a change does not
// depend on the size of the table. All methods may be called concurrently.
type hub struct {
	log    *slog.Logger
	domain string

	mu         sync.Mutex
	opened     time.Time // zero: not served yet
	generation uint64
	routes     map[string]routerconf.Route       // by host
	certs      map[string]routerconf.Certificate // by name
	apps       map[string]*routedApp             // by UUID
	hostOf     map[string]string                 // host to the UUID that has it now
	history    []routerconf.Change               // the last ones, without a gap
	streams    map[*stream]bool
	routers    map[string]*routerState
	news       chan struct{} // closed and replaced when a router's state changes
	settle     time.Duration
}

// routedApp is what the hub knows of an app.
type routedApp struct {
	id      string
	hosts   []string
	targets []routerconf.Target
	// changed is the generation that set the targets.
	changed uint64
}

// routerState is what the hub knows of one router process.
type routerState struct {
	streams int
	left    time.Time // when the last stream ended
	status  routerconf.Status
}

// stream is one router's subscription.
type stream struct {
	router  string
	wake    chan struct{} // holds a token when there is something to take
	pending []routerconf.Change
	// whole replaces pending: the router needs a snapshot.
	whole bool
}

var _ rollout.Router = (*hub)(nil)

// newHub makes a table with the controller's own route. Its generation begins
// at the time in microseconds: more than any earlier controller can have
// reached with less than a million changes a second.
func newHub(domain, address string, log *slog.Logger) *hub {
	h := &hub{
		log: log, domain: domain, generation: uint64(time.Now().UnixMicro()),
		routes: map[string]routerconf.Route{}, certs: map[string]routerconf.Certificate{},
		apps: map[string]*routedApp{}, hostOf: map[string]string{},
		streams: map[*stream]bool{}, routers: map[string]*routerState{}, news: make(chan struct{}),
		settle: settleTime,
	}
	host := subdomain + "." + domain
	h.routes[host] = routerconf.Route{Host: host, App: controllerApp, Controller: true, Targets: []routerconf.Target{
		{ID: fmt.Sprintf("controller-%d", h.generation), Address: reachable(address)},
	}}
	return h
}

// reachable makes an address to dial of one to listen on.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip.IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return address
}

// open lets routers have the table; before that the instances are not in it.
func (h *hub) open() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened = time.Now()
}

func (h *hub) isOpen() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.opened.IsZero()
}

// setApp makes these the hosts of an app and these the certificates for them.
// The app keeps its targets.
func (h *hub) setApp(uuid, id string, hosts []string, certs []routerconf.Certificate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.apps[uuid]
	if a == nil {
		a = &routedApp{}
		h.apps[uuid] = a
	}
	var c routerconf.Change
	for _, host := range a.hosts {
		if !slices.Contains(hosts, host) {
			h.drop(&c, uuid, host)
		}
	}
	a.id, a.hosts = id, hosts
	for _, host := range hosts {
		h.hostOf[host] = uuid
		h.setRoute(&c, routerconf.Route{Host: host, App: id, Targets: a.targets})
		h.setCertificate(&c, host, certs)
	}
	h.publish(c)
}

// setOwnCertificates makes these the certificates for the platform's own names.
func (h *hub) setOwnCertificates(names []string, certs []routerconf.Certificate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var c routerconf.Change
	for _, name := range names {
		h.setCertificate(&c, name, certs)
	}
	h.publish(c)
}

// dropApp removes an app with its hosts and their certificates.
func (h *hub) dropApp(uuid string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.apps[uuid]
	if a == nil {
		return
	}
	var c routerconf.Change
	for _, host := range a.hosts {
		h.drop(&c, uuid, host)
	}
	delete(h.apps, uuid)
	h.publish(c)
}

// SetTargets is part of rollout.Router. An app that the hub does not know, as
// it is being deleted, has no routes.
func (h *hub) SetTargets(uuid string, targets []routerconf.Target) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.apps[uuid]
	if a == nil {
		return h.generation
	}
	if slices.Equal(a.targets, targets) {
		return max(a.changed, 1)
	}
	a.targets = slices.Clone(targets)
	var c routerconf.Change
	for _, host := range a.hosts {
		if h.hostOf[host] == uuid {
			h.setRoute(&c, routerconf.Route{Host: host, App: a.id, Targets: a.targets})
		}
	}
	h.publish(c)
	a.changed = h.generation
	return a.changed
}

// setRoute adds a route to a change unless the table has it. What no router
// would take is left out: one bad route must not stop all the others.
func (h *hub) setRoute(c *routerconf.Change, r routerconf.Route) {
	if r.Targets == nil {
		r.Targets = []routerconf.Target{}
	}
	old, ok := h.routes[r.Host]
	if ok && old.App == r.App && slices.Equal(old.Targets, r.Targets) {
		return
	}
	if err := r.Validate(); err != nil {
		h.log.Error("a route cannot be published", "error", err.Error())
		return
	}
	h.routes[r.Host] = r
	c.SetRoutes = append(c.SetRoutes, r)
}

// setCertificate gives a name the certificate that certs has for it, or none.
func (h *hub) setCertificate(c *routerconf.Change, name string, certs []routerconf.Certificate) {
	old, had := h.certs[name]
	i := slices.IndexFunc(certs, func(cert routerconf.Certificate) bool { return cert.Name == name })
	if i >= 0 {
		if err := certs[i].Validate(); err != nil {
			h.log.Error("a certificate cannot be published", "error", err.Error())
			i = -1
		}
	}
	switch {
	case i >= 0 && certs[i] != old:
		h.certs[name] = certs[i]
		c.SetCertificates = append(c.SetCertificates, certs[i])
	case i < 0 && had:
		delete(h.certs, name)
		c.DropCertificates = append(c.DropCertificates, name)
	}
}

// drop takes a host from an app, unless another app has it by now.
func (h *hub) drop(c *routerconf.Change, uuid, host string) {
	if h.hostOf[host] != uuid {
		return
	}
	delete(h.hostOf, host)
	if _, ok := h.routes[host]; ok {
		delete(h.routes, host)
		c.DropRoutes = append(c.DropRoutes, host)
	}
	h.setCertificate(c, host, nil)
}

// publish makes a change the next generation and hands it to every stream.
func (h *hub) publish(c routerconf.Change) {
	if c.SetRoutes == nil && c.DropRoutes == nil && c.SetCertificates == nil && c.DropCertificates == nil {
		return
	}
	h.generation++
	c.Generation = h.generation
	h.history = append(h.history, c)
	if len(h.history) >= 2*maxHistory {
		h.history = slices.Clone(h.history[maxHistory:])
	}
	for s := range h.streams {
		s.add(c)
	}
}

// add queues a change; a queue that is full becomes a snapshot.
func (s *stream) add(c routerconf.Change) {
	if !s.whole {
		s.pending = append(s.pending, c)
	}
	if len(s.pending) > maxPending {
		s.pending, s.whole = nil, true
	}
	s.notify()
}

func (s *stream) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// subscribe begins a stream for a router that has the table of a generation.
func (h *hub) subscribe(router string, generation uint64) *stream {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &stream{router: router, wake: make(chan struct{}, 1)}
	first := h.generation - uint64(len(h.history)) // the generation before the history
	switch {
	case generation < first || generation > h.generation:
		s.whole = true
		s.notify()
	case generation < h.generation:
		s.pending = slices.Clone(h.history[generation-first:])
		s.notify()
	}
	h.streams[s] = true
	h.router(router).streams++
	h.changed()
	return s
}

// unsubscribe ends a stream.
func (h *hub) unsubscribe(s *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.streams, s)
	r := h.router(s.router)
	r.streams--
	r.left = time.Now()
	for id, r := range h.routers {
		if h.gone(r) {
			delete(h.routers, id)
		}
	}
	h.changed()
}

// take returns what waits for a stream.
func (h *hub) take(s *stream) []routerconf.Change {
	h.mu.Lock()
	defer h.mu.Unlock()
	changes := s.pending
	s.pending = nil
	if s.whole {
		s.whole = false
		return []routerconf.Change{{Generation: h.generation, Snapshot: h.table()}}
	}
	return changes
}

func (h *hub) table() *routerconf.Table {
	t := &routerconf.Table{
		Generation: h.generation, Domain: h.domain,
		Routes: make([]routerconf.Route, 0, len(h.routes)), Certificates: make([]routerconf.Certificate, 0, len(h.certs)),
	}
	for r := range maps.Values(h.routes) {
		t.Routes = append(t.Routes, r)
	}
	for c := range maps.Values(h.certs) {
		t.Certificates = append(t.Certificates, c)
	}
	return t
}

// report takes a router's status.
func (h *hub) report(status routerconf.Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.router(status.Router)
	r.status = status
	if r.streams == 0 {
		r.left = time.Now()
	}
	h.changed()
}

func (h *hub) router(id string) *routerState {
	r := h.routers[id]
	if r == nil {
		r = &routerState{}
		h.routers[id] = r
	}
	return r
}

// connected counts the routers with a stream.
func (h *hub) connected() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.routers {
		if r.streams > 0 {
			n++
		}
	}
	return n
}

// gone says that a router will not come back.
func (h *hub) gone(r *routerState) bool { return r.streams == 0 && time.Since(r.left) >= h.settle }

// changed wakes those who wait for routers.
func (h *hub) changed() {
	close(h.news)
	h.news = make(chan struct{})
}

// Drained is part of rollout.Router. A router that lost its stream a moment ago
// counts as connected, and so does, for the first moment of this controller,
// the one that has not come back yet.
func (h *hub) Drained(ctx context.Context, generation uint64, limit time.Duration) bool {
	return h.await(ctx, limit, func(s routerconf.Status) bool { return s.Drained >= generation })
}

// Applied is part of rollout.Router. Who counts as connected is as for Drained.
func (h *hub) Applied(ctx context.Context, generation uint64, limit time.Duration) {
	h.await(ctx, limit, func(s routerconf.Status) bool { return s.Applied >= generation })
}

// await waits until all routers have come so far; it is false if they have not within limit.
func (h *hub) await(ctx context.Context, limit time.Duration, come func(routerconf.Status) bool) bool {
	end := time.NewTimer(limit)
	defer end.Stop()
	for {
		done, news, again := h.all(come)
		if done {
			return true
		}
		select {
		case <-news:
		case <-time.After(again): // somebody may be gone by then
		case <-end.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// all says whether every router has come so far, and when to look again: at news, or after a while.
func (h *hub) all(come func(routerconf.Status) bool) (done bool, news <-chan struct{}, again time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	again = max(h.settle, 10*time.Millisecond)
	known := false
	for _, r := range h.routers {
		if h.gone(r) {
			continue
		}
		known = true
		if !come(r.status) {
			return false, h.news, again
		}
	}
	return known || !h.opened.IsZero() && time.Since(h.opened) >= h.settle, h.news, again
}
