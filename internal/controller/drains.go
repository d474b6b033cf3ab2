package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/drain"
	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

const (
	// maxDrains bounds the drains of one app.
	maxDrains = 5
	// drainCatchUp is how many lines that were written while the controller was down are sent.
	drainCatchUp = 10_000
	// drainSave is how often it is written down how far the drains have come: what a killed
	// controller sent later is sent again.
	drainSave = 5 * time.Second
	// drainRetry is the pause after logs or configs could not be read.
	drainRetry = 5 * time.Second
)

// parseDrains reads a list of drains, separated by commas or blanks.
func parseDrains(text string) ([]drain.Target, error) {
	var targets []drain.Target
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' }) {
		t, err := drain.Parse(word)
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	if len(targets) > maxDrains {
		return nil, fmt.Errorf("there are %d log drains; an app may have %d", len(targets), maxDrains)
	}
	slices.SortFunc(targets, func(a, b drain.Target) int { return cmp.Compare(a.String(), b.String()) })
	return slices.Compact(targets), nil
}

// checkDrains refuses a config whose drains cannot be read.
func checkDrains(cfg paas.Config) error {
	if _, err := parseDrains(cfg.Values[paas.ConfigLogDrain]); err != nil {
		return paas.FieldError("values", "%s: %s.", paas.ConfigLogDrain, err)
	}
	return nil
}

// drainMark is how far an app's lines have come.
type drainMark struct {
	// Line is the time of the last line, Activity the number of the last row.
	Line     time.Time `json:"line"`
	Activity int64     `json:"activity"`
}

// drains sends the lines of apps to where their config and the platform want them.
type drains struct {
	s        *server
	platform []drain.Target
	guard    drainGuard
	file     string
	work     sync.WaitGroup

	mu    sync.Mutex
	apps  map[string]*appDrains
	marks map[string]drainMark // how far lines are queued
	dirty bool
	ended drain.Stats // of drains that are no more
}

// drainTarget is where lines go, and whether the app says so or the platform's operator.
type drainTarget struct {
	drain.Target
	ofApp bool
}

// appDrains are those of one app.
type appDrains struct {
	app    paas.App
	drains []*appDrain // replaced, never changed; drains.mu is for it
	stop   context.CancelFunc
}

// appDrain is one of them at work.
type appDrain struct {
	*drain.Drain
	to   drainTarget
	stop context.CancelFunc
}

func newDrains(s *server) (*drains, error) {
	d := &drains{
		s: s, file: filepath.Join(s.cfg.Root, "db", "drains.json"),
		apps: map[string]*appDrains{}, marks: map[string]drainMark{},
	}
	var err error
	if d.platform, err = parseDrains(s.cfg.LogDrain); err != nil {
		return nil, fmt.Errorf("%s: %w", paas.ConfigLogDrain, err)
	}
	if d.guard.ports, d.guard.prefixes, err = parseAllow(s.cfg.AppAllow); err != nil {
		return nil, err
	}
	if s.cfg.Metrics == nil {
		return d, nil
	}
	for name, f := range map[string]func(drain.Stats) int64{
		"sent": func(s drain.Stats) int64 { return s.Sent }, "dropped": func(s drain.Stats) int64 { return s.Dropped },
	} {
		err = errors.Join(err, s.cfg.Metrics.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "deis_drain_lines_total", ConstLabels: prometheus.Labels{"result": name},
			Help: "Log lines for drains: sent, or dropped because their servers did not take them.",
		}, func() float64 { return float64(f(d.total())) })))
	}
	return d, err
}

// total is what became of all lines since the start.
func (d *drains) total() drain.Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	sum := d.ended
	for _, a := range d.apps {
		for _, one := range a.drains {
			st := one.Stats()
			sum.Sent += st.Sent
			sum.Dropped += st.Dropped
		}
	}
	return sum
}

// end stops a drain; what waits for it is dropped. d.mu is held.
func (d *drains) end(one *appDrain) {
	one.stop()
	st := one.Stats()
	d.ended.Sent += st.Sent
	d.ended.Dropped += st.Dropped + int64(one.Unsent(func(drain.Line) {}))
}

// endApp stops the drains of an app and forgets how far they came. d.mu is held.
func (d *drains) endApp(a *appDrains) {
	a.stop()
	for _, one := range a.drains {
		d.end(one)
	}
	delete(d.apps, a.app.UUID)
	delete(d.marks, a.app.UUID)
	d.dirty = true
}

// run keeps the drains as the configs say until ctx ends. It looks at an app
// when something was done to it.
func (d *drains) run(ctx context.Context) error {
	d.load()
	defer d.save()
	defer d.work.Wait()
	save := time.NewTicker(drainSave)
	defer save.Stop()
	seen := int64(-1)
	for {
		news := d.s.store.News("")
		var again <-chan time.Time
		next, err := d.look(ctx, seen)
		if err != nil && ctx.Err() == nil {
			d.s.cfg.Log.Warn("the log drains are not up to date", "error", err.Error())
			again = time.After(drainRetry)
		} else {
			seen = next
		}
		for waiting := true; waiting; {
			select {
			case <-news:
				waiting = false
			case <-again:
				waiting = false
			case <-save.C:
				d.save()
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// look adapts the drains of the apps that rows of activity after seen are
// about, of all with -1, and returns the last row.
func (d *drains) look(ctx context.Context, seen int64) (int64, error) {
	last, touched, err := d.s.store.AppsTouched(ctx, seen)
	if err != nil {
		return seen, err
	}
	apps, err := d.s.store.AllApps(ctx)
	if err != nil {
		return seen, err
	}
	exist := map[string]bool{}
	for _, app := range apps {
		exist[app.UUID] = true
		if seen >= 0 && !slices.Contains(touched, app.UUID) {
			continue
		}
		cfg, err := d.s.liveConfig(ctx, app)
		if err != nil {
			return seen, fmt.Errorf("app %s: %w", app.ID, err)
		}
		targets, err := parseDrains(cfg.Values[paas.ConfigLogDrain])
		if err != nil {
			targets = nil // from before it was checked
		}
		d.set(ctx, app, d.both(targets))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for uuid, a := range d.apps {
		if !exist[uuid] {
			d.endApp(a)
		}
	}
	maps.DeleteFunc(d.marks, func(uuid string, _ drainMark) bool { return !exist[uuid] }) // of apps that went while we were down
	return last, nil
}

// both are the platform's targets and an app's own.
func (d *drains) both(own []drain.Target) []drainTarget {
	var all []drainTarget
	for _, t := range d.platform {
		all = append(all, drainTarget{Target: t})
	}
	for _, t := range own {
		all = append(all, drainTarget{Target: t, ofApp: true})
	}
	return all
}

// set makes these the drains of an app. One that stays keeps what waits for it.
func (d *drains) set(ctx context.Context, app paas.App, targets []drainTarget) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.apps[app.UUID]
	switch {
	case a == nil && len(targets) == 0:
		delete(d.marks, app.UUID)
		return
	case len(targets) == 0:
		d.endApp(a)
		return
	case a == nil:
		a = d.begin(ctx, app)
	}
	var drains []*appDrain
	for _, to := range targets {
		i := slices.IndexFunc(a.drains, func(one *appDrain) bool { return one.to == to })
		if i >= 0 {
			drains = append(drains, a.drains[i])
			continue
		}
		drains = append(drains, d.open(ctx, to))
	}
	for _, one := range a.drains {
		if !slices.Contains(drains, one) {
			d.end(one)
		}
	}
	a.drains = drains
}

// begin follows an app's lines. d.mu is held, and there are drains when it is released.
func (d *drains) begin(ctx context.Context, app paas.App) *appDrains {
	ctx, stop := context.WithCancel(ctx)
	a := &appDrains{app: app, stop: stop}
	d.apps[app.UUID] = a
	d.work.Go(func() { d.follow(ctx, a, func(from drainMark) error { return d.lines(ctx, a, from) }) })
	d.work.Go(func() { d.follow(ctx, a, func(from drainMark) error { return d.activity(ctx, a, from) }) })
	return a
}

// open starts a drain.
func (d *drains) open(ctx context.Context, to drainTarget) *appDrain {
	opts := drain.Options{}
	if to.ofApp {
		opts.Control = d.guard.control
	}
	ctx, stop := context.WithCancel(ctx)
	one := &appDrain{Drain: drain.New(to.Target, opts), to: to, stop: stop}
	d.work.Go(func() { one.Run(ctx) })
	return one
}

// follow calls f again and again from where the drains have come to.
func (d *drains) follow(ctx context.Context, a *appDrains, f func(from drainMark) error) {
	for ctx.Err() == nil {
		d.mu.Lock()
		from := d.marks[a.app.UUID]
		d.mu.Unlock()
		err := f(from)
		if ctx.Err() != nil {
			return
		}
		d.s.cfg.Log.Warn("the logs for a drain cannot be read", "app", a.app.ID, "error", fmt.Sprint(err))
		select {
		case <-time.After(drainRetry):
		case <-ctx.Done():
		}
	}
}

// lines sends what the instances write. A new drain begins with what comes from now on.
func (d *drains) lines(ctx context.Context, a *appDrains, from drainMark) error {
	q := engine.LogQuery{Follow: true}
	if !from.Line.IsZero() {
		q.Lines, q.Since = drainCatchUp, from.Line.Add(time.Nanosecond)
	}
	return d.s.engine.Logs(ctx, a.app.UUID, q, func(l engine.LogLine) error {
		if l == (engine.LogLine{}) {
			if from.Line.IsZero() {
				d.mark(a, drainMark{Line: time.Now()})
			}
			return nil
		}
		d.send(a, drain.Line{Time: l.Time, App: a.app.ID, Source: instanceLine(l).source, Err: l.Stderr, Text: l.Text})
		d.mark(a, drainMark{Line: l.Time})
		return nil
	})
}

// activity sends what is done to the app.
func (d *drains) activity(ctx context.Context, a *appDrains, from drainMark) error {
	seen := from.Activity
	if seen == 0 {
		acts, err := d.s.store.Activities(ctx, a.app.UUID, 1)
		if err != nil {
			return err
		}
		if len(acts) > 0 {
			seen = acts[0].ID
		}
	}
	for ctx.Err() == nil {
		news := d.s.store.News(a.app.UUID)
		acts, err := d.s.store.ActivitiesAfter(ctx, a.app.UUID, seen)
		if err != nil {
			return err
		}
		for _, act := range acts {
			for _, l := range activityLines([]paas.Activity{act}) {
				d.send(a, drain.Line{Time: l.at, App: a.app.ID, Source: l.source, Text: l.text, ID: act.ID})
			}
			seen = act.ID
		}
		d.mark(a, drainMark{Activity: seen})
		select {
		case <-news:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

func (d *drains) send(a *appDrains, l drain.Line) {
	d.mu.Lock()
	all := a.drains
	d.mu.Unlock()
	for _, one := range all {
		one.Send(l)
	}
}

// mark notes how far an app's lines are queued; zero fields stay.
func (d *drains) mark(a *appDrains, to drainMark) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.apps[a.app.UUID] != a {
		return
	}
	m := d.marks[a.app.UUID]
	if to.Line.After(m.Line) {
		m.Line = to.Line
	}
	m.Activity = max(m.Activity, to.Activity)
	d.marks[a.app.UUID] = m
	d.dirty = true
}

// load reads the marks. Without them the drains go on from now.
func (d *drains) load() {
	text, err := os.ReadFile(d.file)
	if err == nil {
		err = json.Unmarshal(text, &d.marks)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.s.cfg.Log.Warn("log drains begin anew", "error", err.Error())
	}
	if d.marks == nil {
		d.marks = map[string]drainMark{}
	}
}

// sent is how far all of an app's drains have sent its lines, and whether some wait. d.mu is held.
func (d *drains) sent(app string) (m drainMark, waits bool) {
	m = d.marks[app]
	a := d.apps[app]
	if a == nil {
		return m, false
	}
	for _, one := range a.drains {
		n := one.Unsent(func(l drain.Line) {
			if l.ID != 0 {
				m.Activity = min(m.Activity, l.ID-1)
			} else if before := l.Time.Add(-time.Nanosecond); before.Before(m.Line) {
				m.Line = before
			}
		})
		waits = waits || n > 0
	}
	return m, waits
}

// save writes down how far the drains have come. The next controller goes on from there: it queues again what waited
// here, and a drain that was ahead of the app's others gets lines twice, which is better than never.
func (d *drains) save() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.dirty {
		return
	}
	marks, waiting := make(map[string]drainMark, len(d.marks)), false
	for app := range d.marks {
		m, waits := d.sent(app)
		marks[app] = m
		waiting = waiting || waits
	}
	text, err := json.Marshal(marks)
	if err == nil {
		err = os.WriteFile(d.file+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(d.file+".new", d.file)
	}
	if err != nil {
		d.s.cfg.Log.Warn("how far the log drains have come is not saved", "error", err.Error())
		return
	}
	d.dirty = waiting // what waits is sent without another mark
}

// of returns what became of the lines of an app.
func (d *drains) of(app string) []api.Drain {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := []api.Drain{}
	if a := d.apps[app]; a != nil {
		for _, one := range a.drains {
			st := one.Stats()
			list = append(list, api.Drain{URL: one.to.String(), Sent: st.Sent, Dropped: st.Dropped, Error: st.Error})
		}
	}
	return list
}

// listDrains shows where an app's lines go.
func (c *call) listDrains() error {
	return c.reply(http.StatusOK, api.Drains{Drains: c.s.drains.of(c.app.UUID)})
}
