package engine

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/deis/deis/internal/paas"
)

// Credentials are what a registry is shown when an image is pulled. They are secret: formatted
// in whatever way, they hide what is in them.
type Credentials struct {
	// Host is the registry that they are for, as in image references (registry.example.com:5000,
	// docker.io); "" is the registry of the image. No other gets them.
	Host               string
	Username, Password string
}

// CredentialsOf reads the credentials that the values of a config give.
func CredentialsOf(values map[string]string) Credentials {
	return Credentials{
		Host:     registryHost(values[paas.ConfigRegistry]),
		Username: values[paas.ConfigRegistryUsername],
		Password: values[paas.ConfigRegistryPassword],
	}
}

// registryHost understands the ways in which people write a registry.
func registryHost(text string) string {
	host := strings.ToLower(strings.TrimSpace(text))
	host = strings.TrimPrefix(strings.TrimPrefix(host, "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "hub.docker.com":
		return "docker.io"
	}
	return host
}

// For returns the user name and the password for a registry: empty for one that they are not for.
func (c Credentials) For(registry string) (username, password string) {
	if c.Host != "" && c.Host != registryHost(registry) {
		return "", ""
	}
	return c.Username, c.Password
}

// Format implements fmt.Formatter.
func (c Credentials) Format(f fmt.State, _ rune) {
	text := "[credentials]"
	if c == (Credentials{}) {
		text = "[no credentials]"
	}
	_, _ = f.Write([]byte(text)) // a fmt.State takes everything
}

// MarshalJSON hides them, in logs for example.
func (c Credentials) MarshalJSON() ([]byte, error) { return json.Marshal(fmt.Sprint(c)) }
