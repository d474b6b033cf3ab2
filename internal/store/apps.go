package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/deis/deis/internal/paas"
)

const (
	appColumns = "a.uuid, a.id, u.username, a.structure, a.cache, a.created, a.updated"
	appTables  = "apps a JOIN users u ON u.id = a.owner_id"
)

func scanApp(row scanner) (a paas.App, err error) {
	return a, row.Scan(&a.UUID, &a.ID, &a.Owner, encoded{&a.Structure}, &a.Cache, (*stamp)(&a.Created), (*stamp)(&a.Updated))
}

// created returns the time of a new row, twice, as the store will give it back.
func created() (time.Time, time.Time) {
	t := time.Now().UTC().Truncate(time.Microsecond)
	return t, t
}

// CreateApp makes an app with an empty config and release v1.
func (s *Store) CreateApp(ctx context.Context, owner, id string) (paas.App, error) {
	app := paas.App{UUID: newUUID(), ID: id, Owner: owner, Structure: map[string]int{}}
	app.Created, app.Updated = created()
	act := paas.Activity{User: owner, App: app.UUID, Text: paas.InitialSummary(owner)}
	err := s.mutate(ctx, act, func(tx *sql.Tx, a *paas.Activity) error {
		ownerID, err := userID(ctx, tx, owner)
		if err != nil {
			return err
		}
		if taken, err := exists(ctx, tx, "SELECT 1 FROM apps WHERE id = ?", id); err != nil || taken {
			return errors.Join(err, unique(taken, "id"))
		}
		seq, err := next(ctx, tx, "apps")
		if err != nil {
			return err
		}
		if err := exec(ctx, tx, `INSERT INTO apps (uuid, seq, id, owner_id, structure, deleting, created, updated)
			VALUES (?, ?, ?, ?, '{}', FALSE, ?, ?)`, app.UUID, seq, id, ownerID, micros(app.Created), micros(app.Updated)); err != nil {
			return err
		}
		config := paas.Config{App: app.UUID, Owner: owner}
		if err := s.insertConfig(ctx, tx, ownerID, &config); err != nil {
			return err
		}
		_, err = insertRelease(ctx, tx, ownerID, paas.Release{App: app.UUID, Version: 1, Summary: a.Text, Config: config.UUID})
		return err
	})
	return app, err
}

// AppByID returns an app by its name. One that is being deleted is not found.
func (s *Store) AppByID(ctx context.Context, id string) (paas.App, error) {
	return one(ctx, s.reads, scanApp, "SELECT "+appColumns+" FROM "+appTables+" WHERE a.id = ? AND NOT a.deleting", id)
}

// AppByUUID returns an app by its identity, also while it is being deleted.
func (s *Store) AppByUUID(ctx context.Context, uuid string) (paas.App, error) {
	return one(ctx, s.reads, scanApp, "SELECT "+appColumns+" FROM "+appTables+" WHERE a.uuid = ?", uuid)
}

// Apps lists what a user may use, in the order of creation; superusers see all.
func (s *Store) Apps(ctx context.Context, u paas.User, p Page) (List[paas.App], error) {
	// Without a join the index counts, and only the page's rows are read.
	columns := "a.uuid, a.id, (SELECT username FROM users WHERE id = a.owner_id), a.structure, a.cache, a.created, a.updated"
	if u.Superuser {
		return page(ctx, s.reads, p, scanApp, columns, "apps a WHERE a.deleting = FALSE", "a.seq")
	}
	return page(ctx, s.reads, p, scanApp, columns, `apps a WHERE a.deleting = FALSE AND a.uuid IN
		(SELECT uuid FROM apps WHERE owner_id = ? UNION SELECT app FROM app_permissions WHERE user_id = ?)`, "a.seq", u.ID, u.ID)
}

// AllApps lists every app that is not being deleted.
func (s *Store) AllApps(ctx context.Context) ([]paas.App, error) {
	return collect(ctx, s.reads, scanApp, "SELECT "+appColumns+" FROM "+appTables+" WHERE NOT a.deleting ORDER BY a.seq")
}

// TransferApp gives an app to another user. The old owner keeps no access; the
// new one needs no grant any more.
func (s *Store) TransferApp(ctx context.Context, actor string, app paas.App, owner string) error {
	act := paas.Activity{User: actor, App: app.UUID, Text: fmt.Sprintf("%s transferred %s to %s", actor, app.ID, owner)}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		id, err := userID(ctx, tx, owner)
		if err != nil {
			return err
		}
		if err := execOne(ctx, tx, "UPDATE apps SET owner_id = ?, updated = ? WHERE uuid = ?", id, now(), app.UUID); err != nil {
			return err
		}
		return exec(ctx, tx, "DELETE FROM app_permissions WHERE app = ? AND user_id = ?", app.UUID, id)
	})
}

// ClearCache gives an app a new, empty, build cache.
func (s *Store) ClearCache(ctx context.Context, actor string, app paas.App) error {
	act := paas.Activity{User: actor, App: app.UUID, Text: actor + " cleared the build cache"}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		return execOne(ctx, tx, "UPDATE apps SET cache = cache + 1 WHERE uuid = ? AND NOT deleting", app.UUID)
	})
}

// MarkDeleting is the first step of a deletion: from now on nobody finds the
// app by its id, and its deletion is carried on after a crash.
func (s *Store) MarkDeleting(ctx context.Context, actor string, app paas.App) error {
	act := paas.Activity{User: actor, App: app.UUID, Text: actor + deleted(app)}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		return execOne(ctx, tx, "UPDATE apps SET deleting = TRUE WHERE uuid = ? AND NOT deleting", app.UUID)
	})
}

// deleted follows a name in the row of activity that begins a deletion.
func deleted(app paas.App) string { return " deleted " + app.ID }

// DeletingApps lists the apps whose deletion has begun.
func (s *Store) DeletingApps(ctx context.Context) ([]paas.App, error) {
	return collect(ctx, s.reads, scanApp, "SELECT "+appColumns+" FROM "+appTables+" WHERE a.deleting ORDER BY a.seq")
}

// DeleteApp is the last step: the rows of an app that MarkDeleting marked, with
// all that hangs from it and what was done to it. Who deleted it stays on record, with what concerns no app. It is nil
// when they are gone.
func (s *Store) DeleteApp(ctx context.Context, app paas.App) error {
	act := paas.Activity{Text: "removed " + app.ID}
	err := s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		if err := execOne(ctx, tx, "DELETE FROM apps WHERE uuid = ? AND deleting", app.UUID); err != nil {
			return err
		}
		err := exec(ctx, tx, "UPDATE activity SET app = '' WHERE app = ? AND text = username || ?", app.UUID, deleted(app))
		return errors.Join(err, exec(ctx, tx, "DELETE FROM activity WHERE app = ?", app.UUID))
	})
	if paas.CodeOf(err) == paas.NotFound {
		return nil
	}
	return err
}

// Collaborates reports whether a user has an explicit grant on an app.
func (s *Store) Collaborates(ctx context.Context, u paas.User, app string) (bool, error) {
	var n int
	err := s.reads.QueryRowContext(ctx, "SELECT COUNT(*) FROM app_permissions WHERE app = ? AND user_id = ?", app, u.ID).Scan(&n)
	return n > 0, err
}

// Collaborators lists the users with an explicit grant.
func (s *Store) Collaborators(ctx context.Context, app string) ([]string, error) {
	return collect(ctx, s.reads, func(row scanner) (name string, err error) { return name, row.Scan(&name) },
		`SELECT u.username FROM app_permissions p JOIN users u ON u.id = p.user_id WHERE p.app = ? ORDER BY p.created, u.seq`, app)
}

// Grant lets a user use an app; repeating it is fine.
func (s *Store) Grant(ctx context.Context, actor string, app paas.App, username string) error {
	act := paas.Activity{User: actor, App: app.UUID, Text: fmt.Sprintf("User %s was granted access to %s", username, app.ID)}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		id, err := userID(ctx, tx, username)
		if err != nil {
			return err
		}
		return exec(ctx, tx, `INSERT INTO app_permissions (app, user_id, created) VALUES (?, ?, ?)
			ON CONFLICT (app, user_id) DO NOTHING`, app.UUID, id, now())
	})
}

// Revoke takes a grant back. Unknown users are NotFound, a missing grant is
// Forbidden (contract 5.12).
func (s *Store) Revoke(ctx context.Context, actor string, app paas.App, username string) error {
	act := paas.Activity{User: actor, App: app.UUID, Text: fmt.Sprintf("User %s was revoked access to %s", username, app.ID)}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		id, err := userID(ctx, tx, username)
		if err != nil {
			return err
		}
		err = execOne(ctx, tx, "DELETE FROM app_permissions WHERE app = ? AND user_id = ?", app.UUID, id)
		if paas.CodeOf(err) == paas.NotFound {
			return paas.Errorf(paas.Forbidden, "You do not have permission to perform this action.")
		}
		return err
	})
}

const configColumns = "c.uuid, c.app, u.username, c.sealed, c.memory, c.cpu, c.tags, c.created, c.updated"

func (s *Store) scanConfig(row scanner) (c paas.Config, err error) {
	var sealed string
	err = row.Scan(&c.UUID, &c.App, &c.Owner, &sealed, encoded{&c.Memory}, encoded{&c.CPU}, encoded{&c.Tags},
		(*stamp)(&c.Created), (*stamp)(&c.Updated))
	if err != nil {
		return c, err
	}
	plain, err := s.vault.open("config "+c.UUID, sealed)
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(plain, &c.Values)
}

// CreateConfig stores a config and fills in identity and times. It has no
// effect before a release uses it.
func (s *Store) CreateConfig(ctx context.Context, c *paas.Config) error {
	act := paas.Activity{User: c.Owner, App: c.App, Text: c.Owner + " submitted a config change"}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		owner, err := userID(ctx, tx, c.Owner)
		if err != nil {
			return err
		}
		if err := appExists(ctx, tx, c.App); err != nil {
			return err
		}
		return s.insertConfig(ctx, tx, owner, c)
	})
}

// appExists is NotFound for an app that is not there or being deleted.
func appExists(ctx context.Context, tx *sql.Tx, app string) error {
	ok, err := exists(ctx, tx, "SELECT 1 FROM apps WHERE uuid = ? AND NOT deleting", app)
	if err == nil && !ok {
		return notFound()
	}
	return err
}

func (s *Store) insertConfig(ctx context.Context, tx *sql.Tx, ownerID string, c *paas.Config) error {
	c.UUID = newUUID()
	c.Created, c.Updated = created()
	return exec(ctx, tx, `INSERT INTO configs (uuid, app, owner_id, sealed, memory, cpu, tags, created, updated)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, c.UUID, c.App, ownerID, s.vault.seal("config "+c.UUID, []byte(encode(c.Values))),
		encode(c.Memory), encode(c.CPU), encode(c.Tags), micros(c.Created), micros(c.Updated))
}

// ConfigByUUID returns a config with its values.
func (s *Store) ConfigByUUID(ctx context.Context, uuid string) (paas.Config, error) {
	return one(ctx, s.reads, s.scanConfig, "SELECT "+configColumns+" FROM configs c JOIN users u ON u.id = c.owner_id WHERE c.uuid = ?", uuid)
}

const (
	buildColumns = `b.uuid, b.app, u.username, b.image, b.digest, b.sha, b.procfile, b.dockerfile, b.strategy, b.created, b.updated`
	buildTables  = "builds b JOIN users u ON u.id = b.owner_id"
)

func scanBuild(row scanner) (b paas.Build, err error) {
	return b, row.Scan(&b.UUID, &b.App, &b.Owner, &b.Image, &b.Digest, &b.SHA, encoded{&b.Procfile}, &b.Dockerfile, &b.Strategy,
		(*stamp)(&b.Created), (*stamp)(&b.Updated))
}

// CreateBuild stores a build with its log and documents and fills in identity and times.
func (s *Store) CreateBuild(ctx context.Context, b *paas.Build) error {
	act := paas.Activity{User: b.Owner, App: b.App, Text: b.Owner + " submitted build " + b.Label()}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		owner, err := userID(ctx, tx, b.Owner)
		if err != nil {
			return err
		}
		if err := appExists(ctx, tx, b.App); err != nil {
			return err
		}
		seq, err := next(ctx, tx, "builds")
		if err != nil {
			return err
		}
		b.UUID = newUUID()
		b.Created, b.Updated = created()
		if err := exec(ctx, tx, `INSERT INTO builds (uuid, seq, app, owner_id, image, digest, sha, procfile, dockerfile, strategy,
			created, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, b.UUID, seq, b.App, owner, b.Image, b.Digest, b.SHA,
			encode(b.Procfile), b.Dockerfile, string(b.Strategy), micros(b.Created), micros(b.Updated)); err != nil {
			return err
		}
		if err := exec(ctx, tx, "INSERT INTO build_logs (build, log) VALUES (?, ?)", b.UUID, b.Log); err != nil {
			return err
		}
		return insertDocuments(ctx, tx, b)
	})
}

// BuildByUUID returns a build without its log and documents.
func (s *Store) BuildByUUID(ctx context.Context, uuid string) (paas.Build, error) {
	return one(ctx, s.reads, scanBuild, "SELECT "+buildColumns+" FROM "+buildTables+" WHERE b.uuid = ?", uuid)
}

// PinBuild writes the digest of a build's image. One that has a digest keeps it.
func (s *Store) PinBuild(ctx context.Context, uuid, digest string) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		return execOne(ctx, tx, "UPDATE builds SET digest = CASE digest WHEN '' THEN ? ELSE digest END, updated = ? WHERE uuid = ?",
			digest, now(), uuid)
	})
}

// BuildLog returns a build's log.
func (s *Store) BuildLog(ctx context.Context, uuid string) (string, error) {
	return one(ctx, s.reads, func(row scanner) (log string, err error) { return log, row.Scan(&log) },
		"SELECT log FROM build_logs WHERE build = ?", uuid)
}

// Builds lists an app's builds without their logs and documents, newest first.
func (s *Store) Builds(ctx context.Context, app string, p Page) (List[paas.Build], error) {
	return page(ctx, s.reads, p, scanBuild, buildColumns, buildTables+" WHERE b.app = ?", "b.seq DESC", app)
}

const (
	domainColumns = "d.app, u.username, d.name, d.created, d.updated"
	domainTables  = "domains d JOIN users u ON u.id = d.owner_id"
)

func scanDomain(row scanner) (d paas.Domain, err error) {
	return d, row.Scan(&d.App, &d.Owner, &d.Name, (*stamp)(&d.Created), (*stamp)(&d.Updated))
}

// CreateDomain adds a host name to an app and fills in the times.
func (s *Store) CreateDomain(ctx context.Context, d *paas.Domain) error {
	act := paas.Activity{User: d.Owner, App: d.App, Text: fmt.Sprintf("domain %s added", d.Name)}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		owner, err := userID(ctx, tx, d.Owner)
		if err != nil {
			return err
		}
		if err := appExists(ctx, tx, d.App); err != nil {
			return err
		}
		if taken, err := exists(ctx, tx, "SELECT 1 FROM domains WHERE lower(name) = ?", d.Host()); err != nil || taken {
			return errors.Join(err, unique(taken, "domain"))
		}
		seq, err := next(ctx, tx, "domains")
		if err != nil {
			return err
		}
		d.Created, d.Updated = created()
		return exec(ctx, tx, "INSERT INTO domains (name, seq, app, owner_id, created, updated) VALUES (?, ?, ?, ?, ?, ?)",
			d.Name, seq, d.App, owner, micros(d.Created), micros(d.Updated))
	})
}

// Domains lists an app's domains in the order of insertion.
func (s *Store) Domains(ctx context.Context, app string, p Page) (List[paas.Domain], error) {
	return page(ctx, s.reads, p, scanDomain, domainColumns, domainTables+" WHERE d.app = ?", "d.seq", app)
}

// AppByDomain returns the app that has a custom domain; host is in lower case.
func (s *Store) AppByDomain(ctx context.Context, host string) (paas.App, error) {
	return one(ctx, s.reads, scanApp, "SELECT "+appColumns+" FROM "+appTables+
		" JOIN domains d ON d.app = a.uuid WHERE lower(d.name) = ? AND NOT a.deleting", host)
}

// DeleteDomain takes a host name, in whatever spelling, from an app.
func (s *Store) DeleteDomain(ctx context.Context, actor, app, name string) error {
	act := paas.Activity{User: actor, App: app, Text: fmt.Sprintf("domain %s removed", name)}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		return execOne(ctx, tx, "DELETE FROM domains WHERE lower(name) = lower(?) AND app = ?", name, app)
	})
}

// Push is the record of one push (contract 6).
type Push struct {
	UUID, App, Owner, SHA, Fingerprint, Connection, Command string
	Created, Updated                                        time.Time
}

// CreatePush records that a push has begun and fills in identity and times.
func (s *Store) CreatePush(ctx context.Context, p *Push) error {
	act := paas.Activity{User: p.Owner, App: p.App, Text: p.Owner + " pushed " + p.SHA[:min(7, len(p.SHA))]}
	return s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		owner, err := userID(ctx, tx, p.Owner)
		if err != nil {
			return err
		}
		if err := appExists(ctx, tx, p.App); err != nil {
			return err
		}
		seq, err := next(ctx, tx, "pushes")
		if err != nil {
			return err
		}
		p.UUID = newUUID()
		p.Created, p.Updated = created()
		err = exec(ctx, tx, `INSERT INTO pushes (uuid, seq, app, owner_id, sha, fingerprint, connection, command, created, updated)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, p.UUID, seq, p.App, owner, p.SHA, p.Fingerprint, p.Connection, p.Command,
			micros(p.Created), micros(p.Updated))
		return errors.Join(err, prunePushes(ctx, tx, p.App))
	})
}

// keptRuns is how many one-off runs of an app are on record: the API lists all of them.
const keptRuns = 100

// BeginRun records a one-off run of a release and returns its number, which
// counts from 1 in each app (contract 5.7); only the last keptRuns are kept. Its row is an instance of type run
// and of generation 0, which no rollout has.
func (s *Store) BeginRun(ctx context.Context, actor string, app paas.App, version int, command string) (num int, err error) {
	act := paas.Activity{User: actor, App: app.UUID, Text: fmt.Sprintf("%s runs '%s'", actor, command)}
	err = s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		if err := appExists(ctx, tx, app.UUID); err != nil {
			return err
		}
		seq, err := next(ctx, tx, "instances")
		if err != nil {
			return err
		}
		t := now()
		err = tx.QueryRowContext(ctx, `INSERT INTO instances (uuid, seq, app, version, type, num, generation, state, reason, created, updated)
			SELECT ?, ?, ?, ?, 'run', COALESCE(MAX(num), 0) + 1, 0, ?, '', ?, ?
			FROM instances WHERE app = ? AND generation = 0 AND type = 'run' RETURNING num`,
			newUUID(), seq, app.UUID, version, string(paas.StateInitialized), t, t, app.UUID).Scan(&num)
		if err != nil {
			return err
		}
		return exec(ctx, tx, "DELETE FROM instances WHERE app = ? AND generation = 0 AND type = 'run' AND num <= ?",
			app.UUID, num-keptRuns)
	})
	return num, err
}

// EndRun records that a one-off run is over and nothing of it is left. It is nil
// when the app is gone.
func (s *Store) EndRun(ctx context.Context, app string, num int) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		return exec(ctx, tx, "UPDATE instances SET state = ?, updated = ? WHERE app = ? AND generation = 0 AND type = 'run' AND num = ?",
			string(paas.StateDestroyed), now(), app, num)
	})
}
