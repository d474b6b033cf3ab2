package store

import "context"

// ImageDigests returns the digests of all builds of an app, and of those whose images must stay: of the
// last releases, of what is live or being brought up, and of builds younger than every released one.
func (s *Store) ImageDigests(ctx context.Context, app string, releases int) (known, kept map[string]bool, err error) {
	type digest struct {
		text string
		keep bool
	}
	all, err := collect(ctx, s.reads, func(row scanner) (d digest, err error) {
		err = row.Scan(&d.text, &d.keep)
		return d, err
	}, `SELECT b.digest,
		b.uuid IN (SELECT build FROM releases WHERE app = ? AND build IS NOT NULL ORDER BY version DESC LIMIT ?)
		OR b.uuid IN (SELECT build FROM live_sets WHERE app = ?)
		OR b.uuid IN (SELECT build FROM rollouts WHERE app = ? AND build IS NOT NULL AND state IN `+unfinished+`)
		OR b.seq > COALESCE((SELECT MAX(released.seq) FROM builds released JOIN releases r ON r.build = released.uuid WHERE r.app = ?), 0)
		FROM builds b WHERE b.app = ? AND b.digest <> ''`, app, releases, app, app, app, app)
	known, kept = map[string]bool{}, map[string]bool{}
	for _, d := range all {
		known[d.text] = true
		kept[d.text] = kept[d.text] || d.keep
	}
	return known, kept, err
}
