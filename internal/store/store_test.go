package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/deis/deis/internal/paas"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// withApp opens a store with user alice, whose hash is none, and her app shop.
func withApp(t *testing.T) (*Store, paas.App) {
	t.Helper()
	s := open(t, t.TempDir())
	addUser(t, s, "alice")
	app, err := s.CreateApp(t.Context(), "alice", "shop")
	if err != nil {
		t.Fatal(err)
	}
	return s, app
}

// addUser is CreateUser without the cost of a password.
func addUser(t *testing.T, s *Store, name string) {
	t.Helper()
	err := s.write(t.Context(), func(tx *sql.Tx) error {
		seq, err := next(t.Context(), tx, "users")
		if err != nil {
			return err
		}
		return exec(t.Context(), tx, `INSERT INTO users (id, seq, username, password, email, first_name, last_name, superuser, staff,
			active, token_serial, last_login, joined) VALUES (?, ?, ?, '', '', '', '', FALSE, FALSE, TRUE, 1, 0, 0)`, newUUID(), seq, name)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func activities(t *testing.T, s *Store) (n int) {
	t.Helper()
	if err := s.reads.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM activity").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for name, mode := range map[string]os.FileMode{"secret.key": 0o600, "deis.db": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	if _, err := Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "another controller") {
		t.Errorf("second Open: %v", err)
	}
	if _, err := s.reads.ExecContext(t.Context(), "DELETE FROM users"); err == nil {
		t.Error("the read pool can write")
	}
	for pragma, want := range map[string]string{"journal_mode": "wal", "foreign_keys": "1", "synchronous": "2", "busy_timeout": "10000"} {
		var got string
		if err := s.writes.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %s %v, want %s", pragma, got, err, want)
		}
	}
	if _, err := s.writes.ExecContext(t.Context(), "UPDATE meta SET value = '99' WHERE name = 'schema'"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "newer controller") {
		t.Errorf("Open of a newer schema: %v", err)
	}
}

func TestLostKeyIsNoticed(t *testing.T) {
	dir := t.TempDir()
	open(t, dir).Close()
	if err := os.Remove(filepath.Join(dir, "secret.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "secret key") {
		t.Errorf("Open without the key: %v", err)
	}
	if err := makeKey(filepath.Join(dir, "secret.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "does not belong") {
		t.Errorf("Open with another key: %v", err)
	}
}

func TestVault(t *testing.T) {
	v, err := openVault(filepath.Join(t.TempDir(), "secret.key"), true)
	if err != nil {
		t.Fatal(err)
	}
	sealed := v.seal("config 1", []byte("value"))
	if plain, err := v.open("config 1", sealed); err != nil || string(plain) != "value" {
		t.Errorf("open = %q %v", plain, err)
	}
	if _, err := v.open("config 2", sealed); err == nil {
		t.Error("a value opens in another row")
	}
	if v.seal("config 1", []byte("value")) == sealed {
		t.Error("the same value is sealed the same way twice")
	}
	if a, b := v.token("u", 1), v.token("u", 1); a != b || len(a) != 40 || a == v.token("u", 2) || a == v.token("w", 1) {
		t.Errorf("token = %s, %s", a, b)
	}
}

func TestPasswords(t *testing.T) {
	h := newHasher()
	hash, err := h.hash(t.Context(), "secret")
	if err != nil || strings.Contains(hash, "secret") {
		t.Fatal(hash, err)
	}
	for password, want := range map[string]bool{"secret": true, "Secret": false, "": false} {
		if ok, err := h.verify(t.Context(), password, hash); ok != want || err != nil {
			t.Errorf("verify %q = %v %v", password, ok, err)
		}
	}
	if ok, err := h.verify(t.Context(), "", ""); ok || err != nil {
		t.Errorf("verify without hash = %v %v", ok, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range cap(h.slots) {
		h.slots <- struct{}{}
	}
	if _, err := h.hash(ctx, "x"); err == nil {
		t.Error("more hashes at a time than there are slots")
	}
}

func TestFirstUserIsSuperuser(t *testing.T) {
	s := open(t, t.TempDir())
	var work sync.WaitGroup
	for i := range 4 {
		work.Go(func() {
			if _, err := s.CreateUser(t.Context(), paas.User{Username: fmt.Sprintf("u%d", i)}, "x"); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	l, err := s.Superusers(t.Context(), All)
	if err != nil || l.Count != 1 {
		t.Errorf("%d superusers, %v", l.Count, err)
	}
	if n := activities(t, s); n != 4 {
		t.Errorf("%d activities, want 4", n)
	}
}

func TestBuildDocuments(t *testing.T) {
	s, app := withApp(t)
	ctx := t.Context()
	sbom := []byte(`{"components":[` + strings.Repeat(`{"name":"x"},`, 20_000) + `{}]}`)
	b := paas.Build{App: app.UUID, Owner: "alice", Image: "x", SBOM: sbom}
	if err := s.CreateBuild(ctx, &b); err != nil {
		t.Fatal(err)
	}
	if got, err := s.BuildDocument(ctx, b.UUID, SBOM); err != nil || !bytes.Equal(got, sbom) {
		t.Errorf("SBOM of %d bytes, want %d; %v", len(got), len(sbom), err)
	}
	if _, err := s.BuildDocument(ctx, b.UUID, Provenance); paas.CodeOf(err) != paas.NotFound {
		t.Errorf("provenance that nobody gave: %v", err)
	}
	if got, err := s.BuildByUUID(ctx, b.UUID); err != nil || got.SBOM != nil {
		t.Errorf("a build is read with its SBOM: %v", err)
	}
	var stored int
	if err := s.reads.QueryRowContext(ctx, "SELECT LENGTH(packed) FROM build_documents").Scan(&stored); err != nil || stored > len(sbom)/5 {
		t.Errorf("%d bytes are kept as %d, %v", len(sbom), stored, err)
	}
	if err := errors.Join(s.MarkDeleting(ctx, "alice", app), s.DeleteApp(ctx, app)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.BuildDocument(ctx, b.UUID, SBOM); paas.CodeOf(err) != paas.NotFound {
		t.Errorf("SBOM of a deleted app: %v", err)
	}
}

func TestClearCache(t *testing.T) {
	s, app := withApp(t)
	ctx := t.Context()
	before := activities(t, s)
	if err := s.ClearCache(ctx, "alice", app); err != nil {
		t.Fatal(err)
	}
	if got, err := s.AppByID(ctx, app.ID); err != nil || got.Cache != app.Cache+1 {
		t.Errorf("cache %d after %d, %v", got.Cache, app.Cache, err)
	}
	if n := activities(t, s); n != before+1 {
		t.Errorf("%d rows of activity", n-before)
	}
	if err := s.MarkDeleting(ctx, "alice", app); err != nil {
		t.Fatal(err)
	}
	if err := s.ClearCache(ctx, "alice", app); paas.CodeOf(err) != paas.NotFound {
		t.Errorf("clearing the cache of an app that is being deleted: %v", err)
	}
}

func TestRollouts(t *testing.T) {
	s, app := withApp(t)
	ctx := t.Context()
	latest, err := s.LatestRelease(ctx, app.UUID)
	if err != nil || latest.Version != 1 || latest.Build != "" {
		t.Fatalf("first release = %+v, %v", latest, err)
	}
	b := paas.Build{App: app.UUID, Owner: "alice", Image: "x", Procfile: map[string]string{"web": "run"}}
	if err := s.CreateBuild(ctx, &b); err != nil {
		t.Fatal(err)
	}
	begin := func() paas.Rollout {
		t.Helper()
		r := paas.Rollout{
			App: app.UUID, Owner: "alice", Kind: paas.RolloutDeploy, Build: b.UUID, Config: latest.Config, Version: 2,
			Formation: map[string]int{"web": 1}, Restart: map[string][]int{"web": {1}}, Summary: "alice deployed x",
		}
		if err := s.BeginRollout(ctx, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	before := activities(t, s)
	failing, good := begin(), begin()
	if good.ID <= failing.ID {
		t.Errorf("rollout %d after %d", good.ID, failing.ID)
	}
	if err := s.AdvanceRollout(ctx, paas.Rollout{ID: failing.ID, State: paas.RolloutStarting, Step: "starting web=1", Reason: "so far"}); err != nil {
		t.Fatal(err)
	}
	unfinished, err := s.UnfinishedRollouts(ctx)
	if err != nil || len(unfinished) != 2 || unfinished[0].State != paas.RolloutStarting {
		t.Fatalf("unfinished = %+v, %v", unfinished, err)
	}
	if got := unfinished[0]; got.Step != "starting web=1" || got.Reason != "so far" {
		t.Errorf("the journal has %+v", got)
	}
	if got := unfinished[1]; !reflect.DeepEqual(got, good) {
		t.Errorf("rollout = %+v, want %+v", got, good)
	}
	if err := s.FailRollout(ctx, failing.ID, "it broke", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.AdvanceRollout(ctx, paas.Rollout{ID: failing.ID, State: paas.RolloutStarting}); paas.CodeOf(err) != paas.NotFound {
		t.Errorf("a failed rollout goes on: %v", err)
	}
	if _, err := s.FinishRollout(ctx, failing, nil); paas.CodeOf(err) != paas.Conflict {
		t.Errorf("a failed rollout finishes: %v", err)
	}
	live := []paas.Set{{App: app.UUID, Type: "web", Generation: good.ID, Version: 2, Build: b.UUID, Config: latest.Config, Nums: []int{1, 3}}}
	release, err := s.FinishRollout(ctx, good, live)
	if err != nil || release.Version != 2 || release.Build != b.UUID || release.Summary != "alice deployed x" {
		t.Fatalf("release = %+v, %v", release, err)
	}
	if got, err := s.LiveSets(ctx, ""); err != nil || !reflect.DeepEqual(got, live) {
		t.Errorf("live = %+v, %v", got, err)
	}
	if got, err := s.AppByUUID(ctx, app.UUID); err != nil || got.Structure["web"] != 1 {
		t.Errorf("app = %+v, %v", got, err)
	}
	if n := activities(t, s) - before; n != 2 {
		t.Errorf("%d activities for two rollouts", n)
	}
	stale := begin()
	if !reflect.DeepEqual(stale.Before, live) {
		t.Errorf("before: %+v, want %+v", stale.Before, live)
	}
	moved := []paas.Set{{App: app.UUID, Type: "web", Generation: stale.ID, Version: 3, Build: b.UUID, Config: latest.Config, Nums: []int{1}}}
	if err := s.SwitchSets(ctx, paas.Rollout{ID: stale.ID, App: app.UUID, State: paas.RolloutStarting, Step: "replacing web=1"}, moved); err != nil {
		t.Fatal(err)
	}
	if got, err := s.LiveSets(ctx, app.UUID); err != nil || !reflect.DeepEqual(got, moved) {
		t.Errorf("live after a switch = %+v, %v", got, err)
	}
	if got, err := s.Rollout(ctx, app.UUID, stale.ID); err != nil || got.Step != "replacing web=1" || !reflect.DeepEqual(got.Before, live) {
		t.Errorf("rollout = %+v, %v", got, err)
	}
	if _, err := s.FinishRollout(ctx, stale, live); paas.CodeOf(err) != paas.Conflict {
		t.Errorf("a version is given twice: %v", err)
	}
	if got, err := s.LatestRelease(ctx, app.UUID); err != nil || got != release {
		t.Errorf("latest = %+v, %v", got, err)
	}
	if err := s.FailRollout(ctx, stale.ID, "it broke too", stale.Before); err != nil {
		t.Fatal(err)
	}
	if got, err := s.LiveSets(ctx, app.UUID); err != nil || !reflect.DeepEqual(got, live) {
		t.Errorf("live after it was undone = %+v, %v", got, err)
	}
	if err := s.SwitchSets(ctx, paas.Rollout{ID: stale.ID, App: app.UUID}, moved); paas.CodeOf(err) != paas.NotFound {
		t.Errorf("a failed rollout switches: %v", err)
	}
	l, err := s.Rollouts(ctx, app.UUID, Page{Number: 1, Size: 2})
	if err != nil || l.Count != 3 || len(l.Rows) != 2 || l.Rows[0].ID != stale.ID || l.Rows[0].Reason != "it broke too" ||
		l.Rows[0].Step != "" || l.Rows[1].Step != "" {
		t.Errorf("rollouts = %+v, %v", l, err)
	}
	if _, err := s.Rollout(ctx, "another", stale.ID); paas.CodeOf(err) != paas.NotFound {
		t.Errorf("a rollout of another app: %v", err)
	}
}

// TestRolloutsArePruned: the last stay, what brought up the live sets, what is under way, and those of other apps.
func TestRolloutsArePruned(t *testing.T) {
	s, app := withApp(t)
	ctx := t.Context()
	other, err := s.CreateApp(ctx, "alice", "other")
	if err != nil {
		t.Fatal(err)
	}
	b := paas.Build{App: app.UUID, Owner: "alice", Image: "x"}
	if err := s.CreateBuild(ctx, &b); err != nil {
		t.Fatal(err)
	}
	begin := func(app string) paas.Rollout {
		t.Helper()
		latest, err := s.LatestRelease(ctx, app)
		if err != nil {
			t.Fatal(err)
		}
		r := paas.Rollout{App: app, Owner: "alice", Kind: paas.RolloutScale, Config: latest.Config, Formation: map[string]int{"web": 1}}
		if err := s.BeginRollout(ctx, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	finish := func(r paas.Rollout, live []paas.Set) {
		t.Helper()
		if _, err := s.FinishRollout(ctx, r, live); err != nil {
			t.Fatal(err)
		}
	}
	foreign := begin(other.UUID)
	finish(foreign, nil)
	gone, first := begin(app.UUID), begin(app.UUID)
	live := []paas.Set{{App: app.UUID, Type: "web", Generation: first.ID, Version: 1, Build: b.UUID, Config: first.Config, Nums: []int{1}}}
	finish(gone, live)
	finish(first, live)
	waiting := begin(app.UUID)
	ended := []int64{}
	err = s.write(ctx, func(tx *sql.Tx) error { // many at once, which is quicker
		for range keptRollouts {
			id, err := next(ctx, tx, "rollouts")
			if err != nil {
				return err
			}
			ended = append(ended, id)
			if err := exec(ctx, tx, `INSERT INTO rollouts (id, app, owner_id, kind, state, config, formation, restart, version, summary, reason, created, finished)
				SELECT ?, app, owner_id, kind, 'failed', config, formation, restart, version, summary, reason, created, finished FROM rollouts WHERE id = ?`,
				id, first.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := func(app string, id int64, there bool) {
		t.Helper()
		if _, err := s.Rollout(ctx, app, id); (err == nil) != there {
			t.Errorf("rollout %d is there: %t, want %t (%v)", id, err == nil, there, err)
		}
	}
	last := begin(app.UUID)
	if err := s.FailRollout(ctx, last.ID, "it broke", nil); err != nil {
		t.Fatal(err)
	}
	want(app.UUID, gone.ID, false)
	want(app.UUID, first.ID, true)
	want(app.UUID, waiting.ID, true)
	want(app.UUID, ended[0], false)
	want(app.UUID, ended[1], true)
	want(app.UUID, last.ID, true)
	want(other.UUID, foreign.ID, true)
	if l, err := s.Rollouts(ctx, app.UUID, Page{Number: 1, Size: 1}); err != nil || l.Count != keptRollouts+2 {
		t.Errorf("%d rollouts are on record, %v", l.Count, err)
	}
	finish(begin(app.UUID), nil) // nothing is live any more
	want(app.UUID, first.ID, false)
	want(app.UUID, ended[1], false)
	want(app.UUID, waiting.ID, true)
}

// TestForgetDocuments: of builds whose images are gone only the newest keep log and documents.
func TestForgetDocuments(t *testing.T) {
	s, app := withApp(t)
	ctx := t.Context()
	var builds []paas.Build
	for n := range keptDocuments + 4 {
		b := paas.Build{App: app.UUID, Owner: "alice", Image: "x", Digest: fmt.Sprint("sha256:", n), Log: "a log", SBOM: []byte("{}"), Provenance: []byte("{}")}
		if n == 2 {
			b.Digest = ""
		}
		if err := s.CreateBuild(ctx, &b); err != nil {
			t.Fatal(err)
		}
		builds = append(builds, b)
	}
	for range 2 { // the second time there is nothing to do
		if err := s.ForgetDocuments(ctx, app.UUID, map[string]bool{"sha256:1": true}); err != nil {
			t.Fatal(err)
		}
		for n, b := range builds {
			gone := n == 0 || n == 3 // 1 is kept, the image of 2 is unknown, the others are young
			log, err := s.BuildLog(ctx, b.UUID)
			if err != nil || (log == logGone) != gone || (log == "a log") == gone {
				t.Errorf("log of build %d: %q, %v", n, log, err)
			}
			for _, kind := range []Document{SBOM, Provenance} {
				if _, err := s.BuildDocument(ctx, b.UUID, kind); (paas.CodeOf(err) == paas.NotFound) != gone {
					t.Errorf("%s of build %d: %v", kind, n, err)
				}
			}
		}
	}
}

// Only the last one-off runs are kept, and numbers go on.
func TestRunsArePruned(t *testing.T) {
	s, app := withApp(t)
	for want := range keptRuns + 5 {
		num, err := s.BeginRun(t.Context(), "alice", app, 1, "ls")
		if err != nil || num != want+1 {
			t.Fatalf("run %d, %v, want %d", num, err, want+1)
		}
	}
	l, err := s.Instances(t.Context(), app.UUID, "run", All)
	if err != nil || len(l.Rows) != keptRuns || l.Rows[0].Num != 6 {
		t.Errorf("%d runs, the first %+v, %v", len(l.Rows), l.Rows[0], err)
	}
	if err := s.EndRun(t.Context(), app.UUID, 1); err != nil {
		t.Errorf("the end of one that is not on record: %v", err)
	}
}

func TestInstancesKeepIdentity(t *testing.T) {
	s, app := withApp(t)
	ctx := t.Context()
	save := func(list ...paas.Instance) []paas.Instance {
		t.Helper()
		if err := s.SaveInstances(ctx, app.UUID, list); err != nil {
			t.Fatal(err)
		}
		l, err := s.Instances(ctx, app.UUID, "", All)
		if err != nil {
			t.Fatal(err)
		}
		return l.Rows
	}
	web := paas.Instance{Type: "web", Num: 1, Generation: 7, Version: 2, State: paas.StateCreated}
	first := save(web, paas.Instance{Type: "run", Num: 1, Generation: 7, Version: 2, State: paas.StateUp})
	if len(first) != 1 {
		t.Fatalf("instances = %+v", first)
	}
	web.State = paas.StateUp
	second := save(web)
	if len(second) != 1 || second[0].UUID != first[0].UUID || second[0].Created != first[0].Created || second[0].State != paas.StateUp {
		t.Errorf("instance = %+v, before %+v", second, first)
	}
	if again := save(web); again[0] != second[0] {
		t.Errorf("instance = %+v, before %+v", again[0], second[0])
	}
	web.Container = "c1"
	if got := save(web)[0]; got.Container != "c1" || got.Restarts != 0 {
		t.Errorf("the first container: %+v", got)
	}
	web.State, web.Reason, web.Container = paas.StateCrashed, "exited", "c1"
	save(web)
	web.State, web.Reason, web.Container = paas.StateInitialized, "", "" // between two
	save(web)
	web.State, web.Container = paas.StateUp, "c2"
	if got := save(web)[0]; got.Restarts != 1 || got.UUID != first[0].UUID {
		t.Errorf("the second container: %+v", got)
	}
	web.Generation = 8
	if third := save(web); len(third) != 1 || third[0].UUID == first[0].UUID {
		t.Errorf("instance of another generation = %+v", third)
	}
}

func TestDeleteApp(t *testing.T) {
	s, app := withApp(t)
	ctx := t.Context()
	d := paas.Domain{App: app.UUID, Owner: "alice", Name: "www.test"}
	if err := s.CreateDomain(ctx, &d); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteApp(ctx, app); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AppByID(ctx, "shop"); err != nil {
		t.Errorf("an app that was not marked is gone: %v", err)
	}
	if err := s.MarkDeleting(ctx, "alice", app); err != nil {
		t.Fatal(err)
	}
	r := paas.Rollout{App: app.UUID, Owner: "alice", Kind: paas.RolloutConfig}
	if err := s.BeginRollout(ctx, &r); paas.CodeOf(err) != paas.NotFound {
		t.Errorf("a rollout of a marked app: %v", err)
	}
	if _, err := s.CreateApp(ctx, "alice", "shop"); paas.CodeOf(err) != paas.Invalid {
		t.Errorf("the name of a marked app: %v", err)
	}
	for range 2 {
		if err := s.DeleteApp(ctx, app); err != nil {
			t.Fatal(err)
		}
	}
	for _, table := range []string{"apps", "configs", "releases", "domains"} {
		var n int
		if err := s.reads.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+table).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d rows in %s, %v", n, table, err)
		}
	}
}

func TestPages(t *testing.T) {
	s, app := withApp(t)
	ctx := t.Context()
	for i := range 5 {
		d := paas.Domain{App: app.UUID, Owner: "alice", Name: fmt.Sprintf("d%d", i)}
		if err := s.CreateDomain(ctx, &d); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		page  Page
		first string
		rows  int
	}{{All, "d0", 5}, {Page{1, 2}, "d0", 2}, {Page{3, 2}, "d4", 1}, {Page{0, 2}, "d4", 1}, {Page{0, 5}, "d0", 5}} {
		l, err := s.Domains(ctx, app.UUID, c.page)
		if err != nil || l.Count != 5 || len(l.Rows) != c.rows || l.Rows[0].Name != c.first {
			t.Errorf("page %+v = %+v, %v", c.page, l, err)
		}
	}
	if _, err := s.Domains(ctx, app.UUID, Page{4, 2}); paas.CodeOf(err) != paas.NotFound {
		t.Errorf("page out of range: %v", err)
	}
	if l, err := s.Keys(ctx, "alice", Page{1, 2}); err != nil || l.Count != 0 {
		t.Errorf("empty list: %+v, %v", l, err)
	}
}

// TestReadsDoNotWait: a read answers while a transaction is open.
func TestReadsDoNotWait(t *testing.T) {
	s, app := withApp(t)
	err := s.write(t.Context(), func(tx *sql.Tx) error {
		if err := exec(t.Context(), tx, "UPDATE apps SET id = 'other'"); err != nil {
			return err
		}
		got, err := s.AppByUUID(t.Context(), app.UUID)
		if err == nil && got.ID != "shop" {
			err = fmt.Errorf("read %s", got.ID)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func BenchmarkUserByToken(b *testing.B) {
	s, err := Open(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if _, err := s.CreateUser(b.Context(), paas.User{Username: "alice"}, "x"); err != nil {
		b.Fatal(err)
	}
	token, err := s.Login(b.Context(), "alice", "x")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.UserByToken(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
}
