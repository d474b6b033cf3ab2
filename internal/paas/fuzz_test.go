package paas

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzParseScale(f *testing.F) {
	for _, s := range []string{`{"web":3}`, `{"web":"2","worker":2.7,"cmd":true}`, `{"a":-1}`, `{"a":1e999}`, `{"a":[]}`, `{"":null}`, `{"a":" 7_0 "}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		dec := json.NewDecoder(strings.NewReader(body))
		dec.UseNumber()
		var request map[string]any
		if dec.Decode(&request) != nil {
			return
		}
		counts, err := ParseScale(request)
		if err != nil {
			if CodeOf(err) != Invalid {
				t.Errorf("%s: %v", body, err)
			}
			return
		}
		for processType, n := range counts {
			if n < 0 || n > MaxInstances {
				t.Errorf("%s: %d of %q", body, n, processType)
			}
		}
		if len(counts) != len(request) {
			t.Errorf("%s became %v", body, counts)
		}
	})
}

func FuzzParseMemory(f *testing.F) {
	for _, s := range []string{"512M", "1gb", "0B", "9223372036854775807B", "9223372036854775807G", "-1M", "1 M", "M"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, limit string) {
		n, err := ParseMemory(limit)
		if err != nil {
			if CodeOf(err) != Invalid {
				t.Errorf("%q: %v", limit, err)
			}
			return
		}
		if n < 0 || strings.Trim(strings.ToUpper(limit), "0123456789BKMG") != "" {
			t.Errorf("%q is %d bytes", limit, n)
		}
	})
}

func FuzzKeyBlob(f *testing.F) {
	for _, s := range []string{"ssh-rsa AAAA", "ssh-rsa foo_bar", "junk", "", "ssh-ed25519 AAAA me\nssh-ed25519 AAAA"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, public string) {
		blob, fault := KeyBlob(public)
		if fault == "" && len(strings.Fields(public)) < 2 {
			t.Errorf("%q has the blob %x", public, blob)
		}
		if fault == "" && len(Fingerprint(blob)) != 47 {
			t.Errorf("%q has the fingerprint %s", public, Fingerprint(blob))
		}
	})
}

// What passes as a name is safe in host names, paths and lines.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"shop", "-", "a.b@c", "../etc", "x\n", "web", "example/app:1", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if CheckAppID(s) == nil && (s == "" || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || len(s) > MaxAppID) {
			t.Errorf("app %q", s)
		}
		if CheckUsername(s) == nil && (s == "" || strings.ContainsAny(s, "/ \t\r\n\x00") || utf8.RuneCountInString(s) > MaxUsername) {
			t.Errorf("user %q", s)
		}
		if CheckProcfile(map[string]string{s: "run"}) == nil && (s == "" || strings.ContainsAny(s, "/. \t\r\n\x00")) {
			t.Errorf("process type %q", s)
		}
		if CheckEmail(s) == nil && strings.ContainsAny(s, " \r\n") {
			t.Errorf("email %q", s)
		}
	})
}
