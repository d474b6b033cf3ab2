// Package paas is the domain: the things a platform is made of and the rules
// they obey. It depends on the standard library only and does no I/O.
//
// The words are those of docs/ARCHITECTURE.md and the rules those of Deis v1;
// "contract n.m" in a comment is a section of the Deis v1 contract.
package paas

import (
	"strings"
	"time"
)

// User is a person or a machine account. Password hash and token never leave
// the store.
type User struct {
	ID        string
	Username  string
	Email     string
	FirstName string
	LastName  string
	Superuser bool
	Staff     bool
	Active    bool
	LastLogin time.Time
	Joined    time.Time
}

// App is the one deployable thing; everything else hangs from it. UUID is its
// identity; ID is the name in URLs, host names and git remotes, and may one day
// change.
type App struct {
	UUID string
	ID   string
	// Owner is a username.
	Owner string
	// Structure is the formation as users see it: process type to count. It is
	// empty until the first deploy or scale (contract 5.5).
	Structure map[string]int
	// Cache names the build cache: another number is another cache.
	Cache   int64
	Created time.Time
	Updated time.Time
}

// Strategy says how a build was made.
type Strategy string

// The strategies. A pulled image was not built by us.
const (
	StrategyDockerfile Strategy = "dockerfile"
	StrategyBuildpacks Strategy = "buildpacks"
	StrategyImage      Strategy = "image"
)

// Build is immutable: one commit or pulled image that can run.
type Build struct {
	UUID  string
	App   string // app UUID
	Owner string // username
	// Image is the reference that the engine knows; for users there are Label
	// and ShownImage.
	Image string
	// Digest ("sha256:...") pins the image; empty for builds posted by old
	// clients, whose Image is then resolved when it is deployed.
	Digest     string
	SHA        string
	Procfile   map[string]string
	Dockerfile string
	Strategy   Strategy
	Log        string
	// SBOM is a CycloneDX document, Provenance an in-toto statement; empty where there is none. Like
	// Log they are written with a build and read on their own.
	SBOM       []byte
	Provenance []byte
	Created    time.Time
	Updated    time.Time
}

// LocalImages begins the references of images that the builder made here; the
// app's UUID follows.
const LocalImages = "deis.internal/apps/"

// Label names a build in lines for people: its commit, or else its image
// (contract 5.4).
func (b Build) Label() string {
	if b.SHA != "" {
		return b.SHA[:min(7, len(b.SHA))]
	}
	return b.Image
}

// ShownImage is the image as the API shows it. One that the builder made is
// called like its app, as the original has it (contract 6).
func (b Build) ShownImage(app App) string {
	if b.madeFor(app) {
		return app.ID
	}
	return b.Image
}

// madeFor reports whether the builder made the image for an app.
func (b Build) madeFor(app App) bool {
	return strings.HasPrefix(b.Image, LocalImages+app.UUID+":") || strings.HasPrefix(b.Image, LocalImages+app.UUID+"@")
}

// Config is immutable; each change makes a new one. Values are secret.
type Config struct {
	UUID    string
	App     string // app UUID
	Owner   string // username
	Values  map[string]string
	Memory  map[string]string
	CPU     map[string]int
	Tags    map[string]string
	Created time.Time
	Updated time.Time
}

// Release is a numbered pair of build and config that went live.
type Release struct {
	UUID    string
	App     string // app UUID
	Owner   string // username
	Version int
	Summary string
	Config  string // config UUID
	Build   string // build UUID, empty before the first build
	Created time.Time
	Updated time.Time
}

// RolloutKind says what asked for a rollout.
type RolloutKind string

// The kinds. Deploys, config changes and rollbacks write a release when they
// succeed; scales and restarts do not.
const (
	RolloutDeploy   RolloutKind = "deploy"
	RolloutConfig   RolloutKind = "config"
	RolloutRollback RolloutKind = "rollback"
	RolloutScale    RolloutKind = "scale"
	RolloutRestart  RolloutKind = "restart"
)

// MakesRelease reports whether a rollout of this kind ends in a release.
func (k RolloutKind) MakesRelease() bool {
	return k == RolloutDeploy || k == RolloutConfig || k == RolloutRollback
}

// RolloutState is a step of the journal.
type RolloutState string

// The states, in order. Succeeded and failed are final.
const (
	// RolloutPending is written before anything is touched.
	RolloutPending RolloutState = "pending"
	// RolloutReleasing: the release process of the build may run or have run.
	RolloutReleasing RolloutState = "releasing"
	// RolloutStarting: instances of the new sets may exist. Those that the live sets
	// name have taken the places of old ones already.
	RolloutStarting RolloutState = "starting"
	// RolloutUndoing: it failed after some old instances had gone; they are brought back.
	RolloutUndoing RolloutState = "undoing"
	// RolloutSucceeded is written in the transaction that makes the new sets
	// the live ones. What is no longer live is retired afterwards.
	RolloutSucceeded RolloutState = "succeeded"
	// RolloutFailed is written in the transaction after which the sets from before
	// are the live ones; the new ones are unwanted.
	RolloutFailed RolloutState = "failed"
)

// Rollout is one attempt to bring (build, config, formation) live: frozen
// inputs and a journal. Its ID is the generation of the sets that it starts.
type Rollout struct {
	ID     int64
	App    string // app UUID
	Owner  string // username of who asked
	Kind   RolloutKind
	State  RolloutState
	Build  string // build UUID, may be empty
	Config string // config UUID
	// Formation is the process types and counts after success.
	Formation map[string]int
	// Restart names what a restart replaces: process type to instance numbers.
	Restart map[string][]int
	// Version is the release that runs: the number that success writes, or the
	// current one for scales and restarts.
	Version int
	Summary string
	// Before are the sets that were live when it began; nil if that is not on record.
	Before []Set
	// Step says, for people, what it does in its state.
	Step string
	// Reason says why it failed, or of what a success warns, for the user. It holds no config values.
	Reason   string
	Created  time.Time
	Finished time.Time
}

// Set is the part of an app's live formation that one rollout brought up:
// numbered instances of one process type with equal inputs. Several
// generations of one type are live together after a scale or a restart of
// single instances.
type Set struct {
	App        string // app UUID
	Type       string
	Generation int64 // rollout ID
	Version    int   // release
	Build      string
	Config     string
	// Nums are the instance numbers, ascending.
	Nums []int
}

// InstanceState is a state of contract section 8.
type InstanceState string

// The states. A stopped instance is down, one whose process ended by itself
// crashed, one that could not be created error.
const (
	StateInitialized InstanceState = "initialized"
	StateCreated     InstanceState = "created"
	StateUp          InstanceState = "up"
	StateDown        InstanceState = "down"
	StateDestroyed   InstanceState = "destroyed"
	StateCrashed     InstanceState = "crashed"
	StateError       InstanceState = "error"
)

// Instance is one running container as the API shows it ("container" there).
type Instance struct {
	UUID    string
	App     string // app UUID
	Version int    // release
	Type    string
	Num     int
	// Generation is the set's.
	Generation int64
	State      InstanceState
	// Reason explains a state other than up: exit code, signal, memory limit.
	Reason string
	// Container is the engine's ID of it; empty while there is none.
	Container string
	// Restarts counts how often the platform started it again. The store counts.
	Restarts int
	Created  time.Time
	Updated  time.Time
}

// Domain is a custom host name of an app.
type Domain struct {
	App   string // app UUID
	Owner string // username
	// Name is as the user typed it, without the final dot.
	Name    string
	Created time.Time
	Updated time.Time
}

// Host is the domain as requests and certificates name it: in lower case.
func (d Domain) Host() string { return strings.ToLower(d.Name) }

// Certificate is an uploaded certificate, served for the host CommonName.
type Certificate struct {
	ID         int64
	Owner      string // username
	CommonName string
	// Chain is PEM, leaf first. Key is PEM and secret.
	Chain   string
	Key     string
	Expires time.Time
	Created time.Time
	Updated time.Time
}

// Key is a public SSH key of a user.
type Key struct {
	UUID  string
	Owner string // username
	ID    string
	// Public is the authorized_keys line as it was sent.
	Public string
	// Fingerprint is the MD5 form with colons (contract 5.11).
	Fingerprint string
	Created     time.Time
	Updated     time.Time
}

// Activity is one row of the audit log: every mutation writes exactly one, in
// its own transaction.
type Activity struct {
	ID   int64
	At   time.Time
	User string // username; "" for the platform itself
	App  string // app UUID; "" when it concerns none
	// Text is the controller's line of contract section 12, for example
	// "alice scaled containers web=2".
	Text string
}

// Routed reports whether instances of a process type get HTTP requests
// (contract 10.5).
func Routed(processType string) bool { return processType == "web" || processType == "cmd" }
