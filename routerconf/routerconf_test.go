package routerconf

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestTableValidateReportsEveryFault(t *testing.T) {
	table := Table{
		Routes: []Route{
			{Host: "a.example.com", Targets: []Target{{ID: "1", Address: "10.0.0.1:5000"}}},
			{Host: "a.example.com"},
			{Host: "b.example.com", Targets: []Target{{Address: "10.0.0.1:1"}, {ID: "x", Address: "10.0.0.1"}, {ID: "x", Address: "h:0"}}},
		},
		Certificates: []Certificate{
			{Name: "c.example.com", Chain: "chain", Key: "SECRET"},
			{Name: "c.example.com", Chain: "chain", Key: "SECRET"},
			{Name: "d.example.com", Key: "SECRET"},
		},
	}
	err := table.Validate()
	if err == nil {
		t.Fatal("a table full of faults is valid")
	}
	for _, want := range []string{
		`route "a.example.com": host appears twice`, "has no id", "missing port", `bad address "h:0"`, "target x appears twice",
		`certificate "c.example.com": name appears twice`, `certificate "d.example.com": chain or key is empty`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "SECRET") {
		t.Errorf("error shows a key: %v", err)
	}
}

func TestHosts(t *testing.T) {
	for host, ok := range map[string]bool{
		"a.example.com": true, "localhost": true, "-a--b-.localhost": true, "123": true, "_x.y": true,
		strings.Repeat("a", 64) + ".example.com": true,
		"":                                       false, "A.example.com": false, "a.example.com.": false, ".a": false, "a..b": false,
		"a:80": false, "a b": false, "*.example.com": false, "\u00e4.de": false, "a/b": false, "a\x00": false,
		strings.Repeat("a.", 126) + "aa": false,
	} {
		r := Route{Host: host}
		if err := r.Validate(); (err == nil) != ok {
			t.Errorf("route %q: %v", host, err)
		}
	}
	for name, ok := range map[string]bool{"*.example.com": true, "a.example.com": true, "*": false, "*.": false, "a.*.b": false, "**.a": false} {
		c := Certificate{Name: name, Chain: "c", Key: "k"}
		if err := c.Validate(); (err == nil) != ok {
			t.Errorf("certificate %q: %v", name, err)
		}
	}
	big := Certificate{Name: "a", Chain: strings.Repeat("c", MaxCertificate), Key: "k"}
	if big.Validate() == nil {
		t.Error("a certificate beyond the limit is valid")
	}
	if many := (Route{Host: "a", Targets: make([]Target, MaxTargets+1)}); many.Validate() == nil {
		t.Error("a route with too many targets is valid")
	}
}

// What is valid survives encoding, so that a router's own file is never
// refused on its next start.
func FuzzChange(f *testing.F) {
	f.Add([]byte(`{"generation":1,"snapshot":{"generation":1,"domain":"d","routes":[{"host":"a.d","app":"a","targets":[{"id":"1","address":"10.0.0.1:80"}]}],"certificates":[{"name":"*.d","chain":"c","key":"k"}]}}`))
	f.Add([]byte(`{"generation":2,"set_routes":[{"host":"b"}],"drop_routes":["a"],"drop_certificates":[""]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c Change
		if json.Unmarshal(data, &c) != nil || c.Snapshot == nil || c.Snapshot.Validate() != nil {
			return
		}
		again, err := json.Marshal(c.Snapshot)
		if err != nil {
			t.Fatal(err)
		}
		var table Table
		if err := json.Unmarshal(again, &table); err != nil {
			t.Fatal(err)
		}
		if err := table.Validate(); err != nil {
			t.Fatalf("valid before encoding only: %v", err)
		}
	})
}
