package store

import (
	"context"
	"database/sql"
)

// rows are the tables that hold what users did, each before those that it
// refers to. meta, which says what the database is, stays.
var rows = []string{
	"activity", "pushes", "certificates", "domains", "instances", "live_sets", "releases", "rollouts", "configs",
	"build_documents", "build_logs", "builds", "app_permissions", "apps", "keys", "tokens", "users", "counters",
}

// Reset empties the database as on the first day, in one transaction. The key stays.
func (s *Store) Reset(ctx context.Context) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		for _, table := range rows {
			if err := exec(ctx, tx, "DELETE FROM "+table); err != nil {
				return err
			}
		}
		return nil
	})
}
