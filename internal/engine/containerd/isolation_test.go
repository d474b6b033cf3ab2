package containerd

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/deis/deis/internal/engine"
	"github.com/deis/deis/internal/engine/containerd/containerdtest"
	"github.com/deis/deis/internal/paas"
)

// listen serves "reached" on all addresses of this machine.
func listen(t *testing.T) (port uint16) {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "reached") }))
	srv.Listener.Close()
	l, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// ask asks for /ok from an instance of app A. Busybox's wget is no good for that: linked statically, it may crash.
// Whoever does not answer within a time is not reached.
func (b *bench) ask(addr string, within time.Duration) string {
	b.t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		b.t.Fatal(err)
	}
	script := fmt.Sprintf(`printf 'GET /ok HTTP/1.0\r\n\r\n' | nc -w %d %s %s 2>&1; true`, int(within.Seconds()), host, port)
	return b.output(b.spec(appA, "", 1, []string{"/bin/sh", "-c", script}).Process)
}

// TestReach: of this machine an instance reaches the router and nothing else.
func TestReach(t *testing.T) {
	t.Parallel()
	public, private, allowed := listen(t), listen(t), listen(t)
	own := ownAddress(t)
	b := newDaemonAndBench(t)
	b.Close()
	b.opts.Public = []netip.AddrPort{netip.AddrPortFrom(netip.IPv6Unspecified(), public), netip.AddrPortFrom(netip.MustParseAddr(own), allowed), {}}
	b.open()
	b.apply(b.spec(appB, "web", 1, serveCmd))
	neighbour := b.list(appB)[0].Address
	b.serves(b.list(appB)[0])
	gateway := b.network.Gateway.String()
	at := func(host string, port uint16) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }
	for _, c := range []struct {
		what, addr string
		want       bool
	}{
		{"the router", at(gateway, public), true},
		{"the router at the machine's own address", at(own, public), true},
		{"a port of one address", at(own, allowed), true},
		{"that port at another", at(gateway, allowed), false},
		{"a private port", at(gateway, private), false},
		{"a private port at the machine's own address", at(own, private), false},
		{"an instance of another app", neighbour, false},
		{"the cloud's metadata", "169.254.169.254:80", false},
	} {
		within := 2 * time.Second // what is dropped is never answered
		if c.want {
			within = time.Minute
		}
		out := b.ask(c.addr, within)
		if strings.Contains(out, "reached\n") != c.want || strings.Contains(out, "ok\n") {
			t.Errorf("%s at %s: %q, want it reached: %t", c.what, c.addr, out, c.want)
		}
	}
	b.clean()
}

// TestConfinement: what a process that is root in its instance cannot do.
func TestConfinement(t *testing.T) {
	t.Parallel()
	b := newDaemonAndBench(t)
	run := func(process engine.Process, script string) string {
		process.Command = []string{"/bin/sh", "-c", script}
		return b.output(process)
	}
	root := b.spec(appA, "", 1, nil).Process
	for what, script := range map[string]string{
		"make a device":                   "mknod /tmp/sda b 8 0",
		"send frames":                     "arping -c 1 -I eth0 " + b.network.Gateway.String(),
		"change its address":              "ip addr add 10.0.0.1/32 dev eth0",
		"mount":                           "mount -t tmpfs x /tmp",
		"make namespaces":                 "unshare -n true",
		"make user namespaces":            "unshare -U true",
		"change the kernel":               "echo 1 > /proc/sys/kernel/panic",
		"reboot by key":                   "echo b > /proc/sysrq-trigger",
		"write to /sys":                   "echo 1 > /sys/kernel/mm/ksm/run",
		"change its limits":               "echo 1 > /sys/fs/cgroup/pids/pids.max || echo 1 > /sys/fs/cgroup/pids.max",
		"read the kernel's memory":        "test $(head -c 1 /proc/kcore | wc -c) -gt 0",
		"read the kernel's log":           "dmesg",
		"escape the kernel's choice":      "echo -900 > /proc/self/oom_score_adj",
		"set the clock":                   "date -s 2001-01-01; test $(date +%Y) = 2001",
		"change the host's name files":    "echo x > /etc/hosts",
		"see processes of others":         "test $(ls -d /proc/[0-9]* | wc -l) -gt 6",
		"find sockets of the platform":    "find / -xdev -type s | grep .",
		"find the platform's files":       "test -e " + b.opts.Root,
		"use privileges on files":         "cp /bin/busybox /tmp/b && setcap cap_net_raw+ep /tmp/b",
		"trace the first process":         "strace -p 1",
		"take a second life by a set-uid": "cp /bin/busybox /tmp/su && chown 1234 /tmp/su && chmod 4755 /tmp/su && test $(/tmp/su id -u) = 1234",
	} {
		if out := run(root, "{ "+script+"; } >/tmp/out 2>&1 && echo it can; true"); out != "" {
			t.Errorf("%s: %q", what, out)
		}
	}
	b.daemon.Import(b.ns, containerdtest.Image{
		Name: "docker.io/library/custom:latest", Config: ocispec.ImageConfig{User: "1234"},
	})
	user := engine.Process{Image: "custom"}
	if out := run(user, "grep CapEff /proc/self/status; cat /proc/sys/net/ipv4/ping_group_range; httpd -p 80 && echo listens"); !strings.Contains(out, "CapEff:\t0000000000000000") ||
		!strings.Contains(out, "0\t2147483647\n") || !strings.Contains(out, "listens") {
		t.Errorf("another user: %q", out)
	}
	root.ReadOnly = true
	out := run(root, "touch /x /bin/x 2>&1; for d in /tmp /var/tmp /run; do touch $d/x && echo $d; done; dd if=/dev/zero of=/tmp/big bs=1M count=80 2>&1 | grep -c 'No space'; cat /etc/hosts | grep -c localhost")
	for _, want := range []string{"touch: /x: Read-only file system", "touch: /bin/x: Read-only", "/tmp\n/var/tmp\n/run\n", "\n1\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("with a read-only root: %q lacks %q", out, want)
		}
	}
	b.clean()
}

// TestNeighbours: whatever an instance does, those beside it serve on. How fast is not asserted: with the same base image they
// want locks of the kernel that one of the bomb's processes may hold while all others have their turn.
func TestNeighbours(t *testing.T) { // not in parallel: other tests would be neighbours too
	b := newDaemonAndBench(t)
	b.apply(b.spec(appB, "web", 1, serveCmd))
	spec := b.spec(appA, "web", 1, serveCmd)
	spec.Process.Memory = 32 << 20
	b.apply(spec)
	before := append(b.list(appA), b.list(appB)...)
	for _, inst := range before {
		b.serves(inst)
	}
	slowest, failed := time.Duration(0), 0
	watch := func(d time.Duration, until func() bool) {
		t.Helper()
		for end := time.Now().Add(d); time.Now().Before(end) && !until(); time.Sleep(20 * time.Millisecond) {
			for _, inst := range before {
				began := time.Now()
				if err := b.Probe(t.Context(), inst, engine.Check{Path: "/ok", Timeout: time.Minute}); err != nil {
					failed++
				}
				slowest = max(slowest, time.Since(began))
			}
		}
	}
	hog := b.spec(appA, "hog", 1, []string{"/bin/sh", "-c", "sleep 0.2; x=x; while :; do x=$x$x; done"})
	hog.Process.Memory = 32 << 20
	b.apply(hog)
	state := func(processType string) engine.Instance {
		for _, inst := range b.list(appA) {
			if inst.Type == processType {
				return inst
			}
		}
		return engine.Instance{}
	}
	watch(time.Minute, func() bool { return state("hog").State == paas.StateCrashed })
	if got := state("hog"); !strings.HasPrefix(got.Reason, "killed, because it used more memory than its limit") {
		t.Errorf("the hog: %+v", got)
	}
	bomb := b.spec(appA, "bomb", 1, []string{"/bin/sh", "-c", "trap '' TERM; f() { f & f & wait; }; while :; do f; done 2>/dev/null"})
	bomb.Process.CPUShares, bomb.Process.Memory = 2, 512<<20
	b.apply(bomb)
	watch(4*time.Second, func() bool { return false })
	began := time.Now()
	if err := b.Remove(t.Context(), bomb.SetKey); err != nil {
		t.Errorf("remove the bomb: %v", err)
	}
	t.Logf("the slowest answer took %v, removing the bomb %v", slowest, time.Since(began))
	if failed > 0 {
		t.Errorf("%d probes of the neighbours failed", failed)
	}
	for _, inst := range before {
		b.serves(inst)
		if now := b.list(inst.App); now[len(now)-1].ID != inst.ID {
			t.Errorf("%s was touched: %+v", inst.App, now)
		}
	}
	b.clean()
}
