package e2e

import (
	"bufio"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// A push, a config change, a scale and a rollback of a served app, each under
// constant load: no request fails, and old and new answer in turn.
func TestNoRequestFailsWhileAnAppChanges(t *testing.T) {
	u := shared.newUser(t, "load")
	dir := u.newApp(t, "e2e-load")
	u.push(t, dir, "first")

	l := shared.startLoad(t, "e2e-load.localhost", "/", 200)
	slow := shared.startLoad(t, "e2e-load.localhost", "/slow?for=300ms", 10)
	time.Sleep(300 * time.Millisecond)
	u.push(t, dir, "second")
	u.must(t, dir, "deis", "config:set", "GREETING=hi")
	u.must(t, dir, "deis", "scale", "cmd=3")
	u.must(t, dir, "deis", "scale", "cmd=1")
	u.must(t, dir, "deis", "ps:restart")
	u.must(t, dir, "deis", "rollback", "v2")
	time.Sleep(300 * time.Millisecond)
	l.stop(t, "message=first release=v2", "message=second", "greeting=hi", "message=first release=v5")
	slow.stop(t, "slow answer")
}

// A WebSocket of one app lives through whatever happens to another.
func TestWebSocketLivesThroughDeploysOfAnotherApp(t *testing.T) {
	u := shared.newUser(t, "socket")
	quiet := u.newApp(t, "e2e-quiet")
	busy := u.newApp(t, "e2e-busy")
	u.push(t, quiet, "quiet")
	u.push(t, busy, "one")

	conn, resp, err := websocket.Dial(t.Context(), "ws://e2e-quiet.localhost/echo", &websocket.DialOptions{HTTPClient: &http.Client{Transport: shared.client(true).Transport}})
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body != nil {
		defer resp.Body.Close()
	}
	defer conn.CloseNow()
	echo := func(text string) {
		t.Helper()
		if err := conn.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
			t.Fatalf("write %s: %v", text, err)
		}
		_, got, err := conn.Read(t.Context())
		if err != nil || string(got) != text {
			t.Fatalf("echo of %s: %q, %v", text, got, err)
		}
	}
	echo("before")
	u.push(t, busy, "two")
	echo("after a push")
	u.must(t, busy, "deis", "scale", "cmd=2")
	echo("after a scale")
	u.must(t, busy, "deis", "domains:add", "busy.example.com")
	echo("after a domain")
	u.must(t, busy, "deis", "destroy", "--confirm=e2e-busy")
	echo("after a destroy")
}

// Two pushes to one app at once: one is refused at once, in a line.
func TestSecondPushIsRefusedWhileOneIsGoing(t *testing.T) {
	u := shared.newUser(t, "twice")
	dir := u.newApp(t, "e2e-twice")
	u.push(t, dir, "first")
	writeFile(t, dir, "Dockerfile", "FROM deis/run\nCOPY app /app\nCOPY message /message\nRUN sleep 10\nEXPOSE 5000\nCMD [\"/app\"]\n")
	u.must(t, dir, "git", "add", "-A")
	u.must(t, dir, "git", "commit", "-q", "-m", "slow")
	push := u.command(t.Context(), dir, "git", "push", "deis", "master")
	said, err := push.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := push.Start(); err != nil {
		t.Fatal(err)
	}
	building, first := make(chan struct{}), make(chan error, 1)
	go func() {
		once := sync.OnceFunc(func() { close(building) })
		for lines := bufio.NewScanner(said); lines.Scan(); {
			if strings.Contains(lines.Text(), "RUN sleep") {
				once()
			}
		}
		once()
		first <- push.Wait()
	}()
	<-building
	out, err := u.run(t.Context(), dir, "git", "push", "deis", "master:main")
	if err == nil || !strings.Contains(out, "Another git push is ongoing") {
		t.Errorf("second push: %v\n%s", err, out)
	}
	select {
	case err := <-first:
		t.Error("the refusal came when the first push had ended")
		first <- err
	default:
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// Two platforms run side by side on one machine: other root, other addresses,
// the same app name.
func TestTwoPlatformsSideBySide(t *testing.T) {
	other, err := newPlatform("fake")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := other.start(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Cleanup(func() {
		if err := other.close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("a platform with the fake engine started in %v", took)
	u, v := shared.newUser(t, "side"), other.newUser(t, "side")
	u.push(t, u.newApp(t, "e2e-side"), "here")
	dir := v.newApp(t, "e2e-side")
	v.push(t, dir, "there")
	if out := v.must(t, dir, "deis", "ps"); !strings.Contains(out, "cmd.1 up (v2)") {
		t.Errorf("ps of the fake engine:\n%s", out)
	}
	status, body, err := shared.get(t.Context(), shared.client(false), "e2e-side.localhost", "/")
	if err != nil || status != 200 || !strings.Contains(body, "message=here") {
		t.Errorf("%d %s %v", status, body, err)
	}
	for name, st := range other.status(t) {
		if name == "containerd" || name == "buildkitd" || st.State != "running" {
			t.Errorf("part %s of the fake platform is %s", name, st.State)
		}
	}
	if want := fmt.Sprint(len(other.status(t))); want != "3" {
		t.Errorf("%s parts, want 3", want)
	}
}
