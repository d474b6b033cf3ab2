package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deis/deis/internal/hosttest"
	"github.com/deis/deis/internal/supervisor"
)

const (
	// rebootApps is how many apps must come back, with two instances each.
	rebootApps = 4
	// rebootLimit is how long all of them may take, on a machine that does other things too.
	rebootLimit = 3 * time.Minute
)

// TestReboot ends all processes of a platform, as a machine does that loses power, four times:
// once only that, as a kill of everything; then also all that a boot would not find again; and at last so that addresses
// are dealt out anew from the first one, twice, so that instances get those of others. Nobody deploys anything: all apps come up by themselves, each behind
// its own names. While they do, requests to all names are made all the time: they may find nothing, but never another app.
func TestReboot(t *testing.T) {
	p, err := newPlatform("containerd")
	if err != nil {
		t.Fatal(err)
	}
	p.startFor(t)
	u := p.newUser(t, "reboot")
	hosts := map[string]string{} // to app
	want := map[string]int{}
	var first string
	for n := range rebootApps {
		app := fmt.Sprintf("boot-%d", n)
		dir := u.newApp(t, app)
		u.push(t, dir, "before")
		u.must(t, dir, "deis", "scale", "cmd=2")
		u.must(t, dir, "deis", "domains:add", app+".example.com")
		hosts[app+".localhost"], hosts[app+".example.com"] = app, app
		want[app] = 2
		if n == 0 {
			first = dir
		}
	}
	forgetAddresses := func() error { return errors.Join(p.forgetBoot(), os.RemoveAll(filepath.Join(p.root, "cni"))) }
	hands := 0 // addresses of one app that another has after the last round
	round := func(t *testing.T, forget func() error) {
		before := p.addresses(t)
		pids := p.killAll(t)
		if err := forget(); err != nil {
			t.Fatal(err)
		}
		poll := p.pollHosts(t, hosts)
		began := time.Now()
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		started := time.Since(began)
		up := poll.awaitAll(t, began)
		time.Sleep(time.Second)
		answers, other := poll.stop()
		if len(other) > 0 {
			t.Errorf("%d of %d answers were another app's: %s", len(other), answers, other[0])
		}
		p.wantNothingLeft(t, time.Minute, want)
		hands = 0
		for address, app := range p.addresses(t) {
			if was, ok := before[address]; ok && was != app {
				hands++
			}
		}
		t.Logf("%d processes killed; started in %v, all %d apps served after %v; %d answers, %d of another app; %d of %d addresses changed hands",
			pids, started.Round(time.Millisecond), rebootApps, up.Round(time.Millisecond), answers, len(other), hands, len(before))
	}
	for _, c := range []struct {
		name   string
		forget func() error
	}{
		{"kill of everything", func() error { return nil }},
		{"reboot", p.forgetBoot},
		{"reboot, addresses from the first", forgetAddresses},
		{"reboot, the same addresses for others", forgetAddresses},
	} {
		t.Run(c.name, func(t *testing.T) { round(t, c.forget) })
	}
	// Who starts first is chance: each may have got its own address again.
	for again := 0; hands == 0 && again < 3; again++ {
		t.Run("once more", func(t *testing.T) { round(t, forgetAddresses) })
	}
	if hands == 0 {
		t.Error("no address changed hands, so that nothing was tried")
	}
	u.push(t, first, "after")
	if status, body, err := p.get(t.Context(), p.client(false), "boot-0.localhost", "/"); err != nil || !strings.Contains(body, "message=after ") {
		t.Errorf("a push after all: %d %q %v", status, body, err)
	}
}

// addresses tells which app has which address now.
func (p *platform) addresses(t *testing.T) map[string]string {
	t.Helper()
	list, err := p.containers()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, c := range list {
		found[c.address] = c.app
	}
	return found
}

// pids are those of deisctl and of the parts, by name.
func (p *platform) pids(t testing.TB) map[string]int {
	t.Helper()
	doc := struct {
		Supervisor int
		Parts      []supervisor.Status
	}{}
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin(), "deisctl"), "status", "--json")
	cmd.Env = p.env
	out, err := cmd.Output()
	if jsonErr := json.Unmarshal(out, &doc); jsonErr != nil {
		t.Fatalf("deisctl status: %v, %v", err, jsonErr)
	}
	found := map[string]int{"deisctl": doc.Supervisor}
	for _, part := range doc.Parts {
		found[part.Name] = part.PID
	}
	return found
}

// killAll ends every process of the platform at once: daemons, shims, log writers, instances. It
// returns how many there were.
func (p *platform) killAll(t *testing.T) (count int) {
	t.Helper()
	parts := p.pids(t)
	dead := []int{parts["deisctl"]} // first: it would start the others again
	for name, pid := range parts {
		if name != "deisctl" {
			dead = append(dead, pid)
		}
	}
	for pid, args := range processArgs() {
		line := strings.Join(args, " ")
		if !slices.Contains(dead, pid) && (strings.Contains(line, p.root) || strings.Contains(line, "deis-"+p.id())) {
			dead = append(dead, pid)
		}
	}
	for _, id := range p.cgroups() {
		if pid, _ := p.running(id); pid > 0 {
			dead = append(dead, pid)
		}
	}
	for _, pid := range dead {
		if err := kill(pid); err != nil {
			t.Fatal(err)
		}
	}
	for _, pid := range dead {
		if !hosttest.Ended(pid, time.Minute) {
			t.Fatalf("process %d does not end", pid)
		}
	}
	return len(dead)
}

// forgetBoot takes away what does not outlive a boot: mounts, what is below run/, control groups, bridges, firewall
// tables, and the id of the boot, of which the router keeps a note.
func (p *platform) forgetBoot() error {
	errs := []error{unmountBelow(p.root), os.RemoveAll(filepath.Join(p.root, "run")), p.removeCgroups()}
	for _, bridge := range []string{"deis" + p.id(), "deis" + p.id() + "b"} {
		errs = append(errs, ignoreMissing(exec.Command("ip", "link", "delete", bridge).CombinedOutput()))
	}
	tables, err := exec.Command("nft", "list", "tables").Output()
	errs = append(errs, err)
	for line := range strings.Lines(string(tables)) {
		if f := strings.Fields(line); len(f) == 3 && strings.Contains(f[2], p.id()) {
			errs = append(errs, ignoreMissing(exec.Command("nft", "delete", "table", f[1], f[2]).CombinedOutput()))
		}
	}
	return errors.Join(append(errs, p.otherBoot())...)
}

// mountsBelow lists what is mounted below a directory, the latest first.
func mountsBelow(dir string) (points []string) {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	slices.Reverse(points)
	return points
}

func unmountBelow(dir string) error {
	var errs []error
	for _, point := range mountsBelow(dir) {
		errs = append(errs, unix.Unmount(point, unix.MNT_DETACH))
	}
	return errors.Join(errs...)
}

func ignoreMissing(out []byte, err error) error {
	if err == nil || bytes.Contains(out, []byte("Cannot find device")) {
		return nil
	}
	return fmt.Errorf("%w: %s", err, out)
}

func (p *platform) removeCgroups() error {
	var errs []error
	tops, _ := filepath.Glob("/sys/fs/cgroup/*/deis-" + p.id())
	for _, top := range append(tops, "/sys/fs/cgroup/deis-"+p.id()) {
		var dirs []string
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			var err error
			for range 1000 { // the kernel takes a moment over the processes that were in it
				if err = unix.Rmdir(dir); !errors.Is(err, unix.EBUSY) {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// otherBoot makes the router's saved table one of an earlier boot.
func (p *platform) otherBoot() error {
	path := filepath.Join(p.root, "router", "table.json")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	doc := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &doc); err != nil {
		return err
	}
	if len(doc["boot"]) == 0 {
		return errors.New("the saved routing table does not tell the boot")
	}
	doc["boot"] = json.RawMessage(`"an earlier one"`)
	if text, err = json.Marshal(doc); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// hostPoll asks for every host all the time.
type hostPoll struct {
	cancel context.CancelFunc
	work   sync.WaitGroup
	hosts  int

	mu      sync.Mutex
	answers int
	served  map[string]time.Time // host to the first answer
	other   []string
}

func (p *platform) pollHosts(t *testing.T, hosts map[string]string) *hostPoll {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	h := &hostPoll{cancel: cancel, hosts: len(hosts), served: map[string]time.Time{}}
	client := &http.Client{Timeout: 5 * time.Second, Transport: p.client(false).Transport}
	for host, app := range hosts {
		h.work.Go(func() {
			for ; ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
				status, body, err := p.get(ctx, client, host, "/")
				if err != nil || status != http.StatusOK {
					continue
				}
				h.mu.Lock()
				h.answers++
				if field(body, "app=") != app {
					h.other = append(h.other, fmt.Sprintf("%s: %s", host, body))
				} else if h.served[host].IsZero() {
					h.served[host] = time.Now()
				}
				h.mu.Unlock()
			}
		})
	}
	t.Cleanup(func() { h.stop() })
	return h
}

// awaitAll waits until every host was served.
func (h *hostPoll) awaitAll(t *testing.T, began time.Time) time.Duration {
	t.Helper()
	for ; ; time.Sleep(10 * time.Millisecond) {
		h.mu.Lock()
		served, last := len(h.served), began
		for _, at := range h.served {
			if at.After(last) {
				last = at
			}
		}
		h.mu.Unlock()
		if served == h.hosts {
			return last.Sub(began)
		}
		if time.Since(began) > rebootLimit {
			t.Fatalf("%d of %d hosts are served after %v", served, h.hosts, rebootLimit)
		}
	}
}

func (h *hostPoll) stop() (answers int, other []string) {
	h.cancel()
	h.work.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.answers, h.other
}
