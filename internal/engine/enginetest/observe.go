package enginetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/paas"
)

// awaitWatch waits for a message that concerns the app.
func (s *suite) awaitWatch(what string, changes <-chan string) {
	s.Helper()
	limit := time.After(s.fix.Wait)
	for {
		select {
		case app, ok := <-changes:
			if !ok {
				s.Fatalf("%s: Watch ended before its context", what)
			}
			if app == s.app || app == "" {
				return
			}
		case <-limit:
			s.Fatalf("%s: no message from Watch", what)
		}
	}
}

// watch: each change wakes up who watches.
func (s *suite) watch() {
	changes := s.Watch(s.ctx)
	spec := s.set("worker", 1, s.fix.Sleep)
	s.apply(spec)
	s.awaitWatch("after Apply", changes)
	if err := s.Remove(s.ctx, spec.SetKey); err != nil {
		s.Fatal(err)
	}
	spec = s.set("worker", 1, s.fix.Short)
	s.apply(spec)
	deadline := time.Now().Add(s.fix.Wait)
	for s.only().State != paas.StateCrashed {
		s.awaitWatch("after the process ended", changes)
		if time.Now().After(deadline) {
			s.Fatal("the instance does not end")
		}
	}
	if inst := s.only(); !strings.Contains(inst.Reason, "0") {
		s.Errorf("reason %q does not name exit code 0", inst.Reason)
	}
	if err := s.Remove(s.ctx, spec.SetKey); err != nil {
		s.Fatal(err)
	}
	s.awaitWatch("after Remove", changes)
}

// watchEnds: the channel is closed when the context ends, even when nobody reads.
func (s *suite) watchEnds() {
	ctx, cancel := context.WithCancel(s.ctx)
	changes := s.Watch(ctx)
	s.apply(s.set("worker", 1, s.fix.Sleep))
	cancel()
	s.soon("the channel is closed", func() bool {
		select {
		case _, ok := <-changes:
			return !ok
		default:
			return false
		}
	})
}

// room: there is some, what is free is a part of all, and only what runs uses any.
func (s *suite) room() {
	spec := s.set("worker", 2, s.fix.Sleep)
	s.apply(spec)
	room, err := s.Room(s.ctx, s.app)
	if err != nil {
		s.Fatal(err)
	}
	if room.Total <= 0 || room.Available < 0 || room.Available > room.Total {
		s.Errorf("room %+v", room)
	}
	if use := room.Use["worker"]; use < 0 || use > room.Total || s.fix.Measures && use == 0 {
		s.Errorf("a worker uses %d bytes of %d", use, room.Total)
	}
	if err := s.Remove(s.ctx, spec.SetKey); err != nil {
		s.Fatal(err)
	}
	if room, err = s.Room(s.ctx, s.app); err != nil || len(room.Use) > 0 {
		s.Errorf("with nothing running: %+v, %v", room, err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.Room(ctx, s.app); err == nil {
		s.Error("Room answers after its context")
	}
}

// probeServing: an open port is enough without a path; with one, only 200 is.
func (s *suite) probeServing() {
	s.apply(s.set("web", 1, s.fix.Serve))
	inst := s.only()
	s.soon("the port is open", func() bool { return s.Probe(s.ctx, inst, engine.Check{Timeout: time.Second}) == nil })
	if err := s.Probe(s.ctx, inst, engine.Check{Path: "/ok", Timeout: s.fix.Wait}); err != nil {
		s.Errorf("GET /ok: %v", err)
	}
	err := s.Probe(s.ctx, inst, engine.Check{Path: "/missing", Timeout: s.fix.Wait})
	if err == nil || !strings.Contains(err.Error(), "404") {
		s.Errorf("GET /missing: error %v, want one that names 404", err)
	}
}

// probeNotListening: a type that is routed must listen, another must only run.
func (s *suite) probeNotListening() {
	s.apply(s.set("web", 1, s.fix.Sleep))
	web := s.only()
	for _, path := range []string{"", "/ok"} {
		if err := s.Probe(s.ctx, web, engine.Check{Path: path, Timeout: time.Second}); err == nil {
			s.Errorf("an instance of web that does not listen passes a check of %q", path)
		}
	}
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if err := s.Probe(ctx, web, engine.Check{Timeout: time.Second}); err == nil {
		s.Error("Probe with a context that has ended: no error")
	}
	s.apply(s.set("worker", 1, s.fix.Sleep))
	for _, inst := range s.list(s.app) {
		if inst.Type != "worker" {
			continue
		}
		if err := s.Probe(s.ctx, inst, engine.Check{Timeout: s.fix.Wait}); err != nil {
			s.Errorf("a running worker: %v", err)
		}
	}
}

// probeGone: what has crashed or was removed does not serve.
func (s *suite) probeGone() {
	spec := s.set("web", 1, s.fix.Crash)
	s.apply(spec)
	inst := s.crashed()
	if err := s.Probe(s.ctx, inst, engine.Check{Timeout: time.Second}); err == nil {
		s.Error("a crashed instance passes a check")
	}
	if err := s.Remove(s.ctx, spec.SetKey); err != nil {
		s.Fatal(err)
	}
	if err := s.Probe(s.ctx, inst, engine.Check{Timeout: time.Second}); err == nil {
		s.Error("a removed instance passes a check")
	}

	spec.Process = s.process(s.fix.Serve)
	s.apply(spec)
	old := s.only()
	if err := s.Remove(s.ctx, spec.SetKey); err != nil {
		s.Fatal(err)
	}
	s.apply(spec)
	s.soon("its successor serves", func() bool { return s.Probe(s.ctx, s.only(), engine.Check{Timeout: time.Second}) == nil })
	if err := s.Probe(s.ctx, old, engine.Check{Timeout: time.Second}); err == nil {
		s.Error("a removed instance passes the check of its successor")
	}
}

func (s *suite) lines(app string, n int) []engine.LogLine {
	s.Helper()
	var lines []engine.LogLine
	err := s.Engine.Logs(s.ctx, app, engine.LogQuery{Lines: n}, func(l engine.LogLine) error {
		if !strings.HasPrefix(l.Text, "deis: ") {
			lines = append(lines, l)
		}
		return nil
	})
	if err != nil {
		s.Fatalf("Logs: %v", err)
	}
	return lines
}

// wantTexts is what Fixture.Lines writes to stdout.
func wantTexts() []string {
	var texts []string
	for n := range 50 {
		texts = append(texts, fmt.Sprintf("line %d", n+1))
	}
	return append(texts, "hello there")
}

// logs: the last lines, oldest first, of instances that are and were.
func (s *suite) logs() {
	if lines := s.lines(s.app, 10); len(lines) > 0 {
		s.Errorf("an app that never ran has logs: %v", lines)
	}
	spec := s.set("worker", 1, s.fix.Lines)
	s.apply(spec)
	s.soon("all lines are there", func() bool { return len(s.lines(s.app, 100)) == 52 })
	s.wantLines(s.lines(s.app, 100))
	if got := s.lines(s.app, 4); len(got) != 4 || !sameTexts(got, s.lines(s.app, 100)[48:]) {
		s.Errorf("the last 4 lines: %v", got)
	}
	if got := s.lines(s.app, 0); len(got) != 0 {
		s.Errorf("the last 0 lines: %v", got)
	}
	stop := errors.New("enough")
	calls := 0
	err := s.Engine.Logs(s.ctx, s.app, engine.LogQuery{Lines: 9}, func(engine.LogLine) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		s.Errorf("after yield's error: %d calls and error %v", calls, err)
	}
	if err := s.Remove(s.ctx, spec.SetKey); err != nil {
		s.Fatal(err)
	}
	s.wantLines(s.lines(s.app, 100))
	s.logQueries(spec)
}

// logQueries: lines of one type, number and time.
func (s *suite) logQueries(spec engine.SetSpec) {
	s.Helper()
	all := s.lines(s.app, 100)
	middle := all[len(all)/2].Time
	younger := 0
	for _, l := range all {
		if !l.Time.Before(middle) {
			younger++
		}
	}
	for _, test := range []struct {
		query engine.LogQuery
		want  int
	}{
		{engine.LogQuery{Lines: 100, Type: spec.Type}, len(all)},
		{engine.LogQuery{Lines: 100, Type: spec.Type, Num: 1}, len(all)},
		{engine.LogQuery{Lines: 100, Type: spec.Type, Num: 2}, 0},
		{engine.LogQuery{Lines: 100, Type: "other"}, 0},
		{engine.LogQuery{Lines: 100, Since: middle}, younger},
		{engine.LogQuery{Lines: 100, Since: time.Now().Add(time.Minute)}, 0},
	} {
		got := 0
		err := s.Engine.Logs(s.ctx, s.app, test.query, func(l engine.LogLine) error {
			if !strings.HasPrefix(l.Text, "deis: ") {
				got++
			}
			return nil
		})
		if err != nil || got != test.want {
			s.Errorf("%+v: %d lines and error %v, want %d", test.query, got, err, test.want)
		}
	}
}

func (s *suite) wantLines(lines []engine.LogLine) {
	s.Helper()
	var stdout []string
	last := map[bool]time.Time{} // of each stream: which of two came first is not known
	for _, l := range lines {
		if l.Type != "worker" || l.Num != 1 || l.Generation != 1 {
			s.Errorf("line %q is of %s.%d generation %d", l.Text, l.Type, l.Num, l.Generation)
		}
		if l.Time.IsZero() || l.Time.Before(last[l.Stderr]) {
			s.Errorf("line %q has time %s, before its predecessor's", l.Text, l.Time)
		}
		last[l.Stderr] = l.Time
		if !l.Stderr {
			stdout = append(stdout, l.Text)
		} else if l.Text != "oops" {
			s.Errorf("stderr has line %q", l.Text)
		}
	}
	if got, want := strings.Join(stdout, "|"), strings.Join(wantTexts(), "|"); got != want {
		s.Errorf("stdout: %s, want %s", got, want)
	}
}

func sameTexts(a, b []engine.LogLine) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Text != b[i].Text {
			return false
		}
	}
	return true
}

// logsFollow: old lines, then new ones as they come, also of instances that
// start later, until the context ends.
func (s *suite) logsFollow() {
	first := s.set("worker", 1, s.fix.Crash)
	s.apply(first)
	s.soon("the first line", func() bool { return len(s.lines(s.app, 9)) == 1 })
	ctx, cancel := context.WithTimeout(s.ctx, s.fix.Wait)
	defer cancel()
	seen := make(chan engine.LogLine, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- s.Engine.Logs(ctx, s.app, engine.LogQuery{Lines: 9, Follow: true}, func(l engine.LogLine) error {
			if !strings.HasPrefix(l.Text, "deis: ") {
				seen <- l
			}
			return nil
		})
	}()
	next := func() (l engine.LogLine) {
		select {
		case l = <-seen:
		case err := <-ended:
			s.Fatalf("following ended: %v", err)
		}
		return l
	}
	if l := next(); l.Text != "last words" {
		s.Errorf("first line %q, want that of before", l.Text)
	}
	if l := next(); l != (engine.LogLine{}) {
		s.Errorf("after the lines of before comes %+v, want the zero line", l)
	}
	second := s.set("worker", 1, s.fix.Lines)
	second.Generation = 2
	s.apply(second)
	for range 52 {
		if l := next(); l.Generation != 2 {
			s.Errorf("line %q is of generation %d", l.Text, l.Generation)
		}
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil && !errors.Is(err, context.Canceled) {
			s.Errorf("after the context ended: %v", err)
		}
	case <-time.After(s.fix.Wait):
		s.Error("following goes on after its context ended")
	}
}

// runJob: a one-off has the config and stdin, its output comes whole, its exit code back.
func (s *suite) runJob() {
	var out bytes.Buffer
	job := engine.Job{
		App: s.app, Num: 1, Process: s.process(s.fix.Job),
		Stdin: strings.NewReader("from stdin\n"), Stdout: &out,
	}
	code, err := s.Engine.Run(s.ctx, job)
	if err != nil || code != 3 {
		s.Errorf("Run: exit code %d and error %v, want 3", code, err)
	}
	for _, want := range []string{"hello there\n", "from stdin\n", "oops\n"} {
		if !strings.Contains(out.String(), want) {
			s.Errorf("output %q lacks %q", out.String(), want)
		}
	}
	s.nothingLeft(s.app)

	job.Stdin, job.Stdout = nil, &bytes.Buffer{}
	if code, err := s.Engine.Run(s.ctx, job); err != nil || code != 3 {
		s.Errorf("Run without stdin: exit code %d and error %v, want 3", code, err)
	}
}

// runCancelled: when the context ends, so does the process.
func (s *suite) runCancelled() {
	ctx, cancel := context.WithCancel(s.ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := s.Engine.Run(ctx, engine.Job{App: s.app, Num: 1, Process: s.process(s.fix.Sleep), Stdout: &bytes.Buffer{}})
		ended <- err
	}()
	time.Sleep(500 * time.Millisecond) // it is being created, or runs
	cancel()
	select {
	case err := <-ended:
		if err == nil {
			s.Error("Run that was cancelled: no error")
		}
	case <-time.After(s.fix.Wait):
		s.Fatal("Run goes on after its context ended")
	}
	s.nothingLeft(s.app)
}

// runFails: an image that is not there is an error for the user.
func (s *suite) runFails() {
	process := s.process(s.fix.Job)
	process.Image, process.Digest = s.fix.MissingImage, ""
	_, err := s.Engine.Run(s.ctx, engine.Job{App: s.app, Num: 1, Process: process, Stdout: &bytes.Buffer{}})
	s.wantUserError(err)
	s.nothingLeft(s.app)
}
