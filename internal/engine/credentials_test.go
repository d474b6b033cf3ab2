package engine

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/deis/deis/internal/paas"
)

func TestCredentials(t *testing.T) {
	values := map[string]string{paas.ConfigRegistryUsername: "ann", paas.ConfigRegistryPassword: "s3cret"}
	for _, c := range []struct {
		setting, registry string
		want              bool
	}{
		{"", "registry.example.com", true},
		{"", "docker.io", true},
		{"registry.example.com", "registry.example.com", true},
		{" https://Registry.example.com/v2/ ", "registry.example.com", true},
		{"registry.example.com:5000", "registry.example.com:5000", true},
		{"registry.example.com", "registry.example.com:5000", false},
		{"registry.example.com", "example.com", false},
		{"registry.example.com", "registry.example.com.evil.org", false},
		{"https://index.docker.io/v1/", "docker.io", true},
		{"docker.io", "ghcr.io", false},
	} {
		values[paas.ConfigRegistry] = c.setting
		user, password := CredentialsOf(values).For(c.registry)
		if c.want && (user != "ann" || password != "s3cret") || !c.want && (user != "" || password != "") {
			t.Errorf("%q for %s: %q, %q", c.setting, c.registry, user, password)
		}
	}
	process := Process{Registry: CredentialsOf(values)}
	text, err := json.Marshal(process)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprint(process), fmt.Sprintf("%+v %#v %s %q", process, process, process.Registry, process.Registry), string(text)} {
		if strings.Contains(text, "s3cret") || strings.Contains(text, "ann") {
			t.Errorf("shown: %s", text)
		}
	}
}
