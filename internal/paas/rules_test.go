package paas

import (
	"encoding/json"
	"maps"
	"reflect"
	"strings"
	"testing"
)

func TestWordLists(t *testing.T) {
	for n, words := range map[int][]string{6: adjectives, 8: nouns} {
		seen := map[string]bool{}
		for _, w := range words {
			if len(w) != n || CheckAppID(w) != nil || seen[w] {
				t.Errorf("%q is no word of %d letters, or twice in the list", w, n)
			}
			seen[w] = true
		}
		if len(words) < 100 {
			t.Errorf("only %d words", len(words))
		}
	}
	if id := GenerateAppID(); len(id) != 15 || id[6] != '-' {
		t.Errorf("generated %q", id)
	}
}

func TestParseMemory(t *testing.T) {
	for text, want := range map[string]int64{"1B": 1, "2k": 2 << 10, "128M": 128 << 20, "1gb": 1 << 30, "3MB": 3 << 20, "0B": 0} {
		if got, err := ParseMemory(text); got != want || err != nil {
			t.Errorf("%s = %d %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "1", "M", "1T", "-1M", "1.5G", "1M\n", "99999999999999999999B", "9999999999G"} {
		if _, err := ParseMemory(text); CodeOf(err) != Invalid {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestConfigWith(t *testing.T) {
	base := Config{
		App: "u", Values: map[string]string{"A": "1", "B": "2"}, Memory: map[string]string{"web": "1G"},
		CPU: map[string]int{"web": 5}, Tags: map[string]string{"rack": "x"},
	}
	kept := maps.Clone(base.Values)
	next, err := base.With(ConfigChange{
		Values: map[string]any{"A": nil, "C": json.Number("1.50"), "D": false, "E": []any{"x"}},
		CPU:    map[string]any{"worker": "1024", "web": json.Number("1.9")},
		Memory: map[string]any{"web": nil},
		Tags:   map[string]any{"rack": "y"},
	})
	want := Config{
		App: "u", Values: map[string]string{"B": "2", "C": "1.5", "D": "False", "E": `["x"]`}, Memory: map[string]string{},
		CPU: map[string]int{"web": 1, "worker": 1024}, Tags: map[string]string{"rack": "y"},
	}
	if err != nil || !reflect.DeepEqual(next, want) {
		t.Errorf("config = %+v, %v", next, err)
	}
	if !maps.Equal(base.Values, kept) {
		t.Error("the old config has changed")
	}
	for _, c := range []struct {
		change ConfigChange
		fields map[string][]string
	}{
		{
			ConfigChange{Values: map[string]any{"1": "x", "a-b": "y"}},
			map[string][]string{"values": {"Config keys must start with a letter or underscore and only contain [A-z0-9_]"}},
		},
		{ConfigChange{Values: map[string]any{ConfigReadOnly: "true", "A": "2"}}, map[string][]string{"values": {"DEIS_READ_ONLY must be 1 or 0"}}},
		{ConfigChange{Values: map[string]any{ConfigReadOnly: " 1"}}, map[string][]string{"values": {"DEIS_READ_ONLY must be 1 or 0"}}},
		{
			ConfigChange{Memory: map[string]any{"Web": "1G"}, CPU: map[string]any{"web": json.Number("1025")}},
			map[string][]string{"memory": {msgLimitKey}, "cpu": {"CPU shares must be between 0 and 1024"}},
		},
		{ConfigChange{CPU: map[string]any{"web": json.Number("-1")}}, map[string][]string{"cpu": {"CPU shares must be an integer"}}},
		{ConfigChange{Tags: map[string]any{"rack": "a b"}}, map[string][]string{"tags": {"Invalid tag value"}}},
		{ConfigChange{Tags: map[string]any{"r1": nil}}, map[string][]string{"tags": {"Tag keys can only contain [a-z]"}}},
	} {
		_, err := base.With(c.change)
		if e, ok := err.(*Error); !ok || !reflect.DeepEqual(e.Fields, c.fields) {
			t.Errorf("%+v: %v, want %v", c.change, err, c.fields)
		}
	}
}

// TestReadOnly: what is neither on nor off is refused (TestConfigWith), so that nobody believes it to be on.
func TestReadOnly(t *testing.T) {
	for value, want := range map[any]bool{"1": true, json.Number("1"): true, "0": false, json.Number("0"): false, "": false, nil: false} {
		next, err := Config{Values: map[string]string{ConfigReadOnly: "1"}}.With(ConfigChange{Values: map[string]any{ConfigReadOnly: value}})
		if err != nil || next.ReadOnly() != want {
			t.Errorf("%v: read-only is %t, %v", value, next.ReadOnly(), err)
		}
	}
}

func TestText(t *testing.T) {
	for in, want := range map[any]string{
		"x": "x", true: "True", json.Number("5000"): "5000", json.Number("1.0"): "1.0",
		json.Number("1e3"): "1000.0", json.Number("0.1"): "0.1",
	} {
		if got := Text(in); got != want {
			t.Errorf("%v = %q, want %q", in, got, want)
		}
	}
}

func TestScale(t *testing.T) {
	got, err := ParseScale(map[string]any{"a": "2", "b": json.Number("2.7"), "c": true, "d": json.Number("0")})
	if want := map[string]int{"a": 2, "b": 2, "c": 1, "d": 0}; err != nil || !maps.Equal(got, want) {
		t.Errorf("scale = %v %v, want %v", got, err, want)
	}
	for _, v := range []any{nil, "x", "", []any{}, json.Number("-1"), json.Number("1e99"), json.Number("1001")} {
		if _, err := ParseScale(map[string]any{"web": v}); CodeOf(err) != Invalid {
			t.Errorf("scale to %v: %v", v, err)
		}
	}
}

func TestProcfile(t *testing.T) {
	if faults := CheckProcfile(map[string]string{"web": "x", "a-b_1": "y"}); faults != nil {
		t.Error(faults)
	}
	for _, name := range []string{"", "../x", "a.b", "-x", "a b", strings.Repeat("a", 64), "a\n"} {
		if CheckProcfile(map[string]string{name: "x"}) == nil {
			t.Errorf("%q passes", name)
		}
	}
}

func TestSummaries(t *testing.T) {
	for want, b := range map[string]Build{
		"bob deployed abcdef1": {Owner: "bob", SHA: "abcdef123"}, "bob deployed x:1": {Owner: "bob", Image: "x:1"}, "bob deployed ab": {Owner: "bob", SHA: "ab"},
	} {
		if got := DeploySummary(b); got != want {
			t.Errorf("summary = %q, want %q", got, want)
		}
	}
	if got := ScaleSummary("bob", map[string]int{"worker": 1, "web": 2}); got != "bob scaled containers web=2 worker=1" {
		t.Error(got)
	}
	prev := Config{Values: map[string]string{"A": "canary"}, Tags: map[string]string{"x": "1", "y": "1"}}
	next := Config{Owner: "bob", Values: map[string]string{"A": "canary2"}, Tags: map[string]string{"x": "2", "z": "1"}}
	if got, want := ConfigSummary(prev, next), "bob changed A and bob added tag z, changed tag x, deleted tag y"; got != want {
		t.Errorf("summary = %q, want %q", got, want)
	}
}

func TestNamesOfBuilds(t *testing.T) {
	app := App{UUID: "u1", ID: "shop"}
	for _, c := range []struct {
		image, sha, label, shown string
		allowed                  bool
	}{
		{LocalImages + "u1:git-0123456789ab", "0123456789abcdef", "0123456", "shop", true},
		{LocalImages + "u1@sha256:00", "ab", "ab", "shop", true},
		{LocalImages + "u10:git-0123456789ab", "", LocalImages + "u10:git-0123456789ab", LocalImages + "u10:git-0123456789ab", false},
		{" Deis.Internal/apps/u2:x", "", " Deis.Internal/apps/u2:x", " Deis.Internal/apps/u2:x", false},
		{"example/app:1", "", "example/app:1", "example/app:1", true},
		{"deis/router", "", "deis/router", "deis/router", false},
	} {
		b := Build{Image: c.image, SHA: c.sha}
		if err := CheckImage(b, app); b.Label() != c.label || b.ShownImage(app) != c.shown || (err == nil) != c.allowed {
			t.Errorf("%+v: label %q, shown %q, %v", c, b.Label(), b.ShownImage(app), err)
		}
	}
}

func TestOrderOfMessages(t *testing.T) {
	const pattern, long, slug = "App IDs can only contain [a-z0-9-].", "Ensure this field has no more than 64 characters.", "Enter a valid 'slug' consisting of letters, numbers, underscores or hyphens."
	if got := CheckAppID(strings.Repeat("!", 65)); !reflect.DeepEqual(got, []string{pattern, long, slug}) {
		t.Errorf("app id: %q", got)
	}
	if got := CheckUsername(strings.Repeat("!", 31)); !reflect.DeepEqual(got, []string{"Enter a valid username.", "Ensure this field has no more than 30 characters."}) {
		t.Errorf("username: %q", got)
	}
	for address, ok := range map[string]bool{"": true, "a@b.test": true, "a@localhost": true, "a@b": false, "a b@c.test": false, "a@b..test": false, "@b.test": false} {
		if faults := CheckEmail(address); (faults == nil) != ok {
			t.Errorf("email %q: %q", address, faults)
		}
	}
}

func FuzzNormalizeDomain(f *testing.F) {
	for _, s := range []string{"www.shop.com", "*.x", "a..b", "X.Example.Test.", "-a.b", "1.2.3.4.xip.io"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, faults := NormalizeDomain(s, "example.test")
		if faults != nil {
			return
		}
		if name != strings.ToLower(name) || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || len(name) > maxHost {
			t.Errorf("%q became %q", s, name)
		}
		if again, faults := NormalizeDomain(name, "example.test"); again != name || faults != nil {
			t.Errorf("%q became %q, %v", name, again, faults)
		}
	})
}

func FuzzNewCertificate(f *testing.F) {
	f.Add("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "key", "name")
	f.Fuzz(func(t *testing.T, chain, key, name string) {
		if _, err := NewCertificate(chain, key, name, "example.test"); err != nil && CodeOf(err) != Invalid {
			t.Error(err)
		}
	})
}

func FuzzConfigWith(f *testing.F) {
	f.Add("A", "1")
	f.Fuzz(func(t *testing.T, key, value string) {
		for _, change := range []ConfigChange{
			{Values: map[string]any{key: value}},
			{Memory: map[string]any{key: value}},
			{CPU: map[string]any{key: json.Number(value)}},
			{Tags: map[string]any{key: value}},
		} {
			if _, err := (Config{}).With(change); err != nil && CodeOf(err) != Invalid {
				t.Error(err)
			}
		}
	})
}
