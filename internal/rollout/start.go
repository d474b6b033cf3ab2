package rollout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

const (
	// maxStart ends a start that shows progress for ever (contract 16, start of a container).
	maxStart = 20 * time.Minute
	// settle is how long an instance without a port must run to count as up.
	settle = 300 * time.Millisecond
	// minPoll and maxPoll bound the time between two looks at what starts.
	minPoll, maxPoll = 5 * time.Millisecond, 250 * time.Millisecond
	// lookRest is how many times as long as a look took nobody looks again. Of many instances the
	// start of each is news, and each look costs time for all of them: it would be taken from the starts.
	lookRest = 4
	// sayAfter is how long waiting for an instance needs no word.
	sayAfter = 5 * time.Second
	// tailLines is how much of a failed instance's log its user is shown, with room for a stack trace below its
	// error, and tailWidth how much of each line, in bytes.
	tailLines, tailWidth = 20, 300
	// tailSearch is how many lines of the app are searched for them.
	tailSearch = 1000
	// tailWait is what a log may lag behind its instance, and tailPause how long nothing comes before it is taken for whole.
	tailWait  = time.Second
	tailPause = 100 * time.Millisecond
)

// starter brings the new sets of one rollout up, in one batch or several.
type starter struct {
	m      *Manager
	app    *app
	health health
	redact func(string) string
	say    func(string)
	step   func() // is called when all processes have been started
	// again says that instances may be there already.
	again bool
	// specs are what it has started so far.
	specs []engine.SetSpec
	// healthy are the instances that were probed, by ID; false while that is under way.
	healthy map[string]bool
	// slowest, if set, takes the place of maxPoll as the longest pause between two probes.
	slowest time.Duration
	// warning is what went wrong without being a reason to give up.
	warning string
	// replaced are the IDs of instances that ended while no controller looked,
	// perhaps in a reboot: Apply replaces them.
	replaced map[string]bool
}

// fault is why one instance did not come up.
type fault struct {
	headline string // a text of contract 19
	inst     engine.Instance
	reason   string
}

func (f *fault) Error() string { return f.headline + ": " + name(f.inst) + ": " + f.reason }

func name(inst engine.Instance) string { return fmt.Sprintf("%s.%d", inst.Type, inst.Num) }

// run starts a batch and returns when every instance of it and of the earlier ones is healthy. An instance that
// crashes ends it at once. All that it started in this process has ended when
// it returns; instances remain.
func (s *starter) run(ctx context.Context, batch []engine.SetSpec) error {
	for _, spec := range batch {
		s.specs = slices.DeleteFunc(s.specs, func(old engine.SetSpec) bool { return old.SetKey == spec.SetKey })
	}
	s.specs = append(s.specs, batch...)
	if s.again {
		if err := s.adopt(ctx); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	applied := make(chan struct{})
	group.Go(func() error {
		err := s.apply(ctx, batch)
		if err == nil {
			s.step()
			close(applied)
		}
		return err
	})
	group.Go(func() error { return s.observe(ctx, applied) })
	err := group.Wait()
	if f := (*fault)(nil); errors.As(err, &f) {
		return &paas.Error{Code: paas.Unavailable, Message: f.headline, Details: s.describe(s.app.ctx, f)}
	}
	return err
}

// apply creates and starts sets in parallel.
func (s *starter) apply(ctx context.Context, batch []engine.SetSpec) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, spec := range batch {
		group.Go(func() error {
			err := s.m.opt.Engine.Apply(ctx, spec)
			if err == nil {
				return nil
			}
			failed := &paas.Error{Code: paas.Unavailable, Message: msgCreate, Err: err}
			if text := userText(err); text != "" {
				failed.Details = fmt.Sprintf("%s: %s", spec.Type, s.redact(text))
			}
			return failed
		})
	}
	return group.Wait()
}

// observe follows the new instances until all are there and healthy. The first
// that crashes, goes away or stays unhealthy is its error.
func (s *starter) observe(ctx context.Context, applied <-chan struct{}) error {
	probes, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	err := s.watch(ctx, probes, applied)
	cancel()
	// A failed probe ends the context, which looks like a fault of the rest.
	if failed := probes.Wait(); errors.As(failed, new(*fault)) {
		return failed
	}
	return err
}

func (s *starter) watch(ctx context.Context, probes *errgroup.Group, applied <-chan struct{}) error {
	passed := make(chan string)
	allApplied := false
	for pause := minPoll; ; pause = min(2*pause, maxPoll) {
		began := time.Now()
		instances, err := s.list(ctx)
		if err != nil {
			return err
		}
		if done, err := s.judge(instances, allApplied); done || err != nil {
			return err
		}
		for _, inst := range instances {
			if _, known := s.healthy[inst.ID]; known || inst.State != paas.StateUp {
				continue
			}
			s.healthy[inst.ID] = false
			probes.Go(func() error { return s.await(ctx, inst, passed) })
		}
		end := applied
		if allApplied {
			end = nil
		}
		ended, err := s.rest(ctx, lookRest*time.Since(began), pause, passed, end)
		if err != nil {
			return err
		}
		allApplied = allApplied || ended
	}
}

// rest waits until it is worth looking again: when all have been created, when these are healthy, when there is
// news but not before least, or after most. It reports whether all have been created.
func (s *starter) rest(ctx context.Context, least, most time.Duration, passed <-chan string, applied <-chan struct{}) (ended bool, err error) {
	early, late := time.NewTimer(least), time.NewTimer(max(least, most))
	defer early.Stop()
	defer late.Stop()
	var news <-chan struct{}
	for {
		select {
		case id := <-passed:
			s.healthy[id] = true
			if applied == nil && !slices.Contains(slices.Collect(maps.Values(s.healthy)), false) {
				return false, nil
			}
		case <-applied:
			return true, nil
		case <-early.C:
			news = s.app.news
		case <-news:
			return false, nil
		case <-late.C:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// adopt notes which instances of an earlier attempt have ended.
func (s *starter) adopt(ctx context.Context) error {
	instances, err := s.list(ctx)
	for _, inst := range instances {
		s.replaced[inst.ID] = hasEnded(inst)
	}
	s.again = false
	return err
}

// list returns the instances that it has started or should have.
func (s *starter) list(ctx context.Context) ([]engine.Instance, error) {
	instances, err := s.m.instances(ctx, s.app.uuid)
	return slices.DeleteFunc(instances, func(i engine.Instance) bool {
		return !slices.ContainsFunc(s.specs, func(spec engine.SetSpec) bool {
			return spec.SetKey == i.SetKey && slices.Contains(spec.Nums, i.Num)
		})
	}), err
}

// instances lists those of an app. An engine that does not answer is asked
// again for as long as an instance may take: it may be starting again.
func (m *Manager) instances(ctx context.Context, app string) ([]engine.Instance, error) {
	deadline := time.Now().Add(m.opt.StartTimeout)
	for {
		instances, err := m.opt.Engine.Instances(ctx, app)
		if err == nil {
			return instances, nil
		}
		if time.Now().After(deadline) || !sleep(ctx, maxPoll) {
			return nil, fmt.Errorf("list the instances of app %s: %w", app, err)
		}
	}
}

// judge reports whether all instances are up and healthy, or which cannot be.
func (s *starter) judge(instances []engine.Instance, applied bool) (done bool, err error) {
	type place struct {
		processType string
		num         int
	}
	at := map[place]engine.Instance{}
	for _, inst := range instances {
		if hasEnded(inst) && !s.replaced[inst.ID] && !inst.Excused {
			return false, &fault{headline: msgCreate, inst: inst, reason: ended(inst)}
		}
		at[place{inst.Type, inst.Num}] = inst
	}
	done = applied
	for _, spec := range s.specs {
		for _, num := range spec.Nums {
			inst, ok := at[place{spec.Type, num}]
			if !ok && applied {
				inst = engine.Instance{SetKey: spec.SetKey, Num: num}
				return false, &fault{headline: msgCreate, inst: inst, reason: "it was removed while it started"}
			}
			done = done && (inst.Excused || inst.State == paas.StateUp && s.healthy[inst.ID])
		}
	}
	if done && slices.ContainsFunc(instances, func(i engine.Instance) bool { return i.Excused }) {
		s.warning = msgStart
		s.say(msgStart)
	}
	return done, nil
}

func ended(inst engine.Instance) string {
	if inst.Reason == "" {
		return fmt.Sprintf("it is %s", inst.State)
	}
	return inst.Reason
}

// await sends the ID of an instance once it is healthy, and may have requests.
func (s *starter) await(ctx context.Context, inst engine.Instance, passed chan<- string) error {
	if err := s.awaitHealthy(ctx, inst); err != nil {
		return err
	}
	s.app.admit(ctx, inst.ID)
	select {
	case passed <- inst.ID:
	case <-ctx.Done():
	}
	return nil
}

// awaitHealthy waits for the port and then for the health check, or, for types
// that are not routed, until the instance has run for a moment.
func (s *starter) awaitHealthy(ctx context.Context, inst engine.Instance) error {
	c := &clock{skips: s.m.opt.SkipWaits}
	if !paas.Routed(inst.Type) {
		c.sleep(ctx, settle-c.since(inst.Started))
		return ctx.Err()
	}
	open := engine.Check{Timeout: s.health.check.Timeout}
	if err := s.poll(ctx, c, inst, open, s.lastLine); err != nil {
		return err
	}
	if s.health.check.Path == "" {
		return nil
	}
	if !c.sleep(ctx, s.health.delay-c.since(inst.Started)) {
		return ctx.Err()
	}
	// Checks that are answered may well be logged: here a line is no progress.
	return s.poll(ctx, c, inst, s.health.check, nil)
}

// clock tells the time of one instance's start.
type clock struct {
	skips   bool          // sleeping takes no time
	skipped time.Duration // but counts
}

func (c *clock) now() time.Time { return time.Now().Add(c.skipped) }

func (c *clock) since(t time.Time) time.Duration { return c.now().Sub(t) }

// sleep is false when ctx ended first.
func (c *clock) sleep(ctx context.Context, d time.Duration) bool {
	if !c.skips {
		return sleep(ctx, d)
	}
	c.skipped += max(d, 0)
	return ctx.Err() == nil
}

// poll asks until a check passes. It gives up after StartTimeout without progress,
// of which the time is told by progress, and after maxStart in any case.
func (s *starter) poll(ctx context.Context, c *clock, inst engine.Instance, check engine.Check,
	progress func(context.Context, engine.Instance) time.Time,
) error {
	began := c.now()
	limit, last := began.Add(s.m.opt.StartTimeout), began.Add(maxStart)
	word := began.Add(sayAfter)
	for pause := minPoll; ; pause = min(pause*3/2, cmp.Or(s.slowest, maxPoll)) {
		err := s.m.opt.Engine.Probe(ctx, inst, check)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		now := c.now()
		if now.After(limit) && progress != nil {
			limit = progress(ctx, inst).Add(s.m.opt.StartTimeout)
		}
		if now.After(limit) || now.After(last) {
			reason := fmt.Sprintf("not healthy after %s: %s", now.Sub(began).Round(time.Second), probeText(err))
			return &fault{headline: msgHealth, inst: inst, reason: reason}
		}
		if now.After(word) {
			s.say(fmt.Sprintf("Waiting for %s: %s", name(inst), s.redact(probeText(err))))
			word = now.Add(sayEvery)
		}
		c.sleep(ctx, pause)
	}
}

// probeText is the engine's answer, which is in words for the user.
func probeText(err error) string {
	if e := (*paas.Error)(nil); errors.As(err, &e) && e.Message != "" {
		return e.Message
	}
	return err.Error()
}

// lastLine is when an instance last wrote a line of log.
func (s *starter) lastLine(ctx context.Context, inst engine.Instance) time.Time {
	lines := s.lines(ctx, inst)
	if len(lines) == 0 {
		return time.Time{}
	}
	return lines[len(lines)-1].Time
}

func (s *starter) lines(ctx context.Context, inst engine.Instance) []engine.LogLine {
	var lines []engine.LogLine
	q := engine.LogQuery{Lines: tailSearch, Type: inst.Type, Num: inst.Num}
	err := s.m.opt.Engine.Logs(ctx, inst.App, q, func(l engine.LogLine) error {
		if l.Generation == inst.Generation {
			lines = append(lines, l)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		s.m.opt.Log.Warn("read the log of an instance", "app", inst.App, "instance", name(inst), "error", err.Error())
	}
	return lines
}

// describe says what happened to an instance, with its last lines.
func (s *starter) describe(ctx context.Context, f *fault) string {
	lines := s.lastLines(ctx, f.inst)
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %s", name(f.inst), s.redact(f.reason))
	if len(lines) == 0 {
		text.WriteString("\nIt wrote nothing to its log.")
		return text.String()
	}
	text.WriteString("\nThe last lines of its log:")
	for _, l := range lines[max(0, len(lines)-tailLines):] {
		text.WriteString("\n  " + cut(s.redact(l.Text), tailWidth))
	}
	return text.String()
}

// lastLines waits for what an instance has written: the engine tells of its end, with a line of its own, while the process
// that writes the log may still have the rest. The engine's lines are left out.
func (s *starter) lastLines(ctx context.Context, inst engine.Instance) []engine.LogLine {
	read := func() []engine.LogLine {
		return slices.DeleteFunc(s.lines(ctx, inst), func(l engine.LogLine) bool { return strings.HasPrefix(l.Text, "deis: ") })
	}
	lines := read()
	until := time.Now().Add(tailWait)
	for !s.m.opt.SkipWaits && time.Now().Before(until) && sleep(ctx, tailPause) {
		before := len(lines)
		lines = read()
		if before > 0 && len(lines) == before {
			break
		}
	}
	return lines
}

// cut shortens a line without breaking a character.
func cut(line string, width int) string {
	if len(line) <= width {
		return line
	}
	return strings.ToValidUTF8(line[:width], "") + "..."
}

// minSecret is the length from which a config value is kept out of texts;
// shorter ones are ordinary words.
const minSecret = 4

// redactor returns a function that replaces config values by their names. Apps print
// them when they fail, and reasons are stored and shown to others.
func redactor(c paas.Config) func(string) string {
	type secret struct{ name, text string }
	var secrets []secret
	for key, value := range c.Values {
		switch key {
		case paas.ConfigPort, paas.ConfigHealthcheckURL, paas.ConfigHealthcheckTimeout, configHealthcheckDelay,
			paas.ConfigRegistry, paas.ConfigRegistryUsername: // parts of images' names, too
			continue
		}
		for line := range strings.Lines(value) {
			if line = strings.TrimSpace(line); len(line) >= minSecret {
				secrets = append(secrets, secret{key, line})
			}
		}
	}
	slices.SortFunc(secrets, func(a, b secret) int { return len(b.text) - len(a.text) })
	var pairs []string
	for _, s := range secrets {
		pairs = append(pairs, s.text, "["+s.name+"]")
	}
	return strings.NewReplacer(pairs...).Replace
}
