package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/deis/deis/internal/paas"
)

const (
	// keptRollouts is how many rollouts of an app are on record. Each scaling and restart makes one, maybe by a timer's hand;
	// what was deployed is on record with the releases, which all stay.
	keptRollouts = 500
	// keptPushes is how many pushes of an app are on record: each is an attempt at a rollout.
	keptPushes = keptRollouts
	// keptActivity is how many rows of activity there are of an app: as many lines as 'deis logs' shows. One takes some
	// kilobytes where it says why a rollout failed. Of what concerns no app as many logins are kept, and all that
	// people and operators did.
	keptActivity = 1000
	// unusedConfig is how old a config must be that nothing refers to, to be removed. A new one waits
	// for its rollout, which takes seconds.
	unusedConfig = time.Hour
)

// pruneRollouts removes the older rollouts that have ended, but those that brought up what is live. Their numbers are not
// given again. With them go the builds and configs that no release has.
func pruneRollouts(ctx context.Context, tx *sql.Tx, app string) error {
	err := exec(ctx, tx, `DELETE FROM rollouts WHERE app = ? AND state NOT IN `+unfinished+`
		AND id <= (SELECT id FROM rollouts WHERE app = ? ORDER BY id DESC LIMIT 1 OFFSET ?)
		AND id NOT IN (SELECT generation FROM live_sets WHERE app = ?)`, app, app, keptRollouts, app)
	return errors.Join(err, pruneBuilds(ctx, tx, app), pruneConfigs(ctx, tx, app))
}

// pruneBuilds removes builds that nothing on record refers to. The newest stay: one may wait for its rollout.
func pruneBuilds(ctx context.Context, tx *sql.Tx, app string) error {
	return exec(ctx, tx, `DELETE FROM builds WHERE app = ?
		AND seq <= (SELECT seq FROM builds WHERE app = ? ORDER BY seq DESC LIMIT 1 OFFSET ?)
		AND NOT EXISTS (SELECT 1 FROM releases r WHERE r.build = builds.uuid)
		AND NOT EXISTS (SELECT 1 FROM rollouts r WHERE r.build = builds.uuid)
		AND NOT EXISTS (SELECT 1 FROM live_sets l WHERE l.build = builds.uuid)`, app, app, keptDocuments)
}

// pruneConfigs removes configs that nothing on record refers to.
func pruneConfigs(ctx context.Context, tx *sql.Tx, app string) error {
	return exec(ctx, tx, `DELETE FROM configs WHERE app = ? AND created < ?
		AND NOT EXISTS (SELECT 1 FROM releases r WHERE r.config = configs.uuid)
		AND NOT EXISTS (SELECT 1 FROM rollouts r WHERE r.config = configs.uuid)
		AND NOT EXISTS (SELECT 1 FROM live_sets l WHERE l.config = configs.uuid)`, app, micros(time.Now().Add(-unusedConfig)))
}

func prunePushes(ctx context.Context, tx *sql.Tx, app string) error {
	return exec(ctx, tx, `DELETE FROM pushes WHERE app = ?
		AND seq <= (SELECT seq FROM pushes WHERE app = ? ORDER BY seq DESC LIMIT 1 OFFSET ?)`, app, app, keptPushes)
}

// pruneActivity removes the older rows like one that was added.
func pruneActivity(ctx context.Context, tx *sql.Tx, a paas.Activity) error {
	if a.App != "" {
		return exec(ctx, tx, `DELETE FROM activity WHERE app = ?
			AND id <= (SELECT id FROM activity WHERE app = ? ORDER BY id DESC LIMIT 1 OFFSET ?)`, a.App, a.App, keptActivity)
	}
	if a.Text != a.User+loggedIn {
		return nil
	}
	return exec(ctx, tx, `DELETE FROM activity WHERE app = '' AND text = username || ?
		AND id <= (SELECT id FROM activity WHERE app = '' AND text = username || ? ORDER BY id DESC LIMIT 1 OFFSET ?)`,
		loggedIn, loggedIn, keptActivity)
}
