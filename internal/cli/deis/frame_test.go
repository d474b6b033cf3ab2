package deis

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestIsLocal(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "LocalHost.": true, "deis.localhost": true, "a.b.localhost": true,
		"localhost.example.com": false, "notlocalhost": false, "127.0.0.1": false, "": false,
	} {
		if got := isLocal(host); got != want {
			t.Errorf("isLocal(%q) = %v", host, got)
		}
	}
}

// TestDialLocal: names below localhost are dialled on either loopback address.
func TestDialLocal(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		conn, err := dial(t.Context(), "tcp", "deis.localhost:"+port)
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.RemoteAddr().String(); got != l.Addr().String() {
			t.Errorf("dialled %s, want %s", got, l.Addr())
		}
		conn.Close()
		l.Close()
	}
}

// TestProxy: others than local names go through the proxy that is set. The
// standard library reads the environment once, so this is the only such test.
func TestProxy(t *testing.T) {
	t.Setenv("http_proxy", "http://proxy.example.com:3128")
	for address, want := range map[string]bool{"http://deis.localhost/": false, "http://deis.example.com/": true} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		u, err := proxy(r)
		if err != nil || (u != nil) != want {
			t.Errorf("proxy for %s: %v, %v", address, u, err)
		}
	}
}

func TestParseController(t *testing.T) {
	for text, want := range map[string]string{
		"deis.example.com":               "http://deis.example.com",
		"deis.localhost:8000":            "http://deis.localhost:8000",
		"https://Deis.Example.com/v1/":   "https://deis.example.com",
		"http://[::1]:8000/?a=b#c":       "http://[::1]:8000",
		"":                               "",
		"https://":                       "",
		"http://:8000":                   "",
		"ssh://deis.example.com":         "",
		"http://alice:pw@deis.localhost": "",
		"http://deis.localhost:port":     "",
	} {
		got, err := parseController(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("parseController(%q) = %q, %v", text, got, err)
		}
	}
}

func TestRemoteURL(t *testing.T) {
	for _, test := range []struct{ controller, gitURL, want string }{
		{"http://deis.localhost:8000", "ssh://git@deis.localhost:2299", "ssh://git@127.0.0.1:2299/demo.git"},
		{"http://localhost:8000", "", "ssh://git@127.0.0.1:2222/demo.git"},
		{"https://deis.example.com", "ssh://git@ignored.example.com:22", "ssh://git@deis.example.com:22/demo.git"},
		{"https://deis.example.com", "", "ssh://git@deis.example.com:2222/demo.git"},
		{"https://deis.example.com", "::rubbish", "ssh://git@deis.example.com:2222/demo.git"},
		{"http://[::1]:8000", "ssh://git@[::1]:2299", "ssh://git@[::1]:2299/demo.git"},
	} {
		s := &session{settings: settings{Controller: test.controller, GitURL: test.gitURL}}
		if got := s.remoteURL("demo"); got != test.want {
			t.Errorf("remote for %s, %s: %s, want %s", test.controller, test.gitURL, got, test.want)
		}
	}
}

func TestRemoteApp(t *testing.T) {
	local := &session{settings: settings{Controller: "http://deis.localhost:8000", GitURL: "ssh://git@deis.localhost:2299"}}
	public := &session{settings: settings{Controller: "https://deis.example.com"}}
	for _, test := range []struct {
		name    string
		s       *session
		remotes []remote
		want    string
	}{
		{"none", local, nil, ""},
		{"unrelated", local, []remote{{"origin", "git@github.com:example/code.git"}}, ""},
		{"loopback", local, []remote{{"staging", "ssh://git@127.0.0.1:2299/one.git"}}, "one"},
		{"loopback on another port", local, []remote{{"staging", "ssh://git@127.0.0.1:2300/one.git"}}, ""},
		{"as announced", local, []remote{{"staging", "ssh://git@deis.localhost:2299/one.git"}}, "one"},
		{"by host", public, []remote{{"prod", "ssh://git@deis.example.com:2222/one.git"}}, "one"},
		{"short form", public, []remote{{"prod", "git@deis.example.com:one.git"}}, "one"},
		{"by name only", public, []remote{{"origin", "git@github.com:x/y.git"}, {"deis", "git@git.internal:one.git"}}, "one"},
		{"surest first", public, []remote{{"deis", "git@git.internal:no.git"}, {"prod", "ssh://git@deis.example.com:2222/one.git"}}, "one"},
		{"named deis of two", public, []remote{{"a", "ssh://git@deis.example.com:2222/no.git"}, {"deis", "ssh://git@deis.example.com:2222/one.git"}}, "one"},
		{"first of two", public, []remote{{"a", "ssh://git@deis.example.com:2222/one.git"}, {"b", "ssh://git@deis.example.com:2222/no.git"}}, "one"},
		{"no app's name", public, []remote{{"deis", "ssh://git@deis.example.com:2222/No_App.git"}}, ""},
	} {
		if got := remoteApp(test.remotes, test.s); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func FuzzRemoteApp(f *testing.F) {
	f.Add("deis", "ssh://git@127.0.0.1:2222/demo.git")
	f.Add("x", "git@deis.localhost:a/b.c.git")
	s := &session{settings: settings{Controller: "http://deis.localhost:8000"}}
	f.Fuzz(func(t *testing.T, name, url string) {
		if app := remoteApp([]remote{{name, url}}, s); app != "" && !appName.MatchString(app) {
			t.Errorf("%q is an app's name?", app)
		}
	})
}

func FuzzParseController(f *testing.F) {
	f.Add("https://deis.example.com:8443/path")
	f.Fuzz(func(t *testing.T, text string) {
		controller, err := parseController(text)
		if err != nil {
			return
		}
		if again, err := parseController(controller); err != nil || again != controller {
			t.Errorf("%q becomes %q, then %q, %v", text, controller, again, err)
		}
	})
}

// FuzzEnvFile: whatever the values, the file gives them back.
func FuzzEnvFile(f *testing.F) {
	f.Add("A", "plain", "'")
	f.Add("B_1", " a\nb\r\"c\\n' ", `"`)
	f.Fuzz(func(t *testing.T, name, one, two string) {
		values := map[string]any{"X": two}
		if configPair.MatchString(name + "=") {
			values[name] = one
		}
		got, bad := parseEnv(formatEnv(values))
		if len(bad) > 0 || !reflect.DeepEqual(got, values) {
			t.Errorf("%q became %q, bad lines %v", values, got, bad)
		}
	})
}

func TestParseEnv(t *testing.T) {
	for text, want := range map[string]string{
		"A=":               "",
		"A=b=c":            "b=c",
		"export A=b\r":     "b",
		"  A=b  # c":       "b  # c",
		`A="b"`:            "b",
		`A="a\nb\tc\\n"`:   "a\nb\\tc\\n",
		"A='a\\n\"b'":      "a\\n\"b",
		`A="open`:          `"open`,
		`A="`:              `"`,
		"A=1\n\n#A=2\nA=3": "3",
	} {
		got, bad := parseEnv(text)
		if got["A"] != want || len(bad) > 0 {
			t.Errorf("%q: %q, bad lines %v; want %q", text, got["A"], bad, want)
		}
	}
	if got, bad := parseEnv("A\nB=1\n2C=3"); len(got) != 1 || !slices.Equal(bad, []int{1, 3}) {
		t.Errorf("got %v, bad lines %v", got, bad)
	}
}

func TestParseProcfile(t *testing.T) {
	for text, want := range map[string]map[string]string{
		"":                         {},
		"web: a":                   {"web": "a"},
		"web: a\r\nworker: b\n":    {"web": "a", "worker": "b"},
		"{web: a}":                 {"web": "a"},
		"# c\nweb: a: b\n":         {"web": "a: b"},
		"web: \"a b\"":             {"web": "a b"},
		"n: 5":                     {"n": "5"},
		"web a":                    nil,
		"web:\n  - a":              nil,
		"web: a: b\nworker: [\n {": nil,
	} {
		got, err := parseProcfile("it", text)
		if (err == nil) != (want != nil) || (err == nil && !reflect.DeepEqual(got, want)) {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
}

// TestDocumented: the manual names every command, shortcut and option.
func TestDocumented(t *testing.T) {
	manual, err := os.ReadFile("../../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	has := func(word string) bool {
		return regexp.MustCompile(`(^|[^a-z:-])` + regexp.QuoteMeta(word) + `($|[^a-z:-])`).Match(manual)
	}
	for _, cmd := range (&cli{}).root().Commands() {
		for _, name := range append(cmd.Aliases, cmd.Name()) {
			if !has(name) {
				t.Errorf("docs/cli.md does not name %s", name)
			}
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && !has("--"+f.Name) {
				t.Errorf("docs/cli.md does not name --%s of %s", f.Name, cmd.Name())
			}
		})
	}
}

func TestShellQuote(t *testing.T) {
	for _, value := range []string{"", "plain", "a b", "it's", "$HOME `x`", "two\nlines", `"\`, "~", "*", "a=b", "%,:@/."} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s VALUE="+shellQuote(value)).Output()
		if got := strings.TrimPrefix(string(out), "VALUE="); err != nil || got != value {
			t.Errorf("sh reads %q as %q, %v", value, got, err)
		}
	}
}

func TestTable(t *testing.T) {
	out := &strings.Builder{}
	c := &cli{out: out}
	c.table([][]string{{"a", "", "one"}, {"größe", "", "two\nthree"}, {"last", "", ""}})
	want := "a      one\ngröße  two\n       three\nlast\n"
	if out.String() != want {
		t.Errorf("table:\n%s", out)
	}
}

// TestEveryCommandHasHelp: each command has a short text and one example that
// names it or its shortcut, and no name is used twice.
func TestEveryCommandHasHelp(t *testing.T) {
	names := []string{}
	for _, cmd := range (&cli{}).root().Commands() {
		names = append(append(names, cmd.Name()), cmd.Aliases...)
		if !cmd.Runnable() {
			continue // a text
		}
		words := strings.Fields(cmd.Example)
		if len(words) < 2 || words[0] != "deis" || !slices.Contains(append(cmd.Aliases, cmd.Name()), words[1]) {
			t.Errorf("%s has the example %q", cmd.Name(), cmd.Example)
		}
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || strings.Contains(cmd.Example, "\n") {
			t.Errorf("%s: the help is %q", cmd.Name(), cmd.Short)
		}
	}
	slices.Sort(names)
	if distinct := slices.Compact(slices.Clone(names)); len(distinct) != len(names) {
		t.Errorf("a name is used twice: %v", names)
	}
}

// TestDependencies: users download this program, so it links nothing that only
// the daemons need.
func TestDependencies(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "github.com/deis/deis/cmd/deis").Output()
	if err != nil {
		t.Fatal(err)
	}
	heavy := regexp.MustCompile(`containerd|buildkit|sqlite|database/sql|grpc|prometheus|k8s\.io|go-git|gliderlabs`)
	ours := regexp.MustCompile(`^github\.com/deis/deis/(internal/(api|paas|cli/deis)|cmd/deis)$`)
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		if heavy.MatchString(dep) || (strings.HasPrefix(dep, "github.com/deis/") && !ours.MatchString(dep)) {
			t.Errorf("cmd/deis links %s", dep)
		}
	}
}

// TestAwaitInterrupted: a prompt does not hold up the end.
func TestAwaitInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	stuck := make(chan struct{})
	defer close(stuck)
	cancel()
	_, err := await(ctx, func() (string, error) { <-stuck; return "", nil })
	if err != context.Canceled {
		t.Errorf("got %v", err)
	}
}
