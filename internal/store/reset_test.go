package store

import (
	"slices"
	"testing"

	"github.com/deis/deis/internal/paas"
)

// After a reset every table but meta is empty, also those that later migrations bring.
func TestReset(t *testing.T) {
	s, err := Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tables, err := collect(t.Context(), s.reads, func(row scanner) (name string, err error) { return name, row.Scan(&name) },
		"SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'meta' ORDER BY name")
	if err != nil {
		t.Fatal(err)
	}
	if known := slices.Sorted(slices.Values(rows)); !slices.Equal(known, tables) {
		t.Errorf("Reset empties %v, the tables are %v", known, tables)
	}
	for range 2 {
		user, err := s.CreateUser(t.Context(), paas.User{Username: "alice"}, "secret")
		if err != nil || !user.Superuser {
			t.Fatalf("the first user: %+v, %v", user, err)
		}
		app, err := s.CreateApp(t.Context(), "alice", "shop")
		if err != nil {
			t.Fatal(err)
		}
		b := paas.Build{App: app.UUID, Owner: "alice", Image: "x", Log: "built"}
		if err := s.CreateBuild(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		if err := s.Reset(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, table := range tables {
			var n int
			if err := s.reads.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM "+table).Scan(&n); err != nil || n != 0 {
				t.Errorf("%s has %d rows after a reset, %v", table, n, err)
			}
		}
	}
}
