package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/deis/deis/internal/paas"
)

// script feeds events to a progress and returns its lines.
type script struct {
	t     time.Time
	p     *progress
	lines []string
	begun map[string]time.Time
}

func newScript() *script {
	s := &script{t: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), begun: map[string]time.Time{}}
	s.p = newProgress(func(line string) { s.lines = append(s.lines, line) }, s.t)
	return s
}

func (s *script) wait(d time.Duration) {
	for end := s.t.Add(d); s.t.Before(end); {
		s.t = s.t.Add(min(time.Second, end.Sub(s.t)))
		s.p.tick(s.t)
	}
}

func (s *script) start(name string) {
	s.begun[name] = s.t
	t := s.t
	s.p.update(&client.SolveStatus{Vertexes: []*client.Vertex{{Digest: digest.FromString(name), Name: name, Started: &t}}}, s.t)
}

func (s *script) end(name, err string, cached bool) {
	begun, t := s.begun[name], s.t
	if begun.IsZero() {
		begun = t
	}
	s.p.update(&client.SolveStatus{Vertexes: []*client.Vertex{{Digest: digest.FromString(name), Name: name, Started: &begun, Completed: &t, Error: err, Cached: cached}}}, s.t)
}

func (s *script) log(name, data string) {
	s.p.update(&client.SolveStatus{Logs: []*client.VertexLog{{Vertex: digest.FromString(name), Stream: 1, Data: []byte(data)}}}, s.t)
}

func TestProgress(t *testing.T) {
	tests := []struct {
		name string
		play func(s *script)
		want string
	}{
		{"quick steps take one line", func(s *script) {
			s.start("[1/3] FROM docker.io/deis/run:latest@sha256:" + strings.Repeat("0", 64))
			s.end("[1/3] FROM docker.io/deis/run:latest@sha256:"+strings.Repeat("0", 64), "", false)
			s.start("[2/3] COPY . .")
			s.wait(300 * time.Millisecond)
			s.end("[2/3] COPY . .", "", false)
			s.end("[3/3] RUN make", "", true)
			s.end("[3/3] RUN make", "", true)
		}, "[1/3] FROM docker.io/deis/run:latest (0.0s)\n[2/3] COPY . . (0.3s)\n[3/3] RUN make (cached)"},
		{"output comes at once", func(s *script) {
			s.start("[2/3] RUN make")
			s.log("[2/3] RUN make", "one\ntw")
			s.log("[2/3] RUN make", "o\nthree")
			s.wait(2 * time.Second)
			s.end("[2/3] RUN make", "", false)
		}, "[2/3] RUN make\none\ntwo\nthree\n[2/3] done (2.0s)"},
		{"slow steps are announced", func(s *script) {
			s.start("[2/3] RUN sleep")
			s.wait(61 * time.Second)
			s.end("[2/3] RUN sleep", "", false)
		}, "[2/3] RUN sleep\nstill running [2/3] RUN sleep (11s)\nstill running [2/3] RUN sleep (21s)\nstill running [2/3] RUN sleep (31s)\n" +
			"still running [2/3] RUN sleep (41s)\nstill running [2/3] RUN sleep (51s)\nstill running [2/3] RUN sleep (1m01s)\n[2/3] done (1m01s)"},
		{"talking steps need no heartbeat", func(s *script) {
			s.start("[2/3] RUN x")
			for range 3 {
				s.log("[2/3] RUN x", "y\n")
				s.wait(8 * time.Second)
			}
		}, "[2/3] RUN x\ny\ny\ny"},
		{"internal steps only when they are slow", func(s *script) {
			s.start("[internal] load metadata for docker.io/library/node:22")
			s.start("[internal] load build context")
			s.end("[internal] load build context", "", false)
			s.wait(10 * time.Second)
			s.end("[internal] load metadata for docker.io/library/node:22", "", false)
		}, "still running [internal] load metadata for docker.io/library/node:22 (10s)"},
		{"steps side by side", func(s *script) {
			s.start("[a 1/2] RUN x")
			s.start("[b 1/2] RUN y")
			s.log("[a 1/2] RUN x", "1\n")
			s.log("[b 1/2] RUN y", "2\n")
			s.log("[a 1/2] RUN x", "3\n")
			s.end("[b 1/2] RUN y", "", false)
			s.end("[a 1/2] RUN x", "", false)
		}, "[a 1/2] RUN x\n1\n[b 1/2] RUN y\n2\n[a 1/2] RUN x\n3\n[b 1/2] done (0.0s)\n[a 1/2] done (0.0s)"},
		{"failure", func(s *script) {
			s.start("[a] RUN x")
			s.start("[b] RUN y")
			s.log("[a] RUN x", "cc: no")
			s.end("[a] RUN x", "exit code: 1", false)
			s.end("[b] RUN y", "context canceled", false)
		}, "[a] RUN x\ncc: no\n[a] failed (0.0s)"},
		{"terminal control is removed", func(s *script) {
			s.start("[1/1] RUN \x1b[2Jx")
			s.log("[1/1] RUN \x1b[2Jx", "\x1b[31mred\x1b[0m\a\n10%\r20%\r100%\r\n\x1b]0;title\x07t\x1b]8;;http://x\x1b\\l\n\xff\u202e\ttab\x1b(B\n\u009b31mc1\n")
		}, "[1/1] RUN x\nred\n100%\ntl\n\uFFFD\ttab\nc1"},
		{"endless line", func(s *script) {
			s.start("[1/1] RUN x")
			for range 3 {
				s.log("[1/1] RUN x", strings.Repeat("é", 1500))
			}
		}, "[1/1] RUN x\n" + strings.Repeat("é", 2048) + "..."},
		{"warning", func(s *script) {
			w := &client.VertexWarning{Short: []byte("JSONArgsRecommended: use JSON (line 4)"), Range: []*pb.Range{{Start: &pb.Position{Line: 4}}}}
			s.p.update(&client.SolveStatus{Warnings: []*client.VertexWarning{w, w}}, s.t)
		}, "Dockerfile line 4: warning: JSONArgsRecommended: use JSON"},
		{"output of an unknown step", func(s *script) { s.log("x", "y\n") }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript()
			tt.play(s)
			for i, line := range s.lines {
				rest, ok := strings.CutPrefix(line, "       ")
				if !ok {
					t.Errorf("not indented: %q", line)
				}
				s.lines[i] = rest
			}
			if got := strings.Join(s.lines, "\n"); got != tt.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("\x1b[31m\x1b]0;x\x07\xff\u202e\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		got := printable(s)
		if strings.IndexFunc(got, hidden) >= 0 || !utf8.ValidString(got) {
			t.Errorf("%q became %q", s, got)
		}
		if printable(got) != got {
			t.Errorf("%q is not stable", got)
		}
	})
}

func TestParseProcfile(t *testing.T) {
	tests := []struct {
		in   string
		want map[string]string
		err  string
	}{
		{in: "", want: map[string]string{}},
		{in: "# nothing\n\n", want: map[string]string{}},
		{in: "web: ./run\nworker: bin/work -v\n", want: map[string]string{"web": "./run", "worker": "bin/work -v"}},
		{in: "web: ./run\r\nworker: x\r\n", want: map[string]string{"web": "./run", "worker": "x"}},
		{in: "\uFEFFweb: x", want: map[string]string{"web": "x"}},
		{in: `web: "quoted $PORT"`, want: map[string]string{"web": "quoted $PORT"}},
		{in: "web: >-\n  one\n  two\n", want: map[string]string{"web": "one two"}},
		{in: "web: python -c 'print(1)' # 2", want: map[string]string{"web": "python -c 'print(1)' # 2"}},
		{in: "web: java -Dx=a: b\nworker: y", want: map[string]string{"web": "java -Dx=a: b", "worker": "y"}},
		{in: "web: 1", want: map[string]string{"web": "1"}},
		{in: "web: exec gunicorn app:app --bind 0.0.0.0:$PORT", want: map[string]string{"web": "exec gunicorn app:app --bind 0.0.0.0:$PORT"}},
		{in: "web: x\n\nweb: y", err: `Procfile line 3: process type "web" is there twice`},
		{in: "web: x\nweb", err: "Procfile: line"},
		{in: "\nweb:\n  - x", err: `Procfile line 2: the command of "web" is not one text`},
		{in: "web:\n", err: `Procfile line 1: "web" has no command`},
		{in: "- web", err: `Procfile line 1: want lines like "web: command"`},
		{in: "just text", err: `Procfile line 1: want lines like`},
		{in: "we b: x", err: `Procfile line 1: "we b" is no process type`},
		{in: "-web: x", err: `Procfile line 1: "-web" is no process type`},
		{in: "\"we\\eb\": x", err: `Procfile line 1: "we" is no process type`},
		{in: "a: &x y\nb: *x", err: `Procfile line 2: the command of "b" is not one text`},
		{in: "web: \"a\\0b\"", err: "Procfile line 1: a command holds a NUL character"},
		{in: strings.Repeat("#\n", 1<<16), err: "Procfile: 131072 bytes; the limit is 65536"},
		{in: strings.Repeat("a", 64) + ": x", err: "Procfile line 1:"},
	}
	for _, tt := range tests {
		got, err := ParseProcfile([]byte(tt.in))
		if tt.err == "" && (err != nil || !maps.Equal(got, tt.want)) {
			t.Errorf("%q: got %v, %v", clip(tt.in, 50), got, err)
		}
		if tt.err != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.err) || paas.CodeOf(err) != paas.Invalid) {
			t.Errorf("%q: got %v, error %v; want %s", clip(tt.in, 50), got, err, tt.err)
		}
	}
	var many strings.Builder
	for i := range 101 {
		fmt.Fprintf(&many, "t%d: x\n", i)
	}
	if _, err := ParseProcfile([]byte(many.String())); err == nil {
		t.Error("101 process types")
	}
}

func FuzzParseProcfile(f *testing.F) {
	for _, s := range []string{"web: x\n", "a: &x [*x]", "web: |\n a\n b", "{web: x}", "web: x # y", "? a\n: b", "web: a: b"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		types, err := ParseProcfile(data)
		if err != nil && (types != nil || paas.CodeOf(err) != paas.Invalid || strings.IndexFunc(err.Error(), hidden) >= 0 && !strings.Contains(err.Error(), "\n")) {
			t.Errorf("%v, %q", types, err)
		}
		for name, command := range types {
			if !processType.MatchString(name) || strings.TrimSpace(command) == "" || strings.ContainsRune(command, 0) {
				t.Errorf("%q: %q", name, command)
			}
		}
	})
}

func TestExplain(t *testing.T) {
	ctx := t.Context()
	ended, cancel := context.WithCancelCause(ctx)
	cancel(errors.New("superseded"))
	meta := "failed to solve: %s: failed to resolve source metadata for %[1]s: "
	tests := []struct {
		ctx  context.Context
		err  error
		code paas.Code
		want string
	}{
		{ctx, nil, "", ""},
		{ended, errors.New("rpc error: code = Canceled"), paas.Internal, "build ended early: superseded"},
		{ctx, status.Error(codes.Unavailable, "x"), paas.Unavailable, "the build service stopped"},
		{ctx, errors.New(`failed to solve: error reading from server: EOF`), paas.Unavailable, "the build service stopped"},
		{ctx, errors.New("failed to solve: rpc error: code = Unknown desc = dockerfile parse error on line 3: bad \x1b[31mthing"), paas.Invalid, "bad thing"},
		{ctx, fmt.Errorf(meta+"docker.io/library/x:1: not found", "docker.io/library/x:1"), paas.Invalid, "the image x:1 does not exist in its registry\n"},
		{ctx, fmt.Errorf(meta+"pull access denied, repository does not exist", "r.example:5000/a/b@sha256:00"), paas.Invalid, "the image r.example:5000/a/b@sha256:00 does not exist in its registry, or is private\n"},
		{
			ctx, fmt.Errorf(meta+`failed to do request: Head "https://x": dial tcp: lookup x: no such host`, "docker.io/deis/nope:latest"), paas.Invalid,
			"the image deis/nope:latest is not on this machine, and its registry cannot be reached\nBase images that are always here: deis/run, deis/build.",
		},
		{ctx, errors.New("write /x: no space left on device"), paas.Invalid, "the disk of the build machine is full"},
		{ctx, userErrorf("ours"), paas.Invalid, "ours"},
	}
	for _, tt := range tests {
		err := explain(tt.ctx, tt.err)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if !strings.HasPrefix(text, tt.want) || paas.CodeOf(err) != tt.code {
			t.Errorf("%v: got %s %q", tt.err, paas.CodeOf(err), text)
		}
	}
}

func TestTail(t *testing.T) {
	l := &tail{limit: 10}
	l.add("abc")
	l.add("def")
	if got := l.String(); got != "abc\ndef\n" {
		t.Errorf("got %q", got)
	}
	l.add("ghi")
	if got := l.String(); got != leftOut+"def\nghi\n" {
		t.Errorf("got %q", got)
	}
	l.add(strings.Repeat("x", 20))
	if l.size != 0 || !reflect.DeepEqual(l.lines, []string{}) {
		t.Errorf("got %d, %q", l.size, l.lines)
	}
}

// An app is called by its first buildpack. But that of Node.js before Ruby's makes assets.
func TestLanguage(t *testing.T) {
	for _, c := range []struct {
		ids  string
		want string
	}{
		{"", "the app"},
		{"deis/go", "deis/go"},
		{"deis/go deis/procfile", "deis/go"},
		{"deis/nodejs deis/ruby deis/procfile", "deis/ruby"},
		{"deis/nodejs deis/procfile", "deis/nodejs"},
		{"deis/nodejs my/script", "deis/nodejs"},
		{"deis/procfile", "deis/procfile"},
	} {
		var r report
		for id := range strings.FieldsSeq(c.ids) {
			r.Buildpacks = append(r.Buildpacks, buildpackReport{ID: id})
		}
		if got := r.language(); got != c.want {
			t.Errorf("%s: %s, want %s", c.ids, got, c.want)
		}
	}
}
