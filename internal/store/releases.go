package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/deis/deis/internal/paas"
)

const (
	releaseColumns = "r.uuid, r.app, u.username, r.version, r.summary, r.config, COALESCE(r.build, ''), r.created, r.updated"
	releaseTables  = "releases r JOIN users u ON u.id = r.owner_id"
)

func scanRelease(row scanner) (r paas.Release, err error) {
	return r, row.Scan(&r.UUID, &r.App, &r.Owner, &r.Version, &r.Summary, &r.Config, &r.Build, (*stamp)(&r.Created), (*stamp)(&r.Updated))
}

func insertRelease(ctx context.Context, tx *sql.Tx, ownerID string, r paas.Release) (paas.Release, error) {
	r.UUID = newUUID()
	r.Created, r.Updated = created()
	return r, exec(ctx, tx, `INSERT INTO releases (uuid, app, owner_id, version, summary, config, build, created, updated)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, r.UUID, r.App, ownerID, r.Version, r.Summary, r.Config, nullable(r.Build),
		micros(r.Created), micros(r.Updated))
}

// LatestRelease returns an app's newest release. Every app has one.
func (s *Store) LatestRelease(ctx context.Context, app string) (paas.Release, error) {
	return latestRelease(ctx, s.reads, app)
}

func latestRelease(ctx context.Context, q querier, app string) (paas.Release, error) {
	return one(ctx, q, scanRelease, "SELECT "+releaseColumns+" FROM "+releaseTables+" WHERE r.app = ? ORDER BY r.version DESC LIMIT 1", app)
}

// Release returns an app's release by its number.
func (s *Store) Release(ctx context.Context, app string, version int) (paas.Release, error) {
	return one(ctx, s.reads, scanRelease, "SELECT "+releaseColumns+" FROM "+releaseTables+" WHERE r.app = ? AND r.version = ?", app, version)
}

// Releases lists an app's releases, newest first.
func (s *Store) Releases(ctx context.Context, app string, p Page) (List[paas.Release], error) {
	return page(ctx, s.reads, p, scanRelease, releaseColumns, releaseTables+" WHERE r.app = ?", "r.version DESC", app)
}

const rolloutColumns = `r.id, r.app, u.username, r.kind, r.state, COALESCE(r.build, ''), r.config, r.formation, r.restart,
	r.version, r.summary, r.former, r.step, r.reason, r.created, r.finished`
const rolloutTables = "rollouts r JOIN users u ON u.id = r.owner_id"

func scanRollout(row scanner) (r paas.Rollout, err error) {
	return r, row.Scan(&r.ID, &r.App, &r.Owner, &r.Kind, &r.State, &r.Build, &r.Config, encoded{&r.Formation}, encoded{&r.Restart},
		&r.Version, &r.Summary, (*setList)(&r.Before), &r.Step, &r.Reason, (*stamp)(&r.Created), (*stamp)(&r.Finished))
}

// setList scans a JSON column of sets; an empty text is nil.
type setList []paas.Set

func (l *setList) Scan(v any) error {
	if v == "" {
		*l = nil
		return nil
	}
	return encoded{(*[]paas.Set)(l)}.Scan(v)
}

// BeginRollout writes a new rollout in state pending with the sets that are live, and gives it its
// ID, a number that is never used again: not below the Unix time in seconds, so not
// even after an older copy of the database was put back.
func (s *Store) BeginRollout(ctx context.Context, r *paas.Rollout) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		owner, err := userID(ctx, tx, r.Owner)
		if err != nil {
			return err
		}
		if err := appExists(ctx, tx, r.App); err != nil {
			return err
		}
		if r.ID, err = nextFrom(ctx, tx, "rollouts", time.Now().Unix()); err != nil {
			return err
		}
		r.State = paas.RolloutPending
		r.Created, _ = created()
		if r.Before, err = liveSets(ctx, tx, r.App); err != nil {
			return err
		}
		if r.Before == nil {
			r.Before = []paas.Set{}
		}
		former, err := json.Marshal(r.Before)
		if err != nil {
			return err
		}
		return exec(ctx, tx, `INSERT INTO rollouts (id, app, owner_id, kind, state, build, config, formation, restart, version,
			summary, former, step, reason, created, finished) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', '', ?, 0)`,
			r.ID, r.App, owner, string(r.Kind), string(r.State), nullable(r.Build), r.Config, encode(r.Formation),
			encode(r.Restart), r.Version, r.Summary, string(former), micros(r.Created))
	})
}

// unfinished are the states that a rollout leaves.
const unfinished = "('pending', 'releasing', 'starting', 'undoing')"

// AdvanceRollout writes the next entry of the journal: state, step and reason. A rollout that has
// ended is NotFound.
func (s *Store) AdvanceRollout(ctx context.Context, r paas.Rollout) error {
	return s.write(ctx, func(tx *sql.Tx) error { return advance(ctx, tx, r) })
}

func advance(ctx context.Context, tx *sql.Tx, r paas.Rollout) error {
	return execOne(ctx, tx, "UPDATE rollouts SET state = ?, step = ?, reason = ? WHERE id = ? AND state IN "+unfinished,
		string(r.State), r.Step, r.Reason, r.ID)
}

// SwitchSets is AdvanceRollout that makes other sets of the app the live ones, on the way to
// the end of the rollout.
func (s *Store) SwitchSets(ctx context.Context, r paas.Rollout, live []paas.Set) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		if err := advance(ctx, tx, r); err != nil {
			return err
		}
		return replaceLiveSets(ctx, tx, r.App, live)
	})
}

// FailRollout ends a rollout in state failed; unless live is nil, these are the
// app's live sets then.
func (s *Store) FailRollout(ctx context.Context, id int64, reason string, live []paas.Set) error {
	return s.mutate(ctx, paas.Activity{}, func(tx *sql.Tx, a *paas.Activity) error {
		r, err := one(ctx, tx, scanRollout, "SELECT "+rolloutColumns+" FROM "+rolloutTables+" WHERE r.id = ?", id)
		if err != nil {
			return err
		}
		a.User, a.App, a.Text = r.Owner, r.App, fmt.Sprintf("%s by %s failed: %s", r.Kind, r.Owner, reason)
		err = execOne(ctx, tx, "UPDATE rollouts SET state = 'failed', step = '', reason = ?, finished = ? WHERE id = ? AND state IN "+unfinished,
			reason, now(), id)
		if err == nil && live != nil {
			err = replaceLiveSets(ctx, tx, r.App, live)
		}
		if err != nil {
			return err
		}
		return pruneRollouts(ctx, tx, r.App)
	})
}

// Rollouts lists an app's rollouts, newest first.
func (s *Store) Rollouts(ctx context.Context, app string, p Page) (List[paas.Rollout], error) {
	return page(ctx, s.reads, p, scanRollout, rolloutColumns, rolloutTables+" WHERE r.app = ?", "r.id DESC", app)
}

// Rollout returns one of an app.
func (s *Store) Rollout(ctx context.Context, app string, id int64) (paas.Rollout, error) {
	return one(ctx, s.reads, scanRollout, "SELECT "+rolloutColumns+" FROM "+rolloutTables+" WHERE r.app = ? AND r.id = ?", app, id)
}

// FinishRollout ends a rollout in state succeeded: it writes the release (when
// the kind makes one), the app's live sets and its structure. It returns the
// release that is then the latest. It is a Conflict when the rollout has ended
// or its version is not the next one.
func (s *Store) FinishRollout(ctx context.Context, r paas.Rollout, live []paas.Set) (release paas.Release, err error) {
	act := paas.Activity{User: r.Owner, App: r.App, Text: rolloutText(r)}
	if r.Reason != "" {
		act.Text += "\n" + r.Reason
	}
	err = s.mutate(ctx, act, func(tx *sql.Tx, _ *paas.Activity) error {
		err := execOne(ctx, tx, "UPDATE rollouts SET state = 'succeeded', step = '', reason = ?, finished = ? WHERE id = ? AND state IN "+unfinished,
			r.Reason, now(), r.ID)
		if paas.CodeOf(err) == paas.NotFound {
			return paas.Errorf(paas.Conflict, "rollout %d is not under way", r.ID)
		}
		if err != nil {
			return err
		}
		if err := execOne(ctx, tx, "UPDATE apps SET structure = ?, updated = ? WHERE uuid = ? AND NOT deleting",
			encode(r.Formation), now(), r.App); err != nil {
			return err
		}
		if err := errors.Join(replaceLiveSets(ctx, tx, r.App, live), pruneRollouts(ctx, tx, r.App)); err != nil {
			return err
		}
		if release, err = latestRelease(ctx, tx, r.App); err != nil || !r.Kind.MakesRelease() {
			return err
		}
		if r.Version != release.Version+1 {
			return paas.Errorf(paas.Conflict, "release v%d is not the one after v%d", r.Version, release.Version)
		}
		owner, err := userID(ctx, tx, r.Owner)
		if err != nil {
			return err
		}
		release, err = insertRelease(ctx, tx, owner, paas.Release{
			App: r.App, Owner: r.Owner, Version: r.Version,
			Summary: r.Summary, Config: r.Config, Build: r.Build,
		})
		return err
	})
	return release, err
}

// rolloutText is the activity line of a rollout that succeeded.
func rolloutText(r paas.Rollout) string {
	switch {
	case r.Summary != "":
		return r.Summary
	case r.Kind == paas.RolloutScale:
		return paas.ScaleSummary(r.Owner, r.Formation)
	case r.Kind == paas.RolloutRestart:
		return r.Owner + " restarted containers"
	}
	return fmt.Sprintf("%s by %s succeeded", r.Kind, r.Owner)
}

func replaceLiveSets(ctx context.Context, tx *sql.Tx, app string, live []paas.Set) error {
	if err := exec(ctx, tx, "DELETE FROM live_sets WHERE app = ?", app); err != nil {
		return err
	}
	for _, set := range live {
		nums, err := json.Marshal(set.Nums)
		if err != nil {
			return err
		}
		if err := exec(ctx, tx, `INSERT INTO live_sets (app, type, generation, version, build, config, nums) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			app, set.Type, set.Generation, set.Version, set.Build, set.Config, string(nums)); err != nil {
			return err
		}
	}
	return nil
}

// UnfinishedRollouts lists those that have neither succeeded nor failed, oldest first.
func (s *Store) UnfinishedRollouts(ctx context.Context) ([]paas.Rollout, error) {
	return collect(ctx, s.reads, scanRollout, "SELECT "+rolloutColumns+" FROM "+rolloutTables+" WHERE r.state IN "+unfinished+" ORDER BY r.id")
}

// LiveSets lists the sets that should run, of one app or (app "") of all. Apps
// that are being deleted have none.
func (s *Store) LiveSets(ctx context.Context, app string) ([]paas.Set, error) {
	return liveSets(ctx, s.reads, app)
}

func liveSets(ctx context.Context, q querier, app string) ([]paas.Set, error) {
	where, args := "WHERE NOT a.deleting", []any(nil)
	if app != "" {
		where, args = where+" AND l.app = ?", []any{app}
	}
	return collect(ctx, q, func(row scanner) (set paas.Set, err error) {
		return set, row.Scan(&set.App, &set.Type, &set.Generation, &set.Version, &set.Build, &set.Config, encoded{&set.Nums})
	}, `SELECT l.app, l.type, l.generation, l.version, l.build, l.config, l.nums FROM live_sets l JOIN apps a ON a.uuid = l.app
		`+where+" ORDER BY l.app, l.type, l.generation", args...)
}

const instanceColumns = `i.uuid, i.app, i.version, i.type, i.num, i.generation, i.state, i.reason, i.container, i.restarts,
	i.created, i.updated`

func scanInstance(row scanner) (i paas.Instance, err error) {
	return i, row.Scan(&i.UUID, &i.App, &i.Version, &i.Type, &i.Num, &i.Generation, &i.State, &i.Reason, &i.Container, &i.Restarts,
		(*stamp)(&i.Created), (*stamp)(&i.Updated))
}

// Instances lists an app's instances, oldest first: of one process type, or
// with "" of all but one-off runs.
func (s *Store) Instances(ctx context.Context, app, processType string, p Page) (List[paas.Instance], error) {
	return page(ctx, s.reads, p, scanInstance, instanceColumns,
		"instances i WHERE i.app = ? AND (i.type = ? OR ? = '' AND i.type <> 'run')", "i.created, i.seq", app, processType, processType)
}

// instanceKey is what makes an instance the same one to the API.
type instanceKey struct {
	generation  int64
	processType string
	num         int
}

func keyOf(i paas.Instance) instanceKey { return instanceKey{i.Generation, i.Type, i.Num} }

// SaveInstances replaces the rows of an app's instances but one-offs, a cache of
// what the engine said. Instances keep UUID and Created where generation, type and
// number are equal; where another container has taken the place of one, Restarts counts. Nothing is
// written when nothing has changed.
func (s *Store) SaveInstances(ctx context.Context, app string, instances []paas.Instance) error {
	known, err := s.instanceRows(ctx, s.reads, app)
	if err != nil || sameInstances(known, instances) {
		return err
	}
	return s.write(ctx, func(tx *sql.Tx) error {
		// An app that is gone has no instances to show.
		if ok, err := exists(ctx, tx, "SELECT 1 FROM apps WHERE uuid = ?", app); err != nil || !ok {
			return err
		}
		known, err := s.instanceRows(ctx, tx, app)
		if err != nil {
			return err
		}
		wanted := map[instanceKey]bool{}
		for _, i := range instances {
			wanted[keyOf(i)] = true
			if err := saveInstance(ctx, tx, app, known, i); err != nil {
				return err
			}
		}
		for key, old := range known {
			if !wanted[key] {
				if err := exec(ctx, tx, "DELETE FROM instances WHERE uuid = ?", old.UUID); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func saveInstance(ctx context.Context, tx *sql.Tx, app string, known map[instanceKey]paas.Instance, i paas.Instance) error {
	old, ok := known[keyOf(i)]
	if ok && sameInstance(old, i) {
		return nil
	}
	t := now()
	if ok {
		if i.Container == "" { // between two containers
			i.Container = old.Container
		}
		if old.Container != "" && i.Container != old.Container {
			old.Restarts++
		}
		return exec(ctx, tx, `UPDATE instances SET version = ?, state = ?, reason = ?, container = ?, restarts = ?, updated = ?
			WHERE uuid = ?`, i.Version, string(i.State), i.Reason, i.Container, old.Restarts, t, old.UUID)
	}
	seq, err := next(ctx, tx, "instances")
	if err != nil {
		return err
	}
	return exec(ctx, tx, `INSERT INTO instances (uuid, seq, app, version, type, num, generation, state, reason, container, created,
		updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, newUUID(), seq, app, i.Version, i.Type, i.Num, i.Generation,
		string(i.State), i.Reason, i.Container, t, t)
}

func (s *Store) instanceRows(ctx context.Context, q querier, app string) (map[instanceKey]paas.Instance, error) {
	rows, err := collect(ctx, q, scanInstance, "SELECT "+instanceColumns+" FROM instances i WHERE i.app = ? AND i.generation > 0", app)
	known := make(map[instanceKey]paas.Instance, len(rows))
	for _, i := range rows {
		known[keyOf(i)] = i
	}
	return known, err
}

func sameInstance(a, b paas.Instance) bool {
	return a.Version == b.Version && a.State == b.State && a.Reason == b.Reason &&
		(a.Container == b.Container || b.Container == "")
}

func sameInstances(known map[instanceKey]paas.Instance, instances []paas.Instance) bool {
	return len(known) == len(instances) && !slices.ContainsFunc(instances, func(i paas.Instance) bool {
		old, ok := known[keyOf(i)]
		return !ok || !sameInstance(old, i)
	})
}
