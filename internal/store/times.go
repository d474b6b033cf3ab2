package store

import (
	"database/sql"
	"sync/atomic"
	"time"
)

// Class is a kind of operation of which the time is told.
type Class string

// The classes. Wait and Commit are parts of Write.
const (
	Read   Class = "read"   // one query outside of a transaction, with its rows
	Write  Class = "write"  // one transaction
	Wait   Class = "wait"   // for the writers before it
	Commit Class = "commit" // its end, with what the disk takes
)

// Observe makes f hear how long each operation took, from now on. f may be
// called concurrently.
func (s *Store) Observe(f func(c Class, took time.Duration)) { s.times.hear.Store(&f) }

type times struct {
	hear atomic.Pointer[func(Class, time.Duration)]
}

func (t *times) note(c Class, began time.Time) {
	if f := t.hear.Load(); f != nil {
		(*f)(c, time.Since(began))
	}
}

// readPool is the pool of the queries outside of transactions.
type readPool struct {
	*sql.DB
	times *times
}

// timed returns a function that notes the time since, if q is the pool.
func timed(q querier) func() {
	p, ok := q.(*readPool)
	if !ok {
		return func() {}
	}
	began := time.Now()
	return func() { p.times.note(Read, began) }
}
