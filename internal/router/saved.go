package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/deis/deis/routerconf"
)

const (
	// saveDelay gathers changes, so that a thousand are not a thousand fsyncs.
	saveDelay = 100 * time.Millisecond
	// saveShare bounds the saver to one part in so many of the time, however
	// large the table is.
	saveShare = 10
	// saveRetry is how long a failed save rests.
	saveRetry = 5 * time.Second
)

// savedTable is the file that a router starts from while there is no
// controller. It is a routerconf.Table with one more field.
type savedTable struct {
	// Boot names the run of the machine in which the table was true.
	Boot string `json:"boot,omitempty"`
	routerconf.Table
}

// saver keeps the last good table on disk.
type saver struct {
	path  string // it holds private keys
	table *table
	log   *slog.Logger
	boot  string
	// changed and saved are from before anything changes the table.
	changed <-chan struct{}
	saved   uint64 // revision of the table
}

func newSaver(dir string, tb *table, log *slog.Logger) *saver {
	return &saver{
		path: filepath.Join(dir, "table.json"), table: tb, log: log, boot: bootID(),
		changed: tb.watch(), saved: tb.revision(),
	}
}

// bootID differs after each boot of the machine; "" where the kernel has none.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// load applies the saved table, if there is one. After a boot nothing runs
// where it ran before, and another app's instance may have got the address: then
// the apps stay known but without instances (503) until the controller speaks.
// Generation 0 makes the controller send all. Its own address is a setting.
func (s *saver) load() error {
	var saved savedTable
	text, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &saved); err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	if saved.Boot != s.boot {
		saved.Generation = 0
		for i := range saved.Routes {
			if r := &saved.Routes[i]; !r.Controller {
				r.Targets = nil
			}
		}
	}
	err = s.table.apply(routerconf.Change{Generation: saved.Generation, Snapshot: &saved.Table})
	s.saved = s.table.revision()
	return err
}

// run saves soon after each change until ctx ends, and then what is unsaved.
func (s *saver) run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-s.changed:
			sleep(ctx, saveDelay)
		}
		begin := time.Now()
		for !s.save() && ctx.Err() == nil {
			sleep(ctx, saveRetry)
		}
		sleep(ctx, time.Since(begin)*saveShare)
	}
	s.save()
}

// save writes the table if it is new; false says that this failed.
func (s *saver) save() bool {
	revision := s.table.revision()
	if revision == s.saved {
		return true
	}
	text, err := json.Marshal(savedTable{Boot: s.boot, Table: s.table.snapshot()})
	if err == nil {
		err = writeFile(s.path, text, 0o600)
	}
	if err != nil {
		s.log.Error("the routing table was not saved", "error", err)
		return false
	}
	s.saved = revision
	return true
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// readTable reads the table of the --table setting. In contrast to the
// controller's, a faulty one is refused as a whole: a person wrote it.
func readTable(path string) (*routerconf.Table, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t := &routerconf.Table{}
	if err := json.Unmarshal(text, t); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := t.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}
