// Package supervisor keeps the processes of one platform running: it starts
// them in order, hands them their listening sockets, restarts what dies with a
// growing pause, adopts what an earlier supervisor left running, and stops them
// in order. It knows nothing of what the processes do.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Part is one process to keep running.
type Part struct {
	Name string
	// Command is the absolute path of the program and its arguments.
	Command []string
	// Env is the whole environment, "NAME=value" each.
	Env []string
	// Log is the file that stdout and stderr are appended to.
	Log string
	// Needs names the parts that this one works with: it starts when each was
	// healthy once, has ended before it was, or is not for needTime.
	Needs []string
	// Sockets are opened for the part and handed over by daemon.ListenFDs.
	Sockets []*Socket
	// Health reports whether the part does its work. Nil counts a running
	// process as healthy.
	Health func(ctx context.Context) error
	// Grace is the time between TERM and KILL.
	Grace time.Duration
	// Version and Address are shown, nothing else.
	Version string
	Address string
}

// State of a part, as shown to the operator.
type State string

// The states.
const (
	Stopped    State = "stopped"
	Waiting    State = "waiting"    // for the parts that it needs
	Starting   State = "starting"   // runs, not yet healthy
	Running    State = "running"    // runs and is healthy
	Unhealthy  State = "unhealthy"  // was healthy, runs, is not healthy now
	Restarting State = "restarting" // died; pausing before the next start
	Stopping   State = "stopping"
)

// Status is what there is to say of a part now.
type Status struct {
	Name    string `json:"name"`
	State   State  `json:"state"`
	PID     int    `json:"pid,omitempty"`
	Version string `json:"version,omitempty"`
	Address string `json:"address,omitempty"`
	// Uptime is in seconds.
	Uptime int64 `json:"uptime"`
	// Memory is the resident set, in bytes.
	Memory   int64 `json:"memory"`
	Restarts int   `json:"restarts"`
	// Reason says why the state is not running.
	Reason string `json:"reason,omitempty"`
}

// Times of a supervisor.
const (
	// healthInterval is how often a healthy part is looked at.
	healthInterval = 5 * time.Second
	// startInterval is how often a starting part is looked at.
	startInterval = 20 * time.Millisecond
	// needTime is how long a part waits for those that it needs: more than they
	// take to start on a busy machine.
	needTime = time.Minute
	// healthTimeout bounds one look.
	healthTimeout = 2 * time.Second
	// firstPause is short, because most deaths are single; it doubles up to
	// maxPause for what dies again and again.
	firstPause = 100 * time.Millisecond
	maxPause   = 30 * time.Second
	// steadyTime is how long a part must run before its pause starts over.
	steadyTime = time.Minute
	// lockWait is what a supervisor that has stopped its parts needs to end.
	lockWait = 3 * time.Second
	// maxLog is where a part's log is cut: the older half of the budget is
	// kept beside it as ".1".
	maxLog = 16 << 20
)

// ErrRunning says that another supervisor has this directory.
var ErrRunning = errors.New("a supervisor is already running here")

// Supervisor runs parts. Its methods may be called concurrently.
type Supervisor struct {
	log     *slog.Logger
	dir     string
	lock    *os.File
	runners []*runner

	mu   sync.Mutex // guards the state file
	stop context.CancelFunc
}

// Open takes the directory for this process: its lock, and the record of what
// an earlier supervisor left running. It returns ErrRunning when another
// process keeps it for longer than one needs to end.
func Open(ctx context.Context, dir string, log *slog.Logger) (*Supervisor, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "deisctl.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("supervisor lock: %w", err)
	}
	if err := takeLock(ctx, lock); err != nil {
		lock.Close()
		return nil, err
	}
	return &Supervisor{log: log, dir: dir, lock: lock}, nil
}

func takeLock(ctx context.Context, lock *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("supervisor lock: %w", err)
		}
		select {
		case <-ctx.Done():
			return ErrRunning
		case <-time.After(startInterval):
		}
	}
}

// Close gives the directory back. Parts that run go on running.
func (s *Supervisor) Close() error { return s.lock.Close() }

// Start begins to run the parts, in the order of their needs, and returns at
// once. They run until Stop; when ctx ends, they are left as they are.
func (s *Supervisor) Start(ctx context.Context, parts []Part) error {
	left, err := readRecords(s.dir)
	if err != nil {
		return err
	}
	ctx, s.stop = context.WithCancel(ctx)
	for _, p := range parts {
		r := &runner{part: p, log: s.log.With("part", p.Name), changed: s.record, healthy: make(chan struct{}), ended: make(chan struct{}), done: make(chan struct{})}
		r.status = Status{Name: p.Name, State: Waiting, Version: p.Version, Address: p.Address}
		if rec, ok := left[p.Name]; ok {
			r.proc = adopt(rec)
		}
		s.runners = append(s.runners, r)
	}
	for _, r := range s.runners {
		go r.run(ctx, s.needs(r))
	}
	return nil
}

func (s *Supervisor) needs(r *runner) []*runner {
	var needs []*runner
	for _, other := range s.runners {
		if slices.Contains(r.part.Needs, other.part.Name) {
			needs = append(needs, other)
		}
	}
	return needs
}

// WaitHealthy waits until every part has been healthy once, or ctx ends, and
// tells each time. It tells as well, with an error, once of each part that ends
// before it was healthy or is not after patience; such a part is run on like the
// others. Calls of tell do not overlap.
func (s *Supervisor) WaitHealthy(ctx context.Context, patience time.Duration, tell func(st Status, failed error)) error {
	var one sync.Mutex
	var all sync.WaitGroup
	for _, r := range s.runners {
		say := func(failed error) {
			one.Lock()
			defer one.Unlock()
			if ctx.Err() == nil {
				tell(r.Status(), failed)
			}
		}
		all.Go(func() {
			failed := r.waitHealthy(ctx, patience)
			if failed != nil {
				say(failed)
			}
			select {
			case <-r.healthy:
				say(nil)
			case <-ctx.Done():
			}
		})
	}
	all.Wait()
	return ctx.Err()
}

// Status returns the state of every part, in the order given to Start.
func (s *Supervisor) Status() []Status {
	all := make([]Status, 0, len(s.runners))
	for _, r := range s.runners {
		all = append(all, r.Status())
	}
	return all
}

// Stop ends the parts one after the other, last started first, and tells after
// each.
func (s *Supervisor) Stop(tell func(name string)) {
	s.stop()
	for _, r := range slices.Backward(s.runners) {
		<-r.done
		r.end()
		tell(r.part.Name)
	}
	s.record()
}

// record writes which processes run, for the next supervisor.
func (s *Supervisor) record() {
	s.mu.Lock()
	defer s.mu.Unlock()
	records := map[string]record{}
	for _, r := range s.runners {
		records[r.part.Name] = r.record()
	}
	if err := writeRecords(s.dir, records); err != nil {
		s.log.Error("state of the parts not written", "error", err.Error())
	}
}
