package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

const (
	// soakRate is requests a second to each app; half of them over new connections.
	soakRate = 75
	// soakSecure is those over HTTPS, to a name with a certificate that nobody touches.
	soakSecure = 20
	// soakSockets is open WebSockets to each app. Each sends and gets a message every soakBeat.
	soakSockets = 100
	soakBeat    = time.Second
	// soakDrain is the drain limit of the tests' platform.
	soakDrain = 5 * time.Second
	// soakEnd is how long an instance may go on once its drain limit is over: TERM, KILL, a busy machine.
	soakEnd = 30 * time.Second
)

// TestSoak changes two apps at random, both at once, while they are under load and have open WebSockets.
// DEIS_SOAK_OPS is how many changes there are (24), DEIS_SOAK_SEED repeats their order.
//
// What counts, and must be 0:
//
//   - A request that gets no answer, another status than 200, or the answer of another app. All requests are GETs:
//     one that is on its way to an instance when that is killed is sent to another by the router. Instances are
//     killed only where another one serves; the requests are sent at their rate whether or not earlier ones were answered.
//   - A change that fails, or is not seen by a request within two seconds of its success.
//   - A WebSocket that ends although its instance goes on, or before its time: it may end only because the test killed
//     its instance, or because a change of its own app took the instance away, and then not before the drain limit.
//     Whatever ends is opened again at once, and an attempt that fails counts as a request.
func TestSoak(t *testing.T) {
	ops, _ := strconv.Atoi(envOr("DEIS_SOAK_OPS", "24"))
	seed, _ := strconv.ParseUint(envOr("DEIS_SOAK_SEED", strconv.FormatInt(time.Now().UnixNano(), 10)), 10, 64)
	t.Logf("%d changes; DEIS_SOAK_SEED=%d repeats their order", ops, seed)
	u := shared.newUser(t, "soak")
	var apps []*soakApp
	for i, name := range []string{"soak-a", "soak-b"} {
		apps = append(apps, newSoakApp(t, u, name, rand.New(rand.NewPCG(seed, uint64(i)))))
	}
	safe := apps[0].secure(t, "safe.soak.example.com")

	var loads []*load
	for _, a := range apps {
		loads = append(loads, shared.startLoad(t, a.name+".localhost", "/", soakRate))
		a.open(t)
	}
	loads = append(loads, shared.startLoadOver(t, safe, "https", "safe.soak.example.com", "/", soakSecure))
	began := time.Now()
	var work sync.WaitGroup
	for _, a := range apps {
		work.Go(func() { a.change(t, ops/len(apps)) })
	}
	work.Wait()
	took := time.Since(began)
	time.Sleep(soakDrain + 2*time.Second) // until what the last changes took away has ended
	for i, l := range loads {
		l.stop(t, "app="+apps[i%len(apps)].name)
		l.wantOnly(t, "app="+apps[i%len(apps)].name)
	}
	done := map[string]int{}
	for _, a := range apps {
		a.close(t)
		for kind, n := range a.done {
			done[kind] += n
		}
	}
	t.Logf("%v for %v", took.Round(time.Second), done)
}

// soakApp is one of the apps, with its sockets.
type soakApp struct {
	name, dir string
	u         *user
	random    *rand.Rand
	done      map[string]int
	pushes    int
	count     int // instances
	domains   []string
	certs     []string

	sockets sync.WaitGroup
	stop    context.CancelFunc

	mu      sync.Mutex
	changes []soakChange // that take instances away
	killed  map[string]time.Time
	opened  int
	drained int
	cut     int // by kills
	broken  []string
}

// soakChange is when a change was under way.
type soakChange struct {
	what       string
	begin, end time.Time // end is zero until then
}

func newSoakApp(t *testing.T, u *user, name string, random *rand.Rand) *soakApp {
	t.Helper()
	a := &soakApp{name: name, u: u, random: random, dir: u.newApp(t, name), done: map[string]int{}, count: 2, killed: map[string]time.Time{}}
	u.push(t, a.dir, "push-0")
	u.must(t, a.dir, "deis", "scale", "cmd=2")
	return a
}

// secure gives the app a name with a certificate, and returns a client that knows it.
func (a *soakApp) secure(t *testing.T, host string) *http.Client {
	t.Helper()
	cert, key, err := selfSigned(t.TempDir(), host)
	if err != nil {
		t.Fatal(err)
	}
	a.u.must(t, a.dir, "deis", "domains:add", host)
	a.u.must(t, a.dir, "deis", "certs:add", cert, key)
	pool := x509.NewCertPool()
	text, err := os.ReadFile(cert)
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatal(err)
	}
	c := shared.clientAt(shared.https, true)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool}
	return c
}

// change makes changes one after the other. Those of the first round are in a random order, so
// that even a short soak has every kind; then they come as chance has it.
func (a *soakApp) change(t *testing.T, count int) {
	kinds := map[string]func(context.Context) error{
		"push": a.push, "config": a.config, "scale": a.scale, "rollback": a.rollback, "restart": a.restart,
		"domain": a.domain, "certificate": a.certificate, "kill": a.kill,
	}
	order := slices.Sorted(maps.Keys(kinds))
	for n := range count {
		if n%len(order) == 0 && n < 2*len(order) {
			a.random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		kind := order[n%len(order)]
		if n >= 2*len(order) {
			kind = order[a.random.IntN(len(order))]
		}
		began := time.Now()
		if err := kinds[kind](t.Context()); err != nil {
			t.Errorf("%s: change %d, %s: %v", a.name, n, kind, err)
		}
		a.done[kind]++
		if testing.Verbose() && count > 100 {
			t.Logf("%s %s: change %d, %s: %v", began.Format("15:04:05"), a.name, n, kind, time.Since(began).Round(time.Millisecond))
		}
	}
}

// taking does what takes instances away.
func (a *soakApp) taking(what string, do func() error) error {
	a.mu.Lock()
	a.changes = append(a.changes, soakChange{what: what, begin: time.Now()})
	i := len(a.changes) - 1
	a.mu.Unlock()
	err := do()
	a.mu.Lock()
	a.changes[i].end = time.Now()
	a.mu.Unlock()
	return err
}

func (a *soakApp) deis(ctx context.Context, args ...string) error {
	_, err := a.u.run(ctx, a.dir, "deis", args...)
	return err
}

// awaitAnswer waits until a new request is answered with a text.
func (a *soakApp) awaitAnswer(ctx context.Context, want string) error {
	body, err := "", error(nil)
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(5 * time.Millisecond) {
		if _, body, err = shared.get(ctx, shared.client(false), a.name+".localhost", "/"); err == nil && strings.Contains(body, want) {
			return nil
		}
	}
	return fmt.Errorf("no answer with %q: %q, %w", want, body, err)
}

func (a *soakApp) push(ctx context.Context) error {
	a.pushes++
	message := fmt.Sprintf("push-%d", a.pushes)
	if err := os.WriteFile(filepath.Join(a.dir, "message"), []byte(message), 0o644); err != nil {
		return err
	}
	if _, err := a.u.run(ctx, a.dir, "git", "commit", "-q", "-a", "-m", message); err != nil {
		return err
	}
	err := a.taking("push", func() error { _, err := a.u.run(ctx, a.dir, "git", "push", "-q", "deis", "master"); return err })
	return errors.Join(err, a.awaitAnswer(ctx, "message="+message+" "))
}

func (a *soakApp) config(ctx context.Context) error {
	value := fmt.Sprintf("g%d", a.random.IntN(1e9))
	err := a.taking("config", func() error { return a.deis(ctx, "config:set", "GREETING="+value) })
	return errors.Join(err, a.awaitAnswer(ctx, "greeting="+value+" "))
}

func (a *soakApp) scale(ctx context.Context) error {
	count := 1 + a.random.IntN(4)
	down := count < a.count
	a.count = count
	do := func() error { return a.deis(ctx, "scale", fmt.Sprintf("cmd=%d", count)) }
	if down {
		return a.taking("scale", do)
	}
	return do()
}

func (a *soakApp) restart(ctx context.Context) error {
	what := []string{"", "cmd", "cmd.1"}[a.random.IntN(3)]
	args := []string{"ps:restart"}
	if what != "" {
		args = append(args, what)
	}
	return a.taking("restart", func() error { return a.deis(ctx, args...) })
}

// rollback goes to one of the last releases, whose images are kept.
func (a *soakApp) rollback(ctx context.Context) error {
	_, body, err := shared.get(ctx, shared.client(false), a.name+".localhost", "/")
	now, _ := strconv.Atoi(field(body, "release=v"))
	if err != nil || now < 2 {
		return fmt.Errorf("no release in %q: %w", body, err)
	}
	if now == 2 {
		return nil
	}
	first := max(2, now-8)
	to := first + a.random.IntN(now-first)
	err = a.taking("rollback", func() error { return a.deis(ctx, "rollback", fmt.Sprintf("v%d", to)) })
	return errors.Join(err, a.awaitAnswer(ctx, fmt.Sprintf("release=v%d ", now+1)))
}

// field is the word after a name in an answer.
func field(body, name string) string {
	_, rest, _ := strings.Cut(body, name)
	word, _, _ := strings.Cut(rest, " ")
	return strings.TrimSpace(word)
}

func (a *soakApp) domain(ctx context.Context) error {
	if len(a.domains) > 0 && a.random.IntN(2) == 0 {
		host := a.domains[0]
		a.domains = a.domains[1:]
		return a.deis(ctx, "domains:remove", host)
	}
	host := fmt.Sprintf("d%d.%s.example.com", a.random.IntN(1e9), a.name)
	if err := a.deis(ctx, "domains:add", host); err != nil {
		return err
	}
	a.domains = append(a.domains, host)
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		status, body, err := shared.get(ctx, shared.client(false), host, "/")
		if err == nil && status == 200 && strings.Contains(body, "app="+a.name) {
			return nil
		}
		if time.Since(began) > 10*time.Second {
			return fmt.Errorf("%s is not served: %d %q %w", host, status, body, err)
		}
	}
}

func (a *soakApp) certificate(ctx context.Context) error {
	if len(a.certs) > 0 && a.random.IntN(2) == 0 {
		host := a.certs[0]
		a.certs = a.certs[1:]
		return a.deis(ctx, "certs:remove", host)
	}
	host := fmt.Sprintf("c%d.%s.example.com", a.random.IntN(1e9), a.name)
	dir, err := os.MkdirTemp("", "deis-soak-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cert, key, err := selfSigned(dir, host)
	if err == nil {
		err = a.deis(ctx, "domains:add", host)
	}
	if err == nil {
		err = a.deis(ctx, "certs:add", cert, key)
	}
	if err != nil {
		return err
	}
	a.certs = append(a.certs, host)
	var served string
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(5 * time.Millisecond) {
		c, err := tls.Dial("tcp", shared.https, &tls.Config{ServerName: host, InsecureSkipVerify: true})
		if err != nil {
			return err
		}
		served = c.ConnectionState().PeerCertificates[0].Subject.CommonName
		c.Close()
		if served == host {
			return nil
		}
	}
	return fmt.Errorf("the certificate of %s is for %s", host, served)
}

// kill ends the process of an instance where another one serves, and waits until the platform has noticed.
func (a *soakApp) kill(ctx context.Context) error {
	if a.count < 2 {
		a.count = 2
		if err := a.deis(ctx, "scale", "cmd=2"); err != nil {
			return err
		}
	}
	up, err := a.up(ctx)
	if err != nil || len(up) < 2 { // one was killed a moment ago
		return err
	}
	list, err := shared.containers()
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(c container) bool {
		return c.app != a.name || c.pid == 0 || !slices.Contains(up, fmt.Sprintf("v%d.%d", c.version, c.num))
	})
	// Old instances of the same release may drain beside the new ones after a restart.
	latest := map[int]container{}
	for _, c := range list {
		if c.generation >= latest[c.num].generation {
			latest[c.num] = c
		}
	}
	if len(latest) < 2 || !a.redundant(ctx) {
		return nil
	}
	nums := slices.Sorted(maps.Keys(latest))
	victim := latest[nums[a.random.IntN(len(nums))]]
	a.mu.Lock()
	a.killed[victim.address] = time.Now()
	a.mu.Unlock()
	if err := kill(victim.pid); err != nil {
		return err
	}
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
		if up, err = a.up(ctx); err != nil || !slices.Contains(up, fmt.Sprintf("v%d.%d", victim.version, victim.num)) {
			return err
		}
		if now, err := shared.containers(); err == nil && !slices.ContainsFunc(now, func(c container) bool { return c.id == victim.id }) {
			return nil // replaced already
		}
	}
	return fmt.Errorf("deis ps does not notice that %v was killed", victim)
}

// redundant reports whether the router has two instances to choose from: the one that follows a killed one is up before it
// serves.
func (a *soakApp) redundant(ctx context.Context) bool {
	boots := map[string]bool{}
	for range 50 {
		if _, body, err := shared.get(ctx, shared.client(false), a.name+".localhost", "/"); err == nil {
			boots[field(body, "boot=")] = true
		}
		if len(boots) > 1 {
			return true
		}
	}
	return false
}

// up lists the instances that deis ps calls up, as v<release>.<number>.
func (a *soakApp) up(ctx context.Context) (list []string, err error) {
	out, err := a.u.run(ctx, a.dir, "deis", "ps", "--json")
	if err != nil {
		return nil, err
	}
	var doc []struct {
		Num            int
		State, Release string
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		return nil, fmt.Errorf("deis ps --json: %w: %s", err, out)
	}
	for _, c := range doc {
		if c.State == "up" {
			list = append(list, fmt.Sprintf("%s.%d", c.Release, c.Num))
		}
	}
	return list, nil
}

// open opens the sockets and keeps them open.
func (a *soakApp) open(t *testing.T) {
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	a.stop = stop
	client := &http.Client{Transport: shared.client(false).Transport}
	first := make(chan error, soakSockets)
	for range soakSockets {
		a.sockets.Go(func() { a.keep(ctx, client, first) })
	}
	for range soakSockets {
		if err := <-first; err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { stop(); a.sockets.Wait() })
}

// keep keeps one socket open.
func (a *soakApp) keep(ctx context.Context, client *http.Client, first chan<- error) {
	for ctx.Err() == nil {
		dial, cancel := context.WithTimeout(ctx, 30*time.Second)
		conn, resp, err := websocket.Dial(dial, "ws://"+a.name+".localhost/echo", &websocket.DialOptions{HTTPClient: client})
		cancel()
		if first != nil {
			first <- err
			first = nil
		}
		if err != nil {
			if ctx.Err() == nil {
				a.broke("it could not be opened: %v", err)
				time.Sleep(soakBeat)
			}
			continue
		}
		a.mu.Lock()
		a.opened++
		a.mu.Unlock()
		address, boot, _ := strings.Cut(resp.Header.Get("X-Instance"), " ")
		err = echoes(ctx, conn)
		conn.CloseNow()
		if ctx.Err() == nil {
			a.ended(ctx, address, boot, err)
		}
	}
}

// echoes sends messages and wants them back until that fails.
func echoes(ctx context.Context, conn *websocket.Conn) error {
	ended := make(chan error, 1)
	came := make(chan string, 1)
	go func() {
		for {
			_, got, err := conn.Read(ctx)
			if err != nil {
				ended <- err
				return
			}
			came <- string(got)
		}
	}()
	for n := 0; ; n++ {
		text := strconv.Itoa(n)
		if err := conn.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			return err
		}
		select {
		case got := <-came:
			if got != text {
				return fmt.Errorf("%q came back as %q", text, got)
			}
		case err := <-ended:
			return err
		case <-time.After(20 * time.Second):
			return errors.New("no echo for 20 s")
		}
		select {
		case err := <-ended:
			return err
		case <-time.After(soakBeat):
		}
	}
}

// ended judges the end of a socket.
func (a *soakApp) ended(ctx context.Context, address, boot string, cause error) {
	at := time.Now()
	if alive(ctx, address, boot) {
		a.broke("its instance %s goes on: %v", address, cause)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if when, ok := a.killed[address]; ok && at.Sub(when) < soakEnd {
		a.cut++
		return
	}
	for _, c := range a.changes {
		if at.Sub(c.begin) >= soakDrain && (c.end.IsZero() || at.Sub(c.end) < soakDrain+soakEnd) {
			a.drained++
			return
		}
	}
	a.broken = append(a.broken, fmt.Sprintf("%s: the instance %s of a socket ended too early: %v", at.Format("15:04:05.000"), address, cause))
}

func (a *soakApp) broke(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.broken = append(a.broken, time.Now().Format("15:04:05.000: ")+fmt.Sprintf(format, args...))
}

// alive asks an instance itself whether it is there: by its address and when it began.
func alive(ctx context.Context, address, boot string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+":5000/", nil)
	if err != nil {
		return false
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return strings.Contains(string(body), "boot="+boot+" ")
}

// close ends the sockets and says how they fared.
func (a *soakApp) close(t *testing.T) {
	t.Helper()
	a.stop()
	a.sockets.Wait()
	t.Logf("%s: %d sockets opened, %d ended by drains, %d by kills, %d broken", a.name, a.opened, a.drained, a.cut, len(a.broken))
	if len(a.broken) > 0 {
		t.Errorf("%s: %d sockets broke; the first: %s", a.name, len(a.broken), strings.Join(a.broken[:min(5, len(a.broken))], "\n"))
	}
}

// selfSigned writes a certificate for a host and its key.
func selfSigned(dir, host string) (cert, key string, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(cryptorand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return "", "", err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", err
	}
	cert, key = filepath.Join(dir, host+".pem"), filepath.Join(dir, host+".key")
	err = errors.Join(
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600))
	return cert, key, err
}
