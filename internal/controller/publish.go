package controller

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/store"
	"github.com/deis/deis/routerconf"
)

// streamWrite is how long one write to a router may take: it reads all the
// time, so one that does not is stuck or gone.
const streamWrite = 30 * time.Second

// ownHosts are the platform's names for which it has no app: the controller's,
// the domain itself, and a certificate for everything below it.
func (s *server) ownHosts() []string {
	return []string{s.host(subdomain), s.cfg.Domain, "*." + s.cfg.Domain}
}

// loadRoutes publishes what the store says of all apps.
func (s *server) loadRoutes(ctx context.Context) error {
	if err := s.publishOwn(ctx); err != nil {
		return err
	}
	apps, err := s.store.AllApps(ctx)
	if err != nil {
		return err
	}
	for _, app := range apps {
		if err := s.publishApp(ctx, app); err != nil {
			return err
		}
	}
	return nil
}

// publishOwn publishes the certificates for the platform's own names.
func (s *server) publishOwn(ctx context.Context) error {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	certs, err := s.certificates(ctx, "", s.ownHosts())
	if err != nil {
		return err
	}
	s.routes.setOwnCertificates(s.ownHosts(), certs)
	return nil
}

// publishApp publishes what the store says of one app's hosts and certificates.
// It is called after each transaction that may have changed them.
func (s *server) publishApp(ctx context.Context, app paas.App) error {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	now, err := s.store.AppByID(ctx, app.ID)
	if paas.CodeOf(err) == paas.NotFound || err == nil && now.UUID != app.UUID {
		s.routes.dropApp(app.UUID)
		return nil
	}
	if err != nil {
		return err
	}
	domains, err := s.store.Domains(ctx, app.UUID, store.All)
	if err != nil {
		return err
	}
	hosts := []string{s.host(app.ID)}
	for _, d := range domains.Rows {
		hosts = append(hosts, d.Host())
	}
	certs, err := s.certificates(ctx, app.UUID, hosts)
	if err != nil {
		return err
	}
	s.routes.setApp(app.UUID, app.ID, hosts, certs)
	return nil
}

// publishName publishes what a certificate's name concerns, if anything.
func (s *server) publishName(ctx context.Context, name string) error {
	if slices.Contains(s.ownHosts(), name) {
		return s.publishOwn(ctx)
	}
	app, err := s.appOfHost(ctx, name)
	if err != nil || app.UUID == "" {
		return err
	}
	return s.publishApp(ctx, app)
}

func (s *server) certificates(ctx context.Context, app string, names []string) (certs []routerconf.Certificate, err error) {
	for _, name := range names {
		cert, err := s.store.ServedCertificate(ctx, app, name)
		if paas.CodeOf(err) == paas.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		certs = append(certs, routerconf.Certificate{Name: name, Chain: cert.Chain, Key: cert.Key})
	}
	return certs, nil
}

// routesHook streams the table to a router (see package api).
func (c *call) routesHook() error {
	h := c.s.routes
	if !h.isOpen() {
		return paas.Errorf(paas.Unavailable, "The controller does not know the instances yet.")
	}
	// What is no number is a router without a table.
	generation, err := strconv.ParseUint(c.r.URL.Query().Get("generation"), 10, 64)
	if err != nil {
		generation = 0
	}
	s := h.subscribe(c.r.URL.Query().Get("router"), generation)
	defer h.unsubscribe(s)
	c.w.Header().Set("Content-Type", "application/x-ndjson")
	c.w.WriteHeader(http.StatusOK)
	beat := time.NewTicker(api.RoutesHeartbeatSeconds * time.Second)
	defer beat.Stop()
	if err := c.sendLine(nil); err != nil {
		return err
	}
	for {
		select {
		case <-s.wake:
			for _, change := range h.take(s) {
				if err := c.sendLine(change); err != nil {
					return err
				}
			}
		case <-beat.C:
			if err := c.sendLine(nil); err != nil {
				return err
			}
		case <-c.ctx.Done():
			return nil
		case <-c.s.stopping:
			return nil
		}
	}
}

// sendLine writes one line of a stream, v as JSON or nothing, and flushes.
func (c *call) sendLine(v any) error {
	line := []byte{}
	if v != nil {
		var err error
		if line, err = json.Marshal(v); err != nil {
			return err
		}
	}
	rc := http.NewResponseController(c.w)
	if err := rc.SetWriteDeadline(time.Now().Add(streamWrite)); err != nil {
		return err
	}
	// The connection may serve another request afterwards.
	defer func() { _ = rc.SetWriteDeadline(time.Time{}) }()
	if _, err := c.w.Write(append(line, '\n')); err != nil {
		return err
	}
	return rc.Flush()
}

// routersHook takes a router's status.
func (c *call) routersHook() error {
	var status routerconf.Status
	if err := json.NewDecoder(c.r.Body).Decode(&status); err != nil {
		return paas.Errorf(paas.Invalid, "JSON parse error - %v", err)
	}
	if status.Router == "" {
		return paas.FieldError("router", paas.MsgRequired)
	}
	c.s.routes.report(status)
	return c.empty(http.StatusNoContent)
}
