package build_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/deis/deis/internal/build"
	"github.com/deis/deis/internal/hostnet"
	"github.com/deis/deis/internal/paas"
)

// answer answers every request.
var answer = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") })

// serve serves on an address of this host and returns the port.
func serve(t *testing.T, address string) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: answer, ReadHeaderTimeout: time.Second}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// authority is a certificate authority, as companies have them.
type authority struct {
	file string // its certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(file string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &authority{file: file, key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return a, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}

// config is a server's at an address.
func (a *authority) config(address string) (*tls.Config, error) {
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: address}, IPAddresses: []net.IP{net.ParseIP(address)},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, a.key.Public(), a.key)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: a.key}}}, err
}

// outside makes a machine beyond this host, as the internet is, with a web server, HTTP and HTTPS; it returns
// the server's address and the host's own on the way there.
func (p *platform) outside(t *testing.T) (server, own string) {
	t.Helper()
	return p.outsideServing(t, answer)
}

// outsideServing is outside with what its web server does.
func (p *platform) outsideServing(t *testing.T, handler http.Handler) (server, own string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	if err := hostnet.NewNamespace(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hostnet.RemoveNamespace(path) })
	ns, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	var number int
	if _, err := fmt.Sscanf(p.id[:4], "%x", &number); err != nil {
		t.Fatal(err)
	}
	net30 := fmt.Sprintf("198.18.%d.", number>>8)
	base := number & 0xfc
	own, server = net30+fmt.Sprint(base+1), net30+fmt.Sprint(base+2)
	cable := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "far", PeerNamespace: netlink.NsFd(int(ns))}
	cable.Name = "near" + p.id
	if err := netlink.LinkAdd(cable); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(cable) })
	plug := func(name, addr string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		ip, err := netlink.ParseAddr(addr + "/30")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(link, ip), netlink.LinkSetUp(link))
	}
	if err := plug(cable.Name, own); err != nil {
		t.Fatal(err)
	}
	config, err := p.ca.config(server)
	if err != nil {
		t.Fatal(err)
	}
	listening := make(chan error, 2)
	go func() {
		runtime.LockOSThread() // it ends with the goroutine, in the other namespace
		if err := errors.Join(netns.Set(ns), plug("far", server)); err != nil {
			listening <- err
			return
		}
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp4", server+":80")
		listening <- err
		if err != nil {
			return
		}
		secure, err := new(net.ListenConfig).Listen(context.Background(), "tcp4", server+":443")
		listening <- err
		plain := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
		withTLS := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)}
		t.Cleanup(func() { _, _ = plain.Close(), withTLS.Close() })
		go func() { _ = withTLS.ServeTLS(secure, "", "") }()
		_ = plain.Serve(l)
	}()
	for range 2 {
		if err := <-listening; err != nil {
			t.Fatal(err)
		}
	}
	return server, own
}

// TestStepsReachTheInternetOnly: nothing of this host, of the platform and of other builds; and what a step may
// not reach fails at once.
func TestStepsReachTheInternetOnly(t *testing.T) {
	p := sharedPlatform(t)
	server, own := p.outside(t)
	port := serve(t, "0.0.0.0:0")
	subnet, err := hostnet.Open(hostnet.Options{Name: "deis" + p.id + "b", Dir: filepath.Join(p.dir, "cni")})
	if err != nil {
		t.Fatal(err)
	}
	closed := []string{
		subnet.Gateway.String() + ":" + port, own + ":" + port, "127.0.0.1:" + port,
		"169.254.169.254", "169.254.170.2", "100.100.100.200", // metadata of clouds
	}
	dockerfile := "FROM deis/run\nRUN for a in " + strings.Join(closed, " ") + `; do curl --silent --show-error --max-time 9 http://$a && echo reached $a; done; echo tried
RUN curl --silent --show-error --fail --max-time 9 http://` + server + "/ && echo outside\nCMD true\n"
	_, log, err := p.buildApp(t, newRepo(t), "app-closed", map[string]string{"Dockerfile": dockerfile})
	if err != nil || strings.Contains(log, "       reached ") || !strings.Contains(log, "       tried") || !strings.Contains(log, "       hello\n       outside\n") {
		t.Errorf("%v\n%s", err, log)
	}
	refused := regexp.MustCompile(` after (\d+) ms: `).FindAllStringSubmatch(log, -1)
	if len(refused) != len(closed) {
		t.Errorf("%d of %d refused\n%s", len(refused), len(closed), log)
	}
	for _, r := range refused {
		if len(r[1]) > 3 {
			t.Errorf("a step waits for what it may not reach\n%s", log)
		}
	}
}

// TestFetchesReachTheInternetOnly: what BuildKit fetches for a Dockerfile, it fetches from the host itself.
func TestFetchesReachTheInternetOnly(t *testing.T) {
	p := sharedPlatform(t)
	server, own := p.outside(t)
	port := serve(t, "0.0.0.0:0")
	for _, bad := range []string{"http://127.0.0.1:" + port, "http://" + own + ":" + port, "http://[::1]:" + port, "http://169.254.169.254"} {
		for _, line := range []string{
			"ADD " + bad + "/latest/meta-data /x",
			"ADD " + bad + "/repository.git /x",
			"FROM " + strings.TrimPrefix(bad, "http://") + "/a/b:c",
		} {
			if strings.HasPrefix(line, "FROM") && strings.Contains(line, "[") {
				continue // no image's name
			}
			_, _, err := p.buildApp(t, newRepo(t), "app-fetch", map[string]string{"Dockerfile": "FROM deis/run\n" + line + "\nCMD true\n"})
			e, ok := errors.AsType[*paas.Error](err)
			if !ok || e.Code != paas.Invalid || !strings.Contains(e.Message, "builds may not reach ") {
				t.Errorf("%s: %v", line, err)
			}
		}
	}
	_, log, err := p.buildApp(t, newRepo(t), "app-fetch", map[string]string{"Dockerfile": "FROM deis/run\nADD http://" + server + "/x /x\nRUN cat /x\nCMD true\n"})
	if err != nil || !strings.Contains(log, "       hello\n") {
		t.Errorf("%v\n%s", err, log)
	}
}

// TestStepsDoNotReachEachOther: two builds at a time, of which one knows where the other is.
func TestStepsDoNotReachEachOther(t *testing.T) {
	p := sharedPlatform(t)
	address, ended := make(chan string, 1), make(chan error, 1)
	r := newRepo(t)
	tree := r.open(r.commit(map[string]string{"Dockerfile": "FROM deis/run\nRUN echo at $(hostname -I); python3 -m http.server 8000\nCMD true\n"}))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		_, err := p.builder.Build(ctx, build.Request{App: "app-server", Tree: tree, Log: func(line string) {
			if at, ok := strings.CutPrefix(line, "       at "); ok {
				address <- strings.TrimSpace(at)
			}
		}})
		ended <- err
	}()
	var at string
	select {
	case at = <-address:
	case err := <-ended:
		t.Fatalf("the build of the server: %v", err)
	}
	waitFor(t, func() bool { return get("http://"+at+":8000/") == nil })
	// Kernels that send what crosses a bridge through the firewall would hide that the ports are open.
	ports, err := filepath.Glob("/sys/class/net/deis" + p.id + "b/brif/*/isolated")
	if err != nil || len(ports) == 0 {
		t.Errorf("ports %q, %v", ports, err)
	}
	isolated := slices.ContainsFunc(ports, func(port string) bool { // others wait for a step
		text, err := os.ReadFile(port)
		return err == nil && strings.TrimSpace(string(text)) == "1"
	})
	if !isolated {
		t.Error("no port of the bridge is isolated")
	}
	_, log, err := p.buildApp(t, newRepo(t), "app-client", map[string]string{"Dockerfile": "FROM deis/run\nRUN curl --silent --show-error --max-time 3 http://" + at + ":8000/ && echo reached; echo tried\nCMD true\n"})
	if err != nil || strings.Contains(log, "       reached") || !strings.Contains(log, "       tried") {
		t.Errorf("%v\n%s", err, log)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the build of the server: %v", err)
	}
}

func get(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// TestStepsHaveFewRights: seccomp's filter is on, and capabilities are the common few of containers.
func TestStepsHaveFewRights(t *testing.T) {
	b := mustBuild(t, newRepo(t), "app-rights", map[string]string{"Dockerfile": "FROM deis/run\n" +
		"RUN grep -E '^(Seccomp|CapEff|CapBnd):' /proc/self/status >/rights; unshare --user true || echo no user namespace >>/rights; mount -t tmpfs x /mnt || echo no mount >>/rights\n" +
		"RUN ls /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs | head -1 | xargs -I{} sh -c 'echo 1 >{}' || echo no cgroups >>/rights\nCMD [\"true\"]\n"})
	want := "CapBnd:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nSeccomp:\t2\nno cgroups\nno mount\nno user namespace"
	if got := b.sh("sort /rights"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestCertificates: the operator's certificates are trusted in steps, and leave nothing in the image.
func TestCertificates(t *testing.T) {
	server, _ := sharedPlatform(t).outside(t)
	b := mustBuild(t, newRepo(t), "app-ca", map[string]string{"Dockerfile": "FROM deis/run\n" +
		"RUN curl --silent --show-error --fail --max-time 9 https://" + server + "/\n" +
		"RUN python3 -c 'import urllib.request as u; print(u.urlopen(\"https://" + server + "/\", timeout=9).read())'\n" +
		"USER 1000\nRUN curl --silent --show-error --fail --max-time 9 https://" + server + "/\n" +
		"RUN SSL_CERT_FILE= CURL_CA_BUNDLE= curl --silent https://" + server + "/ || echo mistrusted\n" +
		"ENV SSL_CERT_FILE=/mine\nRUN echo ssl=$SSL_CERT_FILE\nCMD true\n"})
	if n := strings.Count(b.log, "hello"); n != 3 || !strings.Contains(b.log, "       mistrusted") || !strings.Contains(b.log, "       ssl=/mine") {
		t.Errorf("log:\n%s", b.log)
	}
	if got := b.sh("ls /dev | grep deis; find / -xdev -newer /etc/os-release -type f -name '*.pem' | grep deis; true"); got != "" {
		t.Errorf("the image has %s", got)
	}
	for _, kv := range b.config.Config.Env {
		if strings.Contains(kv, "deis-ca") {
			t.Errorf("the image has %s", kv)
		}
	}
}

func TestBadCertificates(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"empty": "", "text": "hello", "broken": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "large": strings.Repeat("#", 1<<20)} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := build.New(t.Context(), build.Options{Address: "/nowhere", ContainerdAddress: "/nowhere", CAFile: path}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := build.New(t.Context(), build.Options{Address: "/nowhere", ContainerdAddress: "/nowhere", CAFile: filepath.Join(dir, "none")}); err == nil {
		t.Error("a file that is not there is taken")
	}
}
