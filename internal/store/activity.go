package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"sync"

	"github.com/deis/deis/internal/paas"
)

const activityColumns = "id, at, username, app, text"

func scanActivity(row scanner) (a paas.Activity, err error) {
	return a, row.Scan(&a.ID, (*stamp)(&a.At), &a.User, &a.App, &a.Text)
}

// Activities lists the last n rows about an app, oldest first.
func (s *Store) Activities(ctx context.Context, app string, n int) ([]paas.Activity, error) {
	rows, err := collect(ctx, s.reads, scanActivity,
		"SELECT "+activityColumns+" FROM activity WHERE app = ? ORDER BY id DESC LIMIT ?", app, n)
	slices.Reverse(rows)
	return rows, err
}

// ActivitiesAfter lists the rows about an app that came after one, oldest first.
func (s *Store) ActivitiesAfter(ctx context.Context, app string, id int64) ([]paas.Activity, error) {
	return collect(ctx, s.reads, scanActivity,
		"SELECT "+activityColumns+" FROM activity WHERE app = ? AND id > ? ORDER BY id", app, id)
}

// Note writes a row about an app that is nobody's doing. It is paas.NotFound once the app is to go.
func (s *Store) Note(ctx context.Context, app, text string) error {
	return s.mutate(ctx, paas.Activity{App: app, Text: text}, func(tx *sql.Tx, _ *paas.Activity) error {
		return appExists(ctx, tx, app)
	})
}

// AppsTouched returns the last row's number and the apps that rows after one
// are about.
func (s *Store) AppsTouched(ctx context.Context, after int64) (last int64, apps []string, err error) {
	if err := s.reads.QueryRowContext(ctx, "SELECT coalesce(max(id), 0) FROM activity").Scan(&last); err != nil {
		return 0, nil, fmt.Errorf("read the last activity: %w", err)
	}
	apps, err = collect(ctx, s.reads, func(row scanner) (app string, err error) { err = row.Scan(&app); return app, err },
		"SELECT DISTINCT app FROM activity WHERE id > ? AND id <= ?", after, last)
	return last, apps, err
}

// News returns a channel that is closed by the next row of activity about an app, of any with "".
// Who asks for it before he lists what there is misses nothing.
func (s *Store) News(app string) <-chan struct{} { return s.news.next(app) }

// news tells who waits for activity, by app. The zero value is ready.
type news struct {
	mu      sync.Mutex
	waiting map[string]chan struct{}
}

func (n *news) next(app string) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.waiting[app]
	if c == nil {
		if n.waiting == nil {
			n.waiting = map[string]chan struct{}{}
		}
		c = make(chan struct{})
		n.waiting[app] = c
	}
	return c
}

func (n *news) tell(app string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, key := range []string{app, ""} {
		if c := n.waiting[key]; c != nil {
			close(c)
			delete(n.waiting, key)
		}
	}
}
