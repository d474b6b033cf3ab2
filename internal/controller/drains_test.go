package controller

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/deis/deis/internal/api"
)

// TestDrains: lines of instances and of the platform reach an app's drain, also
// those written while the controller was down, and no other app's.
func TestDrains(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
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
	time.Sleep(100 * time.Millisecond) // it begins with what comes from now on
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
