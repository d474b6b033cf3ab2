// Package store keeps everything that the platform must not forget, in SQL.
//
// The statements are written for SQLite and PostgreSQL alike: TEXT, BIGINT and
// BOOLEAN columns, numbers from a counters table, times as Unix microseconds,
// "?" for arguments (a driver that wants $1 gets them rewritten where the pool
// is opened), RETURNING and ON CONFLICT as both understand them.
//
// Every mutation is one transaction with one row of activity. The journal of
// rollouts and the cache of instances are no mutations by themselves: the row
// is written when a rollout ends.
//
// Errors that concern the user carry paas codes; all others are faults of the
// database or the disk.
package store

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/deis/deis/internal/paas"
)

//go:embed migrations/*.sql
var migrations embed.FS

// pragmas hold for each connection. The wait for a lock comes first, so that
// the others wait too. synchronous=FULL costs one fsync for each commit and
// keeps what a client has been told is done, also through a power cut; NORMAL
// would lose the last commits there.
const pragmas = "_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=foreign_keys(1)&_pragma=synchronous(FULL)"

// Store is the database. It is safe for concurrent use by one process; a lock
// keeps a second process out. Writes go through one connection, in turn; reads
// have their own and wait for no write.
type Store struct {
	reads  *readPool
	writes *sql.DB
	times  times
	vault  *vault
	lock   *os.File
	hasher hasher
	news   news
}

// Open opens the database in a directory, deis.db with secret.key beside it,
// and makes both on first use. It brings the schema up to date.
func Open(ctx context.Context, dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{lock: lock, hasher: newHasher()}
	if err := s.open(ctx, dir); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context, dir string) (err error) {
	file := filepath.Join(dir, "deis.db")
	_, statErr := os.Stat(file)
	if s.vault, err = openVault(filepath.Join(dir, "secret.key"), errors.Is(statErr, fs.ErrNotExist)); err != nil {
		return err
	}
	// SQLite would make it readable for all, and its companions like it.
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	f.Close()
	dsn := (&url.URL{Scheme: "file", Path: file, RawQuery: pragmas}).String()
	if s.writes, err = sql.Open("sqlite", dsn+"&_txlock=immediate"); err != nil {
		return fmt.Errorf("open %s: %w", file, err)
	}
	s.writes.SetMaxOpenConns(1)
	if err := s.migrate(ctx); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := s.checkKey(ctx); err != nil {
		return err
	}
	reads, err := sql.Open("sqlite", dsn+"&_pragma=query_only(1)")
	if err != nil {
		return fmt.Errorf("open %s: %w", file, err)
	}
	conns := max(4, runtime.GOMAXPROCS(0))
	reads.SetMaxOpenConns(conns)
	reads.SetMaxIdleConns(conns)
	s.reads = &readPool{reads, &s.times}
	return nil
}

// lockDir keeps a second process out; the kernel drops the lock with its holder.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("store %s: another controller has it open: %w", dir, err)
	}
	return f, nil
}

// Close closes the database and releases its lock.
func (s *Store) Close() error {
	var errs []error
	if s.reads != nil {
		errs = append(errs, s.reads.Close())
	}
	if s.writes != nil {
		errs = append(errs, s.writes.Close())
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	return s.reads.QueryRowContext(ctx, "SELECT 1").Scan(&one)
}

// migrate applies the numbered files that the database has not seen, each in
// its own transaction. A schema newer than this program's is refused: an older
// program must not write to it.
func (s *Store) migrate(ctx context.Context) error {
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return err
	}
	err = s.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
		return err
	})
	if err != nil {
		return err
	}
	for i, file := range append(files, "") {
		done := false
		err := s.write(ctx, func(tx *sql.Tx) error {
			version, err := schemaVersion(ctx, tx)
			if done = version >= i+1; err != nil || done || file == "" {
				return err
			}
			return applyMigration(ctx, tx, file, i+1)
		})
		if err != nil {
			return fmt.Errorf("migration %s: %w", file, err)
		}
		if done && file == "" {
			return fmt.Errorf("the database was written by a newer controller; this one knows its schema up to %d", len(files))
		}
	}
	return nil
}

func schemaVersion(ctx context.Context, tx *sql.Tx) (version int, err error) {
	err = tx.QueryRowContext(ctx, "SELECT CAST(value AS BIGINT) FROM meta WHERE name = 'schema'").Scan(&version)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return version, err
}

// checkKey refuses the key of another database: values would not open, and
// worse, new tokens and values would belong to neither key.
func (s *Store) checkKey(ctx context.Context) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		var sealed string
		err := tx.QueryRowContext(ctx, "SELECT value FROM meta WHERE name = 'key'").Scan(&sealed)
		if errors.Is(err, sql.ErrNoRows) {
			return exec(ctx, tx, "INSERT INTO meta (name, value) VALUES ('key', ?)", s.vault.seal("meta key", nil))
		}
		if err == nil {
			_, err = s.vault.open("meta key", sealed)
		}
		if err != nil {
			return fmt.Errorf("secret.key does not belong to this database: %w", err)
		}
		return nil
	})
}

func applyMigration(ctx context.Context, tx *sql.Tx, file string, version int) error {
	text, err := migrations.ReadFile(file)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, string(text)); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO meta (name, value) VALUES ('schema', ?)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`, fmt.Sprint(version))
	return err
}

// write runs one transaction.
func (s *Store) write(ctx context.Context, fn func(tx *sql.Tx) error) error {
	began := time.Now()
	defer s.times.note(Write, began)
	tx, err := s.writes.BeginTx(ctx, nil)
	s.times.note(Wait, began)
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // without effect after a commit
	if err := fn(tx); err != nil {
		return err
	}
	defer s.times.note(Commit, time.Now())
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// mutate runs one transaction together with its row of activity, which fn may
// complete.
func (s *Store) mutate(ctx context.Context, a paas.Activity, fn func(tx *sql.Tx, a *paas.Activity) error) error {
	err := s.write(ctx, func(tx *sql.Tx) error {
		if err := fn(tx, &a); err != nil {
			return err
		}
		id, err := next(ctx, tx, "activity")
		if err != nil {
			return err
		}
		err = exec(ctx, tx, "INSERT INTO activity (id, at, username, app, text) VALUES (?, ?, ?, ?, ?)",
			id, now(), a.User, a.App, a.Text)
		if err != nil {
			return err
		}
		return pruneActivity(ctx, tx, a)
	})
	if err == nil {
		s.news.tell(a.App)
	}
	return err
}

// Page asks for a part of a list.
type Page struct {
	// Number counts from 1; 0 is the last page.
	Number int
	// Size is the rows on a page; 0 means all.
	Size int
}

// All is the page that holds everything.
var All = Page{Number: 1}

// List is a page of rows.
type List[T any] struct {
	Rows []T
	// Count is that of all pages together; Number is the page's own.
	Count, Number int
}

// page reads one page of "SELECT columns FROM from ORDER BY order". A page out
// of range is NotFound; an empty list has one empty page.
func page[T any](ctx context.Context, q querier, p Page, scan func(scanner) (T, error),
	columns, from, order string, args ...any,
) (List[T], error) {
	var l List[T]
	var err error
	count := func(row scanner) (n int, err error) {
		err = row.Scan(&n)
		return n, err
	}
	if l.Count, err = one(ctx, q, count, "SELECT COUNT(*) FROM "+from, args...); err != nil {
		return l, fmt.Errorf("count: %w", err)
	}
	if p.Size <= 0 {
		p.Size = max(l.Count, 1)
	}
	last := max((l.Count+p.Size-1)/p.Size, 1)
	if l.Number = p.Number; l.Number == 0 {
		l.Number = last
	}
	if l.Number < 1 || l.Number > last {
		return l, notFound()
	}
	l.Rows, err = collect(ctx, q, scan, "SELECT "+columns+" FROM "+from+" ORDER BY "+order+" LIMIT ? OFFSET ?",
		append(args, p.Size, (l.Number-1)*p.Size)...)
	return l, err
}

// querier is a pool or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// scanner is one row.
type scanner interface{ Scan(dest ...any) error }

// collect reads all rows of a query.
func collect[T any](ctx context.Context, q querier, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	defer timed(q)()
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("read row: %w", err)
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

// one reads the only row of a query; none is NotFound.
func one[T any](ctx context.Context, q querier, scan func(scanner) (T, error), query string, args ...any) (T, error) {
	defer timed(q)()
	v, err := scan(q.QueryRowContext(ctx, query, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return v, notFound()
	}
	return v, err
}

// notFound is the text of contract 2.3.
func notFound() error { return paas.Errorf(paas.NotFound, "Not found") }

func exec(ctx context.Context, tx *sql.Tx, query string, args ...any) error {
	if _, err := tx.ExecContext(ctx, query, args...); err != nil {
		return fmt.Errorf("%s: %w", verb(query), err)
	}
	return nil
}

// execOne is exec for a statement that must find its row.
func execOne(ctx context.Context, tx *sql.Tx, query string, args ...any) error {
	r, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("%s: %w", verb(query), err)
	}
	n, err := r.RowsAffected()
	if err == nil && n == 0 {
		return notFound()
	}
	return err
}

// verb is the start of a statement, for errors: the arguments are secret.
func verb(query string) string {
	words := strings.Fields(query)
	return strings.Join(words[:min(3, len(words))], " ")
}

func exists(ctx context.Context, tx *sql.Tx, query string, args ...any) (bool, error) {
	var one int
	err := tx.QueryRowContext(ctx, query, args...).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// next returns the next number of a sequence, from 1.
func next(ctx context.Context, tx *sql.Tx, sequence string) (int64, error) {
	return nextFrom(ctx, tx, sequence, 1)
}

// nextFrom is next with a lower bound.
func nextFrom(ctx context.Context, tx *sql.Tx, sequence string, bound int64) (n int64, err error) {
	err = tx.QueryRowContext(ctx, `INSERT INTO counters (name, value) VALUES (?, ?)
		ON CONFLICT (name) DO UPDATE SET value =
			CASE WHEN counters.value + 1 > excluded.value THEN counters.value + 1 ELSE excluded.value END
		RETURNING value`, sequence, bound).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("number of %s: %w", sequence, err)
	}
	return n, nil
}

func newUUID() string { return uuid.NewString() }

func now() int64 { return time.Now().UnixMicro() }

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// stamp scans Unix microseconds; 0 is the zero time.
type stamp time.Time

func (t *stamp) Scan(v any) error {
	n, ok := v.(int64)
	if !ok {
		return fmt.Errorf("time is %T", v)
	}
	if *t = (stamp{}); n != 0 {
		*t = stamp(time.UnixMicro(n).UTC())
	}
	return nil
}

// encoded scans a JSON column.
type encoded struct{ into any }

func (e encoded) Scan(v any) error {
	text, ok := v.(string)
	if !ok {
		return fmt.Errorf("JSON column is %T", v)
	}
	return json.Unmarshal([]byte(text), e.into)
}

// encode makes the text of a JSON column; nil maps and lists are empty ones.
func encode[T ~map[K]V, K comparable, V any](m T) string {
	if m == nil {
		m = T{}
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // maps of texts and numbers always encode
	}
	return string(b)
}

// nullable makes "" a NULL.
func nullable(s string) any {
	if s == "" {
		return nil
	}
	return s
}
