package build

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

const (
	// What begins lines (contract 9.4): most, headings, and warnings.
	indent  = "       "
	heading = "-----> "
	warning = " !     "
	// startAfter is how long a silent step runs before its line is shown; steps that
	// end sooner take one line, with their duration.
	startAfter = time.Second
	// silence is how long nothing is said before a running step is shown to be alive.
	silence = 10 * time.Second
	// maxLine bounds a line of a program's output, in bytes.
	maxLine = 4 << 10
	maxName = 200
)

// progress turns BuildKit's events into lines for people:
//
//	[2/4] COPY . . (0.1s)
//	[3/4] RUN make
//	cc -o app app.c
//	[3/4] done (2.3s)
//	[4/4] RUN true (cached)
//
// Each line is given to out, indented, without newline, and free of control
// characters. Time comes in by the events and by tick. It is not safe for
// concurrent use.
type progress struct {
	out    func(line string)
	steps  map[digest.Digest]*step
	order  []*step
	shown  *step     // whose output the last line was
	spoke  time.Time // when the last line was given out
	warned map[string]bool
}

type step struct {
	name     string // "[3/4] RUN make"
	label    string // "[3/4]"
	internal bool
	plain    bool // its output is shown as it stands, without its name
	started  time.Time
	announced,
	finished bool
	partial [3][]byte // a line under way: of BuildKit, stdout, stderr
}

func newProgress(out func(line string), now time.Time) *progress {
	return &progress{out: out, steps: map[digest.Digest]*step{}, spoke: now, warned: map[string]bool{}}
}

func (p *progress) say(now time.Time, format string, args ...any) {
	p.out(indent + fmt.Sprintf(format, args...))
	p.spoke = now
}

// update takes one batch of events.
func (p *progress) update(status *client.SolveStatus, now time.Time) {
	for _, v := range status.Vertexes {
		if v.Started != nil && v.Completed == nil {
			p.step(v)
		}
	}
	for _, l := range status.Logs {
		if s := p.steps[l.Vertex]; s != nil {
			p.log(s, l, now)
		}
	}
	for _, w := range status.Warnings {
		p.warn(w, now)
	}
	for _, v := range status.Vertexes {
		if v.Started != nil && v.Completed != nil {
			p.finish(p.step(v), v, now)
		}
	}
}

func (p *progress) step(v *client.Vertex) *step {
	s := p.steps[v.Digest]
	if s == nil {
		s = &step{name: clip(imageDigest.ReplaceAllString(printable(v.Name), ""), maxName), started: *v.Started}
		s.internal = strings.HasPrefix(s.name, "[internal]")
		s.plain = s.name == programStep
		s.label = s.name
		if i := strings.Index(s.name, "]"); strings.HasPrefix(s.name, "[") && i > 0 {
			s.label = s.name[:i+1]
		}
		p.steps[v.Digest] = s
		p.order = append(p.order, s)
	}
	return s
}

func (p *progress) announce(s *step, now time.Time) {
	if !s.announced || p.shown != s {
		p.say(now, "%s", s.name)
		s.announced = true
	}
	p.shown = s
}

func (p *progress) log(s *step, l *client.VertexLog, now time.Time) {
	partial := &s.partial[min(max(l.Stream, 0), len(s.partial)-1)]
	data := l.Data
	for {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			break
		}
		p.logLine(s, append(*partial, data[:i]...), now)
		*partial, data = nil, data[i+1:]
	}
	if *partial = append(*partial, data...); len(*partial) > maxLine {
		p.logLine(s, *partial, now)
		*partial = nil
	}
}

func (p *progress) logLine(s *step, line []byte, now time.Time) {
	if s.internal { // git's, of a fetch; its errors come as the step's
		return
	}
	text := clip(printable(lastOverwrite(string(line))), maxLine)
	if !s.plain {
		p.announce(s, now)
	}
	if s.plain && (strings.HasPrefix(text, heading) || strings.HasPrefix(text, warning)) {
		p.out(text)
		p.spoke, p.shown = now, s
		return
	}
	p.say(now, "%s", text)
	p.shown = s
}

// lastOverwrite is what a terminal would show of a line with carriage returns.
func lastOverwrite(line string) string {
	line = strings.TrimRight(line, "\r")
	return line[strings.LastIndexByte(line, '\r')+1:]
}

func (p *progress) finish(s *step, v *client.Vertex, now time.Time) {
	if s.finished {
		return
	}
	s.finished = true
	for i, line := range s.partial {
		if len(line) > 0 {
			p.logLine(s, line, now)
			s.partial[i] = nil
		}
	}
	how := "(" + duration(v.Completed.Sub(*v.Started)) + ")"
	if v.Cached {
		how = "(cached)"
	}
	failed := v.Error != ""
	switch {
	case failed && strings.Contains(v.Error, "context canceled"):
		return // because another one failed
	case s.internal && !s.announced && !failed:
		return
	case s.plain && v.Cached:
		p.say(now, "these files were built before with the same config: using that")
		return
	case s.plain: // it says itself what it does, and how it ends
		return
	case failed:
		how = "failed " + how
	case s.announced:
		how = "done " + how
	}
	if name := s.name; s.announced {
		p.say(now, "%s %s", s.label, how)
	} else {
		p.say(now, "%s %s", name, how)
	}
	p.shown = nil
}

func (p *progress) warn(w *client.VertexWarning, now time.Time) {
	where := ""
	if len(w.Range) > 0 {
		where = fmt.Sprintf("Dockerfile line %d: ", w.Range[0].GetStart().GetLine())
	}
	text := where + "warning: " + clip(printable(lineSuffix.ReplaceAllString(string(w.Short), "")), maxName)
	if !p.warned[text] {
		p.warned[text] = true
		p.say(now, "%s", text)
	}
}

// tick shows steps that take a while, and that they are still alive. Call it
// about once a second.
func (p *progress) tick(now time.Time) {
	running := slices.DeleteFunc(slices.Clone(p.order), func(s *step) bool { return s.finished })
	for _, s := range running {
		if !s.announced && !s.internal && !s.plain && now.Sub(s.started) >= startAfter {
			p.announce(s, now)
		}
	}
	if now.Sub(p.spoke) < silence {
		return
	}
	for _, s := range running {
		if now.Sub(s.started) >= silence {
			p.say(now, "still running %s (%s)", s.name, duration(now.Sub(s.started)))
		}
	}
}

func duration(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	default:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
}

// imageDigest follows the name of an image in the name of a step.
var imageDigest = regexp.MustCompile("@sha256:[0-9a-f]{64}")

// lineSuffix ends a warning; its line is said in front.
var lineSuffix = regexp.MustCompile(` \(line [0-9]+\)$`)

// escapes are the terminal's control sequences (ECMA-48): CSI, OSC and other
// strings, and two- or three-character escapes.
var escapes = regexp.MustCompile("\x1b\\[[0-?]*[ -/]*[@-~]|\x1b[\\]PX^_][^\x07\x1b]*(\x07|\x1b\\\\)?|\x1b[ -/]*[0-~]|\u009b[0-?]*[ -/]*[@-~]")

// printable removes what could control a terminal from strangers' text. Tabs
// stay; what is not UTF-8 becomes U+FFFD.
func printable(s string) string {
	if strings.IndexFunc(s, hidden) < 0 && utf8.ValidString(s) {
		return s
	}
	s = escapes.ReplaceAllString(strings.ToValidUTF8(s, "\uFFFD"), "")
	return strings.Map(func(r rune) rune {
		if hidden(r) {
			return -1
		}
		return r
	}, s)
}

// hidden are control characters, and the format characters that reorder or hide text.
func hidden(r rune) bool {
	return r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r))
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}
