package controller

import "net/http"

// policy says who may call an endpoint (contract 3.8).
type policy int

const (
	// anyone: credentials are not looked at, so bad ones do no harm.
	anyone policy = iota + 1
	// users: whoever has a valid token.
	users
	// superusers only.
	superusers
	// members: owner and collaborators of the app in the path, superusers.
	members
	// owners: owner of the app in the path, superusers.
	owners
	// ownersOrSelf: owners, and the user whom {username} in the path names.
	ownersOrSelf
	// daemons: who has the builder key.
	daemons
)

const (
	// maxBody bounds a request: configs have no limit of their own.
	maxBody = 4 << 20
	// maxHookBody leaves room for a build's log in JSON, which may be six times as long as the
	// text (api.MaxBuildLog), and for its two documents (api.MaxBuildDocument).
	maxHookBody = 16 << 20
)

// endpoint is one method of one path.
type endpoint struct {
	method string
	// path is a pattern of http.ServeMux, without final slash.
	path    string
	policy  policy
	handle  func(*call) error
	aliases []string
	// media is what it can answer besides JSON; callers may ask for that alone.
	media string
}

func (e *endpoint) bodyLimit() int64 {
	if e.policy == daemons {
		return maxHookBody
	}
	return maxBody
}

const (
	get  = http.MethodGet
	post = http.MethodPost
	del  = http.MethodDelete
)

// endpoints is the API: contract section 4, and the hooks of package api.
var endpoints = []endpoint{
	{method: get, path: "/healthz", policy: anyone, handle: (*call).healthz, media: "*/*"},
	{method: get, path: "/v1/", policy: users, handle: (*call).root},
	{method: get, path: "/v1/openapi.json", policy: anyone, handle: (*call).openAPI},

	{method: post, path: "/v1/auth/register", policy: anyone, handle: (*call).register},
	{method: post, path: "/v1/auth/login", policy: anyone, handle: (*call).login},
	{method: post, path: "/v1/auth/passwd", policy: users, handle: (*call).setPassword},
	{method: post, path: "/v1/auth/tokens", policy: users, handle: (*call).newToken},
	{method: del, path: "/v1/auth/cancel", policy: users, handle: (*call).cancel},
	{method: get, path: "/v1/users", policy: superusers, handle: (*call).listUsers},
	{method: get, path: "/v1/admin/perms", policy: superusers, handle: (*call).listAdmins},
	{method: post, path: "/v1/admin/perms", policy: superusers, handle: (*call).addAdmin},
	{method: del, path: "/v1/admin/perms/{username}", policy: superusers, handle: (*call).removeAdmin},

	{method: get, path: "/v1/apps", policy: users, handle: (*call).listApps},
	{method: post, path: "/v1/apps", policy: users, handle: (*call).createApp},
	{method: get, path: "/v1/apps/{app}", policy: members, handle: (*call).getApp},
	{method: post, path: "/v1/apps/{app}", policy: members, handle: (*call).updateApp},
	{method: del, path: "/v1/apps/{app}", policy: owners, handle: (*call).deleteApp},
	{method: post, path: "/v1/apps/{app}/scale", policy: members, handle: (*call).scale},
	{method: get, path: "/v1/apps/{app}/logs", policy: members, handle: (*call).logs, media: "text/plain"},
	{method: get, path: "/v1/apps/{app}/disk", policy: members, handle: (*call).getDisk},
	{method: get, path: "/v1/apps/{app}/drains", policy: members, handle: (*call).listDrains},
	{method: post, path: "/v1/apps/{app}/run", policy: members, handle: (*call).runCommand, media: "text/plain"},
	{method: get, path: "/v1/apps/{app}/config", policy: members, handle: (*call).getConfig},
	{method: post, path: "/v1/apps/{app}/config", policy: members, handle: (*call).changeConfig},
	{method: get, path: "/v1/apps/{app}/builds", policy: members, handle: (*call).listBuilds},
	{method: post, path: "/v1/apps/{app}/builds", policy: members, handle: (*call).createBuild},
	{method: del, path: "/v1/apps/{app}/builds/cache", policy: members, handle: (*call).clearCache},
	{method: get, path: "/v1/apps/{app}/builds/{uuid}", policy: members, handle: (*call).getBuild},
	{method: get, path: "/v1/apps/{app}/builds/{uuid}/log", policy: members, handle: (*call).buildLog, media: "text/plain"},
	{method: get, path: "/v1/apps/{app}/builds/{uuid}/sbom", policy: members, handle: (*call).buildSBOM},
	{method: get, path: "/v1/apps/{app}/builds/{uuid}/provenance", policy: members, handle: (*call).buildProvenance},
	{method: get, path: "/v1/apps/{app}/releases", policy: members, handle: (*call).listReleases},
	{method: get, path: "/v1/apps/{app}/releases/{version}", policy: members, handle: (*call).getRelease},
	{method: post, path: "/v1/apps/{app}/releases/rollback", policy: members, handle: (*call).rollback},
	{method: get, path: "/v1/apps/{app}/rollouts", policy: members, handle: (*call).listRollouts},
	{method: get, path: "/v1/apps/{app}/rollouts/{rollout}", policy: members, handle: (*call).getRollout},
	{method: get, path: "/v1/apps/{app}/instances", policy: members, handle: (*call).listInstances},
	{method: get, path: "/v1/apps/{app}/containers", policy: members, handle: (*call).listContainers},
	{method: get, path: "/v1/apps/{app}/containers/{type}", policy: members, handle: (*call).listContainers},
	{method: get, path: "/v1/apps/{app}/containers/{type}/{num}", policy: members, handle: (*call).getContainer},
	{method: post, path: "/v1/apps/{app}/containers/restart", policy: members, handle: (*call).restart},
	{method: post, path: "/v1/apps/{app}/containers/{type}/restart", policy: members, handle: (*call).restart},
	{method: post, path: "/v1/apps/{app}/containers/{type}/{num}/restart", policy: members, handle: (*call).restart},
	{method: get, path: "/v1/apps/{app}/domains", policy: members, handle: (*call).listDomains},
	{method: post, path: "/v1/apps/{app}/domains", policy: members, handle: (*call).addDomain},
	{method: del, path: "/v1/apps/{app}/domains/{domain}", policy: owners, handle: (*call).removeDomain},
	{method: get, path: "/v1/apps/{app}/perms", policy: members, handle: (*call).listPerms},
	{method: post, path: "/v1/apps/{app}/perms", policy: owners, handle: (*call).grant},
	{method: del, path: "/v1/apps/{app}/perms/{username}", policy: ownersOrSelf, handle: (*call).revoke},

	{method: get, path: "/v1/keys", policy: users, handle: (*call).listKeys},
	{method: post, path: "/v1/keys", policy: users, handle: (*call).addKey},
	{method: get, path: "/v1/keys/{id...}", policy: users, handle: (*call).getKey},
	{method: del, path: "/v1/keys/{id...}", policy: users, handle: (*call).removeKey},
	{method: get, path: "/v1/certs", policy: users, handle: (*call).listCerts},
	{method: post, path: "/v1/certs", policy: users, handle: (*call).addCert},
	{method: get, path: "/v1/certs/{name}", policy: users, handle: (*call).getCert},
	{method: del, path: "/v1/certs/{name}", policy: users, handle: (*call).removeCert},

	{method: post, path: "/v1/hooks/key", policy: daemons, handle: (*call).keyHook},
	{method: post, path: "/v1/hooks/access", policy: daemons, handle: (*call).accessHook},
	{method: post, path: "/v1/hooks/push", policy: daemons, handle: (*call).pushHook},
	{method: post, path: "/v1/hooks/config", policy: daemons, handle: (*call).configHook},
	{method: post, path: "/v1/hooks/build", policy: daemons, handle: (*call).buildHook, aliases: []string{"/v1/hooks/builds"}, media: "application/x-ndjson"},
	{method: get, path: "/v1/hooks/apps", policy: daemons, handle: (*call).appsHook},
	{method: get, path: "/v1/hooks/releases", policy: daemons, handle: (*call).releasesHook},
	{method: get, path: "/v1/hooks/disk", policy: daemons, handle: (*call).diskHook},
	{method: get, path: "/v1/hooks/routes", policy: daemons, handle: (*call).routesHook, media: "application/x-ndjson"},
	{method: post, path: "/v1/hooks/routers", policy: daemons, handle: (*call).routersHook},
}
