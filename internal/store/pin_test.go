package store

import (
	"testing"

	"github.com/deis/deis/internal/paas"
)

// A build's digest is written once.
func TestPinBuild(t *testing.T) {
	s, app := withApp(t)
	b := paas.Build{App: app.UUID, Owner: app.Owner, Image: "redis:7"}
	if err := s.CreateBuild(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	for _, digest := range []string{"sha256:first", "sha256:second"} {
		if err := s.PinBuild(t.Context(), b.UUID, digest); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.BuildByUUID(t.Context(), b.UUID); err != nil || got.Digest != "sha256:first" {
		t.Errorf("digest %q, %v", got.Digest, err)
	}
	if err := s.PinBuild(t.Context(), "none", "sha256:first"); paas.CodeOf(err) != paas.NotFound {
		t.Errorf("a build that is not there: %v", err)
	}
}
