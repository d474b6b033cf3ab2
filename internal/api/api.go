// Package api is the language that the daemons and the command lines speak: the
// wire types of Deis v1, the mapping between error codes and HTTP statuses, and
// the client. Both sides use it, so that they cannot drift apart.
package api

import "fmt"

// Version is the API version that the server sends and the client expects.
const (
	Version         = "1.7"
	PlatformVersion = "1.13.4"
)

// Headers of contract section 1. Assign them to a header map directly: the
// canonical form of Go would change their case on the wire.
const (
	HeaderAPIVersion         = "DEIS_API_VERSION"
	HeaderAPIVersionOld      = "X_DEIS_API_VERSION"
	HeaderPlatformVersion    = "DEIS_PLATFORM_VERSION"
	HeaderPlatformVersionOld = "X_DEIS_PLATFORM_VERSION"
	HeaderRelease            = "Deis-Release"
	HeaderReleaseOld         = "X-Deis-Release"
	// HeaderBuilderAuth carries the key that controller, builder and router share.
	HeaderBuilderAuth = "X-Deis-Builder-Auth"
	// HeaderGitURL is ours: the base of git remotes, "ssh://git@host:port",
	// because the port is a setting here. It is sent with GET /v1/.
	HeaderGitURL = "Deis-Git-Url"
	// HeaderFollow is ours: it says that an answer with logs goes on as long as
	// there are any ("follow=true").
	HeaderFollow = "Deis-Follow"
)

// TimeLayout is the form of created, updated and expires (contract 2.5).
const TimeLayout = "2006-01-02T15:04:05UTC"

// List is a page of results (contract 2.4).
type List[T any] struct {
	Count    int     `json:"count"`
	Next     *string `json:"next"`
	Previous *string `json:"previous"`
	Results  []T     `json:"results"`
}

// App is contract 5.1.
type App struct {
	UUID      string         `json:"uuid"`
	ID        string         `json:"id"`
	Owner     string         `json:"owner"`
	URL       string         `json:"url"`
	Structure map[string]int `json:"structure"`
	Created   string         `json:"created"`
	Updated   string         `json:"updated"`
}

// Config is contract 5.2. A nil value removes a key. Nil maps are left out, empty ones are not.
type Config struct {
	UUID    string         `json:"uuid,omitzero"`
	App     string         `json:"app,omitzero"`
	Owner   string         `json:"owner,omitzero"`
	Values  map[string]any `json:"values,omitzero"`
	Memory  map[string]any `json:"memory,omitzero"`
	CPU     map[string]any `json:"cpu,omitzero"`
	Tags    map[string]any `json:"tags,omitzero"`
	Created string         `json:"created,omitzero"`
	Updated string         `json:"updated,omitzero"`
}

// Build is contract 5.3.
type Build struct {
	UUID       string            `json:"uuid,omitempty"`
	App        string            `json:"app,omitempty"`
	Owner      string            `json:"owner,omitempty"`
	Image      string            `json:"image"`
	SHA        string            `json:"sha"`
	Procfile   map[string]string `json:"procfile"`
	Dockerfile string            `json:"dockerfile"`
	Created    string            `json:"created,omitempty"`
	Updated    string            `json:"updated,omitempty"`
}

// Release is contract 5.4.
type Release struct {
	UUID    string  `json:"uuid"`
	App     string  `json:"app"`
	Owner   string  `json:"owner"`
	Version int     `json:"version"`
	Summary string  `json:"summary"`
	Config  string  `json:"config"`
	Build   *string `json:"build"`
	Created string  `json:"created"`
	Updated string  `json:"updated"`
}

// Container is contract 5.5; elsewhere we say instance.
type Container struct {
	UUID    string `json:"uuid"`
	App     string `json:"app"`
	Owner   string `json:"owner"`
	Release string `json:"release"`
	Type    string `json:"type"`
	Num     int    `json:"num"`
	State   string `json:"state"`
	Created string `json:"created"`
	Updated string `json:"updated"`
}

// Domain is contract 5.9.
type Domain struct {
	App     string `json:"app"`
	Owner   string `json:"owner"`
	Domain  string `json:"domain"`
	Created string `json:"created"`
	Updated string `json:"updated"`
}

// Cert is contract 5.10. Certificate and Key are write-only.
type Cert struct {
	ID          int64  `json:"id,omitempty"`
	Owner       string `json:"owner,omitempty"`
	CommonName  string `json:"common_name,omitempty"`
	Expires     string `json:"expires,omitempty"`
	Certificate string `json:"certificate,omitempty"`
	Key         string `json:"key,omitempty"`
	Created     string `json:"created,omitempty"`
	Updated     string `json:"updated,omitempty"`
}

// Key is contract 5.11.
type Key struct {
	UUID        string `json:"uuid,omitempty"`
	Owner       string `json:"owner,omitempty"`
	ID          string `json:"id"`
	Public      string `json:"public"`
	Fingerprint string `json:"fingerprint,omitempty"`
	Created     string `json:"created,omitempty"`
	Updated     string `json:"updated,omitempty"`
}

// User is contract 3.1.
type User struct {
	Username        string   `json:"username"`
	Email           string   `json:"email"`
	FirstName       string   `json:"first_name"`
	LastName        string   `json:"last_name"`
	IsSuperuser     bool     `json:"is_superuser"`
	IsStaff         bool     `json:"is_staff"`
	IsActive        bool     `json:"is_active"`
	Groups          []string `json:"groups"`
	UserPermissions []string `json:"user_permissions"`
	LastLogin       string   `json:"last_login"`
	DateJoined      string   `json:"date_joined"`
}

// Drains lists where an app's log lines go; ours, not the contract's.
type Drains struct {
	Drains []Drain `json:"drains"`
}

// Drain is one of them, with what became of the lines since the controller started.
type Drain struct {
	URL     string `json:"url"`
	Sent    int64  `json:"sent"`
	Dropped int64  `json:"dropped"`
	// Error is why the drain cannot be reached; empty while it can.
	Error string `json:"error"`
}

// SizeText is a number of bytes for people: 512M, 1.5G.
func SizeText(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%dG", n>>30)
	case n >= 1<<30:
		return fmt.Sprintf("%.1fG", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%dM", n>>20)
	}
	return fmt.Sprintf("%dK", (n+1023)>>10)
}
