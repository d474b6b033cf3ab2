package api

// Rollout is one attempt to bring something live, of GET /v1/apps/{app}/rollouts, which is ours: what is
// under way, and what failed and why.
type Rollout struct {
	ID    int64  `json:"id"`
	App   string `json:"app"`
	Owner string `json:"owner"`
	// Kind is deploy, config, rollback, scale or restart; State is pending, releasing, starting, undoing,
	// succeeded or failed.
	Kind  string `json:"kind"`
	State string `json:"state"`
	// Step says what it does in its state; empty at the end.
	Step string `json:"step"`
	// Version is the release that it makes, or that runs for kinds that make none.
	Version int     `json:"version"`
	Summary string  `json:"summary"`
	Build   *string `json:"build"`
	Config  string  `json:"config"`
	// Formation is what runs after success.
	Formation map[string]int `json:"formation"`
	// Reason says why it failed, in lines, the last ones of the log among them.
	Reason  string `json:"reason"`
	Created string `json:"created"`
	// Finished is null while it is under way.
	Finished *string `json:"finished"`
}

// Instance is a Container with what Deis v1 does not tell, of GET /v1/apps/{app}/instances.
type Instance struct {
	App     string `json:"app"`
	Release string `json:"release"`
	Type    string `json:"type"`
	Num     int    `json:"num"`
	// Rollout is the ID of the one that brought it up.
	Rollout int64  `json:"rollout"`
	State   string `json:"state"`
	// Reason explains a state other than up: exit code, signal, memory limit.
	Reason string `json:"reason"`
	// Restarts counts how often it was started again after it had ended.
	Restarts int    `json:"restarts"`
	Created  string `json:"created"`
	Updated  string `json:"updated"`
}
