package deis

import (
	"context"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
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
