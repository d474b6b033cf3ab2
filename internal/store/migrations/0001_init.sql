-- Times are Unix microseconds. Columns called sealed are encrypted, JSON columns hold objects
-- or lists as text. seq gives the order of insertion.

CREATE TABLE counters (
	name  TEXT PRIMARY KEY,
	value BIGINT NOT NULL
);

CREATE TABLE users (
	id           TEXT PRIMARY KEY,
	seq          BIGINT NOT NULL UNIQUE,
	username     TEXT NOT NULL UNIQUE,
	password     TEXT NOT NULL,
	email        TEXT NOT NULL,
	first_name   TEXT NOT NULL,
	last_name    TEXT NOT NULL,
	superuser    BOOLEAN NOT NULL,
	staff        BOOLEAN NOT NULL,
	active       BOOLEAN NOT NULL,
	token_serial BIGINT NOT NULL,
	last_login   BIGINT NOT NULL,
	joined       BIGINT NOT NULL
);

CREATE TABLE tokens (
	hash    TEXT PRIMARY KEY,
	user_id TEXT NOT NULL UNIQUE REFERENCES users (id) ON DELETE CASCADE,
	created BIGINT NOT NULL
);

CREATE TABLE keys (
	uuid        TEXT PRIMARY KEY,
	seq         BIGINT NOT NULL UNIQUE,
	owner_id    TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
	id          TEXT NOT NULL,
	public      TEXT NOT NULL,
	fingerprint TEXT NOT NULL UNIQUE,
	created     BIGINT NOT NULL,
	updated     BIGINT NOT NULL,
	UNIQUE (owner_id, id)
);

CREATE TABLE apps (
	uuid      TEXT PRIMARY KEY,
	seq       BIGINT NOT NULL UNIQUE,
	id        TEXT NOT NULL UNIQUE,
	owner_id  TEXT NOT NULL REFERENCES users (id),
	structure TEXT NOT NULL,
	deleting  BOOLEAN NOT NULL,
	created   BIGINT NOT NULL,
	updated   BIGINT NOT NULL
);
CREATE INDEX apps_owner ON apps (owner_id);

CREATE TABLE app_permissions (
	app     TEXT NOT NULL REFERENCES apps (uuid) ON DELETE CASCADE,
	user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
	created BIGINT NOT NULL,
	PRIMARY KEY (app, user_id)
);
CREATE INDEX app_permissions_user ON app_permissions (user_id);

CREATE TABLE builds (
	uuid       TEXT PRIMARY KEY,
	seq        BIGINT NOT NULL UNIQUE,
	app        TEXT NOT NULL REFERENCES apps (uuid) ON DELETE CASCADE,
	owner_id   TEXT NOT NULL REFERENCES users (id),
	image      TEXT NOT NULL,
	digest     TEXT NOT NULL,
	sha        TEXT NOT NULL,
	procfile   TEXT NOT NULL,
	dockerfile TEXT NOT NULL,
	strategy   TEXT NOT NULL,
	created    BIGINT NOT NULL,
	updated    BIGINT NOT NULL
);
CREATE INDEX builds_app ON builds (app, seq);

CREATE TABLE build_logs (
	build TEXT PRIMARY KEY REFERENCES builds (uuid) ON DELETE CASCADE,
	log   TEXT NOT NULL
);

CREATE TABLE configs (
	uuid     TEXT PRIMARY KEY,
	app      TEXT NOT NULL REFERENCES apps (uuid) ON DELETE CASCADE,
	owner_id TEXT NOT NULL REFERENCES users (id),
	sealed   TEXT NOT NULL,
	memory   TEXT NOT NULL,
	cpu      TEXT NOT NULL,
	tags     TEXT NOT NULL,
	created  BIGINT NOT NULL,
	updated  BIGINT NOT NULL
);
CREATE INDEX configs_app ON configs (app);

CREATE TABLE rollouts (
	id        BIGINT PRIMARY KEY,
	app       TEXT NOT NULL REFERENCES apps (uuid) ON DELETE CASCADE,
	owner_id  TEXT NOT NULL REFERENCES users (id),
	kind      TEXT NOT NULL,
	state     TEXT NOT NULL,
	build     TEXT REFERENCES builds (uuid),
	config    TEXT NOT NULL REFERENCES configs (uuid),
	formation TEXT NOT NULL,
	restart   TEXT NOT NULL,
	version   BIGINT NOT NULL,
	summary   TEXT NOT NULL,
	reason    TEXT NOT NULL,
	created   BIGINT NOT NULL,
	finished  BIGINT NOT NULL
);
CREATE INDEX rollouts_app ON rollouts (app, id);
CREATE INDEX rollouts_state ON rollouts (state, id);

CREATE TABLE releases (
	uuid     TEXT PRIMARY KEY,
	app      TEXT NOT NULL REFERENCES apps (uuid) ON DELETE CASCADE,
	owner_id TEXT NOT NULL REFERENCES users (id),
	version  BIGINT NOT NULL,
	summary  TEXT NOT NULL,
	config   TEXT NOT NULL REFERENCES configs (uuid),
	build    TEXT REFERENCES builds (uuid),
	created  BIGINT NOT NULL,
	updated  BIGINT NOT NULL,
	UNIQUE (app, version)
);

CREATE TABLE live_sets (
	app        TEXT NOT NULL REFERENCES apps (uuid) ON DELETE CASCADE,
	type       TEXT NOT NULL,
	generation BIGINT NOT NULL,
	version    BIGINT NOT NULL,
	build      TEXT NOT NULL REFERENCES builds (uuid),
	config     TEXT NOT NULL REFERENCES configs (uuid),
	nums       TEXT NOT NULL,
	PRIMARY KEY (app, type, generation)
);

CREATE TABLE instances (
	uuid       TEXT PRIMARY KEY,
	seq        BIGINT NOT NULL UNIQUE,
	app        TEXT NOT NULL REFERENCES apps (uuid) ON DELETE CASCADE,
	version    BIGINT NOT NULL,
	type       TEXT NOT NULL,
	num        BIGINT NOT NULL,
	generation BIGINT NOT NULL,
	state      TEXT NOT NULL,
	reason     TEXT NOT NULL,
	created    BIGINT NOT NULL,
	updated    BIGINT NOT NULL,
	UNIQUE (app, generation, type, num)
);

CREATE TABLE domains (
	name     TEXT PRIMARY KEY,
	seq      BIGINT NOT NULL UNIQUE,
	app      TEXT NOT NULL REFERENCES apps (uuid) ON DELETE CASCADE,
	owner_id TEXT NOT NULL REFERENCES users (id),
	created  BIGINT NOT NULL,
	updated  BIGINT NOT NULL
);
CREATE INDEX domains_app ON domains (app, seq);

CREATE TABLE certificates (
	id          BIGINT PRIMARY KEY,
	owner_id    TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
	common_name TEXT NOT NULL UNIQUE,
	chain       TEXT NOT NULL,
	sealed      TEXT NOT NULL,
	expires     BIGINT NOT NULL,
	created     BIGINT NOT NULL,
	updated     BIGINT NOT NULL
);
CREATE INDEX certificates_owner ON certificates (owner_id, id);

CREATE TABLE pushes (
	uuid        TEXT PRIMARY KEY,
	seq         BIGINT NOT NULL UNIQUE,
	app         TEXT NOT NULL REFERENCES apps (uuid) ON DELETE CASCADE,
	owner_id    TEXT NOT NULL REFERENCES users (id),
	sha         TEXT NOT NULL,
	fingerprint TEXT NOT NULL,
	connection  TEXT NOT NULL,
	command     TEXT NOT NULL,
	created     BIGINT NOT NULL,
	updated     BIGINT NOT NULL
);
CREATE INDEX pushes_app ON pushes (app, seq);

-- The audit log outlives users and apps: it holds names, not references.
CREATE TABLE activity (
	id       BIGINT PRIMARY KEY,
	at       BIGINT NOT NULL,
	username TEXT NOT NULL,
	app      TEXT NOT NULL,
	text     TEXT NOT NULL
);
CREATE INDEX activity_app ON activity (app, id);
