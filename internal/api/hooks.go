package api

import "encoding/json"

// The hooks are what builder and router ask of the controller, with the shared
// key in HeaderBuilderAuth. Push, config and build are contract section 6; the
// others are ours.
//
//	POST /v1/hooks/key     KeyHook    200 KeyHookAnswer, 404 unknown key
//	POST /v1/hooks/access  AccessHook 200 AccessHookAnswer, 403, 404
//	POST /v1/hooks/push    PushHook   201
//	POST /v1/hooks/config  RepoHook   200 ConfigHookAnswer
//	POST /v1/hooks/build   BuildHook  200 BuildHookAnswer; with Accept: application/x-ndjson
//	                                  a stream of BuildEvent, the last with Answer or Error
//	GET  /v1/hooks/apps               200 AppsHookAnswer: all that exist
//	GET  /v1/hooks/releases?app=ID    200 ReleasesHookAnswer: of one app, or of all; 404
//	GET  /v1/hooks/routes?generation=N&router=ID
//	                                  200 a stream of routerconf.Change (JSON lines): what came after
//	                                  N, or a snapshot where that is not known any more. An empty line
//	                                  is a sign of life, sent every RoutesHeartbeatSeconds. 503 until
//	                                  the controller knows the instances. ID is that of the Status.
//	POST /v1/hooks/routers routerconf.Status  204
//	GET  /v1/hooks/disk               200 DiskHookAnswer

// RoutesHeartbeatSeconds is how often the stream of routes shows a sign of
// life; a router that sees nothing for three times as long connects again.
const RoutesHeartbeatSeconds = 5

// KeyHook asks whose an SSH key is.
type KeyHook struct {
	// Key is the public key in authorized_keys form, without comment.
	Key string `json:"key"`
}

// KeyHookAnswer names the key's owner.
type KeyHookAnswer struct {
	Username string `json:"username"`
	// Fingerprint is the MD5 form of contract 5.11.
	Fingerprint string `json:"fingerprint"`
}

// RepoHook says for whom and for which app a hook is called.
type RepoHook struct {
	ReceiveUser string `json:"receive_user"`
	ReceiveRepo string `json:"receive_repo"` // app id
}

// AccessHook asks whether a user may read and push an app's repository.
type AccessHook struct {
	RepoHook
}

// AccessHookAnswer is given when he may.
type AccessHookAnswer struct {
	// App is the app's UUID, under which the repository is kept.
	App string `json:"app"`
}

// PushHook records that a push has begun.
type PushHook struct {
	RepoHook
	SHA                string `json:"sha"`
	Fingerprint        string `json:"fingerprint"`
	SSHConnection      string `json:"ssh_connection"`
	SSHOriginalCommand string `json:"ssh_original_command"`
}

// BuildHook posts a finished build.
type BuildHook struct {
	RepoHook
	Image      string            `json:"image"`
	SHA        string            `json:"sha"`
	Procfile   map[string]string `json:"procfile"`
	Dockerfile string            `json:"dockerfile"`
	// The rest is ours. Digest pins the image ("sha256:..."); Log is the build's output, of which the
	// controller keeps the last MaxBuildLog bytes.
	Digest   string `json:"digest,omitempty"`
	Strategy string `json:"strategy,omitempty"`
	Log      string `json:"log,omitempty"`
	// SBOM is a CycloneDX document (https://cyclonedx.org), Provenance an in-toto statement with a SLSA v1
	// predicate (https://slsa.dev/spec/v1.0/provenance); each at most MaxBuildDocument bytes.
	SBOM       json.RawMessage `json:"sbom,omitempty"`
	Provenance json.RawMessage `json:"provenance,omitempty"`
	// RebaseOf is the UUID of the app's build whose image was put on another base; its SBOM is this
	// one's too. Empty for a build that is none of that.
	RebaseOf string `json:"rebase_of,omitempty"`
}

// MaxBuildDocument bounds each document kept with a build, in bytes. Large Node apps have SBOMs of 2 MB.
const MaxBuildDocument = 4 << 20

// ConfigHookAnswer is what a build needs to know of its app.
type ConfigHookAnswer struct {
	Config
	// Cache names the app's build cache. Clearing the cache makes it another number.
	Cache int64 `json:"cache"`
}

// MaxBuildLog bounds the log kept with a build, in bytes.
const MaxBuildLog = 1 << 20

// BuildHookAnswer is what the pusher is shown at the end.
type BuildHookAnswer struct {
	Release struct {
		Version int `json:"version"`
	} `json:"release"`
	Domains []string `json:"domains"`
}

// BuildEvent is one line of the streamed build hook.
type BuildEvent struct {
	// Message is a line of progress for the pusher.
	Message string           `json:"message,omitempty"`
	Answer  *BuildHookAnswer `json:"answer,omitempty"`
	// Error and Status are the end of a failed rollout: the text for the pusher and the HTTP
	// status that the plain hook would have had.
	Error  string `json:"error,omitempty"`
	Status int    `json:"status,omitempty"`
}

// AppsHookAnswer lists the UUIDs of all apps; repositories and caches of
// others may go.
type AppsHookAnswer struct {
	Apps []string `json:"apps"`
	// Caches is each app's ConfigHookAnswer.Cache by its UUID; caches of other numbers may go.
	Caches map[string]int64 `json:"caches"`
}

// ReleasesHookAnswer lists the latest releases of apps that were deployed, in the order of the apps'
// creation.
type ReleasesHookAnswer struct {
	Releases []HookRelease `json:"releases"`
}

// HookRelease is an app's latest release with what was built for it.
type HookRelease struct {
	// App is the app's ID, Owner a username.
	App     string `json:"app"`
	UUID    string `json:"uuid"`
	Owner   string `json:"owner"`
	Version int    `json:"version"`
	// Build is the UUID; Image, Digest, SHA, Procfile and Strategy are those of BuildHook.
	Build    string            `json:"build"`
	Image    string            `json:"image"`
	Digest   string            `json:"digest"`
	SHA      string            `json:"sha"`
	Procfile map[string]string `json:"procfile"`
	Strategy string            `json:"strategy"`
}

// DiskHookAnswer says what takes the disk, in bytes; a limit of 0 is none.
type DiskHookAnswer struct {
	// Size and Free are those of the file system that the platform's directory is on. Pushes are refused
	// while less than Reserve is free.
	Size    int64 `json:"size"`
	Free    int64 `json:"free"`
	Reserve int64 `json:"reserve"`
	// Images is all layers, those that apps share and base images included; Logs is those of the instances, and
	// Written the files that these wrote. Limit bounds the three together.
	Images  int64 `json:"images"`
	Logs    int64 `json:"logs"`
	Written int64 `json:"written"`
	Limit   int64 `json:"limit"`
	// Apps is by size, the largest first.
	Apps []HookAppDisk `json:"apps"`
}

// HookAppDisk is what one app takes.
type HookAppDisk struct {
	App string `json:"app"` // its id
	AppDisk
}

// AppDisk is what an app takes for itself, in bytes: layers that no other has, logs, and what its instances have
// written to their files. Limit bounds the three together; 0 is none.
type AppDisk struct {
	Images  int64 `json:"images"`
	Logs    int64 `json:"logs"`
	Written int64 `json:"written"`
	Limit   int64 `json:"limit"`
}

// Total is all of it.
func (d AppDisk) Total() int64 { return d.Images + d.Logs + d.Written }
