package router

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/deis/deis/routerconf"
)

// leaveOut is how long an instance that refused a connection gets no requests
// while others take them: longer than the controller needs to notice a crash,
// shorter than what an instance that was only overwhelmed should lose.
const leaveOut = 2 * time.Second

// pickScan bounds how many instances one pick compares. Sixteen random ones
// are as good as all for the balance, and the cost stays the same at 10,000.
const pickScan = 16

// pool is what the data path keeps for one target: its connections.
type pool interface {
	// closeIdle closes the connections that no request uses.
	closeIdle()
}

// removed is the bit in target.requests which says that the table does not
// hold the target any more.
const removed = 1 << 62

// target is one instance. Its identity is that of the instance: as long as the
// table names it, its connections and counters stay, whatever else changes.
type target struct {
	conf routerconf.Target
	pool pool
	// onIdle is called when the last request on a removed target ends.
	onIdle func()

	refs      int    // routes that name it; the table's lock guards it
	removedAt uint64 // generation; the table's lock guards it

	// requests counts those under way, upgraded connections too, plus the
	// removed bit. Both are one word, so that a request that comes while the
	// target is removed is either counted before or turned away.
	requests atomic.Int64
	// busy is requests without upgraded connections: these may stay for hours
	// and say nothing about load, so the balance leaves them out.
	busy atomic.Int64
	// leftOut is the time (Unix, ns) until which others are preferred, or 0.
	leftOut atomic.Int64
}

// acquire counts one request on the target. It is false when the target was
// removed: the table then holds its successor already.
func (t *target) acquire() bool {
	t.busy.Add(1)
	if t.requests.Add(1)&removed != 0 {
		t.release(true)
		return false
	}
	return true
}

// release ends what acquire began. busy says that upgraded was not called.
func (t *target) release(busy bool) {
	if busy {
		t.busy.Add(-1)
	}
	if t.requests.Add(-1) == removed {
		t.onIdle()
	}
}

// upgraded takes a request out of the balance; it is still under way.
func (t *target) upgraded() { t.busy.Add(-1) }

// remove lets no further request in and reports whether none is under way.
func (t *target) remove() (idle bool) { return t.requests.Add(removed) == removed }

// idle reports whether a removed target has no request under way.
func (t *target) idle() bool { return t.requests.Load() == removed }

// refused notes a failed connection.
func (t *target) refused() { t.leftOut.Store(time.Now().Add(leaveOut).UnixNano()) }

func (t *target) isLeftOut() bool {
	until := t.leftOut.Load()
	return until != 0 && time.Now().UnixNano() < until
}

// pick chooses the instance with the fewest requests under way, from a random
// start so that equals share. Round robin would queue requests behind a slow
// one while other instances idle, and most app servers here work off one
// request at a time. tried are not chosen again; an instance that is left out
// is chosen only where no other remains. nil means that there is none.
func (r *route) pick(tried []*target) *target {
	var best, leftOut *target
	var least int64
	n, compared := len(r.targets), 0
	if n == 0 {
		return nil
	}
	start := 0
	if n > 1 {
		start = rand.IntN(n)
	}
	for i := range n {
		t := r.targets[(start+i)%n]
		if len(tried) > 0 && slices.Contains(tried, t) {
			continue
		}
		if t.isLeftOut() {
			leftOut = t
			continue
		}
		busy := t.busy.Load()
		if best == nil || busy < least {
			best, least = t, busy
		}
		if compared++; least <= 0 || compared == pickScan {
			break
		}
	}
	if best == nil {
		return leftOut
	}
	return best
}
