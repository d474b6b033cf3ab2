// Package routerconf is the routing-table document: what the controller tells
// every router and what a router keeps on disk. It depends on the standard
// library only, so that other programs can write tables for our router.
package routerconf

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// Limits of one table. They bound what a router accepts from a file or from a
// controller, not what a platform should have.
const (
	// MaxHostLength is the longest host name that DNS allows (RFC 1035, 2.3.4).
	MaxHostLength = 253
	// MaxTargets per route: more instances than one app has on one machine.
	MaxTargets = 10_000
	// MaxCertificate bounds chain and key of one certificate in bytes: chains
	// of five RSA certificates with many names have a tenth of it.
	MaxCertificate = 256 << 10
)

// Table is the whole routing state at one generation.
type Table struct {
	// Generation grows by one with each change. It is never reused, not even
	// after the controller was restarted. A router that has no table yet is at 0.
	Generation uint64 `json:"generation"`
	// Domain is the platform's domain. The router's self-signed fallback
	// certificate covers it and the names one level below it.
	Domain       string        `json:"domain"`
	Routes       []Route       `json:"routes"`
	Certificates []Certificate `json:"certificates,omitempty"`
}

// Route says where the requests for one host go. A route without targets is a
// known app with no running instance (503), in contrast to an unknown host (404).
type Route struct {
	// Host is a lower-case name without port or final dot.
	Host string `json:"host"`
	// App is the app's id, for logs and metrics; "deis" for the controller.
	App string `json:"app"`
	// Controller marks the platform's own API, which gets other time-outs
	// than apps (Deis contract, section 10.1).
	Controller bool     `json:"controller,omitempty"`
	Targets    []Target `json:"targets"`
}

// Target is one instance behind a route.
type Target struct {
	// ID names the instance and is never reused, in contrast to addresses.
	ID string `json:"id"`
	// Address is host:port.
	Address string `json:"address"`
}

// Certificate is served to clients whose SNI equals Name, or is one level
// below a Name like "*.example.com" and has no certificate of its own.
type Certificate struct {
	Name string `json:"name"`
	// Chain holds the leaf and then its issuers, PEM.
	Chain string `json:"chain"`
	// Key is the private key, PEM. It must reach no log.
	Key string `json:"key"`
}

// Change turns the table of generation N-1 into that of generation N; a router
// at any other generation has missed something and asks for a snapshot. A Change
// with a Snapshot replaces all that the router had, whatever its generation.
// Sets and drops of one Change name different things.
type Change struct {
	Generation uint64 `json:"generation"`
	// Snapshot is the whole table; the other fields are then empty.
	Snapshot *Table `json:"snapshot,omitempty"`
	// SetRoutes adds or replaces routes by host, DropRoutes removes them.
	SetRoutes  []Route  `json:"set_routes,omitempty"`
	DropRoutes []string `json:"drop_routes,omitempty"`
	// SetCertificates adds or replaces by name, DropCertificates removes.
	SetCertificates  []Certificate `json:"set_certificates,omitempty"`
	DropCertificates []string      `json:"drop_certificates,omitempty"`
}

// Status is what a router reports back. Instances are stopped only after every
// connected router has drained the generation that removed them.
type Status struct {
	// Router identifies the router process; it changes with each start.
	Router string `json:"router"`
	// Applied is the newest generation that new requests follow.
	Applied uint64 `json:"applied"`
	// Drained is the newest generation for which no request is under way any
	// more on a target that this or an earlier generation removed.
	Drained uint64 `json:"drained"`
}

// Validate reports every fault of the table at once, or nil.
func (t *Table) Validate() error {
	var errs []error
	seen := make(map[string]bool, len(t.Routes))
	for i := range t.Routes {
		r := &t.Routes[i]
		if seen[r.Host] {
			errs = append(errs, fmt.Errorf("route %q: host appears twice", r.Host))
		}
		seen[r.Host] = true
		errs = append(errs, r.Validate())
	}
	names := make(map[string]bool, len(t.Certificates))
	for i := range t.Certificates {
		c := &t.Certificates[i]
		if names[c.Name] {
			errs = append(errs, fmt.Errorf("certificate %q: name appears twice", c.Name))
		}
		names[c.Name] = true
		errs = append(errs, c.Validate())
	}
	return errors.Join(errs...)
}

// Validate reports the faults of one route.
func (r *Route) Validate() error {
	var errs []error
	if err := validHost(r.Host); err != nil {
		errs = append(errs, err)
	}
	if len(r.Targets) > MaxTargets {
		errs = append(errs, fmt.Errorf("%d targets, at most %d", len(r.Targets), MaxTargets))
	}
	seen := make(map[string]bool, len(r.Targets))
	for _, t := range r.Targets {
		if seen[t.ID] {
			errs = append(errs, fmt.Errorf("target %s appears twice", t.ID))
		}
		seen[t.ID] = true
		errs = append(errs, t.validate())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("route %q: %w", r.Host, err)
	}
	return nil
}

func (t Target) validate() error {
	if t.ID == "" {
		return fmt.Errorf("target %s has no id", t.Address)
	}
	host, port, err := net.SplitHostPort(t.Address)
	if err != nil {
		return fmt.Errorf("target %s: %w", t.ID, err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); host == "" || err != nil || n == 0 {
		return fmt.Errorf("target %s: bad address %q", t.ID, t.Address)
	}
	return nil
}

// Validate reports the faults of one certificate without showing its key. It
// does not parse chain and key: that costs more than all else and a router
// does it when the certificate is first asked for.
func (c *Certificate) Validate() error {
	var err error
	switch host := strings.TrimPrefix(c.Name, "*."); {
	case validHost(host) != nil:
		err = validHost(host)
	case c.Chain == "" || c.Key == "":
		err = errors.New("chain or key is empty")
	case len(c.Chain)+len(c.Key) > MaxCertificate:
		err = fmt.Errorf("chain and key are longer than %d bytes", MaxCertificate)
	}
	if err != nil {
		return fmt.Errorf("certificate %q: %w", c.Name, err)
	}
	return nil
}

// validHost takes what a client can send as a host and a user can have as a
// domain or an app. Labels may be longer than DNS allows, as app ids may.
func validHost(h string) error {
	switch {
	case h == "":
		return errors.New("host is empty")
	case len(h) > MaxHostLength:
		return fmt.Errorf("host is longer than %d characters", MaxHostLength)
	case h != strings.ToLower(h):
		return errors.New("host is not lower case")
	case strings.ContainsFunc(h, notInHost):
		return errors.New("host holds a character that no host name has")
	case h[0] == '.' || h[len(h)-1] == '.' || strings.Contains(h, ".."):
		return errors.New("host has an empty label")
	}
	return nil
}

func notInHost(r rune) bool {
	return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '_' || r == '.')
}
