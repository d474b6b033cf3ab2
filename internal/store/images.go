package store

import (
	"context"
	"time"
)

// waitingBuilds is how many builds of an app may be without a rollout and yet get one: one waits for its turn, whatever
// waited before it was superseded, and some may be on the way between the two.
const waitingBuilds = 5

// ImageDigests returns the digests of all builds of an app, and of those whose images must stay: of the last releases, of
// what is live or being brought up, and of builds that may wait for their rollout: the newest ones that
// were made after since and never had one. Known says when each digest was last heard of: an image that was stored
// later is of a build that is yet to come.
func (s *Store) ImageDigests(ctx context.Context, app string, releases int, since time.Time) (known map[string]time.Time, kept map[string]bool, err error) {
	type digest struct {
		text            string
		keep            bool
		updated, rolled time.Time
	}
	all, err := collect(ctx, s.reads, func(row scanner) (d digest, err error) {
		err = row.Scan(&d.text, &d.keep, (*stamp)(&d.updated), (*stamp)(&d.rolled))
		return d, err
	}, `SELECT b.digest,
		b.uuid IN (SELECT build FROM releases WHERE app = ? AND build IS NOT NULL ORDER BY version DESC LIMIT ?)
		OR b.uuid IN (SELECT build FROM live_sets WHERE app = ?)
		OR b.uuid IN (SELECT build FROM rollouts WHERE app = ? AND build IS NOT NULL AND state IN `+unfinished+`)
		OR b.uuid IN (SELECT w.uuid FROM builds w WHERE w.app = ? AND w.created > ?
			AND NOT EXISTS (SELECT 1 FROM rollouts r WHERE r.build = w.uuid) ORDER BY w.seq DESC LIMIT ?),
		b.updated, COALESCE((SELECT MAX(r.finished) FROM rollouts r WHERE r.build = b.uuid), 0)
		FROM builds b WHERE b.app = ? AND b.digest <> ''`, app, releases, app, app, app, micros(since), waitingBuilds, app)
	known, kept = map[string]time.Time{}, map[string]bool{}
	for _, d := range all {
		for _, t := range []time.Time{d.updated, d.rolled} {
			if t.After(known[d.text]) {
				known[d.text] = t
			}
		}
		kept[d.text] = kept[d.text] || d.keep
	}
	return known, kept, err
}
