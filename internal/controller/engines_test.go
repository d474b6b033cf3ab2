package controller

import (
	"fmt"
	"testing"
)

func TestParseAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "[]",
		":80,:443, 127.0.0.1:2222":        "[0.0.0.0:80 0.0.0.0:443 127.0.0.1:2222]",
		"[::]:8080,192.0.2.1:8443":        "[[::]:8080 192.0.2.1:8443]",
		"80":                              "",
		"192.0.2.1:no-such-service-there": "",
	} {
		got, err := parsePublic(text)
		if (err != nil) != (want == "") || err == nil && fmt.Sprint(got) != want {
			t.Errorf("public %q: %v, %v, want %s", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                            "[] []",
		"192.0.2.1, 192.0.2.0/24":     "[] [192.0.2.1/32 192.0.2.0/24]",
		"192.0.2.1:5432,198.51.100.1": "[192.0.2.1:5432] [198.51.100.1/32]",
		"db.example.com":              "",
		"192.0.2.1/33":                "",
		"2001:db8::1":                 "",
	} {
		ports, prefixes, err := parseAllow(text)
		if (err != nil) != (want == "") || err == nil && fmt.Sprint(ports, prefixes) != want {
			t.Errorf("allow %q: %v %v, %v, want %s", text, ports, prefixes, err, want)
		}
	}
}
