package store

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/paas"
)

// addBuild stores a build of an app with a digest of its own.
func addBuild(t *testing.T, s *Store, app paas.App, name string) paas.Build {
	t.Helper()
	b := paas.Build{App: app.UUID, Owner: app.Owner, Image: "x", Digest: "sha256:" + name, Log: name}
	if err := s.CreateBuild(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b
}

// beginDeploy begins the rollout of a build with the latest config.
func beginDeploy(t *testing.T, s *Store, b paas.Build) paas.Rollout {
	t.Helper()
	latest, err := s.LatestRelease(t.Context(), b.App)
	if err != nil {
		t.Fatal(err)
	}
	r := paas.Rollout{App: b.App, Owner: "alice", Kind: paas.RolloutDeploy, Build: b.UUID, Config: latest.Config, Version: latest.Version + 1}
	if err := s.BeginRollout(t.Context(), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func count(t *testing.T, s *Store, query string, args ...any) (n int) {
	t.Helper()
	if err := s.reads.QueryRowContext(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestImagesOfFailedDeploys: they are not kept, however new and whether their rollouts are on record; what waits for a
// rollout is.
func TestImagesOfFailedDeploys(t *testing.T) {
	s, app := withApp(t)
	ctx := t.Context()
	want := func(since time.Time, names ...string) {
		t.Helper()
		_, kept, err := s.ImageDigests(ctx, app.UUID, 1, since)
		if err != nil {
			t.Fatal(err)
		}
		maps.DeleteFunc(kept, func(_ string, keep bool) bool { return !keep })
		for i, name := range names {
			names[i] = "sha256:" + name
		}
		slices.Sort(names)
		if got := slices.Sorted(maps.Keys(kept)); !slices.Equal(got, names) {
			t.Errorf("kept are %q, want %q", got, names)
		}
	}
	hour := time.Now().Add(-time.Hour)
	fail := func(r paas.Rollout) {
		t.Helper()
		if err := s.FailRollout(ctx, r.ID, "it broke", nil); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 3 { // before there is any release
		fail(beginDeploy(t, s, addBuild(t, s, app, fmt.Sprint("early", n))))
	}
	want(hour)
	good := addBuild(t, s, app, "good")
	want(hour, "good") // it waits
	r := beginDeploy(t, s, good)
	want(hour, "good")
	if _, err := s.FinishRollout(ctx, r, nil); err != nil {
		t.Fatal(err)
	}
	bad := addBuild(t, s, app, "bad")
	r = beginDeploy(t, s, bad)
	want(hour, "good", "bad")
	fail(r)
	want(hour, "good")
	for n := range waitingBuilds + 2 {
		addBuild(t, s, app, fmt.Sprint("new", n))
	}
	want(hour, "good", "new2", "new3", "new4", "new5", "new6")
	want(time.Now(), "good") // nobody waits for so long
	known, _, err := s.ImageDigests(ctx, app.UUID, 1, hour)
	if err != nil || !known["sha256:bad"].After(bad.Created) || len(known) != 5+waitingBuilds+2 {
		t.Errorf("known are %v, %v", known, err)
	}
	// A failed rollout that is no more on record does not bring its image back.
	err = s.write(ctx, func(tx *sql.Tx) error {
		err := exec(ctx, tx, "DELETE FROM rollouts WHERE state = 'failed'")
		if err == nil {
			err = exec(ctx, tx, "UPDATE builds SET created = created - ? WHERE digest NOT LIKE 'sha256:new%'", 2*time.Hour.Microseconds())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want(hour, "good", "new2", "new3", "new4", "new5", "new6")
}

// TestFailedAttemptsArePruned: builds and configs go with the rollouts that tried them, those of releases stay.
func TestFailedAttemptsArePruned(t *testing.T) {
	s, app := withApp(t)
	ctx := t.Context()
	released, tried := addBuild(t, s, app, "released"), addBuild(t, s, app, "tried")
	if _, err := s.FinishRollout(ctx, beginDeploy(t, s, released), nil); err != nil {
		t.Fatal(err)
	}
	forgotten := addBuild(t, s, app, "forgotten")
	config := func(age time.Duration) paas.Config {
		t.Helper()
		c := paas.Config{App: app.UUID, Owner: "alice"}
		if err := s.CreateConfig(ctx, &c); err != nil {
			t.Fatal(err)
		}
		err := s.write(ctx, func(tx *sql.Tx) error {
			return exec(ctx, tx, "UPDATE configs SET created = ? WHERE uuid = ?", micros(time.Now().Add(-age)), c.UUID)
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	triedConfig, forgottenConfig, waiting := config(2*unusedConfig), config(2*unusedConfig), config(0)
	r := beginDeploy(t, s, tried)
	err := s.write(ctx, func(tx *sql.Tx) error {
		return exec(ctx, tx, "UPDATE rollouts SET config = ? WHERE id = ?", triedConfig.UUID, r.ID)
	})
	if err != nil {
		t.Fatal(err)
	}
	for n := range keptDocuments {
		addBuild(t, s, app, fmt.Sprint("newer", n))
	}
	there := func(builds, configs int) {
		t.Helper()
		gotBuilds, gotConfigs := 0, 0
		for _, b := range []paas.Build{released, tried, forgotten} {
			gotBuilds += count(t, s, "SELECT COUNT(*) FROM builds WHERE uuid = ?", b.UUID)
		}
		for _, c := range []paas.Config{triedConfig, forgottenConfig, waiting} {
			gotConfigs += count(t, s, "SELECT COUNT(*) FROM configs WHERE uuid = ?", c.UUID)
		}
		if gotBuilds != builds || gotConfigs != configs {
			t.Errorf("%d builds and %d configs are there, want %d and %d", gotBuilds, gotConfigs, builds, configs)
		}
	}
	there(3, 3)
	if err := s.FailRollout(ctx, r.ID, "it broke", nil); err != nil {
		t.Fatal(err)
	}
	there(2, 2) // the failed rollout is on record
	if err := s.write(ctx, func(tx *sql.Tx) error {
		for id := r.ID + 1; id <= r.ID+keptRollouts; id++ {
			if err := exec(ctx, tx, `INSERT INTO rollouts (id, app, owner_id, kind, state, config, formation, restart, version, summary, reason, created, finished)
				SELECT ?, app, owner_id, 'scale', 'failed', (SELECT config FROM releases LIMIT 1), formation, restart, version, summary, reason, created, finished
				FROM rollouts WHERE id = ?`, id, r.ID); err != nil {
				return err
			}
		}
		return pruneRollouts(ctx, tx, app.UUID)
	}); err != nil {
		t.Fatal(err)
	}
	there(1, 1)
	for query, want := range map[string]int{
		"SELECT COUNT(*) FROM builds": keptDocuments + 1, "SELECT COUNT(*) FROM build_logs": keptDocuments + 1,
		"SELECT COUNT(*) FROM releases": 2,
	} {
		if got := count(t, s, query); got != want {
			t.Errorf("%s: %d, want %d", query, got, want)
		}
	}
	if b, err := s.BuildByUUID(ctx, released.UUID); err != nil || b.UUID != released.UUID {
		t.Errorf("the build of a release: %v", err)
	}
}

// TestActivityIsPruned: of each app, and of what concerns none, the last rows stay; so do the last pushes.
func TestActivityIsPruned(t *testing.T) {
	s, app := withApp(t)
	ctx := t.Context()
	other, err := s.CreateApp(ctx, "alice", "other")
	if err != nil {
		t.Fatal(err)
	}
	many := func(do func(context.Context, *sql.Tx, int) error, n int) {
		t.Helper()
		err := s.write(ctx, func(tx *sql.Tx) (err error) {
			for i := 0; i < n && err == nil; i++ {
				err = do(ctx, tx, i)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for about, text := range map[string]string{app.UUID: "changed", "": "alice" + loggedIn} {
		if about == "" { // what people and operators did stays
			if err := s.mutate(ctx, paas.Activity{User: "alice", Text: "alice deleted user bob"}, func(*sql.Tx, *paas.Activity) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		before := count(t, s, "SELECT COUNT(*) FROM activity WHERE app = ? AND text <> ?", about, text)
		many(func(ctx context.Context, tx *sql.Tx, i int) error {
			id, err := next(ctx, tx, "activity")
			if err != nil {
				return err
			}
			return exec(ctx, tx, "INSERT INTO activity (id, at, username, app, text) VALUES (?, ?, 'alice', ?, ?)", id, i, about, text)
		}, keptActivity+3)
		if err := s.mutate(ctx, paas.Activity{User: "alice", App: about, Text: text}, func(*sql.Tx, *paas.Activity) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if n := count(t, s, "SELECT COUNT(*) FROM activity WHERE app = ? AND text = ?", about, text); n != keptActivity {
			t.Errorf("%d rows about %q", n, about)
		}
		if n := count(t, s, "SELECT COUNT(*) FROM activity WHERE app = ? AND text = ? AND at < 4", about, text); n != 0 {
			t.Errorf("%d old rows about %q", n, about)
		}
		if n := count(t, s, "SELECT COUNT(*) FROM activity WHERE app = ? AND text <> ?", about, text); about == "" && n != before {
			t.Errorf("%d other rows about no app, want %d", n, before)
		}
	}
	if n := count(t, s, "SELECT COUNT(*) FROM activity WHERE app = ?", other.UUID); n != 1 {
		t.Errorf("another app has %d rows, want its own", n)
	}
	push := func() *Push { return &Push{App: app.UUID, Owner: "alice", SHA: "0123456789"} }
	if err := s.CreatePush(ctx, push()); err != nil {
		t.Fatal(err)
	}
	many(func(ctx context.Context, tx *sql.Tx, _ int) error {
		seq, err := next(ctx, tx, "pushes")
		if err != nil {
			return err
		}
		return exec(ctx, tx, `INSERT INTO pushes (uuid, seq, app, owner_id, sha, fingerprint, connection, command, created, updated)
			SELECT ?, ?, app, owner_id, sha, fingerprint, connection, command, created, updated FROM pushes ORDER BY seq LIMIT 1`, newUUID(), seq)
	}, keptPushes+3)
	last := push()
	if err := s.CreatePush(ctx, last); err != nil {
		t.Fatal(err)
	}
	if n := count(t, s, "SELECT COUNT(*) FROM pushes"); n != keptPushes {
		t.Errorf("%d pushes are on record, want %d", n, keptPushes)
	}
	if n := count(t, s, "SELECT COUNT(*) FROM pushes WHERE uuid = ?", last.UUID); n != 1 {
		t.Error("the last push is not on record")
	}
}

// TestActivityGoesWithItsApp: but for who deleted it. A migration did the same for those that went before.
func TestActivityGoesWithItsApp(t *testing.T) {
	s, app := withApp(t)
	ctx := t.Context()
	if _, err := s.BeginRun(ctx, "alice", app, 1, "echo secret"); err != nil {
		t.Fatal(err)
	}
	if err := s.Note(ctx, app.UUID, "web.1 is sick"); err != nil {
		t.Fatal(err)
	}
	acts, err := s.Activities(ctx, app.UUID, 1)
	if err != nil || len(acts) != 1 || acts[0].Text != "web.1 is sick" || acts[0].User != "" {
		t.Errorf("the note is %+v, %v", acts, err)
	}
	if err := s.MarkDeleting(ctx, "alice", app); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteApp(ctx, app); err != nil {
		t.Fatal(err)
	}
	if err := s.Note(ctx, app.UUID, "web.1 is sick"); paas.CodeOf(err) != paas.NotFound {
		t.Errorf("a note about an app that is gone: %v", err)
	}
	texts := func() (list []string) {
		t.Helper()
		for _, about := range []string{app.UUID, ""} {
			acts, err := s.Activities(ctx, about, keptActivity)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range acts {
				list = append(list, a.Text)
			}
		}
		return list
	}
	want := []string{"alice deleted shop", "removed shop"}
	if got := texts(); !slices.Equal(got, want) {
		t.Errorf("activity is %q, want %q", got, want)
	}
	err = s.write(ctx, func(tx *sql.Tx) error {
		if err := exec(ctx, tx, "INSERT INTO activity (id, at, username, app, text) VALUES (1000, 0, 'alice', ?, 'old')", app.UUID); err != nil {
			return err
		}
		text, err := migrations.ReadFile("migrations/0006_pruning.sql")
		if err != nil {
			return err
		}
		_, rows, _ := strings.Cut(string(text), "DELETE")
		return exec(ctx, tx, "DELETE"+rows)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := texts(); !slices.Equal(got, want) {
		t.Errorf("after the migration activity is %q, want %q", got, want)
	}
}
