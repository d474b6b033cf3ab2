package controller

import (
	"net/http"
	"slices"

	"github.com/deis/deis/internal/paas"
)

// The registration modes of contract 3.1.
const (
	// RegistrationEnabled lets anyone register.
	RegistrationEnabled = "enabled"
	// RegistrationDisabled lets nobody, not even superusers.
	RegistrationDisabled = "disabled"
	// RegistrationAdminOnly lets superusers register others.
	RegistrationAdminOnly = "admin_only"
)

// RegistrationModes lists the values of Config.RegistrationMode.
var RegistrationModes = []string{RegistrationEnabled, RegistrationDisabled, RegistrationAdminOnly}

// The values of Config.Engine.
const (
	EngineContainerd = "containerd"
	EngineFake       = "fake"
)

// settings are the rules that an operator may choose. They are never changed
// in place: a change is another value.
type settings struct {
	registration string
	// reserved are the names that no app may have (contract 5.1).
	reserved []string
	// run says whether one-off commands may be run (contract 5.7).
	run bool
	// logs replaces what the log store says, if set.
	logs *logAnswer
}

// defaults are the settings of a controller that nobody has told otherwise.
func (cfg Config) defaults() *settings {
	mode := cfg.RegistrationMode
	if mode == "" {
		mode = RegistrationEnabled
	}
	return &settings{registration: mode, reserved: []string{subdomain}, run: true}
}

// mayRegister is the registration mode's answer to a caller (contract 3.1). What is refused is 403,
// also without credentials.
func (c *call) mayRegister() error {
	switch c.s.settings.Load().registration {
	case RegistrationEnabled:
		return nil
	case RegistrationAdminOnly:
		if c.authenticate() != nil || !c.user.Superuser {
			return &statusError{http.StatusForbidden, errNoCredentials().Error()}
		}
		return nil
	}
	return paas.Errorf(paas.Forbidden, "Registration is disabled")
}

// mayRun is nil where one-off commands are configured (contract 5.7).
func (c *call) mayRun() error {
	if c.s.settings.Load().run {
		return nil
	}
	return paas.Errorf(paas.Invalid, "Support for admin commands is not configured")
}

// checkAppID is paas.CheckAppID with the reserved names.
func (c *call) checkAppID(id string) []string {
	return paas.CheckAppID(id, c.s.settings.Load().reserved...)
}

func validMode(mode string) bool { return slices.Contains(RegistrationModes, mode) }
