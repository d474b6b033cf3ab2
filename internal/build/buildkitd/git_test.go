package buildkitd

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGitProxy asks a server of this host, by HTTP and HTTPS, which is refused unless it is allowed.
func TestGitProxy(t *testing.T) {
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	plain, secure := httptest.NewServer(hello), httptest.NewTLSServer(hello)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	for _, allow := range [][]netip.Prefix{nil, {netip.MustParsePrefix("127.0.0.0/8")}} {
		p, err := openGitProxy(newFetcher(allow))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		transport := secure.Client().Transport.(*http.Transport).Clone()
		transport.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(p.url()) }
		t.Cleanup(transport.CloseIdleConnections)
		client := &http.Client{Transport: transport}
		for _, server := range []string{plain.URL, secure.URL} {
			text, err := ask(client, server)
			if want := allow != nil; (text == "200 hello") != want {
				t.Errorf("%s with %v allowed: %q, %v", server, allow, text, err)
			}
			if allow == nil && !strings.Contains(text+fmt.Sprint(err), "Forbidden") && !strings.Contains(text, "403 ") {
				t.Errorf("%s is refused by: %q, %v", server, text, err)
			}
		}
		if text, err := ask(http.DefaultClient, p.url()); err != nil || !strings.HasPrefix(text, "400 ") {
			t.Errorf("as a server the proxy answers %q, %v", text, err)
		}
	}
}

func ask(client *http.Client, url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, body), err
}

// TestGitScript: a header comes from a file only where BuildKit itself says so, all else reaches git as it is.
func TestGitScript(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "git")
	script := "#!/bin/sh\nfor arg; do echo \"arg $arg\"; done\nenv | grep -E '^(GIT_CONFIG|NO_PROXY)' | sort\n"
	if err := os.WriteFile(fake, []byte(script), 0o755); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, name := range proxyNames {
		t.Setenv(name, "")
	}
	t.Setenv("NO_PROXY", "localhost")
	wrapped := filepath.Join(t.TempDir(), "bin")
	if err := wrapGit(wrapped, "http://127.0.0.1:1"); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("mark\nBasic xyz\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(secret)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const proxy = "arg -c\narg http.proxy=http://127.0.0.1:1\n"
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	header := "http.https://u:p=x@host/.extraheader=Authorization: "
	for _, tt := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"-c", "a=b", "-c", header + path + " mark", "fetch", "a  'b\n*"}, proxy +
			"arg -c\narg a=b\narg -c\narg advice.detachedHead=false\narg fetch\narg a  'b\n*\n" +
			"GIT_CONFIG_COUNT=2\nGIT_CONFIG_KEY_0=http.https://u:p=x@host/.extraheader\nGIT_CONFIG_KEY_1=http.followRedirects\n" +
			"GIT_CONFIG_VALUE_0=Authorization: Basic xyz\nGIT_CONFIG_VALUE_1=false\n", 0},
		{[]string{"fetch", "origin", header + path + " mark"}, proxy + "arg fetch\narg origin\narg " + header + path + " mark\n", 0},
		{[]string{"-c", header + "Basic xyz", "fetch"}, proxy + "arg -c\narg " + header + "Basic xyz\narg fetch\n", 0},
		{[]string{"-c", header + path + " other", "fetch"}, "fatal: the credentials are gone, with the build that brought them\n", 128},
		{[]string{"-c", header + path, "fetch"}, "fatal: the credentials are gone, with the build that brought them\n", 128},
	} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(wrapped, "git"), tt.args...)
		out, _ := cmd.CombinedOutput() // the code says it
		if string(out) != tt.want || cmd.ProcessState.ExitCode() != tt.code {
			t.Errorf("%q: %v\n%s\nwant\n%s", tt.args, cmd.ProcessState, out, tt.want)
		}
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(wrapped, "git"), "-c", header+"/proc/none mark", "fetch").CombinedOutput()
	if err == nil || !strings.HasSuffix(string(out), "fatal: the credentials are gone, with the build that brought them\n") {
		t.Errorf("without the file: %v\n%s", err, out)
	}
}
