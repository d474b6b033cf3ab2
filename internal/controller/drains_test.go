package controller

import (
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/drain"
)

// drainHost is the address of this machine that drains of the tests' platforms may reach.
const drainHost = "127.0.0.2"

// TestDrains: lines of instances and of the platform reach an app's drain, also
// those written while the controller was down, and no other app's.
func TestDrains(t *testing.T) {
	server, err := net.ListenPacket("udp", drainHost+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	url := "syslog://" + server.LocalAddr().String()
	next := func() string {
		buf := make([]byte, 4096)
		server.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, _, err := server.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	want := func(suffixes ...string) {
		t.Helper()
		got := next()
		for _, suffix := range suffixes {
			if strings.HasSuffix(got, suffix) {
				return
			}
		}
		t.Fatalf("the drain got %q, want one of %q", got, suffixes)
	}
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	alice.app("other", "web")
	alice.says(`{"values":["DEIS_LOG_DRAIN: log drains speak syslog, tcp or tls, not \"https\"."]}`, 400,
		"POST", "/v1/apps/shop/config", `{"values":{"DEIS_LOG_DRAIN":"https://logs.example.com"}}`)
	alice.want(201, "POST", "/v1/apps/shop/config", `{"values":{"DEIS_LOG_DRAIN":"`+url+`"}}`)
	var list api.Drains
	for len(list.Drains) == 0 {
		alice.json(&list, 200, "GET", "/v1/apps/shop/drains", nil)
	}
	if list.Drains[0].URL != url {
		t.Errorf("drains: %+v", list)
	}
	alice.says(`{"drains":[]}`, 200, "GET", "/v1/apps/other/drains", nil)
	p.drainsFollow(t, "shop")
	alice.want(201, "POST", "/v1/apps/other/domains", `{"domain":"other.shop.com"}`)
	alice.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"www.shop.com"}`)
	want(" shop deis deis-controller - - domain www.shop.com added")
	alice.want(204, "POST", "/v1/apps/shop/scale", `{"web":2}`)
	want(" shop deis deis-controller - - alice scaled containers web=2")
	all, err := p.engine.Instances(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, inst := range all {
		p.engine.Write(inst.ID, "hello from "+inst.AppID)
	}
	want(" shop deis web.1 - - hello from shop", " shop deis web.2 - - hello from shop")
	want(" shop deis web.1 - - hello from shop", " shop deis web.2 - - hello from shop")

	p.stop()
	p.start()
	alice = p.login("alice")
	alice.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"two.shop.com"}`)
	for {
		if got := next(); strings.HasSuffix(got, " - - domain two.shop.com added") {
			break
		} else if strings.Contains(got, "www.shop.com") {
			t.Errorf("sent again: %q", got)
		}
	}
	alice.want(201, "POST", "/v1/apps/shop/config", `{"values":{"DEIS_LOG_DRAIN":null}}`)
	for len(list.Drains) > 0 {
		alice.json(&list, 200, "GET", "/v1/apps/shop/drains", nil)
	}
}

// TestDrainsOfAppsAreGuarded: the controller dials what a member names from within the host, so its own
// services and other apps must not be named. What the operator names is not asked about.
func TestDrainsOfAppsAreGuarded(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Addr().String())
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	alice.want(201, "POST", "/v1/apps/shop/config", `{"values":{"DEIS_LOG_DRAIN":"tcp://127.0.0.1:`+port+`,tls://localhost:`+port+`"}}`)
	reasons := func() (list []string) {
		var answer api.Drains
		alice.json(&answer, 200, "GET", "/v1/apps/shop/drains", nil)
		for _, d := range answer.Drains {
			if d.Error != "" {
				list = append(list, d.Error)
			}
		}
		return list
	}
	for range 100 {
		if len(reasons()) == 2 {
			break
		}
		alice.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"www.shop.com"}`)
		alice.want(204, "DELETE", "/v1/apps/shop/domains/www.shop.com", nil)
		time.Sleep(50 * time.Millisecond)
	}
	for i, got := range append(reasons(), "", "")[:2] {
		if !strings.Contains(got, "is an address of the platform itself") {
			t.Errorf("drain %d says %q", i, got)
		}
	}
	server.(*net.TCPListener).SetDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := server.Accept(); err == nil {
		t.Error("a connection came")
	}
}

func TestDrainGuard(t *testing.T) {
	ports, prefixes, err := parseAllow("127.0.0.3:514, 127.0.0.2, 169.254.0.0/16, 10.0.0.0/8")
	if err != nil {
		t.Fatal(err)
	}
	g := drainGuard{ports, prefixes}
	for address, want := range map[string]bool{
		"tcp 127.0.0.1:8020": false, "udp 127.0.0.1:514": false, "tcp [::1]:8020": false, "tcp [::ffff:127.0.0.1]:8020": false,
		"tcp 0.0.0.0:8020": false, "udp 169.254.169.254:80": false, "tcp [fe80::1%1]:601": false, "udp 224.0.0.1:514": false,
		"tcp 127.0.0.2:601": true, "udp 127.0.0.2:601": true, "tcp 127.0.0.3:514": true, "udp 127.0.0.3:514": false, "tcp 127.0.0.3:515": false,
		"tcp 192.0.2.1:601": true, "udp [2001:db8::1]:514": true,
	} {
		network, address, _ := strings.Cut(address, " ")
		if err := g.control(network+"4", address, nil); (err == nil) != want {
			t.Errorf("%s %s: %v", network, address, err)
		}
	}
}

// TestDrainsKeepWhatWaits: what a server has not taken yet survives a change of the other drains, and
// another controller.
func TestDrainsKeepWhatWaits(t *testing.T) {
	server, err := net.Listen("tcp", drainHost+":0")
	if err != nil {
		t.Fatal(err)
	}
	addr := server.Addr().String()
	server.Close()
	p := newPlatform(t)
	alice := p.user("alice")
	alice.app("shop", "web")
	drains := func(list string, n int) {
		t.Helper()
		alice.want(201, "POST", "/v1/apps/shop/config", `{"values":{"DEIS_LOG_DRAIN":"`+list+`"}}`)
		var answer api.Drains
		for len(answer.Drains) != n {
			alice.json(&answer, 200, "GET", "/v1/apps/shop/drains", nil)
		}
	}
	drains("tcp://"+addr, 1)
	p.drainsFollow(t, "shop")
	write := func(text string) {
		t.Helper()
		eventually(t, "the old instance is gone", func() bool { return instances(t, p.engine) == 1 })
		all, err := p.engine.Instances(t.Context(), "")
		if err != nil || len(all) != 1 {
			t.Fatalf("%d instances, %v", len(all), err)
		}
		p.engine.Write(all[0].ID, text)
	}
	came := func(texts ...string) {
		t.Helper()
		server, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		server.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
		conn, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		var got string
		buf := make([]byte, 4096)
		for len(texts) > 0 {
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatalf("%q did not come, but %q: %v", texts, got, err)
			}
			got += string(buf[:n])
			texts = slices.DeleteFunc(texts, func(text string) bool { return strings.Contains(got, text) })
		}
	}
	write("before the change")
	alice.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"one.shop.com"}`)
	p.drainsWait(t, "shop", 2)
	drains("syslog://"+drainHost+":9,tcp://"+addr, 2)
	came("before the change", "domain one.shop.com added")

	time.Sleep(time.Second) // the end of the connection is seen
	write("before the restart")
	alice.want(201, "POST", "/v1/apps/shop/domains", `{"domain":"two.shop.com"}`)
	p.drainsWait(t, "shop", 2)
	p.stop()
	p.start()
	came("before the restart", "domain two.shop.com added")
}

// drainsFollow waits until an app's drains have found where they begin: with what comes from then on.
func (p *platform) drainsFollow(t *testing.T, app string) {
	t.Helper()
	uuid := appUUID(t, p, app)
	eventually(t, "the drains follow", func() bool {
		p.s.drains.mu.Lock()
		defer p.s.drains.mu.Unlock()
		m := p.s.drains.marks[uuid]
		return m.Activity > 0 && !m.Line.IsZero()
	})
}

// drainsWait waits until one of an app's drains, the one whose server takes nothing, has so many lines to send.
func (p *platform) drainsWait(t *testing.T, app string, lines int) {
	t.Helper()
	uuid := appUUID(t, p, app)
	eventually(t, "the lines are queued", func() bool {
		p.s.drains.mu.Lock()
		defer p.s.drains.mu.Unlock()
		return slices.ContainsFunc(p.s.drains.apps[uuid].drains, func(one *appDrain) bool { return one.Unsent(func(drain.Line) {}) == lines })
	})
}
